//! What a server says of itself, and PostgreSQL's programs with what they need to reach it.
//!
//! All that the programs need is in their environment: a database's name among the arguments could be taken for a
//! connection string, and a password would be seen. `psql` reads no start file.

use super::Spec;
use crate::exec::{self, ExecError};
use crate::secret::SecretRef;
use crate::source::connection::{Place, REQUEST, Waited, wait};
use crate::source::postgresql::client::{Client, Failure, Row, Session};
use crate::source::{Context, SourceError};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// `DROP DATABASE … WITH (FORCE)` came with it.
const OLDEST: u32 = 13;

const ADVICE: &str = "the role needs the right password, a line for each database in pg_hba.conf, and the right to read \
    all of them (pg_read_all_data and BYPASSRLS; a superuser for all else)";

const STATE: &str = "SELECT current_setting('server_version'), current_setting('server_version_num'), \
    pg_is_in_recovery()::text, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END \
    - '0/0'::pg_lsn)::text, has_table_privilege('pg_authid', 'SELECT')::text";

/// Those that nobody can connect to, or whose creation or removal was broken off (-2), cannot be dumped.
const DATABASES: &str = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datallowconn AND datconnlimit <> -2 \
    ORDER BY datname";

/// Tables, and everything that users made: relations, functions, types, large objects; not what belongs to an extension.
const HELD: &str = "SELECT count(*) FILTER (WHERE kind IN ('r', 'p')), count(*) FROM (\
    SELECT relkind::text AS kind, 'pg_class'::regclass AS class, oid AS id, relnamespace AS space FROM pg_class \
    UNION ALL SELECT 'function', 'pg_proc'::regclass, oid, pronamespace FROM pg_proc \
    UNION ALL SELECT 'type', 'pg_type'::regclass, oid, typnamespace FROM pg_type WHERE typtype IN ('d', 'e', 'r') \
    UNION ALL SELECT 'large', 'pg_largeobject'::regclass, oid, 0 FROM pg_largeobject_metadata) AS made \
    WHERE space NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_%' OR nspname = 'information_schema') \
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = class AND objid = id AND deptype = 'e')";

#[derive(Debug)]
pub struct Server {
    spec: Spec,
    place: Place,
    /// As people write it.
    pub name: String,
}

#[derive(Debug)]
pub struct State {
    pub version: String,
    pub major: u32,
    pub standby: bool,
    /// Bytes of the write-ahead log up to now.
    pub position: Option<u64>,
    /// If the role may read it.
    pub system: Option<String>,
    /// The role may read the passwords of roles.
    pub passwords: bool,
    /// Those that can be dumped.
    pub databases: Vec<String>,
    /// A database to ask what belongs to none.
    pub common: &'static str,
}

/// What a database holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub tables: u64,
    /// Tables and whatever else users made.
    pub all: u64,
}

impl State {
    pub fn role(&self) -> &'static str {
        if self.standby { "standby" } else { "primary" }
    }
}

