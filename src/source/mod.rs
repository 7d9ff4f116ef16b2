//! What is protected: one module per kind of system, chosen by one visible `match` ([`Spec::open`]).

pub mod alertmanager;
mod clock;
pub mod command;
pub mod connection;
pub mod escrow;
pub mod etcd;
pub mod files;
pub mod git;
pub mod http;
pub mod kubernetes;
pub mod mariadb;
pub mod mariadb_backup;
pub mod postgresql;
pub mod postgresql_dump;
pub mod probe;
pub mod prometheus;
pub mod redis;
pub mod sqlite;
pub mod target;
pub mod terraform;
mod unpack;
pub mod vault;
pub mod volume;

use crate::entry::{Facts, Sink, Stopped, Supply};
use crate::secret::SecretRef;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The part of a `Source` document that says what is captured and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Spec {
    Alertmanager(alertmanager::Spec),
    Files(files::Spec),
    Command(command::Spec),
    Etcd(etcd::Spec),
    Git(git::Spec),
    Kubernetes(kubernetes::Spec),
    Mariadb(mariadb::Spec),
    MariadbBackup(mariadb_backup::Spec),
    Postgresql(postgresql::Spec),
    PostgresqlDump(postgresql_dump::Spec),
    Prometheus(prometheus::Spec),
    Redis(redis::Spec),
    Sqlite(sqlite::Spec),
    Terraform(terraform::Spec),
    Vault(vault::Spec),
    Volume(volume::Spec),
}

