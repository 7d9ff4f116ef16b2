//! Where the journal of an execution is kept: on this machine, and, sealed, in the repository.
//!
//! Invariants: a record is on this machine's disk before anything follows from it, and in the repository too unless that
//! does not take it, which is warned of: a restore must not end because its log has no place. One process on this machine
//! carries out an execution at a time (a lock); of two on different machines, one finds its next record's number taken.
//! Executions of different ids: see [`super::rivals`].

use super::rivals::{Busy, Where};
use crate::cli::fault::{Failure, Fault, chain};
use crate::cli::output::{clock, random_id, sync_name};
use crate::cli::status::state_directory;
use crate::repo::{Journals, RepoError, Written};
use crate::restore::plan::between;
use crate::restore::plan::execute::LEASE;
use crate::restore::plan::journal::{Event, History, Journal, JournalError, Record};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;

pub struct Kept {
    id: String,
    path: PathBuf,
    disk: File,
    remote: Option<Journals>,
    /// Records that the repository does not have yet.
    behind: Vec<Record>,
    warned: bool,
    /// The repository did not take a record: it is left alone until then.
    quiet_until: Option<Instant>,
    /// A record could not be written. One more would stand behind half a line, or in the place of another.
    broken: bool,
    runtime: Handle,
}

/// Beside the journals: which machine this is.
const MACHINE: &str = "machine";
/// What a record may hold a restore up.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn directory() -> Result<PathBuf, Failure> {
    let state = state_directory().ok_or_else(|| {
        Fault::usage(
            "there is no place for the journal",
            "set HOME or XDG_STATE_HOME to a directory that can be written",
        )
    })?;
    Ok(state.join("lifeboat").join("restores"))
}

/// Tells this machine from others that go on with a restore: what lies at a path here, no other has put there. `None`: nothing
/// was carried out here yet.
pub fn machine() -> Option<String> {
    let text = std::fs::read_to_string(directory().ok()?.join(MACHINE)).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Gives this machine its id, once.
fn name_machine(directory: &Path) -> Result<(), Failure> {
    let path = directory.join(MACHINE);
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
    let mut file = file.map_err(Fault::file("open", &path))?;
    // Two processes must not give it two.
    let free = lock(&file, Duration::from_millis(500)) && file.metadata().is_ok_and(|is| is.len() == 0);
    if free {
        let written = file.write_all(random_id().as_bytes()).and_then(|()| file.sync_all());
        written.map_err(Fault::file("write", &path))?;
    }
    Ok(())
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
        name_machine(&directory)?;
        let path = directory.join(format!("{id}.jsonl"));
        let disk = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let disk = disk.map_err(Fault::file("open the journal", &path))?;
        if !lock(&disk, Duration::from_millis(500)) {
            return Err(Busy { id: id.into(), place: Where::Here, in_common: None }.into());
        }
        sync_name(&path).map_err(Fault::file("create", &path))?;
        let runtime = Handle::current();
        Ok(Self {
            id: id.into(),
            path,
            disk,
            remote,
            behind: Vec::new(),
            warned: false,
            quiet_until: None,
            broken: false,
            runtime,
        })
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

    /// Opens the journal of an execution that was begun here or elsewhere. `dead`: whoever may be at it elsewhere is not.
    pub async fn resume(id: &str, remote: Option<Journals>, dead: bool) -> Result<(Self, History), Failure> {
        let known = here().iter().any(|known| known == id);
        let (mut remote, mut far) = (remote, Vec::new());
        if let Some(journals) = &remote {
            match journals.read(id).await {
                Ok(records) => far = read(id, &records)?,
                // Whoever can write into the bucket could keep everybody from going on, or from opening the fences.
                Err(error @ RepoError::Foreign { .. }) if known => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "the repository's journal of this restore is not believed: this machine's is"
                    );
                    remote = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
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
        if !all_ours(&near, &far) && !dead {
            is_free(id, &far)?;
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
        let bytes = std::fs::read(&self.path).map_err(Fault::file("read the journal", &self.path))?;
        let (lines, whole) = lines(&bytes);
        if whole < bytes.len() {
            self.disk.set_len(whole as u64).map_err(Fault::file("mend the journal", &self.path))?;
        }
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
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        while let Some(record) = self.behind.first() {
            let failed = |why: serde_json::Error| JournalError::Write { place: "record".into(), source: why.into() };
            let bytes = serde_json::to_vec(record).map_err(failed)?;
            let write = async { timeout(PATIENCE, remote.write(&self.id, record.number, &bytes)).await };
            let why = match self.runtime.block_on(write) {
                Ok(Ok(Written::Done)) => {
                    self.behind.remove(0);
                    self.quiet_until = None;
                    continue;
                }
                Ok(Ok(Written::Taken)) => {
                    return Err(JournalError::Elsewhere { id: self.id.clone(), number: record.number });
                }
                Ok(Err(error)) => chain(&error).join(": "),
                Err(_) => "no answer".into(),
            };
            // Fences are closed: a bucket that has gone away must not hold every record up.
            self.quiet_until = Some(Instant::now() + PATIENCE);
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(error = why, "the repository does not take the journal: only this machine can go on");
            }
            return Ok(());
        }
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        if self.broken {
            let source = io::Error::other("a record before it could not be written");
            return Err(JournalError::Write { place: self.path.display().to_string(), source });
        }
        if matches!(record.event, Event::Ended(_) | Event::Left) {
            self.quiet_until = None;
        }
        if self.remote.is_some() {
            self.behind.push(record.clone());
        }
        self.send()?;
        self.write_disk(record)
    }
}

impl Journal for Kept {
    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        let written = self.append(record);
        self.broken |= written.is_err();
        written
    }
}

/// The lines of a journal, and the bytes that they take. Half a line at the end was being written when the machine stopped,
/// or its disk was full: nothing followed from it.
fn lines(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec);
    (lines.collect(), whole)
}

