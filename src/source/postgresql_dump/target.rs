//! Databases back into a running server.
//!
//! Each database of the snapshot that was asked for is made anew; one that holds something is only dropped for it with
//! `existing: replace`. All others stay. What makes a database cannot be in a transaction; what is in it comes in one, whose
//! end is sent when all of the dump was: a restore that breaks off leaves an empty database, which the next one may replace, and
//! those that were finished, which a plan's step that goes on replaces once somebody says so.
//! Of roles, only those that are missing are made (see [`super::globals`]).

use super::globals::Globals;
use super::server::{Held, Server, State, major, version};
use super::split::{self, OneTransaction};
use super::{GLOBALS, Spec, TABLES, database_of, dump};
use crate::entry::{Facts, Problem, Supply};
use crate::exec::Running;
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use rustix::rand::GetRandomFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};

const RESTORE: &str = "restore a database";
/// Bytes that go to a program at a time.
const PIECE: usize = 64 << 10;
/// Bytes of the globals, which are held in memory.
const LARGEST: usize = 64 << 20;

pub struct Restoring {
    server: Server,
    options: Options,
}

/// What the snapshot holds of what was asked for.
#[derive(Default)]
struct Wanted {
    /// By name: the path in the snapshot.
    databases: BTreeMap<String, Vec<u8>>,
    globals: Globals,
}

impl Wanted {
    fn read(supply: &dyn Supply) -> Result<Self, SourceError> {
        let (mut wanted, mut globals) = (Self::default(), Vec::new());
        let read = supply.entries(&mut |entry, body| {
            if entry.path == GLOBALS.as_bytes() {
                body.copy(&mut Limited(&mut globals))?;
            } else if let Some(name) = database_of(&entry.path) {
                wanted.databases.insert(name, entry.path.clone());
            }
            Ok(())
        });
        let broke = |source| SourceError::Snapshot { what: GLOBALS.into(), source };
        read.map_err(broke)?;
        let text = String::from_utf8(globals).map_err(|error| broke(io::Error::other(error)))?;
        wanted.globals = Globals::parse(&text);
        Ok(wanted)
    }
}

/// Keeps what is written, up to [`LARGEST`].
struct Limited<'a>(&'a mut Vec<u8>);

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the server has of that.
struct There {
    state: State,
    roles: BTreeSet<String>,
    tablespaces: BTreeSet<String>,
    /// Of the databases that are wanted: those that are there.
    databases: BTreeMap<String, Held>,
}

impl There {
    fn roles(&self) -> BTreeSet<&str> {
        self.roles.iter().map(String::as_str).collect()
    }
}

/// For `\restrict`: letters and digits.
fn random_key() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a `psql` that calls itself `said` knows `\restrict` (CVE-2025-8714).
fn can_restrict(said: &str) -> bool {
    const FIRST: [(u32, u32); 5] = [(13, 22), (14, 19), (15, 14), (16, 10), (17, 6)];
    let Some((major, minor)) = version(said) else { return false };
    let least = FIRST.iter().find(|(release, _)| *release == major).map(|(_, least)| *least);
    least.map_or(major > 17, |least| minor.is_some_and(|minor| minor >= least))
}