impl Spec {
    /// The source that this describes. Nothing is contacted yet.
    pub fn open(&self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::Alertmanager(spec) => Box::new(alertmanager::Alertmanager::new(spec.clone())),
            Self::Files(spec) => Box::new(files::Files::new(spec.clone())?),
            Self::Command(spec) => Box::new(command::Command::new(spec.clone())?),
            Self::Etcd(spec) => Box::new(etcd::Etcd::new(spec.clone())?),
            Self::Git(spec) => Box::new(git::Git::new(spec.clone())?),
            Self::Kubernetes(spec) => Box::new(kubernetes::Kubernetes::new(spec.clone())),
            Self::Mariadb(spec) => Box::new(mariadb::Mariadb::new(spec.clone())?),
            Self::MariadbBackup(spec) => Box::new(mariadb_backup::MariadbBackup::new(spec.clone())?),
            Self::Postgresql(spec) => Box::new(postgresql::Postgresql::new(spec.clone())?),
            Self::PostgresqlDump(spec) => Box::new(postgresql_dump::PostgresqlDump::new(spec.clone())?),
            Self::Prometheus(spec) => Box::new(prometheus::Prometheus::new(spec.clone())),
            Self::Redis(spec) => Box::new(redis::Redis::new(spec.clone())?),
            Self::Sqlite(spec) => Box::new(sqlite::Sqlite::new(spec.clone())?),
            Self::Terraform(spec) => Box::new(terraform::Terraform::new(spec.clone())),
            Self::Vault(spec) => Box::new(vault::Vault::new(spec.clone())),
            Self::Volume(spec) => Box::new(volume::Volume::new(spec.clone())?),
        })
    }

    /// The system that this describes, to bring a snapshot of its kind back into. `None`: such snapshots are only brought
    /// back as files (etcd, PostgreSQL's whole clusters, physical backups of MariaDB, Prometheus, Redis and SQLite, which start from
    /// files).
    pub fn target(&self, options: target::Options) -> Result<Option<Box<dyn target::Target>>, SourceError> {
        let of_others = match self {
            Self::Kubernetes(_) => options.of_vault(),
            Self::Vault(_) => options.of_objects(&[]),
            // A claim is an object, too.
            Self::Volume(_) => options.of_objects(&["storageClasses"]).or(options.of_vault()),
            _ => options.of_objects(&[]).or(options.of_vault()),
        };
        if let Some(text) = of_others {
            let attempt = format!("restore into a system of kind {}", self.field());
            return Err(SourceError::System { attempt, text, need: "leave it out".into() });
        }
        Ok(match self {
            Self::Files(_)
            | Self::Command(_)
            | Self::Etcd(_)
            | Self::MariadbBackup(_)
            | Self::Postgresql(_)
            | Self::Prometheus(_)
            | Self::Redis(_)
            | Self::Sqlite(_) => None,
            Self::Alertmanager(spec) => Some(Box::new(alertmanager::Restoring::new(spec.clone(), options))),
            Self::Git(spec) => Some(Box::new(git::Restoring::new(spec.clone(), options)?)),
            Self::Kubernetes(spec) => Some(Box::new(kubernetes::Cluster::new(spec.clone(), options))),
            Self::Mariadb(spec) => Some(Box::new(mariadb::Server::new(spec.clone(), options)?)),
            Self::PostgresqlDump(spec) => Some(Box::new(postgresql_dump::Restoring::new(spec.clone(), options)?)),
            Self::Terraform(spec) => Some(Box::new(terraform::Restoring::new(spec.clone(), options))),
            Self::Vault(spec) => Some(vault::target(spec, options)),
            Self::Volume(spec) => Some(Box::new(volume::Restoring::new(spec, options))),
        })
    }

    /// Says what no type can, by the field below the kind's own (`endpoints[0]`). Relative paths are taken from
    /// `directory`.
    pub fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        match self {
            Self::Alertmanager(spec) => spec.check(directory, say),
            Self::Files(spec) => spec.check(say),
            Self::Command(spec) => spec.check(say),
            Self::Etcd(spec) => spec.check(directory, say),
            Self::Git(spec) => spec.check(directory, say),
            Self::Kubernetes(spec) => spec.check(directory, say),
            Self::Mariadb(spec) => spec.check(directory, say),
            Self::MariadbBackup(spec) => spec.check(directory, say),
            Self::Postgresql(spec) => spec.check(directory, say),
            Self::PostgresqlDump(spec) => spec.check(directory, say),
            Self::Prometheus(spec) => spec.check(directory, say),
            Self::Redis(spec) => spec.check(directory, say),
            Self::Sqlite(spec) => spec.check(say),
            Self::Terraform(spec) => spec.check(directory, say),
            Self::Vault(spec) => spec.check(directory, say),
            Self::Volume(spec) => spec.check(directory, say),
        }
    }

    /// Reaches the cluster by this kubeconfig, if the document names none.
    pub fn reach_by(&mut self, kubeconfig: &Path) {
        let own = match self {
            Self::Kubernetes(spec) => &mut spec.kubeconfig,
            Self::Terraform(terraform::Spec { backend: terraform::Backend::Kubernetes(cluster) }) => {
                &mut cluster.kubeconfig
            }
            Self::Volume(spec) => &mut spec.kubeconfig,
            _ => return,
        };
        own.get_or_insert_with(|| kubeconfig.to_owned());
    }

    /// What capturing needs; what only restoring needs is not for whoever captures.
    #[must_use]
    pub fn needs(&self) -> Needs<'_> {
        match self {
            Self::Alertmanager(spec) => spec.needs(),
            Self::Files(spec) => Needs { files: vec![&spec.path], ..Needs::default() },
            Self::Command(spec) => Needs { secrets: spec.env.values().collect(), ..Needs::default() },
            Self::Etcd(spec) => spec.needs(),
            Self::Git(spec) => spec.needs(),
            Self::Kubernetes(spec) => Needs {
                files: spec.kubeconfig.iter().map(PathBuf::as_path).collect(),
                account: spec.kubeconfig.is_none(),
                ..Needs::default()
            },
            Self::Mariadb(spec) => spec.needs(),
            Self::MariadbBackup(spec) => spec.needs(),
            Self::Postgresql(spec) => spec.needs(),
            Self::PostgresqlDump(spec) => spec.needs(),
            Self::Prometheus(spec) => spec.needs(),
            Self::Redis(spec) => spec.needs(),
            Self::Sqlite(spec) => spec.needs(),
            Self::Terraform(spec) => spec.needs(),
            Self::Vault(spec) => spec.needs(),
            Self::Volume(spec) => spec.needs(),
        }
    }

    /// The field of a Source document that holds it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Alertmanager(_) => "alertmanager",
            Self::Files(_) => "files",
            Self::Command(_) => "command",
            Self::Etcd(_) => "etcd",
            Self::Git(_) => "git",
            Self::Kubernetes(_) => "kubernetes",
            Self::Mariadb(_) => "mariadb",
            Self::MariadbBackup(_) => "mariadbBackup",
            Self::Postgresql(_) => "postgresql",
            Self::PostgresqlDump(_) => "postgresqlDump",
            Self::Prometheus(_) => "prometheus",
            Self::Redis(_) => "redis",
            Self::Sqlite(_) => "sqlite",
            Self::Terraform(_) => "terraform",
            Self::Vault(_) => "vault",
            Self::Volume(_) => "volume",
        }
    }
}

