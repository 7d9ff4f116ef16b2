//! A Redis server, by the RDB file that it sends to a replica.
//!
//! The snapshot is one entry, `dump.rdb`, from which a server starts. Lifeboat acts as a replica that wants the file and
//! nothing more; the server forks to write it, as it does for its own saves.
//!
//! What the guard can compare: a Redis server has no identity that lasts. Its run id changes with every start, and so does
//! its replication id unless a replica takes over; the offset means something only within one replication id. As a system
//! and a position both would cry wolf at every restart, so they are among the details, and the number of keys is what the
//! guard looks at: a server that came back empty is found by that. An empty data set is a legal state, and captured.
//!
//! Everything that was written before the recovery point is in the snapshot. Deliberately absent: all nodes of a cluster
//! as one source (each node is one), append-only files.

mod client;
mod rdb;

use super::command::plain_file;
use super::connection::{self, Place, REQUEST, Tls, Waited, wait};
use super::unpack::hand_over_rest;
use super::{Context, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Layout, Sink};
use crate::secret::SecretRef;
use client::{Client, Failure};
use rdb::{End, Rdb};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The server is given up when nothing comes for so long. While it forks and saves it sends line feeds.
const STALL: Duration = Duration::from_mins(2);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name or address of the server; otherwise `socket`.
    pub host: Option<String>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// The server's socket file.
    pub socket: Option<PathBuf>,
    /// A user that may call `info`, `replconf` and `psync`; without one, the default user.
    pub user: Option<String>,
    pub password: Option<SecretRef>,
    pub tls: Option<Tls>,
    /// Do without TLS although the server is another machine.
    #[serde(default)]
    pub insecure: bool,
}

fn default_port() -> u16 {
    6379
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        connection::needs(self.tls.as_ref(), self.password.as_ref())
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.user.is_some() && self.password.is_none() {
            say("password", "expected the password of the user");
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        self.place().check(say);
    }

    fn place(&self) -> Place {
        let (host, socket, tls) = (self.host.clone(), self.socket.clone(), self.tls.clone());
        Place { host, port: self.port, socket, tls, insecure: self.insecure }
    }
}

#[derive(Debug)]
pub struct Redis {
    spec: Spec,
    place: Place,
    server: String,
}

/// The answer to INFO.
struct Info(BTreeMap<String, String>);

impl Info {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// In all databases: `db0:keys=2,expires=0,…`.
    fn keys(&self) -> u64 {
        let databases = self.0.iter().filter(|(name, _)| {
            name.strip_prefix("db")
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        });
        let keys =
            databases.filter_map(|(_, value)| value.strip_prefix("keys=")?.split(',').next()?.parse::<u64>().ok());
        keys.sum()
    }

    /// How long a save has been running that the server may let others have part in.
    fn saving(&self) -> Duration {
        let running = self.get("rdb_bgsave_in_progress") == "1";
        // In whole seconds.
        let seconds = self.get("rdb_current_bgsave_time_sec").parse::<u64>().unwrap_or(0) + 1;
        if running { Duration::from_secs(seconds) } else { Duration::ZERO }
    }
}

impl Redis {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let place = spec.place();
        let mut wrong = None;
        place.check(&mut |field, message| _ = wrong.get_or_insert(format!("redis.{field}: {message}")));
        match wrong {
            Some(what) => Err(SourceError::Spec { what }),
            None => Ok(Self { server: place.name(), spec, place }),
        }
    }

    fn connect(&self, context: &Context) -> Result<(Client, Info), SourceError> {
        let connector = self.place.connector()?;
        let password = self.spec.password.as_ref().map(SecretRef::read).transpose()?;
        let connect = async {
            let mut client = Client::connect(&self.place, connector.as_ref()).await?;
            match (&self.spec.user, &password) {
                (Some(user), Some(password)) => _ = client.ask(&["AUTH", user, password.as_str()]).await?,
                (None, Some(password)) => _ = client.ask(&["AUTH", password.as_str()]).await?,
                _ => {}
            }
            let info = Info::parse(&client.ask(&["INFO"]).await?);
            if info.get("redis_version").is_empty() {
                return Err(Failure::Protocol("it does not say its version"));
            }
            Ok((client, info))
        };
        self.ask(context, "connect to Redis", REQUEST, connect)
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
            Ok(Err(denied)) if denied.denies() => {
                let advice = "the user needs the right password and the commands info, replconf and psync \
                              (ACL SETUSER … +info +replconf +psync)";
                Err(SourceError::Refused { server, text: denied.to_string(), advice })
            }
            Ok(Err(failure)) => Err(SourceError::Server { action, server, text: failure.to_string() }),
        }
    }
}

