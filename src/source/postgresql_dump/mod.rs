//! The databases of a PostgreSQL server one by one, by logical dumps (`pg_dump`, `pg_dumpall`).
//!
//! The snapshot holds `globals.sql` (roles and tablespaces) and `DATABASE.sql` for each database, in plain SQL, each one
//! consistent in itself. So one database comes back into a running server and the others stay. PostgreSQL's own programs do
//! the work; they must be on the PATH, and not older than the server. A dump without its last line is none; a database that
//! cannot be dumped fails the capture.
//!
//! Everything committed before the recovery point is in the snapshot; the databases are of moments shortly after it, not of
//! the same one. A standby is captured too; the recovery point does not know of its lag. Two dumps of the same data differ
//! in one line at the beginning and the end: the key of `\restrict`, which a server must not know beforehand.
//!
//! Deliberately absent: the physical cluster (kind `postgresql`), single tables, servers older than version 13.

mod dump;
mod globals;
mod server;
mod split;
mod target;

pub use target::Restoring;

use super::command::plain_file;
use super::connection::{self, Place, Tls};
use super::{Context, Needs, Say, Source, SourceError, postgresql};
use crate::entry::{Facts, Input, Layout, OnError, Open, Sink};
use crate::secret::SecretRef;
use serde::Deserialize;
use server::{Held, Server, State};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name or address of the server; otherwise `socket`.
    pub host: Option<String>,
    /// The directory of the server's socket file.
    pub socket: Option<PathBuf>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// A role that may read all of the databases.
    pub user: String,
    pub password: Option<SecretRef>,
    /// Without `serverName`: the certificate must be the host's.
    pub tls: Option<Tls>,
    /// Do without TLS although the server is another machine.
    #[serde(default)]
    pub insecure: bool,
    /// None: all but templates.
    #[serde(default)]
    pub databases: Vec<String>,
    /// Capture roles and tablespaces too.
    #[serde(default = "yes")]
    pub globals: bool,
}

fn default_port() -> u16 {
    5432
}

fn yes() -> bool {
    true
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

    fn check_rest(&self, say: &mut Say<'_>) {
        if self.user.is_empty() {
            say("user", "expected a role that may read all of the databases");
        }
        if self.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            say("tls.serverName", "PostgreSQL's programs check the host's own name: give that as host");
        }
        let mut seen = BTreeSet::new();
        for (at, name) in self.databases.iter().enumerate() {
            if name.is_empty() || name.contains(['\0', '\n', '\r']) {
                say(&format!("databases[{at}]"), "expected a database's name");
            } else if !seen.insert(name) {
                say(&format!("databases[{at}]"), "it is named twice");
            }
        }
        self.place().check(say);
    }

    fn place(&self) -> Place {
        self.connection().place()
    }

    /// The same server, for whoever asks it something else.
    pub(super) fn connection(&self) -> postgresql::Spec {
        postgresql::Spec {
            host: self.host.clone(),
            socket: self.socket.clone(),
            port: self.port,
            user: self.user.clone(),
            password: self.password.clone(),
            tls: self.tls.clone(),
            insecure: self.insecure,
        }
    }
}

/// The entry with roles and tablespaces.
const GLOBALS: &str = "globals.sql";
/// The fact that says how many tables each database held, as a JSON object.
const TABLES: &str = "tables";

/// The entry that holds a database. What cannot stand in a file's name is written as `%` and its code.
fn path_of(database: &str) -> String {
    let mut path = String::new();
    for (at, letter) in database.chars().enumerate() {
        match letter {
            '/' => path += "%2F",
            '%' => path += "%25",
            'g' if at == 0 && database == "globals" => path += "%67",
            other => path.push(other),
        }
    }
    path + ".sql"
}

/// The database that an entry holds.
fn database_of(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let name = path.strip_suffix(".sql").filter(|_| path != GLOBALS)?;
    Some(name.replace("%2F", "/").replace("%67", "g").replace("%25", "%"))
}

