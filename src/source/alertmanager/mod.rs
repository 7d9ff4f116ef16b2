//! An Alertmanager: its silences, and its configuration.
//!
//! `silences.json` is what `GET /api/v2/silences` lists of silences that have not ended, in the order of their ids;
//! `amtool silence import --force` takes it. `config/alertmanager.yml` is the file that the document names, or else what the
//! server tells of its configuration, in which it masks secrets. Members of a cluster share silences: one is enough.
//!
//! What the guard can compare: there is no identity and no position that lasts. The objects are all silences that the
//! server remembers, those that have ended among them, which it keeps for five days: a server that lost its volume has
//! none. None at all is a legal state. Deliberately absent: alerts, which Prometheus sends again, and the notification log,
//! which the API does not give: after a loss, people may be notified a second time.

mod restore;
mod silence;

pub use restore::Restoring;
pub(super) use silence::FILE as SILENCES;

use super::command::plain_file;
use super::http::{self, Api, Login, Server, Tls};
use super::{Context, Needs, Say, Source, SourceError, unpack};
use crate::entry::{Facts, Layout, Sink};
use crate::secret::SecretRef;
use serde::Deserialize;
use silence::Silence;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Bytes of a configuration.
const LARGEST_CONFIG: u64 = 16 << 20;
/// What the server writes in place of a secret.
const MASK: &str = "<secret>";
const CONFIG: &str = "config/alertmanager.yml";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// `http://HOST:9093`, with the server's path prefix if it has one.
    pub address: String,
    pub tls: Option<Tls>,
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    /// A bearer token, instead of a user.
    pub token: Option<SecretRef>,
    /// The configuration itself, if it can be read here; absolute.
    pub config_file: Option<PathBuf>,
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        let mut files: Vec<_> = self.tls.iter().flat_map(Tls::files).collect();
        files.extend(self.config_file.as_deref());
        Needs { files, secrets: self.password.iter().chain(&self.token).collect(), account: false }
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        http::check_address(&self.address, "address", say);
        http::check_login(self.username.as_ref(), self.password.as_ref(), self.token.as_ref(), say);
        if self.config_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            say("configFile", "expected an absolute path");
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
    }
}

const SILENCES_OF: &str = "/api/v2/silences";

fn connect(spec: &Spec) -> Result<Api, SourceError> {
    let login = Login::read(spec.username.as_ref(), spec.password.as_ref(), spec.token.as_ref())?;
    Ok(Api::new("Alertmanager", Server::new(&spec.address, spec.tls.as_ref())?, login))
}

/// Its version, and what it tells of its configuration.
fn status(context: &Context, api: &Api) -> Result<(String, String), SourceError> {
    let attempt = "ask";
    let status = api.get(context, "/api/v2/status", attempt)?;
    let config = status["config"]["original"].as_str().ok_or_else(|| api.odd(attempt))?;
    let version = status["versionInfo"]["version"].as_str().unwrap_or("of an unknown version");
    Ok((version.to_owned(), config.to_owned()))
}

/// All that it remembers.
fn silences(context: &Context, api: &Api) -> Result<Vec<Silence>, SourceError> {
    let attempt = "list the silences of";
    let listed = api.get(context, SILENCES_OF, attempt)?;
    silence::parse(listed).ok_or_else(|| api.odd(attempt))
}

fn read_config(path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |text: String| SourceError::System {
        attempt: format!("read Alertmanager's configuration {}", path.display()),
        text,
        need: "is it mounted, and the file that the server uses?".into(),
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST_CONFIG + 1).read_to_end(&mut bytes));
    match read.map_err(|error: io::Error| failed(error.to_string()))? {
        0 => Err(failed("it is empty".into())),
        length if length as u64 > LARGEST_CONFIG => Err(failed("it is too large".into())),
        _ => Ok(bytes),
    }
}

#[derive(Debug)]
pub struct Alertmanager {
    spec: Spec,
}

impl Alertmanager {
    pub fn new(spec: Spec) -> Self {
        Self { spec }
    }
}

impl Source for Alertmanager {
    fn kind(&self) -> &'static str {
        "alertmanager"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let api = connect(&self.spec)?;
        let (version, _) = status(context, &api)?;
        let silences = silences(context, &api)?.into_iter().filter(Silence::lasts).count();
        if let Some(path) = &self.spec.config_file {
            read_config(path)?;
        }
        Ok(vec![format!("{}: Alertmanager {version}, {silences} silences", api.server.address)])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let api = connect(&self.spec)?;
        let (version, told) = status(context, &api)?;
        let asked = context.now();
        let silences = silences(context, &api)?;
        let (config, masked) = match &self.spec.config_file {
            Some(path) => (read_config(path)?, None),
            None => (told.as_bytes().to_vec(), Some(told.matches(MASK).count())),
        };
        let known = silences.len();
        let lasting: Vec<_> = silences.into_iter().filter(Silence::lasts).collect();
        let mut details = vec![
            ("address", api.server.address.clone()),
            ("version", version),
            ("silences", lasting.len().to_string()),
            ("silences_ended", (known - lasting.len()).to_string()),
        ];
        match (&self.spec.config_file, masked) {
            (Some(path), _) => details.push(("config_file", path.display().to_string())),
            (None, masked) => details.push(("secrets_masked_in_config", masked.unwrap_or(0).to_string())),
        }
        for (path, bytes) in [(SILENCES, silence::file(&lasting)), (CONFIG, config)] {
            let entry = plain_file(path.as_bytes().to_vec(), bytes.len() as u64, context.started);
            unpack::hand_over(context, sink, entry, Layout::Records, &mut &bytes[..])?;
        }
        Ok(Facts {
            system: None,
            position: None,
            objects: Some(known as u64),
            recovery_point_ms: Some(asked.as_millisecond()),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}
