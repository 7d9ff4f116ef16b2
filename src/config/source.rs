//! `kind: Source`: one thing that is protected.

use super::At;
use super::decode::Wrong;
use super::node::Node;
use crate::id::SourceName;
use crate::policy::{Tier, duration, guard};
use crate::source;
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug)]
pub struct Source {
    pub name: SourceName,
    pub at: At,
    /// What the source itself asks for; [`super::Config::tier`] also looks at the schedules.
    pub tier: Option<Tier>,
    pub capture: source::Spec,
    pub guard: guard::Rules,
    /// Who keeps the keys that its snapshots are worth nothing without, and that no source captures.
    pub held_elsewhere: Vec<String>,
    /// The sources that a restore plan must bring back before it (an application's objects need its secrets).
    pub needs: Vec<SourceName>,
    /// The sources that a run which captures them too captures first (rows before the files that they name).
    pub capture_after: Vec<SourceName>,
}

const KINDS: [&str; 16] = [
    "files",
    "alertmanager",
    "command",
    "etcd",
    "git",
    "kubernetes",
    "mariadb",
    "mariadbBackup",
    "postgresql",
    "postgresqlDump",
    "prometheus",
    "redis",
    "sqlite",
    "terraform",
    "vault",
    "volume",
];

/// The document's spec. The kinds are fields, so that the decoder can name them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    tier: Option<Tier>,
    files: Option<source::files::Spec>,
    alertmanager: Option<source::alertmanager::Spec>,
    command: Option<source::command::Spec>,
    etcd: Option<source::etcd::Spec>,
    git: Option<source::git::Spec>,
    kubernetes: Option<source::kubernetes::Spec>,
    mariadb: Option<source::mariadb::Spec>,
    mariadb_backup: Option<source::mariadb_backup::Spec>,
    postgresql: Option<source::postgresql::Spec>,
    postgresql_dump: Option<source::postgresql_dump::Spec>,
    prometheus: Option<source::prometheus::Spec>,
    redis: Option<source::redis::Spec>,
    sqlite: Option<source::sqlite::Spec>,
    terraform: Option<source::terraform::Spec>,
    vault: Option<source::vault::Spec>,
    volume: Option<source::volume::Spec>,
    #[serde(default)]
    held_elsewhere: Vec<String>,
    #[serde(default)]
    needs: Vec<SourceName>,
    #[serde(default)]
    capture_after: Vec<SourceName>,
    #[serde(default)]
    guard: Guard,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Guard {
    minimum_share: Option<f64>,
}

impl Document {
    pub(super) fn into_source(
        self,
        name: SourceName,
        at: At,
        document: &Node,
        directory: &Path,
    ) -> Result<Source, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut say = |field: &str, message: &str| {
            wrong.push(Wrong { line: document.line_of(field), field: field.into(), message: message.into() });
        };
        let share = self.guard.minimum_share;
        if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            say("spec.guard.minimumShare", "expected a number from 0 to 1");
        }
        let kinds = [
            self.files.map(source::Spec::Files),
            self.alertmanager.map(source::Spec::Alertmanager),
            self.command.map(source::Spec::Command),
            self.etcd.map(source::Spec::Etcd),
            self.git.map(source::Spec::Git),
            self.kubernetes.map(source::Spec::Kubernetes),
            self.mariadb.map(source::Spec::Mariadb),
            self.mariadb_backup.map(source::Spec::MariadbBackup),
            self.postgresql.map(source::Spec::Postgresql),
            self.postgresql_dump.map(source::Spec::PostgresqlDump),
            self.prometheus.map(source::Spec::Prometheus),
            self.redis.map(source::Spec::Redis),
            self.sqlite.map(source::Spec::Sqlite),
            self.terraform.map(source::Spec::Terraform),
            self.vault.map(source::Spec::Vault),
            self.volume.map(source::Spec::Volume),
        ];
        let mut kinds: Vec<_> = kinds.into_iter().flatten().collect();
        for kind in &mut kinds {
            let field = kind.field();
            kind.check(directory, &mut |below, message| say(&format!("spec.{field}.{below}"), message));
            if let source::Spec::Command(source::command::Spec { timeout: Some(timeout), .. }) = kind
                && let Err(why) = duration::parse(timeout)
            {
                say("spec.command.timeout", &why.to_string());
            }
        }
        if kinds.len() != 1 {
            say("spec", &format!("expected exactly one of {}", KINDS.join(", ")));
        }
        match kinds.pop() {
            Some(capture) if wrong.is_empty() => {
                let guard = guard::Rules { minimum_share: share.unwrap_or(guard::Rules::default().minimum_share) };
                let Self { tier, held_elsewhere, needs, capture_after, .. } = self;
                Ok(Source { name, at, tier, capture, guard, held_elsewhere, needs, capture_after })
            }
            _ => Err(wrong),
        }
    }
}
