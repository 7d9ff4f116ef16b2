//! An SQLite database, copied while programs use it.
//!
//! The program `sqlite3` copies the file page by page within one read transaction, so that the copy is one state, whoever
//! writes meanwhile: with a write-ahead log writers go on, without one they wait until the copy is made. The copy lies in a
//! temporary directory, is examined there (`PRAGMA integrity_check`), and is the snapshot: one file of the database's own
//! name and owner, with which programs start. Pages that did not change cost nothing.
//!
//! What the guard can compare: such a file has no identity, and its counters begin anew with every copy, so it is the number
//! of rows. A database without any row is an error. Deliberately absent: putting a file under a program that runs, which
//! would not know of it, and databases that `sqlite3` opens only with extensions or a key.

use super::command::plain_file;
use super::{Context, Needs, Say, Source, SourceError, unpack};
use crate::entry::{Entry, Facts, Layout, Sink};
use crate::exec::{self, ExecError, causes};
use serde::Deserialize;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes of an answer.
const LARGEST: usize = 8 << 20;
/// How long it waits for others' locks.
const PATIENCE: &str = ".timeout 60000";
/// Since 3.37; neither virtual tables nor what is behind them.
const TABLES: &str = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE \
                      'sqlite!_%' ESCAPE '!'";
/// Tables that are counted at a time.
const BATCH: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The database file, absolute; what SQLite keeps beside it (`-wal`, `-shm`, `-journal`) must be there too.
    pub path: PathBuf,
}

impl Spec {
    /// The file alone is no database: what is beside it belongs to it.
    pub(super) fn needs(&self) -> Needs<'_> {
        Needs { files: self.path.parent().into_iter().collect(), ..Needs::default() }
    }

    pub(super) fn check(&self, say: &mut Say<'_>) {
        if !self.path.is_absolute() || self.path.file_name().is_none() {
            say("path", "expected the absolute path of a database file");
        }
    }
}

#[derive(Debug)]
pub struct Sqlite {
    spec: Spec,
    name: Vec<u8>,
}

impl Sqlite {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        match spec.path.file_name() {
            Some(name) if spec.path.is_absolute() => Ok(Self { name: name.as_bytes().to_vec(), spec }),
            _ => Err(SourceError::Spec { what: "sqlite.path is not the absolute path of a file".into() }),
        }
    }

    fn place(&self) -> String {
        self.spec.path.display().to_string()
    }

    /// Its metadata; something is in it.
    fn look(&self) -> Result<fs::Metadata, SourceError> {
        let found = fs::metadata(&self.spec.path)
            .and_then(|found| if found.is_file() { Ok(found) } else { Err(io::Error::other("it is not a file")) });
        let found = found.map_err(|source| SourceError::Root { path: self.place(), source })?;
        if found.len() == 0 { Err(SourceError::Empty { path: self.place() }) } else { Ok(found) }
    }

    /// What `sqlite3` answers to some commands about a file, which it does not change.
    fn ask(&self, context: &Context, file: &Path, attempt: &str, commands: &[&str]) -> Result<String, SourceError> {
        // Nobody's settings, and the first mistake ends it.
        let options = ["-init", "/dev/null", "-batch", "-bail", "-readonly"];
        let file = file.display().to_string();
        let arguments = options.into_iter().chain([&*file, PATIENCE]).chain(commands.iter().copied());
        let cancel = context.cancel.clone();
        let command = exec::Command {
            program: "sqlite3".into(),
            inherits: exec::Inherits::Little,
            arguments: arguments.map(str::to_owned).collect(),
            env: Vec::new(),
            deadline: context.deadline,
            stop: Box::new(move || cancel.is_cancelled()),
        };
        let answer = command.run(LARGEST).map_err(|error| self.failed(context, attempt, &error))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn failed(&self, context: &Context, attempt: &str, error: &ExecError) -> SourceError {
        if let Err(ended) = context.go_on() {
            return ended;
        }
        let text = causes(error.to_string(), std::error::Error::source(error));
        self.error(attempt, text, "")
    }

    fn error(&self, attempt: &str, text: String, need: &str) -> SourceError {
        SourceError::System {
            attempt: format!("{attempt} the SQLite database {}", self.place()),
            text,
            need: need.into(),
        }
    }

    /// One state of the database, in a directory that is gone with it.
    fn copy(&self, context: &Context) -> Result<TempDir, SourceError> {
        let home = exec::private_directory("lifeboat-sqlite-");
        let home = home.map_err(|error| {
            self.error("make room for", error.to_string(), "TMPDIR says where; it must hold the whole database")
        })?;
        let to = format!(".backup {}", quoted(&home.path().join(COPY).display().to_string()));
        self.ask(context, &self.spec.path, "copy", &["BEGIN", "SELECT count(*) FROM sqlite_schema", &to])?;
        Ok(home)
    }

    fn examine(&self, context: &Context, copy: &Path) -> Result<Contents, SourceError> {
        let attempt = "examine the copy of";
        let ask = |commands: &[&str]| self.ask(context, copy, attempt, commands);
        let found = ask(&["PRAGMA integrity_check(20)"])?;
        if found.trim() != "ok" {
            let need = "it is damaged: bring back an earlier snapshot, or see what `sqlite3 FILE .recover` saves";
            return Err(self.error(attempt, found.trim().replace('\n', "; "), need));
        }
        let facts =
            ask(&["PRAGMA page_size", "PRAGMA journal_mode", "PRAGMA user_version", "SELECT sqlite_version()"])?;
        let [page_size, journal_mode, user_version, version] = facts.lines().collect::<Vec<_>>()[..] else {
            return Err(self.error(attempt, "the answer is not that of sqlite3".into(), ""));
        };
        let page_size = page_size.parse().map_err(|_| self.error(attempt, "it has no page size".into(), ""))?;
        let tables = ask(&[".mode json", TABLES])?;
        let tables = if tables.trim().is_empty() { Ok(Vec::new()) } else { serde_json::from_str(&tables) };
        let tables: Vec<Table> = tables.map_err(|_| self.error(attempt, "its tables cannot be listed".into(), ""))?;
        let counts: Vec<_> = tables.iter().map(|Table { name }| count(name)).collect();
        let mut rows = 0;
        for some in counts.chunks(BATCH) {
            let some: Vec<_> = some.iter().map(String::as_str).collect();
            rows += ask(&some)?.lines().filter_map(|line| line.parse::<u64>().ok()).sum::<u64>();
        }
        let details = [
            ("path", self.place()),
            ("tables", tables.len().to_string()),
            ("journal_mode", journal_mode.to_owned()),
            ("user_version", user_version.to_owned()),
            ("sqlite_version", version.to_owned()),
        ];
        Ok(Contents { page_size, rows, details })
    }
}

