//! Where the journal of an execution is kept: on this machine, and, sealed, in the repository.
//!
//! Invariants: a record is on this machine's disk before anything follows from it, and in the repository too unless that
//! does not take it, which is warned of: a restore must not end because its log has no place. One process on this machine
//! carries out an execution at a time (a lock); of two on different machines, one finds its next record's number taken.

use crate::cli::fault::{Failure, Fault};
use crate::cli::output::sync_name;
use crate::cli::status::state_directory;
use crate::repo::{Journals, Written};
use crate::restore::plan::journal::{Event, History, Journal, JournalError, Record};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use tokio::runtime::Handle;

pub struct Kept {
    id: String,
    path: PathBuf,
    disk: File,
    remote: Option<Journals>,
    /// Records that the repository does not have yet.
    behind: Vec<Record>,
    warned: bool,
    runtime: Handle,
}

fn directory() -> Result<PathBuf, Failure> {
    let state = state_directory().ok_or_else(|| {
        Fault::usage(
            "there is no place for the journal",
            "set HOME or XDG_STATE_HOME to a directory that can be written",
        )
    })?;
    Ok(state.join("lifeboat").join("restores"))
}

/// The ids of the executions that this machine knows.
pub fn here() -> Vec<String> {
    let Ok(entries) = directory().and_then(|directory| Ok(std::fs::read_dir(directory)?)) else { return Vec::new() };
    let name = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut ids: Vec<_> =
        entries.filter_map(name).filter_map(|name| Some(name.strip_suffix(".jsonl")?.to_owned())).collect();
    ids.sort();
    ids
}

impl Kept {
    fn open(id: &str, remote: Option<Journals>) -> Result<Self, Failure> {
        let directory = directory()?;
        std::fs::create_dir_all(&directory).map_err(Fault::file("create", &directory))?;
        let path = directory.join(format!("{id}.jsonl"));
        let disk = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let disk = disk.map_err(Fault::file("open the journal", &path))?;
        if rustix::fs::flock(&disk, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Busy { id: id.into() }.into());
        }
        sync_name(&path).map_err(Fault::file("create", &path))?;
        let runtime = Handle::current();
        Ok(Self { id: id.into(), path, disk, remote, behind: Vec::new(), warned: false, runtime })
    }

    /// Begins a journal; `None` if there is one of this name already.
    pub fn begin(id: &str, remote: Option<&Journals>, first: &Record) -> Result<Option<Self>, Failure> {
        let mut kept = match Self::open(id, remote.cloned()) {
            Err(failure) if failure.is::<Busy>() => return Ok(None),
            other => other?,
        };
        if !kept.read_disk()?.is_empty() {
            return Ok(None);
        }
        match tokio::task::block_in_place(|| kept.write(first)) {
            Err(JournalError::Elsewhere { .. }) => Ok(None),
            other => Ok(other.map(|()| Some(kept))?),
        }
    }

    /// Opens the journal of an execution that was begun here or elsewhere.
    pub async fn resume(id: &str, remote: Option<Journals>) -> Result<(Self, History), Failure> {
        let known = here().iter().any(|known| known == id);
        let far = match &remote {
            Some(journals) => read(id, &journals.read(id).await?)?,
            None => Vec::new(),
        };
        if !known && far.is_empty() {
            let hint = "see `lifeboat restore list`; one that was begun without the recovery identity, or with a repository \
                        that could not be written, is only known where it was begun";
            return Err(Fault::usage(format!("there is no restore {id}"), hint).into());
        }
        let mut kept = Self::open(id, remote)?;
        let near = kept.read_disk()?;
        let common = near.len().min(far.len());
        if near[..common] != far[..common] {
            return Err(JournalError::Elsewhere { id: id.into(), number: common as u32 }.into());
        }
        if let Some(more) = far.get(near.len()..) {
            more.iter().try_for_each(|record| kept.write_disk(record))?;
        }
        if kept.remote.is_some() {
            kept.behind = near.get(far.len()..).unwrap_or_default().to_vec();
        }
        let records = if near.len() > far.len() { near } else { far };
        Ok((kept, History::of(id, records)?))
    }

    fn read_disk(&self) -> Result<Vec<Record>, Failure> {
        let mut text = String::new();
        let mut file = File::open(&self.path).map_err(Fault::file("open the journal", &self.path))?;
        file.read_to_string(&mut text).map_err(Fault::file("read the journal", &self.path))?;
        // A line that was being written when the machine stopped: nothing followed from it.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        if whole.len() + 1 < text.len() || (whole.is_empty() && !text.is_empty()) {
            let keep = if whole.is_empty() { 0 } else { whole.len() as u64 + 1 };
            self.disk.set_len(keep).map_err(Fault::file("mend the journal", &self.path))?;
        }
        let lines: Vec<Vec<u8>> = whole.lines().map(|line| line.as_bytes().to_vec()).collect();
        read(&self.id, &lines)
    }

    fn write_disk(&mut self, record: &Record) -> Result<(), JournalError> {
        let failed = |source| JournalError::Write { place: self.path.display().to_string(), source };
        let mut line = serde_json::to_vec(record).map_err(|why| failed(why.into()))?;
        line.push(b'\n');
        self.disk.write_all(&line).and_then(|()| self.disk.sync_data()).map_err(failed)
    }

    /// Sends what the repository does not have.
    fn send(&mut self) -> Result<(), JournalError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        while let Some(record) = self.behind.first() {
            let failed = |why: serde_json::Error| JournalError::Write { place: "record".into(), source: why.into() };
            let bytes = serde_json::to_vec(record).map_err(failed)?;
            match self.runtime.block_on(remote.write(&self.id, record.number, &bytes)) {
                Ok(Written::Done) => _ = self.behind.remove(0),
                Ok(Written::Taken) => {
                    return Err(JournalError::Elsewhere { id: self.id.clone(), number: record.number });
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "the repository does not take the journal: only this machine can go on");
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Journal for Kept {
    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        if self.remote.is_some() {
            self.behind.push(record.clone());
        }
        self.send()?;
        self.write_disk(record)
    }
}

/// The journal of an execution that nobody goes on with now, to look at.
pub async fn look(id: &str, remote: Option<&Journals>) -> Result<History, Failure> {
    let far = match remote {
        Some(journals) => read(id, &journals.read(id).await?)?,
        None => Vec::new(),
    };
    let path = directory()?.join(format!("{id}.jsonl"));
    let near = std::fs::read_to_string(&path).unwrap_or_default();
    let whole = near.rfind('\n').map_or("", |end| &near[..end]);
    let near = read(id, &whole.lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>())?;
    Ok(History::of(id, if near.len() > far.len() { near } else { far })?)
}

fn read(id: &str, lines: &[Vec<u8>]) -> Result<Vec<Record>, Failure> {
    let record = |line: &Vec<u8>| {
        serde_json::from_slice(line).map_err(|why| JournalError::Unreadable { id: id.into(), why: why.to_string() })
    };
    Ok(lines.iter().map(record).collect::<Result<_, _>>()?)
}

/// What a history's first record is.
pub fn first(history: &History) -> Record {
    Record { number: 1, at: history.began, event: Event::Resolved(Box::new(history.resolved.clone())) }
}

/// Another process of this machine is at it.
#[derive(Debug, thiserror::Error)]
#[error("restore {id} is being carried out by another process of this machine")]
pub struct Busy {
    id: String,
}