fn database(name: &str) -> String {
    format!("database {name}")
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Result<Self, SourceError> {
        Ok(Self { server: Server::new(spec)?, options })
    }

    fn there(&self, context: &Context, wanted: &Wanted) -> Result<There, SourceError> {
        let state = self.server.state(context)?;
        if state.standby {
            return Err(self.server.error(RESTORE, "it is a standby, which takes no changes; name the primary".into()));
        }
        let names = |query: &str| -> Result<BTreeSet<String>, SourceError> {
            let rows = self.server.rows(context, state.common, query)?;
            Ok(rows.into_iter().filter_map(|row| row.into_iter().next()?).collect())
        };
        let roles = names("SELECT rolname FROM pg_roles")?;
        let tablespaces = names("SELECT spcname FROM pg_tablespace")?;
        // Those that take no connections are there as well.
        let all = names("SELECT datname FROM pg_database")?;
        let mut databases = BTreeMap::new();
        for name in wanted.databases.keys().filter(|name| all.contains(*name)) {
            let known = state.databases.contains(name);
            let held = if known { self.server.held(context, name)? } else { Held { tables: 0, all: 1 } };
            databases.insert(name.clone(), held);
        }
        Ok(There { state, roles, tablespaces, databases })
    }

    fn action(&self, there: &There, facts: &Facts, name: &str) -> Action {
        let held = match there.databases.get(name) {
            // It was finished, or somebody else has been at work in it.
            Some(held) if held.all > 0 && self.is_own(name) => return Action::Replace,
            Some(held) if held.all > 0 => held,
            _ => return Action::Create,
        };
        let foreign = matches!((&facts.system, &there.state.system), (Some(was), Some(is)) if was != is);
        match self.options.existing {
            Existing::Replace if foreign && !self.options.foreign => Action::Conflict(format!(
                "it holds {} tables, and belongs to another system than the one that was captured",
                held.tables
            )),
            Existing::Replace => Action::Replace,
            Existing::Skip | Existing::Update => {
                let out = self.options.way_out();
                Action::Conflict(format!("it holds {} tables, which a dump can only replace{out}", held.tables))
            }
        }
    }

    /// This step has begun to make it, where nothing was.
    fn is_own(&self, name: &str) -> bool {
        self.options.made.contains(&database(name))
    }

    fn about(
        &self,
        context: &Context,
        wanted: &Wanted,
        there: &There,
        facts: &Facts,
    ) -> Result<Vec<String>, SourceError> {
        let detail = |name: &str| facts.details.get(name).map_or("", String::as_str);
        let mut about = vec![format!("PostgreSQL {}, {}", there.state.version, there.state.role())];
        if major(detail("version")).is_some_and(|was| was > there.state.major) {
            let was = detail("version");
            about
                .push(format!("the snapshot is of PostgreSQL {was}, which is newer: the server may not understand it"));
        }
        about.extend(self.differing(context, wanted, there, facts)?);
        Ok(about)
    }

    /// What is in the snapshot's globals, is not so on the server, and is left alone.
    fn differing(
        &self,
        context: &Context,
        wanted: &Wanted,
        there: &There,
        facts: &Facts,
    ) -> Result<Vec<String>, SourceError> {
        if wanted.globals.roles().is_empty() {
            return Ok(Vec::new());
        }
        let common = there.state.common;
        let command = self.server.program(context, "pg_dumpall", common, &dump::global_options(&there.state))?;
        let said =
            command.run(LARGEST).map_err(|error| self.server.failed(context, "read the roles", common, &error))?;
        let own = Globals::parse(&String::from_utf8_lossy(&said));
        let passwords = there.state.passwords && facts.details.get("role_passwords").is_some_and(|has| has == "yes");
        let (roles, others) = wanted.globals.differing(&own, passwords);
        let mut lines = Vec::new();
        if !roles.is_empty() {
            let roles: Vec<_> = roles.into_iter().collect();
            let roles = roles.join(", ");
            lines
                .push(format!("roles that are not as in {GLOBALS} of the snapshot, and are left as they are: {roles}"));
        }
        if others > 0 {
            lines.push(format!("{others} further statements of {GLOBALS} are not so on the server, and are left out"));
        }
        Ok(lines)
    }

    /// Makes one database and all that is in it.
    fn database(
        &self,
        context: &Context,
        supply: &dyn Supply,
        name: &str,
        path: &[u8],
        there: &There,
    ) -> Result<(), SourceError> {
        // Nobody can be connected to the one that goes.
        let beside = if name == there.state.common { "template1" } else { there.state.common };
        let mut begin = |head: &[u8]| -> Result<Running, SourceError> {
            if there.databases.contains_key(name) {
                let drop = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", name.replace('"', "\"\""));
                self.server.execute(context, "drop a database", beside, &drop)?;
            }
            let mut made = self.psql(context, beside)?;
            // Its end tells more than what could not be written to it.
            let _ = made.write_all(head);
            self.ended(context, name, made)?;
            let mut running = self.psql(context, name)?;
            let _ = running.write_all(b"BEGIN;\n");
            Ok(running)
        };
        let mut feed = Feed { begin: &mut begin, head: Vec::new(), running: None, failure: None, gone: false };
        let supplied =
            supply.entries(&mut |entry, body| if entry.path == path { body.copy(&mut feed) } else { Ok(()) });
        let Feed { running, failure, gone, .. } = feed;
        if let Some(failure) = failure {
            return Err(failure);
        }
        match (supplied, running) {
            // The program is killed: what came is undone.
            (Err(source), _) if !gone => Err(SourceError::Snapshot { what: database(name), source }),
            (_, None) => Err(self.server.error(RESTORE, format!("the snapshot's dump of {name} makes no database"))),
            (supplied, Some(running)) => {
                // What cannot be written has ended, and its end tells why.
                let (mut out, ended) = running.end();
                let supplied = supplied.and(ended.or_else(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Err(error),
                    _ => Ok(()),
                }));
                let _ = out.flush();
                let mut running = out.into_parts().0;
                if supplied.is_ok() {
                    let _ = running.write_all(b"\nCOMMIT;\n");
                }
                self.ended(context, name, running)?;
                supplied.map_err(|source| SourceError::Snapshot { what: database(name), source })
            }
        }
    }

    fn psql(&self, context: &Context, name: &str) -> Result<Running, SourceError> {
        // No rows in errors.
        let options = [
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            "--set=VERBOSITY=terse",
            "--set=SHOW_CONTEXT=never",
            "--output=/dev/null",
        ];
        let command = self.server.program(context, "psql", name, &options)?;
        let mut psql = command.start_fed().map_err(|error| self.server.failed(context, RESTORE, name, &error))?;
        // From here on it takes no command of its own, `\!` among them, whatever the dump holds. One that does not know this
        // ends at it.
        let key = random_key().map_err(|source| self.server.error(RESTORE, source.to_string()))?;
        let _ = writeln!(psql, "\\restrict {key}");
        Ok(psql)
    }

    fn ended(&self, context: &Context, name: &str, mut running: Running) -> Result<(), SourceError> {
        running.close();
        running.wait().map_err(|error| self.server.failed(context, RESTORE, name, &error))
    }

    /// Counts, and lets the server look at what it has now.
    fn checked(&self, context: &Context, facts: &Facts, name: &str, applied: &mut Applied) -> Result<(), SourceError> {
        self.server.execute(context, "analyze a restored database", name, "ANALYZE")?;
        let tables = self.server.held(context, name)?.tables;
        let counted = facts.details.get(TABLES).and_then(|text| serde_json::from_str(text).ok());
        let counted: BTreeMap<String, u64> = counted.unwrap_or_default();
        match counted.get(name) {
            Some(was) if *was != tables => applied.problems.push(Problem {
                path: super::path_of(name).into_bytes(),
                text: format!("{tables} tables are there; before it was dumped there were {was}"),
            }),
            _ => applied.checked.push(format!("{}: {tables} tables, analyzed", database(name))),
        }
        Ok(())
    }
}