/// Asks for the file; gives the replication id, the offset, and where the file will end.
/// The text that a key holds, if it is there and holds one.
pub(super) fn get(context: &Context, spec: &Spec, key: &str) -> Result<Option<String>, SourceError> {
    let server = Redis::new(spec.clone())?;
    let (mut client, _) = server.connect(context)?;
    let answer = async {
        // The client knows no "nothing" among answers.
        if client.ask(&["EXISTS", key]).await? == "0" {
            return Ok(None);
        }
        match client.ask(&["TYPE", key]).await?.as_str() {
            "string" => client.ask(&["GET", key]).await.map(Some),
            other => Ok(Some(other.to_owned())),
        }
    };
    server.ask(context, "ask Redis", REQUEST, answer)
}

async fn begin(client: &mut Client) -> Result<(String, String, End), Failure> {
    // Older servers do not know the one or the other, and send the file all the same.
    for capability in [["REPLCONF", "capa", "eof"], ["REPLCONF", "rdb-only", "1"]] {
        match client.ask(&capability).await {
            Err(refused @ Failure::Refused(_)) if !refused.denies() => {}
            other => _ = other?,
        }
    }
    let answer = client.ask(&["PSYNC", "?", "-1"]).await?;
    let mut words = answer.split(' ');
    let (Some("FULLRESYNC"), Some(id), Some(offset)) = (words.next(), words.next(), words.next()) else {
        return Err(Failure::Protocol("it does not offer the file to a replica"));
    };
    let (id, offset) = (id.to_owned(), offset.to_owned());
    loop {
        let line = client.line().await?;
        if let Some(text) = line.strip_prefix('-') {
            return Err(Failure::Refused(text.to_owned()));
        }
        if !line.is_empty() {
            let end = End::parse(&line).ok_or(Failure::Protocol("it does not say how long the file is"))?;
            return Ok((id, offset, end));
        }
    }
}

/// The connection, for the thread that captures.
struct Wire<'a> {
    client: Client,
    context: &'a Context,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match wait(self.context, STALL, self.client.read(buffer)) {
            Ok(read) => read,
            Err(Waited::Ended(error)) => Err(io::Error::other(error)),
            Err(Waited::TooLong) => {
                let text = format!("nothing came for {} s", STALL.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }
}

impl Source for Redis {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let (_, info) = self.connect(context)?;
        let (version, role, keys) = (info.get("redis_version"), info.get("role"), info.keys());
        Ok(vec![format!("{}: Redis {version}, {role}, {keys} keys", self.server)])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let clock = Instant::now();
        let (mut client, info) = self.connect(context)?;
        // The file may be one that another replica asked for before.
        let sure = clock.elapsed().as_millis() as i64 - info.saving().as_millis() as i64;
        // The server saves first, which may take minutes.
        let begun = begin(&mut client);
        let (id, offset, end) = self.ask(context, "ask for the RDB file", Duration::MAX, begun)?;
        let way = if matches!(end, End::At(_)) { "diskless" } else { "disk" };
        let mut file = Rdb::new(Wire { client, context }, end);
        let entry = plain_file(b"dump.rdb".to_vec(), 0, context.started);
        let given = hand_over_rest(context, sink, entry, Layout::Records, &mut file);
        // What ended the run says more than the stream that it broke.
        given.map_err(|error| context.go_on().err().unwrap_or(error))?;
        let details = [
            ("version", info.get("redis_version")),
            ("role", info.get("role")),
            ("run_id", info.get("run_id")),
            ("replication_id", &*id),
            ("replication_offset", &*offset),
            ("aof_enabled", info.get("aof_enabled")),
            ("sent_from", way),
        ];
        Ok(Facts {
            system: None,
            position: None,
            objects: Some(info.keys()),
            recovery_point_ms: Some(context.started.as_millisecond().saturating_add(sure)),
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        })
    }
}
