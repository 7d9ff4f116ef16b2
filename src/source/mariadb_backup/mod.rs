//! A MariaDB server, by a physical backup (`mariadb-backup`), which must run where the data directory can be read.
//!
//! The snapshot holds the files of the backup as entries, those of InnoDB in the server's pages, so that pages that did not
//! change cost nothing. It is of one moment over all engines' tables: the server holds commits while the last of the log is
//! copied. As the files are, no server may start from them: the log must be applied first ([`Preparation`]), which a restore
//! into a directory does by `mariadb-backup --prepare`, of the release that made the backup.
//!
//! What the guard can compare: the id that the server gave Aria's log when the data directory was made
//! (`aria_log_control`) is the system; the end of the backup in InnoDB's log is the position; objects are the tables and
//! views of users, and without any it is an error. Everything committed before the recovery point is in the snapshot.
//!
//! Deliberately absent: encrypted tables, MyRocks and tables with a DATA DIRECTORY of their own, which are refused; a part of
//! a server; incremental backups of `mariadb-backup`, since pages are compared here; a continuous archive of the binary log.

mod prepare;
mod stream;
mod tree;

pub use prepare::Prepare;

use super::connection::{self, Tls};
use super::mariadb;
use super::mariadb::client::{Client, HELD};
use super::{Context, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Sink, VERSION};
use crate::exec::{ExecError, Running};
use crate::secret::SecretRef;
use crate::source::command::into_io;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use stream::Stream;
use tree::{Note, Tree};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name or address of the server; otherwise `socket`.
    pub host: Option<String>,
    #[serde(default = "mariadb::default_port")]
    pub port: u16,
    /// The server's socket file.
    pub socket: Option<PathBuf>,
    /// An account with RELOAD, PROCESS, LOCK TABLES and BINLOG MONITOR.
    pub user: String,
    pub password: Option<SecretRef>,
    /// Without `serverName`: the certificate must be the host's.
    pub tls: Option<Tls>,
    /// Do without TLS although the server is another machine.
    #[serde(default)]
    pub insecure: bool,
    /// Where the server's data directory is here, if not where the server says.
    pub data_directory: Option<PathBuf>,
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        let mut needs = connection::needs(self.tls.as_ref(), self.password.as_ref());
        needs.files.extend(self.data_directory.as_deref());
        needs
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        if self.data_directory.as_ref().is_some_and(|path| !path.is_absolute()) {
            say("dataDirectory", "expected an absolute path");
        }
        self.server().check_rest(say);
    }

    fn server(&self) -> mariadb::Spec {
        let Self { host, port, socket, user, password, tls, insecure, data_directory: _ } = self.clone();
        mariadb::Spec { host, port, socket, user, password, tls, insecure }
    }
}

const PROGRAM: &str = "mariadb-backup";
const RIGHTS: [&str; 4] = ["RELOAD", "PROCESS", "LOCK TABLES", "BINLOG MONITOR"];
const ADVICE: &str = "the account needs the right password, and RELOAD, PROCESS, LOCK TABLES and BINLOG MONITOR on *.*";
const STATE: &str = "SELECT 'version', @@version; SELECT 'data', @@datadir; SELECT 'page', @@innodb_page_size; \
    SELECT 'plugin', plugin_name FROM information_schema.plugins WHERE plugin_status = 'ACTIVE' AND \
    (plugin_type = 'ENCRYPTION' OR plugin_name = 'ROCKSDB')";
const TAKING: &str = "back up MariaDB";

#[derive(Debug)]
pub struct MariadbBackup {
    client: Client,
    data_directory: Option<PathBuf>,
}

/// What a server says of itself, as far as a backup must know.
#[derive(Debug, Default)]
struct State {
    version: String,
    data: PathBuf,
    page_size: u32,
    /// What it has that a backup cannot take.
    plugins: Vec<String>,
    rights: Vec<String>,
}

impl State {
    fn parse(answer: &str) -> Option<Self> {
        let mut state = Self::default();
        for line in answer.lines() {
            let (name, value) = line.split_once('\t')?;
            match name {
                "version" => value.clone_into(&mut state.version),
                "data" => state.data = value.into(),
                "page" => state.page_size = value.parse().ok()?,
                "plugin" => state.plugins.push(value.to_owned()),
                "right" => state.rights.push(value.to_owned()),
                _ => {}
            }
        }
        (!state.version.is_empty() && state.page_size > 0).then_some(state)
    }
}

