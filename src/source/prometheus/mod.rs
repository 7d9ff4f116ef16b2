//! A Prometheus server: its blocks, those of its head among them, by a snapshot that it makes itself.
//!
//! The snapshot (`POST /api/v1/admin/tsdb/snapshot`) lies on the server's own disk, as hard links to its blocks and a new
//! block of what was in memory. So the data directory must be readable here, and writable: the snapshot is removed when
//! the last file of it was read, also when the run fails. In the repository a block's files lie at the top, as in a data
//! directory; a server starts from them. Blocks never change: their files are known again by size, time and inode.
//! What the server says of its configuration and rules is in `config/`, with secrets masked by the server.
//!
//! What the guard can compare: the external labels, if there are any, tell servers apart; the time of the newest sample is
//! the position, and the recovery point; samples are the objects. Deliberately absent: the write-ahead log (the snapshot
//! has what it holds), exemplars, and restoring into a running server, which has no way to take blocks.

mod api;
mod block;
mod disk;
mod segment;

use super::command::plain_file;
use super::http::{self, Tls};
use super::{Context, Needs, Say, Source, SourceError, unpack};
use crate::entry::{Facts, Layout, Problem, Sink};
use crate::secret::SecretRef;
use api::Api;
use disk::Snapshot;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// `http://HOST:9090`, with the server's path prefix if it has one.
    pub address: String,
    pub tls: Option<Tls>,
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    /// A bearer token, instead of a user.
    pub token: Option<SecretRef>,
    /// Where the server's data directory (`--storage.tsdb.path`) is mounted here; absolute, and writable.
    pub data_directory: PathBuf,
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        let mut files: Vec<_> = self.tls.iter().flat_map(Tls::files).collect();
        files.push(&self.data_directory);
        Needs { files, secrets: self.password.iter().chain(&self.token).collect(), account: false }
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        http::check_address(&self.address, "address", say);
        http::check_login(self.username.as_ref(), self.password.as_ref(), self.token.as_ref(), say);
        if !self.data_directory.is_absolute() {
            say("dataDirectory", "expected an absolute path");
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
    }
}

#[derive(Debug)]
pub struct Prometheus {
    spec: Spec,
}

impl Prometheus {
    pub fn new(spec: Spec) -> Self {
        Self { spec }
    }
}

impl Source for Prometheus {
    fn kind(&self) -> &'static str {
        "prometheus"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let api = Api::new(&self.spec)?;
        let version = api.version(context)?;
        api.must_give_snapshots(context)?;
        disk::must_be_writable(&self.spec.data_directory)?;
        let directory = self.spec.data_directory.display();
        Ok(vec![format!("{}: Prometheus {version}; {directory} is readable and writable", api.address())])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let api = Api::new(&self.spec)?;
        let version = api.version(context)?;
        api.must_give_snapshots(context)?;
        disk::must_be_writable(&self.spec.data_directory)?;
        let config = api.config(context)?;
        let rules = api.rules(context)?;
        let name = api.snapshot(context)?;
        let snapshot = Arc::new(Snapshot::new(&self.spec.data_directory, &name));
        let asked = context.now().as_millisecond();
        let blocks = block::list(&snapshot.path)?;
        let Some(newest) = blocks.iter().map(|block| block.meta.max_time - 1).max() else {
            return Err(SourceError::Empty { path: api.address().to_owned() });
        };
        let labels = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
        let sum = |number: fn(&block::Stats) -> u64| blocks.iter().map(|block| number(&block.meta.stats)).sum::<u64>();
        let details = [
            ("address", api.address().to_owned()),
            ("version", version),
            ("external_labels", labels.clone()),
            ("blocks", blocks.len().to_string()),
            ("series_in_blocks", sum(|stats| stats.series).to_string()),
            ("rule_files", rules.len().to_string()),
            ("secrets_masked_in_config", config.masked.to_string()),
        ];
        let facts = Facts {
            system: (!labels.is_empty()).then_some(labels),
            position: u64::try_from(newest).ok(),
            objects: Some(sum(|stats| stats.samples)),
            // Some exporters' clocks are ahead.
            recovery_point_ms: Some(newest.min(asked)),
            details: details.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        for block in blocks {
            context.go_on()?;
            for text in block.faults()? {
                sink.problem(Problem { path: block.ulid.clone().into_bytes(), text });
            }
            block.hand_over(&snapshot, sink)?;
        }
        let files = [("config/prometheus.yml".to_owned(), config.yaml)].into_iter().chain(rules);
        for (path, text) in files {
            let entry = plain_file(path.into_bytes(), text.len() as u64, context.started);
            unpack::hand_over(context, sink, entry, Layout::Content, &mut text.as_bytes())?;
        }
        Ok(facts)
    }
}
