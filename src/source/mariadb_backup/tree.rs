//! The files of a backup as entries: those of InnoDB and Aria in their pages, everything else by content.
//!
//! The stream tells names and bytes alone, so files get the owner of the data directory and the modes that the server gives
//! its files. A directory comes before its content.

use super::stream::{Logs, Stream};
use crate::entry::{Entry, Kind, Layout, Sink};
use crate::source::clock::Clock;
use crate::source::command::plain_file;
use crate::source::unpack::{hand_over, hand_over_rest};
use crate::source::{Context, SourceError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// Databases that every server has.
const SYSTEM: [&str; 4] = ["mysql", "sys", "performance_schema", "information_schema"];
/// Of Aria's data and index files.
const ARIA_PAGE: u32 = 8192;
/// Bytes of a file that is read as well.
const LARGEST: u64 = 64 << 10;

/// A file in the backup's directory that says something of the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Where it was taken, and what of.
    Info,
    /// Positions in InnoDB's log.
    Checkpoints,
    /// Whose directory it is.
    AriaControl,
}

impl Note {
    fn of(path: &str) -> Option<Self> {
        match path {
            // The second name is that of MariaDB 11.
            "xtrabackup_info" | "mariadb_backup_info" => Some(Self::Info),
            "xtrabackup_checkpoints" | "mariadb_backup_checkpoints" => Some(Self::Checkpoints),
            "aria_log_control" => Some(Self::AriaControl),
            _ => None,
        }
    }
}

pub struct Tree<'a> {
    context: &'a Context,
    sink: &'a mut dyn Sink,
    /// The data directory.
    like: Metadata,
    page_size: u32,
    directories: BTreeSet<String>,
    pub notes: BTreeMap<Note, Vec<u8>>,
    /// Tables and views of users.
    pub tables: u64,
    pub clock: Clock,
}

impl<'a> Tree<'a> {
    pub fn new(context: &'a Context, sink: &'a mut dyn Sink, like: Metadata, page_size: u32) -> Self {
        let (directories, notes) = (BTreeSet::new(), BTreeMap::new());
        let clock = Clock::start(context.started, context.begun);
        Self { context, sink, like, page_size, directories, notes, tables: 0, clock }
    }

    /// Takes all that comes one after the other.
    pub fn files<R: Read>(&mut self, stream: &mut Stream<R>) -> Result<(), SourceError> {
        let broke = |source| SourceError::Stream { what: "the backup".to_owned(), source };
        while let Some(path) = stream.file().map_err(broke)? {
            self.file(&path, stream)?;
        }
        Ok(())
    }

    /// Takes what was written meanwhile.
    pub fn logs(&mut self, logs: Logs) -> Result<(), SourceError> {
        logs.into_iter().try_for_each(|(path, mut file, size)| {
            let entry = Entry { size, ..self.own(&path, Kind::File) };
            hand_over(self.context, self.sink, entry, Layout::Content, &mut file)
        })
    }

    fn file(&mut self, path: &str, content: &mut dyn Read) -> Result<(), SourceError> {
        let (database, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.strip_suffix(".isl").is_some() {
            let text = format!("{} lies outside of the data directory (DATA DIRECTORY)", &path[..path.len() - 4]);
            return Err(SourceError::System {
                attempt: "back up MariaDB".into(),
                text,
                need: "move it back in, or capture the server by dumps (kind mariadb)".into(),
            });
        }
        self.directory(".")?;
        // Databases are not nested; RocksDB and such are refused.
        if !database.is_empty() {
            self.directory(database)?;
        }
        self.tables += u64::from(name.strip_suffix(".frm").is_some() && !SYSTEM.contains(&database));
        let entry = self.own(path, Kind::File);
        if let Some(note) = Note::of(path) {
            let mut bytes = Vec::new();
            let broke = |source| SourceError::Stream { what: path.to_owned(), source };
            content.take(LARGEST).read_to_end(&mut bytes).map_err(broke)?;
            let entry = Entry { size: bytes.len() as u64, ..entry };
            hand_over(self.context, self.sink, entry, Layout::Content, &mut bytes.as_slice())?;
            self.notes.insert(note, bytes);
            return Ok(());
        }
        match name.rsplit_once('.').map_or("", |(_, end)| end) {
            // Of a table that was made while the backup ran, `.new`.
            "ibd" | "new" => self.pages(entry, content),
            _ if is_system_space(path) => self.pages(entry, content),
            "MAD" | "MAI" => hand_over_rest(self.context, self.sink, entry, Layout::Pages(ARIA_PAGE), content),
            _ => hand_over_rest(self.context, self.sink, entry, Layout::Content, content),
        }
    }

    /// Of InnoDB, which is copied before the backup's moment.
    fn pages(&mut self, entry: Entry, content: &mut dyn Read) -> Result<(), SourceError> {
        let mut counted = Counted { content, clock: &self.clock };
        hand_over_rest(self.context, self.sink, entry, Layout::Pages(self.page_size), &mut counted)
    }

    fn directory(&mut self, path: &str) -> Result<(), SourceError> {
        if self.directories.insert(path.to_owned()) {
            let entry = self.own(path, Kind::Directory);
            self.sink.add(entry, None)?;
        }
        Ok(())
    }

    fn own(&self, path: &str, kind: Kind) -> Entry {
        let mode = match kind {
            _ if path == "." => self.like.permissions().mode() & 0o7777,
            Kind::Directory => 0o700,
            _ => 0o660,
        };
        let (uid, gid) = (self.like.uid(), self.like.gid());
        Entry { kind, mode, uid, gid, ..plain_file(path.as_bytes().to_vec(), 0, self.context.started) }
    }
}

/// `ibdata1`, `undo001`
fn is_system_space(path: &str) -> bool {
    let number = path.strip_prefix("ibdata").or_else(|| path.strip_prefix("undo"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

struct Counted<'a> {
    content: &'a mut dyn Read,
    clock: &'a Clock,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        self.clock.received(length);
        Ok(length)
    }
}