impl MariadbBackup {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        Ok(Self { client: Client::of("mariadbBackup", spec.server(), ADVICE)?, data_directory: spec.data_directory })
    }

    /// Asks the server, and finds out whether it can be backed up from here. The directory is that of its data.
    fn look(&self, context: &Context) -> Result<(State, PathBuf, Metadata), SourceError> {
        let answer = self.client.query(context, &format!("{HELD}; {STATE}"))?;
        let state = State::parse(&answer).ok_or_else(|| self.error("the answer is not MariaDB's".into()))?;
        self.client.may(&RIGHTS, &state.rights)?;
        if let Some(plugin) = state.plugins.first() {
            let text = format!(
                "the plugin {plugin} is loaded: encrypted tables and those of MyRocks are not taken; capture the server by \
                 dumps (kind mariadb)"
            );
            return Err(self.error(text));
        }
        prepare::fits(context, &state.version, "the server is")?;
        let directory = self.data_directory.clone().unwrap_or_else(|| state.data.clone());
        let like = fs::read_dir(&directory).and_then(|_| fs::metadata(&directory));
        let like = like.map_err(|error| SourceError::System {
            attempt: format!("read the data directory {} of {}", directory.display(), self.client.server),
            text: error.to_string(),
            need: "mariadb-backup reads the files themselves: run it where they are, as a user who may read them, and say \
                   in dataDirectory where that is, if not where the server has them"
                .into(),
        })?;
        Ok((state, directory, like))
    }

    fn error(&self, text: String) -> SourceError {
        SourceError::Server { action: TAKING, server: self.client.server.clone(), text }
    }

    fn failed(&self, context: &Context, error: ExecError) -> SourceError {
        match error {
            ExecError::Exit { program, status, stderr } if context.go_on().is_ok() => {
                self.error(format!("{program} {status}: {}", telling(&stderr)))
            }
            other => self.client.failed(context, TAKING, &other),
        }
    }

    fn start(&self, context: &Context, data: &Path) -> Result<Running, SourceError> {
        let data = format!("--datadir={}", data.display());
        let words = ["--backup", "--stream=mbstream", &data];
        let command = self.client.program(context, PROGRAM, context.deadline, &words)?;
        command.start().map_err(|error| self.client.failed(context, TAKING, &error))
    }

    /// What the backup says of itself.
    fn facts(&self, state: State, directory: &Path, tree: &Tree<'_>) -> Result<Facts, SourceError> {
        let lacks = |what: &str| self.error(format!("the backup does not tell {what}; nothing is kept of it"));
        let notes = |note| tree.notes.get(&note).map(|bytes| pairs(bytes)).unwrap_or_default();
        let (info, checkpoints) = (notes(Note::Info), notes(Note::Checkpoints));
        let lsn = checkpoints.get("last_lsn").and_then(|text| text.parse().ok());
        let lsn: u64 = lsn.ok_or_else(|| lacks("where in InnoDB's log it ends"))?;
        let control = tree.notes.get(&Note::AriaControl).and_then(|bytes| aria_id(bytes));
        let system = control.ok_or_else(|| lacks("whose it is (aria_log_control)"))?;
        if tree.tables == 0 {
            return Err(SourceError::Empty { path: self.client.server.clone() });
        }
        let mut details: BTreeMap<_, _> = [
            (VERSION, state.version),
            ("data_directory", directory.display().to_string()),
            ("end_lsn", lsn.to_string()),
            ("page_size", state.page_size.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (name, key) in [("tool_version", "tool_version"), ("binlog_position", "binlog_pos")] {
            let told = info.get(key).ok_or_else(|| lacks(key))?;
            if !told.is_empty() {
                details.insert(name.to_owned(), told.clone());
            }
        }
        Ok(Facts {
            system: Some(system),
            position: Some(lsn),
            objects: Some(tree.tables),
            recovery_point_ms: Some(tree.clock.sure()),
            details,
        })
    }
}

impl Source for MariadbBackup {
    fn kind(&self) -> &'static str {
        "mariadbBackup"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let (state, directory, _) = self.look(context)?;
        let server = &self.client.server;
        Ok(vec![format!("{server}: MariaDB {}, whose data are in {}", state.version, directory.display())])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let (state, directory, like) = self.look(context)?;
        let mut tree = Tree::new(context, sink, like, state.page_size);
        let mut stream = Stream::new(Output(self.start(context, &directory)?));
        if let Err(error) = tree.files(&mut stream) {
            context.go_on()?;
            // Where the program ended early, its end tells why.
            if stream.has_ended() {
                stream.finish().0.0.wait().map_err(|error| self.failed(context, error))?;
            }
            return Err(error);
        }
        let (output, logs) = stream.finish();
        output.0.wait().map_err(|error| self.failed(context, error))?;
        tree.logs(logs.map_err(|error| self.error(error.to_string()))?)?;
        self.facts(state, &directory, &tree)
    }
}

/// What the program writes.
struct Output(Running);

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(into_io)
    }
}

/// Lines `name = value`.
fn pairs(text: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(text);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

/// Three bytes of magic, the version of the format, and the id (`storage/maria/ma_control_file.c`).
fn aria_id(control: &[u8]) -> Option<String> {
    let id = control.strip_prefix(&[0xfe, 0xfe, 0x0c])?.get(1..17)?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Of what the program logs, the lines that say what went wrong. It also lists what an account may do, with the hash of its
/// password.
fn telling(log: &str) -> String {
    let secret = |line: &str| line.contains("GRANT ") || line.contains("IDENTIFIED");
    let lines: Vec<_> = log.lines().filter(|line| !secret(line)).collect();
    let wrong = |line: &&&str| ["ERROR", "rror:", "ailed", "annot"].iter().any(|word| line.contains(word));
    let told: Vec<_> = lines.iter().filter(wrong).map(|line| line.trim()).collect();
    if told.is_empty() { lines.last().copied().unwrap_or_default().trim().to_owned() } else { told.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_without_hashes() {
        let log = "[00] 2026 Connecting\n[00] 2026 Error: missing required privilege RELOAD on *.*\n\
                   [00] 2026   1.GRANT USAGE ON *.* TO `poor`@`%` IDENTIFIED BY PASSWORD '*B69'\n";
        assert_eq!(telling(log), "[00] 2026 Error: missing required privilege RELOAD on *.*");
        assert_eq!(telling("one\ntwo\n"), "two");
    }

    #[test]
    fn the_id_is_read_from_a_genuine_file() {
        // Of MariaDB 10.11.
        let control = b"\xfe\xfe\x0c\x01\xba\xf7\xe6\xe9\xe9\xb1\x11\xf1\x99\xd9\x02\xfc\0\0\0\x01\x1e\0\x16\0\0 \xe8G";
        assert_eq!(aria_id(control).as_deref(), Some("baf7e6e9e9b111f199d902fc00000001"));
        assert_eq!(aria_id(b"\xfe\xfe\x0c\x01\xba"), None);
    }
}