/// What a capture reads on the machine that it runs on.
#[derive(Debug, Default)]
pub struct Needs<'a> {
    pub files: Vec<&'a Path>,
    pub secrets: Vec<&'a SecretRef>,
    /// The token of the pod's service account.
    pub account: bool,
}

/// Takes a mistake in a document: the field, and what is wrong with it.
pub type Say<'a> = dyn FnMut(&str, &str) + 'a;

/// A protected system. All calls block; run them on a blocking thread.
pub trait Source: Send {
    fn kind(&self) -> &'static str;

    /// Is it reachable? Says what was reached, a short line each.
    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError>;

    /// Gives everything to the sink. What can be left out is reported to it; an error means that there is no snapshot.
    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError>;
}

/// How often a wait looks whether the run goes on.
const TICK: Duration = Duration::from_millis(100);

/// Set once to end a run early.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a run gives its source.
#[derive(Clone, Debug)]
pub struct Context {
    pub runtime: tokio::runtime::Handle,
    pub cancel: Cancel,
    pub started: jiff::Timestamp,
    /// The steady clock's moment of `started`.
    pub begun: Instant,
    /// No capture goes on past this.
    pub deadline: Instant,
}

impl Context {
    /// Of a run that begins now, at `started` by the clock. Within the runtime.
    #[must_use]
    pub fn new(cancel: Cancel, started: jiff::Timestamp, limit: Duration) -> Self {
        let (runtime, begun) = (tokio::runtime::Handle::current(), Instant::now());
        Self { runtime, cancel, started, begun, deadline: begun + limit }
    }

    /// For what must be done though the run is over.
    #[must_use]
    pub fn afterwards(&self, limit: Duration) -> Self {
        Self { cancel: Cancel::default(), deadline: Instant::now() + limit, ..self.clone() }
    }

    /// The moment it is now, by the steady clock.
    #[must_use]
    pub fn now(&self) -> jiff::Timestamp {
        self.started.checked_add(self.begun.elapsed()).unwrap_or(self.started)
    }

