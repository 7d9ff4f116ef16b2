//! MariaDB's own client programs, and what a server says through them.
//!
//! A password is given in the environment (`MYSQL_PWD`), never among the arguments; option files are not read.

use super::Spec;
use crate::exec::{self, ExecError};
use crate::secret::SecretRef;
use crate::source::connection::REQUEST;
use crate::source::{Context, SourceError};
use std::time::Instant;

/// Bytes of an answer.
const LARGEST: usize = 1 << 20;

const STATE: &str = "SELECT 'version', @@version; SELECT 'gtid', @@gtid_current_pos; SELECT 'log', @@log_bin; \
    SELECT 'tables', COUNT(*) FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND table_schema NOT IN \
    ('mysql', 'sys', 'information_schema', 'performance_schema'); \
    SELECT 'others', COUNT(*) FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND engine <> 'InnoDB' AND \
    table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema'); \
    SELECT 'database', schema_name FROM information_schema.schemata WHERE schema_name NOT IN \
    ('mysql', 'sys', 'information_schema', 'performance_schema'); \
    SHOW GLOBAL VARIABLES LIKE 'server_uid'";

/// What the account may do everywhere, a line `right` each.
pub const HELD: &str = "SELECT 'right', privilege_type FROM information_schema.user_privileges WHERE grantee IN \
    (CONCAT('\\'', SUBSTRING_INDEX(CURRENT_USER(), '@', 1), '\\'@\\'', SUBSTRING_INDEX(CURRENT_USER(), '@', -1), \
    '\\''), CONCAT('\\'', CURRENT_ROLE(), '\\'@\\'\\''))";

/// Without one of these the dump succeeds and leaves out what the account does not see.
const RIGHTS: [&str; 4] = ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"];

const ADVICE: &str = "the account needs the right password, and for a dump SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, \
    RELOAD and BINLOG MONITOR on *.*";

#[derive(Debug)]
pub struct Client {
    spec: Spec,
    /// As people write it.
    pub server: String,
    /// To somebody whom the server does not let in.
    advice: &'static str,
}

/// What a server says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    pub version: String,
    pub uid: Option<String>,
    /// `DOMAIN-SERVER-SEQUENCE,…`
    pub gtid: String,
    pub position: Option<u64>,
    pub binary_log: bool,
    pub tables: u64,
    pub not_transactional: u64,
    /// Those of users, in order.
    pub databases: Vec<String>,
    /// What the account may do everywhere.
    rights: Vec<String>,
}

