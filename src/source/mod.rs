//! What is protected: one module per kind of system, chosen by one visible `match` ([`Spec::open`]).

pub mod command;
pub mod etcd;
pub mod files;

use crate::entry::{Facts, Sink, Stopped};
use serde::Deserialize;
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
}

impl Spec {
    /// The source that this describes. Nothing is contacted yet.
    pub fn open(&self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::Files(spec) => Box::new(files::Files::new(spec.clone())?),
            Self::Command(spec) => Box::new(command::Command::new(spec.clone())?),
            Self::Etcd(spec) => Box::new(etcd::Etcd::new(spec.clone())?),
        })
    }
}

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
    Root { path: String, source: std::io::Error },
    #[error(
        "{path} holds nothing to capture; if that is right, remove the source, otherwise look for a missing mount or a wrong include pattern"
    )]
    Empty { path: String },
    #[error("read the credentials: {0}")]
    Secret(#[from] crate::secret::SecretError),
    #[error("read {path} for the connection")]
    Tls { path: String, source: std::io::Error },
    #[error("etcd denied access to {endpoint}: {text}; the user needs the root role for snapshots")]
    Denied { endpoint: String, text: String },
    #[error("no etcd member can be captured: {}", failures.join("; "))]
    NoMember { failures: Vec<String> },
    #[error("start the snapshot of {endpoint}: {text}")]
    Snapshot { endpoint: String, text: String },
    #[error("run {program}: {text}")]
    Program { program: String, text: String },
}

/// The file name under which `export` writes a source's native format, and whether its content needs a trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeExport {
    /// Entries as they are.
    Plain,
    /// [`etcd::Export`] puts the digest behind the database.
    EtcdSnapshot,
}

pub fn native_export(kind: &str) -> NativeExport {
    if kind == "etcd" { NativeExport::EtcdSnapshot } else { NativeExport::Plain }
}
