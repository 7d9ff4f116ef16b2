//! Metadata read ahead: a second thread asks for what the names of a directory are while the walk deals with those before
//! them, and opens the directory that comes next. Only a few names ahead, since a file that changes between this and its
//! reading is reported.

use super::walk::{DIRECTORY, Id, LIST, device, id, leads_to, list, stat};
use super::xattrs;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{self, AtFlags, FileType, Mode, Statx};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::vec::IntoIter;

/// Fewer names are not worth asking another thread.
const FEW: usize = 32;
/// Names that are asked for at a time.
const BLOCK: usize = 128;
/// A directory that was opened for the walk is not believed after so many names.
const STALE: u64 = 512;
/// Directories, one in the other, that may be waiting for an answer.
const WAITING: usize = 16;

/// A name, and what is known of it already.
pub struct Listed {
    pub name: CString,
    pub seen: Option<rustix::io::Result<Statx>>,
    /// It has no extended attributes.
    pub bare: bool,
}

impl Listed {
    fn unknown(name: CString) -> Self {
        Self { name, seen: None, bare: false }
    }
}

/// Names of one directory.
struct Batch {
    directory: Arc<OwnedFd>,
    /// With a trailing slash; `None` if the path does not lead to the directory.
    path: Option<Vec<u8>>,
    names: Vec<CString>,
}

impl Batch {
    fn look(self) -> Vec<Listed> {
        let mut path = self.path;
        let prefix = path.as_ref().map_or(0, Vec::len);
        let look = |name: CString| {
            let seen = Some(stat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW));
            let bare = path.as_mut().is_some_and(|path| {
                path.truncate(prefix);
                path.extend_from_slice(name.as_bytes());
                xattrs::has_none(path)
            });
            Listed { name, seen, bare }
        };
        self.names.into_iter().map(look).collect()
    }
}

/// A directory that the walk will come to.
struct Coming {
    above: Arc<OwnedFd>,
    name: CString,
    /// With a trailing slash.
    path: Vec<u8>,
    /// If it is on another device it is not listed.
    only: Option<(u32, u32)>,
}

/// A directory that was opened and listed, and some of its names looked at.
pub struct Opened {
    pub directory: Arc<OwnedFd>,
    pub id: Id,
    /// The path leads here.
    pub by_path: bool,
    pub listed: Vec<Listed>,
    pub left: Vec<CString>,
}

impl Coming {
    /// Nothing if anything is in the way: the walk will see for itself.
    fn open(self, buffer: &mut Vec<u8>) -> Option<Opened> {
        let directory = Arc::new(fs::openat(&self.above, &self.name, DIRECTORY, Mode::empty()).ok()?);
        let seen = stat(&directory, c"", AtFlags::EMPTY_PATH).ok()?;
        if self.only.is_some_and(|only| device(&seen) != only) {
            return None;
        }
        let mut names = list(&directory, buffer).ok()?;
        let left = names.split_off(names.len().min(BLOCK));
        let by_path = leads_to(&self.path, id(&seen));
        let batch = Batch { directory: Arc::clone(&directory), path: by_path.then_some(self.path), names };
        Some(Opened { directory, id: id(&seen), by_path, listed: batch.look(), left })
    }
}

enum Job {
    Look(Batch, Sender<Vec<Listed>>),
    Open(Coming, Sender<Option<Opened>>),
}

/// The second thread; it ends with the walk.
pub struct Ahead {
    jobs: Option<Sender<Job>>,
    /// The directory that comes next.
    coming: Option<Asked>,
}

/// A directory that was asked for.
struct Asked {
    above: Arc<OwnedFd>,
    name: CString,
    /// How many names the walk had seen then.
    since: u64,
    answer: Receiver<Option<Opened>>,
}

impl Asked {
    fn is(&self, above: &Arc<OwnedFd>, name: &CStr) -> bool {
        Arc::ptr_eq(&self.above, above) && *self.name == *name
    }
}