impl Server {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let mut wrong = None;
        spec.check_rest(&mut |field, message| _ = wrong.get_or_insert(format!("postgresqlDump.{field}: {message}")));
        match wrong {
            Some(what) => Err(SourceError::Spec { what }),
            None => Ok(Self { name: spec.place().name(), place: spec.place(), spec }),
        }
    }

    pub fn error(&self, action: &'static str, text: String) -> SourceError {
        SourceError::Server { action, server: self.name.clone(), text }
    }

    /// What a command answers with, in a session of its own in `database`; the outer error is the run's own.
    fn try_rows(
        &self,
        context: &Context,
        database: &str,
        limit: Duration,
        command: &str,
    ) -> Result<Result<Vec<Row>, Failure>, SourceError> {
        let connector = self.place.connector()?;
        let password = self.spec.password.as_ref().map(SecretRef::read).transpose()?;
        let password = password.as_ref().map(|password| password.as_str());
        let session = Session::Database(database);
        let answer = async {
            let mut client =
                Client::connect(&self.place, connector.as_ref(), &self.spec.user, password, session).await?;
            // No object of a user stands in for one of the server's own.
            client.rows("SET search_path = ''; SET statement_timeout = 0").await?;
            client.rows(command).await
        };
        match wait(context, limit, answer) {
            Ok(answer) => Ok(answer),
            Err(Waited::Ended(error)) => Err(error),
            Err(Waited::TooLong) => {
                Err(self.error("ask PostgreSQL", format!("no answer within {} s", limit.as_secs())))
            }
        }
    }

    /// All rows that a small query answers with.
    pub fn rows(&self, context: &Context, database: &str, query: &str) -> Result<Vec<Row>, SourceError> {
        let asked = self.try_rows(context, database, REQUEST, query)?;
        asked.map_err(|failure| self.told("ask PostgreSQL", database, &failure))
    }

    /// Carries out commands, in one transaction if they can be; as long as it takes.
    pub fn execute(
        &self,
        context: &Context,
        action: &'static str,
        database: &str,
        commands: &str,
    ) -> Result<(), SourceError> {
        let done = self.try_rows(context, database, Duration::MAX, commands)?;
        done.map(|_| ()).map_err(|failure| self.told(action, database, &failure))
    }

    fn told(&self, action: &'static str, database: &str, failure: &Failure) -> SourceError {
        let text = format!("database {database}: {failure}");
        if failure.is("28") || failure.is("42501") {
            return SourceError::Refused { server: self.name.clone(), text, advice: ADVICE };
        }
        self.error(action, text)
    }

    pub fn state(&self, context: &Context) -> Result<State, SourceError> {
        let (mut common, mut answer) = ("postgres", self.try_rows(context, "postgres", REQUEST, STATE)?);
        if answer.as_ref().is_err_and(|failure| failure.is("3D000")) {
            (common, answer) = ("template1", self.try_rows(context, "template1", REQUEST, STATE)?);
        }
        let rows = answer.map_err(|failure| self.told("ask PostgreSQL", common, &failure))?;
        let odd = || self.error("ask PostgreSQL", "its answer is not PostgreSQL's".into());
        let row: [Option<String>; 5] = rows.into_iter().next().and_then(|row| row.try_into().ok()).ok_or_else(odd)?;
        let [Some(version), Some(number), Some(standby), position, passwords] = row else { return Err(odd()) };
        let major = number.parse::<u32>().map_err(|_| odd())? / 10_000;
        if major < OLDEST {
            let text = format!("it is version {version}; databases are dumped from {OLDEST} and later");
            return Err(self.error("use PostgreSQL", text));
        }
        // Not everybody may ask.
        let system = "SELECT system_identifier::text FROM pg_control_system()";
        let system = match self.try_rows(context, common, REQUEST, system)? {
            Ok(rows) => first(rows),
            Err(failure) if failure.is("42501") => None,
            Err(failure) => return Err(self.told("ask PostgreSQL", common, &failure)),
        };
        let databases = self.rows(context, common, DATABASES)?.into_iter().filter_map(|row| row.into_iter().next()?);
        Ok(State {
            version,
            major,
            standby: standby == "true",
            position: position.and_then(|position| position.parse().ok()),
            system,
            passwords: passwords.as_deref() == Some("true"),
            databases: databases.collect(),
            common,
        })
    }

    pub fn held(&self, context: &Context, database: &str) -> Result<Held, SourceError> {
        let row = self.rows(context, database, HELD)?.into_iter().next().unwrap_or_default();
        let mut numbers = row.into_iter().map(|value| value?.parse::<u64>().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(tables), Some(all)) => Ok(Held { tables, all }),
            _ => Err(self.error("count tables", format!("database {database}: the answer is no number"))),
        }
    }

    /// One of the programs, with what it needs to reach `database`.
    pub fn program(
        &self,
        context: &Context,
        program: &str,
        database: &str,
        arguments: &[&str],
    ) -> Result<exec::Command, SourceError> {
        let path = |path: &std::path::Path| path.display().to_string();
        let host = match (&self.spec.socket, &self.spec.host) {
            (Some(directory), _) => path(directory),
            (None, host) => host.clone().unwrap_or_default(),
        };
        let mut env = vec![
            ("PGHOST", host),
            ("PGHOSTADDR", String::new()),
            ("PGPORT", self.spec.port.to_string()),
            ("PGUSER", self.spec.user.clone()),
            ("PGDATABASE", database.to_owned()),
            ("PGOPTIONS", String::new()),
            ("PGAPPNAME", "lifeboat".to_owned()),
            ("PGCONNECT_TIMEOUT", REQUEST.as_secs().to_string()),
            ("PGGSSENCMODE", "disable".to_owned()),
            ("PGSSLMODE", if self.spec.tls.is_some() { "verify-full" } else { "disable" }.to_owned()),
            ("LC_ALL", "C".to_owned()),
        ];
        if let Some(tls) = &self.spec.tls {
            env.push(("PGSSLROOTCERT", path(&tls.ca)));
            env.extend(tls.certificate.iter().map(|file| ("PGSSLCERT", path(file))));
            env.extend(tls.key.iter().map(|file| ("PGSSLKEY", path(file))));
        }
        let mut env: Vec<_> = env.into_iter().map(|(name, value)| (name.to_owned(), Zeroizing::new(value))).collect();
        if let Some(password) = &self.spec.password {
            env.push(("PGPASSWORD".to_owned(), password.read()?));
        }
        let cancel = context.cancel.clone();
        Ok(exec::Command {
            program: program.to_owned(),
            inherits: exec::Inherits::Little,
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            env,
            deadline: context.deadline,
            stop: Box::new(move || cancel.is_cancelled()),
        })
    }

    pub fn failed(&self, context: &Context, action: &'static str, database: &str, error: &ExecError) -> SourceError {
        if let Err(ended) = context.go_on() {
            return ended;
        }
        let text = exec::causes(error.to_string(), std::error::Error::source(error));
        self.error(action, format!("database {database}: {text}"))
    }

    /// A program that is older than what it works on leaves things out or fails half-way. Says what the program is.
    pub fn fits(&self, context: &Context, program: &str, least: u32) -> Result<String, SourceError> {
        let mut command = self.program(context, program, "", &["--version"])?;
        command.deadline = context.deadline.min(Instant::now() + REQUEST);
        let said = command.run(4096).map_err(|error| {
            let text = exec::causes(error.to_string(), std::error::Error::source(&error));
            context.go_on().err().unwrap_or(SourceError::Program { program: program.to_owned(), text })
        })?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        match too_old(&said, least) {
            None => Ok(said),
            Some(text) => Err(SourceError::System {
                attempt: format!("use {program} on {}", self.name),
                text,
                need: format!("put version {least} or later of PostgreSQL's client programs on the PATH"),
            }),
        }
    }
}