const COPY: &str = "copy";

#[derive(Deserialize)]
struct Table {
    name: String,
}

struct Contents {
    page_size: u32,
    rows: u64,
    details: [(&'static str, String); 5],
}

fn count(table: &str) -> String {
    format!("SELECT count(*) FROM main.\"{}\"", table.replace('"', "\"\""))
}

/// For the commands that begin with a dot.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Source for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        self.look()?;
        let answer = self.ask(context, &self.spec.path, "open", &["SELECT count(*) FROM sqlite_schema"])?;
        Ok(vec![format!("{}: an SQLite database, {} tables, indices and views", self.place(), answer.trim())])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let found = self.look()?;
        let asked = context.now();
        let home = self.copy(context)?;
        let copy = home.path().join(COPY);
        let Contents { page_size, rows, details } = self.examine(context, &copy)?;
        if rows == 0 {
            return Err(SourceError::Empty { path: self.place() });
        }
        let again = |source| SourceError::Stream { what: format!("the copy of {}", self.place()), source };
        let mut file = File::open(&copy).map_err(again)?;
        let size = file.metadata().map_err(again)?.len();
        let entry = Entry {
            mode: found.permissions().mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            ..plain_file(self.name.clone(), size, context.started)
        };
        unpack::hand_over(context, sink, entry, Layout::Pages(page_size), &mut file)?;
        Ok(Facts {
            system: None,
            position: None,
            objects: Some(rows),
            recovery_point_ms: Some(asked.as_millisecond()),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(count("a\"b"), "SELECT count(*) FROM main.\"a\"\"b\"");
        assert_eq!(quoted("/tmp/a \"b\" \\c"), r#""/tmp/a \"b\" \\c""#);
    }

    #[test]
    fn a_path_is_that_of_a_file() {
        for wrong in ["grafana.db", "/", "/sources/.."] {
            let spec = Spec { path: wrong.into() };
            let mut said = 0;
            spec.check(&mut |_, _| said += 1);
            assert_eq!(said, 1, "{wrong}");
            assert!(Sqlite::new(spec).is_err(), "{wrong}");
        }
    }
}