#[derive(Debug)]
pub struct PostgresqlDump {
    server: Server,
    spec: Spec,
}

impl PostgresqlDump {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        Ok(Self { server: Server::new(spec.clone())?, spec })
    }

    /// The databases to capture, and what each holds.
    fn chosen(&self, context: &Context, state: &State) -> Result<BTreeMap<String, Held>, SourceError> {
        let wanted = if self.spec.databases.is_empty() { &state.databases } else { &self.spec.databases };
        let missing: Vec<_> = wanted.iter().filter(|name| !state.databases.contains(name)).cloned().collect();
        if !missing.is_empty() {
            let text = format!("it has no database {}", missing.join(", "));
            return Err(self.server.error("dump its databases", text));
        }
        let mut held = BTreeMap::new();
        for name in wanted {
            held.insert(name.clone(), self.server.held(context, name)?);
        }
        if held.values().all(|held| held.all == 0) {
            return Err(SourceError::System {
                attempt: format!("capture the databases of {}", self.server.name),
                text: format!("there is nothing to capture in {}", wanted.join(", ")),
                need: "if that is right, remove the source, otherwise look whether this is the right server".into(),
            });
        }
        Ok(held)
    }
}

impl Source for PostgresqlDump {
    fn kind(&self) -> &'static str {
        "postgresqlDump"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let state = self.server.state(context)?;
        let program = self.server.fits(context, "pg_dump", state.major)?;
        let held = self.chosen(context, &state)?;
        let tables: u64 = held.values().map(|held| held.tables).sum();
        let names: Vec<_> = held.into_keys().collect();
        let (name, version, role) = (&self.server.name, &state.version, state.role());
        let what = format!("{name}: PostgreSQL {version}, {role}, {tables} tables in {}", names.join(", "));
        Ok(vec![what, program])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let clock = Instant::now();
        let state = self.server.state(context)?;
        let program = self.server.fits(context, "pg_dump", state.major)?;
        let held = self.chosen(context, &state)?;
        // All dumps begin after this.
        let sure = context.started.as_millisecond().saturating_add(clock.elapsed().as_millis() as i64);
        let mut add = |path: String, open: Open| {
            let entry = plain_file(path.into_bytes(), 0, context.started);
            sink.add(entry, Some(Input { layout: Layout::Records, fingerprint: None, on_error: OnError::Fail, open }))
        };
        if self.spec.globals {
            add(GLOBALS.to_owned(), dump::globals(&self.server, context, &state)?)?;
        }
        for name in held.keys() {
            add(path_of(name), dump::database(&self.server, context, name)?)?;
        }
        let tables: BTreeMap<_, _> = held.iter().map(|(name, held)| (name, held.tables)).collect();
        let names: Vec<_> = held.keys().collect();
        let mut details = vec![
            ("version", state.version.clone()),
            ("role", state.role().to_owned()),
            ("pg_dump", program),
            ("databases", serde_json::json!(names).to_string()),
            (TABLES, serde_json::json!(tables).to_string()),
        ];
        if self.spec.globals {
            details.push(("role_passwords", if state.passwords { "yes" } else { "no" }.to_owned()));
        }
        Ok(Facts {
            system: state.system,
            position: state.position,
            objects: Some(tables.values().sum()),
            recovery_point_ms: Some(sure),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_has_a_path_of_its_own() {
        for (name, path) in [
            ("shop", "shop.sql"),
            ("globals", "%67lobals.sql"),
            ("a/b", "a%2Fb.sql"),
            ("a%2Fb", "a%252Fb.sql"),
            ("%67", "%2567.sql"),
            ("..", "...sql"),
        ] {
            assert_eq!(path_of(name), path);
            assert_eq!(database_of(path.as_bytes()).as_deref(), Some(name));
        }
        assert_eq!(database_of(GLOBALS.as_bytes()), None);
        assert_eq!(database_of(b"readme"), None);
    }
}
