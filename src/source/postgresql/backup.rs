//! The replication command BASE_BACKUP and its stream.
//!
//! Protocol: "Streaming Replication Protocol", BASE_BACKUP, in PostgreSQL's documentation. Invariants: a few pieces are
//! under way at a time, so that a server waits for a slow repository; the stream has ended well only with its last event.

use super::client::{Client, Failure, Row, row};
use crate::source::Context;
use crate::source::clock::Clock;
use crate::source::connection::{Waited, wait};
use postgres_protocol::message::backend::Message;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The stream is given up when nothing comes for so long.
const STALL: Duration = Duration::from_mins(5);
const PIECE: usize = 512 << 10;
const PIECES: usize = 4;

/// A place in the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub lsn: u64,
    pub timeline: u32,
}

impl fmt::Display for Point {
    /// As PostgreSQL writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.lsn >> 32, self.lsn & 0xFFFF_FFFF)
    }
}

impl Point {
    fn parse(row: &Row) -> Option<Self> {
        let [Some(lsn), Some(timeline), ..] = row.as_slice() else { return None };
        let (high, low) = lsn.split_once('/')?;
        let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(Self { lsn: half(high)? << 32 | half(low)?, timeline: timeline.parse().ok()? })
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of a page.
    pub block_size: u32,
    /// As the server writes it ("16MB").
    pub segment_size: String,
    pub directory_mode: u32,
    /// A slot holds back the log that the backup needs.
    pub slot: bool,
}

/// Asks for what is needed to understand a backup, and for a slot that lasts as long as the connection.
pub async fn prepare(client: &mut Client, started: jiff::Timestamp) -> Result<Settings, Failure> {
    let odd = |what: &str| Failure::Protocol(format!("the server has an odd {what}"));
    let block_size = client.show("block_size").await?.parse().map_err(|_| odd("block_size"))?;
    let mode = client.show("data_directory_mode").await?;
    let directory_mode = u32::from_str_radix(&mode, 8).map_err(|_| odd("data_directory_mode"))?;
    let segment_size = client.show("wal_segment_size").await?;
    let name = format!("lifeboat_{}_{}", started.as_millisecond(), std::process::id());
    let slot = client.rows(&format!("CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL (RESERVE_WAL)")).await;
    match slot {
        Ok(_) | Err(Failure::Server { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(Settings { block_size, segment_size, directory_mode, slot: slot.is_ok() })
}

/// A backup whose stream begins.
pub struct Begun {
    pub start: Point,
    /// OID and place of each, but the default ones.
    pub tablespaces: Vec<String>,
}

/// Asks for the backup and waits until it comes.
pub async fn begin(client: &mut Client) -> Result<Begun, Failure> {
    let options = "LABEL 'lifeboat', CHECKPOINT 'fast', WAL true, WAIT false, TABLESPACE_MAP true, MANIFEST 'yes'";
    client.ask(&format!("BASE_BACKUP ({options})")).await?;
    let (mut start, mut tablespaces) = (None, Vec::new());
    loop {
        match client.next().await? {
            Message::DataRow(body) if start.is_none() => start = Point::parse(&row(&body)?),
            Message::DataRow(body) => {
                if let [Some(oid), Some(location), ..] = row(&body)?.as_slice() {
                    tablespaces.push(format!("{oid} {location}"));
                }
            }
            Message::RowDescription(_) | Message::CommandComplete(_) => {}
            Message::CopyOutResponse(_) => {
                let start = start.ok_or_else(|| Failure::Protocol("the backup has no start".into()))?;
                return Ok(Begun { start, tablespaces });
            }
            _ => return Err(Failure::Protocol("the server did not begin a backup".into())),
        }
    }
}

/// What comes, in this order: archives, the manifest, each followed by its data, and the end.
#[derive(Debug)]
pub enum Event {
    /// Of the tablespace with this OID, or of the data directory.
    Archive {
        oid: Option<String>,
    },
    Data(Vec<u8>),
    Manifest,
    End {
        point: Point,
        warnings: Vec<String>,
    },
}

/// Takes the messages of the copy and what follows them.
async fn pump(mut client: Client, send: mpsc::Sender<Result<Event, String>>) {
    let mut piece = Vec::new();
    let ended = loop {
        let message = match timeout(STALL, client.next()).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) => break error.to_string(),
            Err(_) => break format!("nothing came for {} s", STALL.as_secs()),
        };
        let mut events = Vec::new();
        match message {
            Message::CopyData(body) => match split(body.data()) {
                Ok(Part::Data(bytes)) => {
                    piece.extend_from_slice(bytes);
                    if piece.len() >= PIECE {
                        events.push(Event::Data(std::mem::replace(&mut piece, Vec::with_capacity(PIECE + PIECE / 4))));
                    }
                }
                Ok(Part::Begins(event)) => events.extend([Event::Data(std::mem::take(&mut piece)), event]),
                Ok(Part::Progress) => {}
                Err(text) => break text.to_owned(),
            },
            Message::CopyDone => events.push(Event::Data(std::mem::take(&mut piece))),
            Message::DataRow(body) => match row(&body).ok().as_ref().and_then(Point::parse) {
                Some(point) => {
                    // The server may still find that the backup is bad.
                    match finish(&mut client).await {
                        Ok(()) => {}
                        Err(error) => break error.to_string(),
                    }
                    events.push(Event::End { point, warnings: std::mem::take(&mut client.warnings) });
                }
                None => break "the server did not say where the backup ends".to_owned(),
            },
            Message::RowDescription(_) => {}
            _ => break "the server did not end the backup".to_owned(),
        }
        for event in events {
            let last = matches!(event, Event::End { .. });
            if send.send(Ok(event)).await.is_err() || last {
                return;
            }
        }
    };
    let warned: String = client.warnings.iter().map(|warning| format!("; before that: {warning}")).collect();
    let _ = send.send(Err(ended + &warned)).await; // nobody may be waiting
}

async fn finish(client: &mut Client) -> Result<(), Failure> {
    let stalled = |_| Failure::Protocol(format!("nothing came for {} s", STALL.as_secs()));
    while !matches!(timeout(STALL, client.next()).await.map_err(stalled)??, Message::ReadyForQuery(_)) {}
    Ok(())
}

enum Part<'a> {
    Begins(Event),
    Data(&'a [u8]),
    Progress,
}

/// A message of the copy.
fn split(message: &[u8]) -> Result<Part<'_>, &'static str> {
    match message.split_first() {
        Some((b'd', bytes)) => Ok(Part::Data(bytes)),
        Some((b'p', _)) => Ok(Part::Progress),
        Some((b'm', _)) => Ok(Part::Begins(Event::Manifest)),
        Some((b'n', names)) => {
            let name = names.split(|byte| *byte == 0).next().unwrap_or_default();
            let stem = name.strip_suffix(b".tar").ok_or("the server sends an archive that is no tar")?;
            let number = !stem.is_empty() && stem.iter().all(u8::is_ascii_digit);
            let oid = match stem {
                b"base" => None,
                stem if number => Some(String::from_utf8_lossy(stem).into_owned()),
                _ => return Err("the server sends an archive of something unknown"),
            };
            Ok(Part::Begins(Event::Archive { oid }))
        }
        _ => Err("the server sends something unknown"),
    }
}

/// What came, read by the thread that captures. [`Read`] gives the data of one part; [`Stream::part`] goes on to the next.
pub struct Stream {
    context: Context,
    events: mpsc::Receiver<Result<Event, String>>,
    piece: Vec<u8>,
    taken: usize,
    next: Option<Event>,
    clock: Arc<Clock>,
}

impl Stream {
    /// `began` is when the run did.
    pub fn start(client: Client, context: &Context, began: Instant) -> Self {
        let (send, events) = mpsc::channel(PIECES);
        context.runtime.spawn(pump(client, send));
        Self::of(events, context, began)
    }

    pub(super) fn of(events: mpsc::Receiver<Result<Event, String>>, context: &Context, began: Instant) -> Self {
        let clock = Arc::new(Clock::start(context.started, began));
        Self { context: context.clone(), events, piece: Vec::new(), taken: 0, next: None, clock }
    }

    pub fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.clock)
    }

    /// A moment before which nothing was committed that is not in the backup, in Unix milliseconds.
    pub fn recovery_point(&self) -> i64 {
        self.clock.sure()
    }

    fn event(&mut self) -> io::Result<Event> {
        match wait(&self.context, Duration::MAX, self.events.recv()) {
            Ok(Some(Ok(event))) => {
                if let Event::Data(bytes) = &event {
                    self.clock.received(bytes.len());
                }
                Ok(event)
            }
            Ok(Some(Err(text))) => Err(io::Error::other(text)),
            Ok(None) => Err(io::Error::other("the connection was given up")),
            Err(Waited::Ended(error)) => Err(io::Error::other(error)),
            Err(Waited::TooLong) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The next part, past what is left of this one.
    pub fn part(&mut self) -> io::Result<Event> {
        (self.piece, self.taken) = (Vec::new(), 0);
        loop {
            let event = match self.next.take() {
                Some(event) => event,
                None => self.event()?,
            };
            if !matches!(event, Event::Data(_)) {
                return Ok(event);
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() && self.next.is_none() {
            match self.event()? {
                Event::Data(piece) => (self.piece, self.taken) = (piece, 0),
                other => self.next = Some(other),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}