/// Takes a lock. Somebody who only looks whether it is taken holds it for a moment.
pub fn lock(file: &File, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Whether a process of this machine is at an execution.
pub fn is_at_work(id: &str) -> bool {
    let file = directory().ok().and_then(|directory| File::open(directory.join(format!("{id}.jsonl"))).ok());
    file.is_some_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Whether this machine wrote all that the repository has. A record is there before it is on the disk: the process may have
/// been killed in between. Somebody who goes on elsewhere says so first.
fn all_ours(near: &[Record], far: &[Record]) -> bool {
    let Some((last, before)) = far.split_last() else { return true };
    let of_others = matches!(
        last.event,
        Event::Resumed | Event::Displaced { .. } | Event::Opening { .. } | Event::Cleared { .. } | Event::Opened { .. }
    );
    near.len() >= far.len() || !near.is_empty() && near.len() == before.len() && !of_others
}

/// Somebody on another machine wrote last. Whether they live is judged by their clock and ours: the store's is only asked
/// where something is written.
fn is_free(id: &str, records: &[Record]) -> Result<(), Failure> {
    match elsewhere(&History::of(id, records.to_vec())?) {
        Some(place) => Err(Busy { id: id.into(), place, in_common: None }.into()),
        None => Ok(()),
    }
}

fn elsewhere(history: &History) -> Option<Where> {
    let ago = between(history.last, clock());
    (history.at_work && ago < LEASE).then_some(Where::There { ago })
}

/// Where somebody is at an execution, as far as [`look`] can tell.
pub fn at_work(id: &str, history: &History, all_ours: bool) -> Option<Where> {
    if history.verdict.is_some() {
        None
    } else if is_at_work(id) {
        Some(Where::Here)
    } else {
        elsewhere(history).filter(|_| !all_ours)
    }
}

/// The journal of an execution, to look at, and whether this machine has all of it: nobody elsewhere went on with it.
pub async fn look(id: &str, remote: Option<&Journals>) -> Result<(History, bool), Failure> {
    let far = match remote {
        Some(journals) => read(id, &journals.read(id).await?)?,
        None => Vec::new(),
    };
    let path = directory()?.join(format!("{id}.jsonl"));
    let near = read(id, &lines(&std::fs::read(&path).unwrap_or_default()).0)?;
    let here = all_ours(&near, &far);
    Ok((History::of(id, if near.len() > far.len() { near } else { far })?, here))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_never_reached_the_disk_is_ours() {
        let record = |number, event| Record { number, at: jiff::Timestamp::UNIX_EPOCH, event };
        let began = |number| record(number, Event::Began { task: 0, attempt: 1 });
        let near = [began(1), began(2)];
        let with = |more: &[Record]| [&near[..], more].concat();
        assert!(all_ours(&near, &[]) && all_ours(&near, &near[..1]) && all_ours(&near, &near));
        assert!(all_ours(&near, &with(&[began(3)])), "killed between the repository and the disk");
        assert!(!all_ours(&near, &with(&[began(3), began(4)])), "no more than one is on its way");
        assert!(!all_ours(&near, &with(&[record(3, Event::Resumed)])), "somebody else goes on");
        assert!(!all_ours(&[], &near[..1]), "nothing of it is known here");
    }

    #[test]
    fn half_a_line_is_no_record() {
        assert_eq!(lines(b""), (Vec::new(), 0));
        assert_eq!(lines(b"{\"numb"), (Vec::new(), 0));
        // Cut within a letter of several bytes.
        let text = "one\ntwo\nthree \u{2192}".as_bytes();
        assert_eq!(lines(&text[..text.len() - 1]), (vec![b"one".to_vec(), b"two".to_vec()], 8));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_journal_whose_disk_was_full_takes_nothing_more() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.jsonl");
        let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
        let runtime = Handle::current();
        let (disk, quiet_until) = (open("/dev/full".as_ref()), None);
        let (id, behind) = ("x".to_owned(), Vec::new());
        let mut kept = Kept {
            id,
            path: path.clone(),
            disk,
            remote: None,
            behind,
            warned: false,
            quiet_until,
            broken: false,
            runtime,
        };
        let event = || Event::Resumed;
        let record = |number| Record { number, at: jiff::Timestamp::UNIX_EPOCH, event: event() };
        assert!(matches!(kept.write(&record(2)), Err(JournalError::Write { .. })));
        // There is room again, and half of the record before may stand there.
        kept.disk = open(&path);
        assert!(matches!(kept.write(&record(2)), Err(JournalError::Write { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
