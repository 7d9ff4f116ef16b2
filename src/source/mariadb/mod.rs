//! A MariaDB server, by a logical dump of all its databases (`mariadb-dump`, one consistent read of InnoDB's tables).
//!
//! The snapshot is one entry, `dump.sql`, with routines, events, triggers and accounts, and, where the server keeps a
//! binary log, the position in it that the dump stands at (in a comment). MariaDB's own programs do the work; they must be
//! on the PATH. A dump without its last line is none; neither is one of an account that does not see everything.
//!
//! What the guard can compare: the server's id (`server_uid`) is made from a network address, and so changes when a pod
//! moves; it is a detail, not the system. The position is the sum of the GTIDs' sequence numbers over all domains, which
//! only grows; without a binary log there is none. Objects are the tables of users.
//!
//! Everything committed before the recovery point is in the snapshot. Tables of other engines than InnoDB are not read
//! consistently under writes; how many there are is a detail. Deliberately absent: physical backups (kind `mariadbBackup`), a
//! continuous archive of the binary log, MySQL.

pub(super) mod client;
mod dump;
mod target;

pub use target::Server;

use super::command::plain_file;
use super::connection::{self, Place, Tls};
use super::{Context, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Input, Layout, OnError, Sink};
use crate::secret::SecretRef;
use client::Client;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name or address of the server; otherwise `socket`.
    pub host: Option<String>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// The server's socket file.
    pub socket: Option<PathBuf>,
    /// An account that may read everything.
    pub user: String,
    pub password: Option<SecretRef>,
    /// Without `serverName`: the certificate must be the host's.
    pub tls: Option<Tls>,
    /// Do without TLS although the server is another machine.
    #[serde(default)]
    pub insecure: bool,
}

pub(super) fn default_port() -> u16 {
    3306
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        connection::needs(self.tls.as_ref(), self.password.as_ref())
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        self.check_rest(say);
    }

    pub(super) fn check_rest(&self, say: &mut Say<'_>) {
        if self.user.is_empty() {
            say("user", "expected an account that may read everything");
        }
        if self.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            say("tls.serverName", "MariaDB's programs check the host's own name: give that as host");
        }
        self.place().check(say);
    }

    fn place(&self) -> Place {
        let (host, socket, tls) = (self.host.clone(), self.socket.clone(), self.tls.clone());
        Place { host, port: self.port, socket, tls, insecure: self.insecure }
    }
}

#[derive(Debug)]
pub struct Mariadb {
    client: Client,
}

impl Mariadb {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        Ok(Self { client: Client::new(spec)? })
    }
}

/// The fact that names the databases, as a JSON list.
const DATABASES: &str = "databases";

/// The first value that a query answers with, in a transaction that changes nothing.
pub(super) fn query(context: &Context, spec: &Spec, query: &str) -> Result<Option<String>, SourceError> {
    let client = Client::new(spec.clone())?;
    let answer = client.query(context, &format!("SET SESSION TRANSACTION READ ONLY; {query}"))?;
    Ok(answer.lines().next().map(|line| line.split('\t').next().unwrap_or_default().to_owned()))
}

impl Source for Mariadb {
    fn kind(&self) -> &'static str {
        "mariadb"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let state = self.client.state(context)?;
        self.client.sees_all(&state)?;
        Ok(vec![format!("{}: MariaDB {}, {} tables", self.client.server, state.version, state.tables)])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let clock = Instant::now();
        let state = self.client.state(context)?;
        self.client.sees_all(&state)?;
        // The dump begins after this.
        let sure = context.started.as_millisecond().saturating_add(clock.elapsed().as_millis() as i64);
        let open = dump::open(&self.client, context, state.binary_log)?;
        let entry = plain_file(b"dump.sql".to_vec(), 0, context.started);
        sink.add(entry, Some(Input { layout: Layout::Records, fingerprint: None, on_error: OnError::Fail, open }))?;
        let mut details = vec![
            ("version", state.version),
            ("gtid_position", state.gtid),
            ("tables_not_transactional", state.not_transactional.to_string()),
            (DATABASES, serde_json::json!(state.databases).to_string()),
        ];
        details.extend(state.uid.map(|uid| ("server_uid", uid)));
        Ok(Facts {
            system: None,
            position: state.position,
            objects: Some(state.tables),
            recovery_point_ms: Some(sure),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}
