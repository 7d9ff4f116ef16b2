//! Metadata read ahead: a second thread asks for what the names of a directory are while the walk deals with those before
//! them. Only a few names ahead, since a file that changes between this and its reading is reported.

use super::walk::stat;
use super::xattrs;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{AtFlags, Statx};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::vec::IntoIter;

/// Fewer names are not worth asking another thread.
const FEW: usize = 32;
/// Names that are asked for at a time.
const BLOCK: usize = 128;
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

struct Job {
    directory: Arc<OwnedFd>,
    /// With a trailing slash; `None` if the path does not lead to the directory.
    path: Option<Vec<u8>>,
    names: Vec<CString>,
    answer: Sender<Vec<Listed>>,
}

impl Job {
    fn run(self) {
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
        let names = self.names.into_iter().map(look).collect();
        let _ = self.answer.send(names); // the walk may have ended
    }
}

/// The second thread; it ends with the walk.
pub struct Ahead(Option<Sender<Job>>);

impl Ahead {
    pub fn start() -> Self {
        let (jobs, queue) = bounded::<Job>(WAITING);
        let work = move || queue.into_iter().for_each(Job::run);
        // Without the thread the walk does all by itself.
        Self(std::thread::Builder::new().name("walk-ahead".into()).spawn(work).is_ok().then_some(jobs))
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

    fn ask(&mut self, ahead: &Ahead, directory: &Arc<OwnedFd>, path: Option<&[u8]>) {
        let Some(jobs) = ahead.0.as_ref().filter(|jobs| !jobs.is_full()) else { return };
        let (answer, asked) = bounded(1);
        let names = self.left.by_ref().take(BLOCK).collect();
        let job = Job { directory: Arc::clone(directory), path: path.map(<[u8]>::to_vec), names, answer };
        // Only the walk sends, and there is room.
        if jobs.send(job).is_ok() {
            self.asked = Some(asked);
        }
    }
}