/// Takes a dump: when the head is whole, `begin` starts the program that gets the rest.
struct Feed<'a> {
    begin: &'a mut dyn FnMut(&[u8]) -> Result<Running, SourceError>,
    head: Vec<u8>,
    running: Option<OneTransaction<BufWriter<Running>>>,
    /// Why nothing more is taken.
    failure: Option<SourceError>,
    /// The program takes nothing more.
    gone: bool,
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(running) = &mut self.running {
            return running.write(bytes).inspect_err(|_| self.gone = true);
        }
        self.head.extend_from_slice(bytes);
        match split::head(&self.head) {
            Some(end) => {
                let (commands, key) = split::commands(&self.head[..end])?;
                match (self.begin)(&commands) {
                    Ok(running) => {
                        self.running
                            .insert(OneTransaction::new(BufWriter::with_capacity(PIECE, running), key.as_deref()))
                            .write_all(&self.head[end..])
                            .inspect_err(|_| self.gone = true)?;
                        self.head = Vec::new();
                    }
                    Err(failure) => {
                        self.failure = Some(failure);
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
            }
            None if self.head.len() > split::LARGEST => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the dump does not begin with a database"));
            }
            None => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let facts = supply.facts();
        let wanted = Wanted::read(supply)?;
        // psql puts the name wherever a dump asks for it, and would read a command in it.
        if let Some(name) = wanted.databases.keys().find(|name| name.contains('\\')) {
            return Err(self
                .server
                .error(RESTORE, format!("the database {name:?} has a backslash in its name: restore it by hand")));
        }
        let there = self.there(context, &wanted)?;
        let dumped = facts.details.get("pg_dump").and_then(|said| major(said));
        let said = self.server.fits(context, "psql", dumped.unwrap_or(there.state.major))?;
        if !can_restrict(&said) {
            return Err(SourceError::System {
                attempt: format!("use psql on {}", self.server.name),
                text: format!("{said} would carry out commands that a false snapshot holds"),
                need: "put one of August 2025 or later on the PATH: 13.22, 14.19, 15.14, 16.10, 17.6, 18".into(),
            });
        }
        let about = self.about(context, &wanted, &there, facts)?;
        let mut changes = Vec::new();
        for name in wanted.globals.roles().difference(&there.roles()) {
            changes.push(Change { what: format!("role {name}"), action: Action::Create });
        }
        for name in wanted.globals.tablespaces().into_iter().filter(|name| !there.tablespaces.contains(*name)) {
            let why = format!("it is not there: create it where its files shall be (CREATE TABLESPACE), see {GLOBALS}");
            changes.push(Change { what: format!("tablespace {name}"), action: Action::Conflict(why) });
        }
        for name in wanted.databases.keys() {
            changes.push(Change { what: database(name), action: self.action(&there, facts, name) });
        }
        let target = there.state.system.unwrap_or_else(|| self.server.name.clone());
        Ok(Plan { target, about, changes })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let facts = supply.facts();
        let conflict = |change: &&Change| matches!(change.action, Action::Conflict(_));
        if let Some(change) = plan.changes.iter().filter(conflict).find(|change| change.what.starts_with("tablespace "))
        {
            return Err(self.server.error(RESTORE, format!("{}: {}", change.what, change.action)));
        }
        let wanted = Wanted::read(supply)?;
        let there = self.there(context, &wanted)?;
        let mut applied = Applied { changes: plan.changes.clone(), ..Applied::default() };
        let missing = wanted.globals.missing(&there.roles());
        if !missing.is_empty() {
            self.server.execute(context, "make the missing roles", there.state.common, &missing)?;
            let made: Vec<_> = wanted.globals.roles().difference(&there.roles()).copied().collect();
            applied.checked.push(format!("roles made: {}", made.join(", ")));
            if facts.details.get("role_passwords").is_none_or(|has| has != "yes") {
                applied
                    .to_do
                    .push(format!("give the new roles passwords, which were not captured: {}", made.join(", ")));
            }
        }
        applied.to_do.extend(self.differing(context, &wanted, &there, facts)?);
        for (name, path) in &wanted.databases {
            let planned = plan.changes.iter().find(|change| change.what == database(name)).map(|change| &change.action);
            if !matches!(planned, Some(Action::Create | Action::Replace)) {
                continue;
            }
            let held = there.databases.get(name);
            if planned == Some(&Action::Create) && held.is_some_and(|held| held.all > 0) {
                let text = format!("the database {name} holds something by now; nothing was done to it");
                return Err(self.server.error(RESTORE, text));
            }
            self.database(context, supply, name, path, &there)?;
            self.checked(context, facts, name, &mut applied)?;
        }
        Ok(applied)
    }

    fn unmarked(&self, plan: &Plan) -> BTreeSet<String> {
        plan.creates()
    }
}

#[cfg(test)]
mod tests {
    use super::can_restrict;

    #[test]
    fn a_psql_that_takes_commands_out_of_a_dump_is_refused() {
        for (said, can) in [
            ("psql (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", true),
            ("psql (PostgreSQL) 15.14", true),
            ("psql (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)", false),
            ("psql (PostgreSQL) 17.6", true),
            ("psql (PostgreSQL) 17.5", false),
            ("psql (PostgreSQL) 18beta1", true),
            ("psql (PostgreSQL) 12.22", false),
            ("something else", false),
        ] {
            assert_eq!(can_restrict(said), can, "{said}");
        }
    }
}