    /// Waits for `work`, but no longer than the run goes on. Blocks.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, SourceError> {
        self.runtime.block_on(async {
            let mut work = std::pin::pin!(work);
            loop {
                self.go_on()?;
                tokio::select! {
                    done = &mut work => return Ok(done),
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        })
    }

    /// Does nothing for so long, but no longer than the run goes on. Blocks.
    pub fn sleep(&self, pause: Duration) -> Result<(), SourceError> {
        self.wait(async move { tokio::time::sleep(pause).await })
    }

    /// Has the run been cancelled, or its time run out?
    pub fn go_on(&self) -> Result<(), SourceError> {
        if self.cancel.is_cancelled() {
            Err(SourceError::Cancelled)
        } else if Instant::now() >= self.deadline {
            Err(SourceError::Deadline)
        } else {
            Ok(())
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("the capture was cancelled")]
    Cancelled,
    #[error("the capture did not end before its deadline; give it more time or find out what slowed it down")]
    Deadline,
    #[error("{what}; correct the Source document")]
    Spec { what: String },
    #[error("read the root {path} (is it mounted, and readable for this user?)")]
    Root { path: String, source: io::Error },
    #[error(
        "{path} holds nothing to capture; if that is right, remove the source, otherwise look for a missing mount or a wrong include pattern"
    )]
    Empty { path: String },
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("read the credentials: {0}")]
    Secret(#[from] crate::secret::SecretError),
    #[error("read {path} for the connection")]
    Tls { path: String, source: io::Error },
    #[error("etcd denied access to {endpoint}: {text}; the user needs the root role for snapshots")]
    Denied { endpoint: String, text: String },
    #[error("no etcd member can be captured: {}", failures.join("; "))]
    NoMember { failures: Vec<String> },
    #[error("start the snapshot of {endpoint}: {text}")]
    Start { endpoint: String, text: String },
    #[error("read the snapshot to restore {what}")]
    Snapshot { what: String, source: io::Error },
    /// `need` says what to do.
    #[error("{attempt}: {text}{}{need}", if need.is_empty() { "" } else { "; " })]
    System { attempt: String, text: String, need: String },
    #[error("{server} denied access: {text}; {advice}")]
    Refused { server: String, text: String, advice: &'static str },
    #[error("{action} at {server}: {text}")]
    Server { action: &'static str, server: String, text: String },
    #[error("the stream broke while {what} was read from it")]
    Stream { what: String, source: io::Error },
    #[error("run {program}: {text}")]
    Program { program: String, text: String },
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::KubernetesError),
}

impl SourceError {
    /// What went wrong while `what` was read from a stream: the run's own end, if that is inside the error.
    fn of_stream(what: &str, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(run) => run,
            Err(source) => Self::Stream { what: what.to_owned(), source },
        }
    }
}

/// How `export` writes a snapshot of a system in the format that the system's own tools take.
pub trait Native: Sync {
    /// What it is called.
    fn label(&self) -> &'static str;

    /// # Errors
    /// The repository's, wrapped; `out`'s; `InvalidData` if the snapshot does not hold what it should.
    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()>;
}

/// What is left to do once all files of a snapshot are in a directory of their own, before a program starts from them.
pub trait Preparation: Sync {
    /// Before anything is written: can it be done here, to a snapshot of a system of that version?
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check(&self, context: &Context, version: &str) -> Result<(), SourceError>;

    /// Says what was done.
    ///
    /// # Errors
    /// The files are not fit for anything then.
    fn run(&self, context: &Context, directory: &Path) -> Result<String, SourceError>;
}

/// `None`: programs start from the files as they are.
#[must_use]
pub fn preparation(kind: &str) -> Option<&'static dyn Preparation> {
    match kind {
        "mariadbBackup" => Some(&mariadb_backup::Prepare),
        _ => None,
    }
}

/// Other formats than [`native`]'s, by name. `None`: a snapshot of this kind has no such.
#[must_use]
pub fn format(kind: &str, name: &str) -> Option<&'static dyn Native> {
    match (kind, name) {
        ("kubernetes", "argocd") => Some(&kubernetes::Backup),
        ("kubernetes", "helm") => Some(&kubernetes::Releases),
        _ => None,
    }
}

/// One entry of the snapshot as it is; the others are beside it.
struct One {
    label: &'static str,
    entry: &'static str,
}

impl Native for One {
    fn label(&self) -> &'static str {
        self.label
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()> {
        let mut found = false;
        supply.entries(&mut |entry, body| {
            if entry.path == self.entry.as_bytes() {
                found = true;
                body.copy(out)?;
            }
            Ok(())
        })?;
        let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot lacks {}", self.entry));
        if found { Ok(()) } else { Err(missing()) }
    }
}

/// `None`: the entries themselves are the format, one as it is, several as tar.
#[must_use]
pub fn native(kind: &str) -> Option<&'static dyn Native> {
    match kind {
        "alertmanager" => Some(&One { label: "silences as JSON", entry: alertmanager::SILENCES }),
        "etcd" => Some(&etcd::Snapshot),
        "git" => Some(&One { label: "git bundle", entry: git::BUNDLE }),
        "vault" => Some(&vault::Snapshot),
        "kubernetes" => Some(&kubernetes::Manifests),
        _ => None,
    }
}
