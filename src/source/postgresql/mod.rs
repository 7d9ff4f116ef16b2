//! A PostgreSQL cluster, by a physical base backup over the replication protocol (PostgreSQL 15 and later).
//!
//! The snapshot holds the data directory as entries: relation files in the server's pages, everything else by content, the
//! write-ahead log that recovery needs, `backup_label` and `backup_manifest`. A restored tree starts as it is: recovery
//! replays the log to the end of the backup. Other tablespaces lie below `pg_tblspc/<oid>/`, and `tablespace_map` says
//! where they were: a server does not start from such a tree before a person has moved each of them to where it shall be,
//! and written that into `tablespace_map`; so a restore on the same machine can never run on the live tablespaces.
//!
//! Everything committed before the recovery point is in the snapshot. A temporary replication slot holds the log back
//! while the backup runs, where the server has a free one. A standby is as good a source as the primary; what has not
//! reached it is not in the snapshot, and the recovery point does not know of that lag.
//!
//! Deliberately absent: a continuous archive of the log. Its segments are to become a lineage beside that of the base
//! backups, by system identifier and timeline; a base backup's `end_lsn` is where replay would go on.

mod backup;
pub(super) mod client;
mod layout;
mod tree;

use super::connection::{self, Place, REQUEST, Tls, Waited, wait};
use super::unpack::hand_over_rest;
use super::{Context, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Layout, Problem, Sink};
use crate::secret::SecretRef;
use backup::{Event, Stream};
use client::{Client, Failure, Session};
use serde::Deserialize;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tree::Tree;

const OLDEST: u32 = 15;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name or address of the server; otherwise `socket`.
    pub host: Option<String>,
    /// The directory of the server's socket file.
    pub socket: Option<PathBuf>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// A role with REPLICATION, admitted to `replication` by pg_hba.conf.
    pub user: String,
    pub password: Option<SecretRef>,
    pub tls: Option<Tls>,
    /// Do without TLS although the server is another machine.
    #[serde(default)]
    pub insecure: bool,
}

fn default_port() -> u16 {
    5432
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        connection::needs(self.tls.as_ref(), self.password.as_ref())
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.user.is_empty() {
            say("user", "expected a role with REPLICATION");
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        self.place().check(say);
    }

    pub(super) fn place(&self) -> Place {
        let socket = self.socket.as_ref().map(|directory| directory.join(format!(".s.PGSQL.{}", self.port)));
        let (host, tls) = (self.host.clone(), self.tls.clone());
        Place { host, port: self.port, socket, tls, insecure: self.insecure }
    }
}

#[derive(Debug)]
pub struct Postgresql {
    spec: Spec,
    place: Place,
    server: String,
}

/// What a server says of itself.
struct Identity {
    system: String,
    version: String,
    timeline: String,
    role: &'static str,
}

impl Postgresql {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let place = spec.place();
        let mut wrong = None;
        place.check(&mut |field, message| _ = wrong.get_or_insert(format!("postgresql.{field}: {message}")));
        match wrong {
            Some(what) => Err(SourceError::Spec { what }),
            None => Ok(Self { server: place.name(), spec, place }),
        }
    }

    fn connect(&self, context: &Context) -> Result<(Client, Identity), SourceError> {
        let connector = self.place.connector()?;
        let password = self.spec.password.as_ref().map(SecretRef::read).transpose()?;
        let password = password.as_ref().map(|password| password.as_str());
        let connect = Client::connect(&self.place, connector.as_ref(), &self.spec.user, password, Session::Replication);
        let mut client = self.ask(context, "connect to PostgreSQL", REQUEST, connect)?;
        let identity = self.ask(context, "identify PostgreSQL", REQUEST, identify(&mut client))?;
        let major = identity.version.split(['.', ' ', 'b', 'd', 'r']).next().and_then(|text| text.parse::<u32>().ok());
        if major.is_none_or(|major| major < OLDEST) {
            let text = format!("it is version {}; base backups are taken from {OLDEST} and later", identity.version);
            return Err(SourceError::Server { action: "use PostgreSQL", server: self.server.clone(), text });
        }
        Ok((client, identity))
    }

    /// Waits for an answer of the server, and says what went wrong.
    fn ask<T>(
        &self,
        context: &Context,
        action: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, SourceError> {
        let server = self.server.clone();
        match wait(context, limit, answer) {
            Ok(Ok(answer)) => Ok(answer),
            Err(Waited::Ended(error)) => Err(error),
            Err(Waited::TooLong) => {
                let text = format!("no answer within {} s", limit.as_secs());
                Err(SourceError::Server { action, server, text })
            }
            Ok(Err(refused)) if refused.is("28") || refused.is("42501") => {
                let advice = "the user needs the right password, the attribute REPLICATION, and a line for the \
                              database `replication` in pg_hba.conf";
                Err(SourceError::Refused { server, text: refused.to_string(), advice })
            }
            Ok(Err(failure)) => Err(SourceError::Server { action, server, text: failure.to_string() }),
        }
    }
}

