//! What is protected: one module per kind of system, chosen by one visible `match` ([`Spec::open`]).

pub mod command;
pub mod etcd;
pub mod files;
pub mod kubernetes;
pub mod target;
mod unpack;

use crate::entry::{Facts, Sink, Stopped, Supply};
use serde::Deserialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The part of a `Source` document that says what is captured and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Spec {
    Files(files::Spec),
    Command(command::Spec),
    Etcd(etcd::Spec),
    Kubernetes(kubernetes::Spec),
}

impl Spec {
    /// The source that this describes. Nothing is contacted yet.
    pub fn open(&self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::Files(spec) => Box::new(files::Files::new(spec.clone())?),
            Self::Command(spec) => Box::new(command::Command::new(spec.clone())?),
            Self::Etcd(spec) => Box::new(etcd::Etcd::new(spec.clone())?),
            Self::Kubernetes(spec) => Box::new(kubernetes::Kubernetes::new(spec.clone())),
        })
    }

    /// The system that this describes, to bring a snapshot of its kind back into. `None`: such snapshots are only brought
    /// back as files (etcd, whose members start from a file).
    pub fn target(&self, options: target::Options) -> Result<Option<Box<dyn target::Target>>, SourceError> {
        Ok(match self {
            Self::Files(_) | Self::Command(_) | Self::Etcd(_) => None,
            Self::Kubernetes(spec) => Some(Box::new(kubernetes::Cluster::new(spec.clone(), options))),
        })
    }

    /// Says what no type can, by the field below the kind's own (`endpoints[0]`). Relative paths are taken from
    /// `directory`.
    pub fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        match self {
            Self::Files(spec) => spec.check(say),
            Self::Command(spec) => spec.check(say),
            Self::Etcd(spec) => spec.check(directory, say),
            Self::Kubernetes(spec) => spec.check(directory, say),
        }
    }

    /// The field of a Source document that holds it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Command(_) => "command",
            Self::Etcd(_) => "etcd",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
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
    /// No capture goes on past this.
    pub deadline: Instant,
}

impl Context {
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
    #[error("read the credentials: {0}")]
    Secret(#[from] crate::secret::SecretError),
    #[error("read {path} for the connection")]
    Tls { path: String, source: io::Error },
    #[error("etcd denied access to {endpoint}: {text}; the user needs the root role for snapshots")]
    Denied { endpoint: String, text: String },
    #[error("no etcd member can be captured: {}", failures.join("; "))]
    NoMember { failures: Vec<String> },
    #[error("start the snapshot of {endpoint}: {text}")]
    Snapshot { endpoint: String, text: String },
    #[error("the stream broke while {what} was read from it")]
    Stream { what: String, source: io::Error },
    #[error("run {program}: {text}")]
    Program { program: String, text: String },
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::KubernetesError),
}

/// How `export` writes a snapshot of a system in the format that the system's own tools take.
pub trait Native: Sync {
    /// What it is called.
    fn label(&self) -> &'static str;

    /// # Errors
    /// The repository's, wrapped; `out`'s; `InvalidData` if the snapshot does not hold what it should.
    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()>;
}

/// `None`: the entries themselves are the format, one as it is, several as tar.
#[must_use]
pub fn native(kind: &str) -> Option<&'static dyn Native> {
    match kind {
        "etcd" => Some(&etcd::Snapshot),
        "kubernetes" => Some(&kubernetes::Manifests),
        _ => None,
    }
}