impl Ahead {
    pub fn start() -> Self {
        let (jobs, queue) = bounded::<Job>(WAITING);
        let work = move || {
            let mut buffer = Vec::with_capacity(LIST);
            for job in queue {
                // The walk may have ended, or want it no more.
                match job {
                    Job::Look(batch, answer) => _ = answer.send(batch.look()),
                    Job::Open(coming, answer) => _ = answer.send(coming.open(&mut buffer)),
                }
            }
        };
        // Without the thread the walk does all by itself.
        let spawned = std::thread::Builder::new().name("walk-ahead".into()).spawn(work).is_ok();
        Self { jobs: spawned.then_some(jobs), coming: None }
    }

    fn idle(&self) -> Option<&Sender<Job>> {
        self.jobs.as_ref().filter(|jobs| !jobs.is_full())
    }

    /// Has the directory `name` of `above` opened, unless that was the last wish. `path` leads to it, with a trailing slash;
    /// `now` counts the names that the walk has seen.
    pub fn expect(
        &mut self,
        above: &Arc<OwnedFd>,
        name: &CStr,
        now: u64,
        only: Option<(u32, u32)>,
        path: impl FnOnce() -> Vec<u8>,
    ) {
        if self.coming.as_ref().is_some_and(|asked| asked.is(above, name)) {
            return;
        }
        let Some(jobs) = self.idle() else { return };
        let (tell, answer) = bounded(1);
        let coming = Coming { above: Arc::clone(above), name: name.to_owned(), path: path(), only };
        // Only the walk sends, and there is room.
        if jobs.send(Job::Open(coming, tell)).is_ok() {
            self.coming = Some(Asked { above: Arc::clone(above), name: name.to_owned(), since: now, answer });
        }
    }

    /// That directory, if it is this one and the walk has come here soon.
    pub fn take(&mut self, above: &Arc<OwnedFd>, name: &CStr, now: u64) -> Option<Opened> {
        let Asked { since, answer, .. } = self.coming.take_if(|asked| asked.is(above, name))?;
        if now - since > STALE { None } else { answer.recv().ok().flatten() }
    }
}

/// The names of a directory on their way to the walk, in order.
pub struct Names {
    ready: IntoIter<Listed>,
    asked: Option<Receiver<Vec<Listed>>>,
    left: IntoIter<CString>,
}

impl Names {
    pub fn new(left: Vec<CString>) -> Self {
        Self { ready: Vec::new().into_iter(), asked: None, left: left.into_iter() }
    }

    /// Of a directory that the second thread has opened.
    pub fn of(listed: Vec<Listed>, left: Vec<CString>) -> Self {
        Self { ready: listed.into_iter(), asked: None, left: left.into_iter() }
    }

    /// `path`, with a trailing slash, if it leads to the directory.
    pub fn next(&mut self, ahead: &Ahead, directory: &Arc<OwnedFd>, path: Option<&[u8]>) -> Option<Listed> {
        if let Some(name) = self.ready.next() {
            return Some(name);
        }
        if let Some(asked) = self.asked.take() {
            self.ready = asked.recv().expect("the thread answers as long as the walk goes on").into_iter();
        } else {
            // A few that the walk begins with.
            let count = if self.left.len() < FEW { FEW } else { (self.left.len() / 5).min(FEW) };
            self.ready = self.left.by_ref().take(count).map(Listed::unknown).collect::<Vec<_>>().into_iter();
        }
        if self.left.len() > 0 {
            self.ask(ahead, directory, path);
        }
        self.ready.next()
    }

    /// The next name that is a directory, or may be one, as far as names are at hand.
    pub fn next_directory(&self) -> Option<&CStr> {
        let may_be = |listed: &&Listed| match &listed.seen {
            None => true,
            Some(seen) => seen.is_ok_and(|seen| FileType::from_raw_mode(seen.stx_mode.into()) == FileType::Directory),
        };
        self.ready.as_slice().iter().find(may_be).map(|listed| listed.name.as_c_str())
    }

    fn ask(&mut self, ahead: &Ahead, directory: &Arc<OwnedFd>, path: Option<&[u8]>) {
        let Some(jobs) = ahead.idle() else { return };
        let (answer, asked) = bounded(1);
        let names = self.left.by_ref().take(BLOCK).collect();
        let batch = Batch { directory: Arc::clone(directory), path: path.map(<[u8]>::to_vec), names };
        // Only the walk sends, and there is room.
        if jobs.send(Job::Look(batch, answer)).is_ok() {
            self.asked = Some(asked);
        }
    }
}