/// The first value that a query answers with, in a transaction that changes nothing.
pub(super) fn query(
    context: &Context,
    spec: &Spec,
    database: Option<&str>,
    query: &str,
) -> Result<Option<String>, SourceError> {
    let server = Postgresql::new(spec.clone())?;
    let connector = server.place.connector()?;
    let password = spec.password.as_ref().map(SecretRef::read).transpose()?;
    let password = password.as_ref().map(|password| password.as_str());
    let session = Session::Database(database.unwrap_or(&spec.user));
    let answer = async {
        let mut client = Client::connect(&server.place, connector.as_ref(), &spec.user, password, session).await?;
        client.rows("SET default_transaction_read_only = on").await?;
        client.rows(query).await
    };
    let rows = server.ask(context, "ask PostgreSQL", REQUEST, answer)?;
    Ok(rows.into_iter().next().map(|row| row.into_iter().next().flatten().unwrap_or_default()))
}

async fn identify(client: &mut Client) -> Result<Identity, Failure> {
    let row = client.rows("IDENTIFY_SYSTEM").await?.into_iter().next().unwrap_or_default();
    let mut values = row.into_iter();
    let (Some(Some(system)), Some(Some(timeline))) = (values.next(), values.next()) else {
        return Err(Failure::Protocol("the server does not identify its system".into()));
    };
    let setting = |name| client.parameters.get(name).map(String::as_str);
    let role = if setting("in_hot_standby") == Some("on") { "standby" } else { "primary" };
    Ok(Identity { system, timeline, version: setting("server_version").unwrap_or_default().to_owned(), role })
}

impl Source for Postgresql {
    fn kind(&self) -> &'static str {
        "postgresql"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let (_, is) = self.connect(context)?;
        Ok(vec![format!(
            "{}: PostgreSQL {}, {}, system {}, timeline {}",
            self.server, is.version, is.role, is.system, is.timeline
        )])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let clock = Instant::now();
        let (mut client, identity) = self.connect(context)?;
        let prepared = backup::prepare(&mut client, context.started);
        let settings = self.ask(context, "prepare a base backup", REQUEST, prepared)?;
        // The server makes a checkpoint first, which may take minutes.
        let begun = backup::begin(&mut client);
        let begun = self.ask(context, "begin a base backup", Duration::MAX, begun)?;
        let mut stream = Stream::start(client, context, clock);
        let mut tree = Tree::new(context, sink, &settings);
        let broke = |what: &str, source| SourceError::Stream { what: what.to_owned(), source };
        let (end, warnings) = loop {
            // What ended the run says more than the stream that it broke.
            let part = stream.part();
            context.go_on()?;
            match part.map_err(|source| broke("the base backup", source))? {
                Event::Archive { oid } => tree.archive(oid.as_deref(), &mut stream)?,
                Event::Manifest => {
                    let entry = tree.manifest();
                    hand_over_rest(context, tree.sink(), entry, Layout::Content, &mut stream)?;
                }
                Event::End { point, warnings } => break (point, warnings),
                Event::Data(_) => {}
            }
        };
        let objects = tree.finish().map_err(|text| SourceError::Server {
            action: "take a base backup",
            server: self.server.clone(),
            text,
        })?;
        for text in warnings {
            sink.problem(Problem { path: Vec::new(), text: format!("the server warned: {text}") });
        }
        let mut details = vec![
            ("version", identity.version),
            ("role", identity.role.to_owned()),
            ("timeline", end.timeline.to_string()),
            ("start_lsn", begun.start.to_string()),
            ("end_lsn", end.to_string()),
            ("wal_segment_size", settings.segment_size),
            ("block_size", settings.block_size.to_string()),
            ("wal_held_back", if settings.slot { "yes" } else { "no" }.to_owned()),
        ];
        if !begun.tablespaces.is_empty() {
            details.push(("tablespaces", begun.tablespaces.join(", ")));
        }
        Ok(Facts {
            system: Some(identity.system),
            position: Some(end.lsn),
            objects: Some(objects),
            recovery_point_ms: Some(stream.recovery_point()),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}