pub fn first(rows: Vec<Row>) -> Option<String> {
    rows.into_iter().next()?.into_iter().next()?
}

/// What is wrong with a program that calls itself `said` where major version `least` is needed.
fn too_old(said: &str, least: u32) -> Option<String> {
    match major(said) {
        Some(major) if major >= least => None,
        Some(major) => Some(format!("it is of version {major}, and version {least} is needed")),
        None => Some(format!("it does not tell its version, but {said:?}")),
    }
}

/// Of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
pub fn major(said: &str) -> Option<u32> {
    version(said).map(|(major, _)| major)
}

/// Major and minor version; one that is not released has no minor one.
pub fn version(said: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        Some((text[..end].parse().ok()?, text[end..].to_owned()))
    };
    let (major, rest) = number(said.split_once(") ").map_or(said, |(_, version)| version))?;
    Some((major, rest.strip_prefix('.').and_then(number).map(|(minor, _)| minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_must_not_be_older_than_the_server() {
        let debian = "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(too_old(debian, 15), None);
        assert_eq!(too_old(debian, 14), None);
        assert_eq!(too_old(debian, 16).as_deref(), Some("it is of version 15, and version 16 is needed"));
        assert_eq!(too_old("pg_dump (PostgreSQL) 18beta1", 18), None);
        assert_eq!(
            too_old("pg_dump (PostgreSQL) 9.6.24", 13).as_deref(),
            Some("it is of version 9, and version 13 is needed")
        );
        assert!(too_old("something else", 13).is_some_and(|text| text.contains("something else")));
        assert!(too_old("", 13).is_some());
    }
}
