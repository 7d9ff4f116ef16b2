//! A dump back into a running server.
//!
//! The databases that the snapshot names are dropped and made anew; others stay. So a server with tables of users is only
//! touched with `existing: replace`.

use super::client::{Client, State};
use super::{DATABASES, Spec};
use crate::entry::Supply;
use crate::exec::causes;
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use std::collections::BTreeSet;
use std::io;

/// As a plan names them.
const ALL: &str = "all databases of the dump";
const CHECKING: &str = "check the restored tables";

pub struct Server {
    client: Client,
    options: Options,
}

impl Server {
    pub fn new(spec: Spec, options: Options) -> Result<Self, SourceError> {
        Ok(Self { client: Client::new(spec)?, options })
    }

    fn action(&self, is: &State) -> Action {
        match self.options.existing {
            _ if is.tables == 0 => Action::Create,
            Existing::Replace => Action::Replace,
            // What this step had begun, as far as it came.
            _ if self.options.made.contains(ALL) => Action::Replace,
            Existing::Skip | Existing::Update => {
                let out = self.options.way_out();
                Action::Conflict(format!("the server holds {} tables, which a dump can only replace{out}", is.tables))
            }
        }
    }

    /// Drops the databases that come back, so that nothing younger stays in them. Says which ones stay as they are.
    fn clear(&self, context: &Context, supply: &dyn Supply) -> Result<Option<String>, SourceError> {
        let captured = supply.facts().details.get(DATABASES);
        let captured: Vec<String> = captured.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let (drop, stay): (Vec<_>, Vec<_>) =
            self.client.state(context)?.databases.into_iter().partition(|name| captured.contains(name));
        for name in drop {
            self.client.query(context, &format!("DROP DATABASE `{}`", name.replace('`', "``")))?;
        }
        Ok((!stay.is_empty()).then(|| format!("not in the snapshot, and left as they were: {}", stay.join(", "))))
    }

    fn feed(&self, context: &Context, supply: &dyn Supply) -> Result<(), SourceError> {
        let action = "restore MariaDB";
        let command = self.client.program(
            context,
            "mariadb",
            context.deadline,
            // In binary mode it takes no commands of its own; nor does it send files of this machine.
            &["--batch", "--binary-mode", "--local-infile=0", "--max-allowed-packet=1G"],
        )?;
        let mut running = command.start_fed().map_err(|error| self.client.failed(context, action, &error))?;
        let mut dumps = 0;
        let fed = supply.entries(&mut |entry, body| {
            if entry.path != b"dump.sql" {
                return Ok(());
            }
            dumps += 1;
            body.copy(&mut running)
        });
        // Where the client ended early, its end tells why; where the snapshot could not be read, the client must not
        // take what it got for all.
        match fed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                drop(running);
                let text = causes(error.to_string(), error.get_ref().and_then(std::error::Error::source));
                return Err(SourceError::Server { action, server: self.client.server.clone(), text });
            }
            _ => running.close(),
        }
        running.wait().map_err(|error| self.client.failed(context, action, &error))?;
        if dumps != 1 {
            let text = "the snapshot holds no dump.sql".to_owned();
            return Err(SourceError::Server { action, server: self.client.server.clone(), text });
        }
        Ok(())
    }
}

impl Target for Server {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let is = self.client.state(context)?;
        let was = supply.facts().details.get("version").cloned().unwrap_or_default();
        let mut about = vec![format!("MariaDB {}, {} tables", is.version, is.tables)];
        if was != is.version {
            about.push(format!("the snapshot is of MariaDB {was}; run mariadb-upgrade afterwards"));
        }
        let databases = Change { what: ALL.to_owned(), action: self.action(&is) };
        let accounts = Change { what: "all accounts of the server".to_owned(), action: Action::Replace };
        Ok(Plan { target: self.client.server.clone(), about, changes: vec![databases, accounts] })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        if let Some(Change { action: Action::Conflict(why), .. }) = plan.changes.first() {
            let (server, text) = (self.client.server.clone(), why.clone());
            return Err(SourceError::Server { action: "restore MariaDB", server, text });
        }
        let mut to_do = vec!["the accounts are those of the snapshot, with their passwords".to_owned()];
        to_do.extend(self.clear(context, supply)?);
        self.feed(context, supply)?;
        let command =
            self.client.program(context, "mariadb-check", context.deadline, &["--all-databases", "--silent"])?;
        let said = match command.run(1 << 20).map_err(|error| self.client.failed(context, CHECKING, &error)) {
            Ok(said) => String::from_utf8_lossy(&said).trim().to_owned(),
            // The snapshot does not hold this account, or with another password.
            Err(SourceError::Refused { .. }) => {
                to_do.push("check the tables: mariadb-check --all-databases".to_owned());
                return Ok(Applied { changes: plan.changes.clone(), to_do, ..Applied::default() });
            }
            Err(error) => return Err(error),
        };
        if !said.is_empty() {
            return Err(SourceError::Server { action: CHECKING, server: self.client.server.clone(), text: said });
        }
        let is = self.client.state(context)?;
        let checked = vec![format!("mariadb-check finds all tables sound; {} tables of users are there", is.tables)];
        Ok(Applied { changes: plan.changes.clone(), problems: Vec::new(), checked, to_do })
    }

    fn unmarked(&self, plan: &Plan) -> BTreeSet<String> {
        plan.creates()
    }
}