impl Client {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        Self::of("mariadb", spec, ADVICE)
    }

    /// For a document of that kind.
    pub fn of(kind: &str, spec: Spec, advice: &'static str) -> Result<Self, SourceError> {
        let mut wrong = None;
        spec.check_rest(&mut |field, message| _ = wrong.get_or_insert(format!("{kind}.{field}: {message}")));
        match wrong {
            Some(what) => Err(SourceError::Spec { what }),
            None => Ok(Self { server: spec.place().name(), spec, advice }),
        }
    }

    /// One of the programs, with what it needs to reach the server.
    pub fn program(
        &self,
        context: &Context,
        program: &str,
        deadline: Instant,
        further: &[&str],
    ) -> Result<exec::Command, SourceError> {
        let mut arguments = vec!["--no-defaults".to_owned(), format!("--user={}", self.spec.user)];
        match (&self.spec.socket, &self.spec.host) {
            (Some(socket), _) => {
                arguments.extend(["--protocol=socket".into(), format!("--socket={}", socket.display())]);
            }
            (None, host) => {
                let host = host.as_deref().unwrap_or_default();
                let port = self.spec.port;
                arguments.extend(["--protocol=tcp".into(), format!("--host={host}"), format!("--port={port}")]);
            }
        }
        match &self.spec.tls {
            None => arguments.push("--skip-ssl".into()),
            Some(tls) => {
                let file = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
                arguments.extend(["--ssl-verify-server-cert".into(), file("ssl-ca", &tls.ca)]);
                arguments.extend(tls.certificate.iter().map(|path| file("ssl-cert", path)));
                arguments.extend(tls.key.iter().map(|path| file("ssl-key", path)));
            }
        }
        arguments.extend(further.iter().map(|&word| word.to_owned()));
        let password = self.spec.password.as_ref().map(SecretRef::read).transpose()?.unwrap_or_default();
        let cancel = context.cancel.clone();
        Ok(exec::Command {
            program: program.to_owned(),
            inherits: exec::Inherits::Little,
            arguments,
            env: vec![("MYSQL_PWD".into(), password)],
            deadline,
            stop: Box::new(move || cancel.is_cancelled()),
        })
    }

    /// What a query answers with: lines of values with tabs between.
    pub fn query(&self, context: &Context, query: &str) -> Result<String, SourceError> {
        let deadline = context.deadline.min(Instant::now() + REQUEST);
        let words = ["--batch", "--skip-column-names", "--connect-timeout=10", "--execute", query];
        let command = self.program(context, "mariadb", deadline, &words)?;
        let answer = command.run(LARGEST).map_err(|error| self.failed(context, "ask MariaDB", &error))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn state(&self, context: &Context) -> Result<State, SourceError> {
        let answer = self.query(context, &format!("{HELD}; {STATE}"))?;
        let text = "the answer is not MariaDB's".to_owned();
        let server = self.server.clone();
        State::parse(&answer).ok_or(SourceError::Server { action: "ask MariaDB", server, text })
    }

    /// An account that sees a part must not make a dump that looks like all.
    pub fn sees_all(&self, state: &State) -> Result<(), SourceError> {
        self.may(&RIGHTS, &state.rights)
    }

    /// Whether the rights that the account has are all that are needed.
    pub fn may(&self, needed: &[&str], has: &[String]) -> Result<(), SourceError> {
        let missing: Vec<_> = needed.iter().filter(|right| !has.iter().any(|has| has == *right)).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!("the account {} lacks {} on *.*", self.spec.user, missing.join(", "));
        Err(SourceError::Refused { server: self.server.clone(), text, advice: self.advice })
    }

    pub fn failed(&self, context: &Context, action: &'static str, error: &ExecError) -> SourceError {
        if let Err(ended) = context.go_on() {
            return ended;
        }
        let text = exec::causes(error.to_string(), std::error::Error::source(error));
        let server = self.server.clone();
        // Denied: access, a privilege, a command.
        if ["ERROR 1045", "ERROR 1227", "ERROR 1142", "ERROR 1044"].iter().any(|code| text.contains(code)) {
            return SourceError::Refused { server, text, advice: self.advice };
        }
        SourceError::Server { action, server, text }
    }
}

impl State {
    fn parse(answer: &str) -> Option<Self> {
        let mut state = Self::default();
        for line in answer.lines() {
            let (name, value) = line.split_once('\t')?;
            match name {
                "version" => value.clone_into(&mut state.version),
                "gtid" => value.clone_into(&mut state.gtid),
                "log" => state.binary_log = value == "1",
                "tables" => state.tables = value.parse().ok()?,
                "database" => state.databases.push(value.to_owned()),
                "right" => state.rights.push(value.to_owned()),
                "others" => state.not_transactional = value.parse().ok()?,
                "server_uid" => state.uid = Some(value.to_owned()),
                _ => {}
            }
        }
        state.databases.sort();
        state.position = position(&state.gtid);
        (!state.version.is_empty()).then_some(state)
    }
}

/// The sum of the sequence numbers: whatever is written in any domain makes it grow.
fn position(gtid: &str) -> Option<u64> {
    let numbers = gtid.split(',').map(|one| one.trim().rsplit('-').next()?.parse::<u64>().ok());
    numbers.sum::<Option<u64>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_grows_with_every_domain() {
        assert_eq!(position(""), None);
        assert_eq!(position("0-1-270"), Some(270));
        assert_eq!(position("0-1-270,1-7-30"), Some(300));
        assert_eq!(position("nonsense"), None);
    }
}
