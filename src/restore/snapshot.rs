//! A snapshot into a directory, on many threads.
//!
//! One thread makes everything but files as it comes, so that a directory is there before its content, and has fetched
//! what files need; the workers fill these, small ones in batches of neighbours (which share frames), large ones in parts;
//! hard links come when all files are there, directories' times last. Queues are bounded, and the list is never whole in
//! memory. A file that is damaged in the repository is left out and reported; the rest is restored.

use crate::entry::{Entry, Kind, Problem};
use crate::repo::{Item, PART, Part, ReadError, Reader, RepoError};
use crate::restore::supply::walk;
use crate::restore::tree::Tree;
use crate::restore::twice::{First, Role, Twice};
use crate::restore::{RestoreError, Selection, Strays};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a thread does at a time.
const BATCH_FILES: usize = 64;
/// So many files or parts, or bytes of them, are put into the order in which they were stored: what lies together is read
/// once, though the list names it here and there.
const SORTED: usize = 16_384;
const SORTED_BYTES: u64 = 1 << 30;
/// So many jobs are at work or wait, since what they need has to fit into the reader's memory: it is fetched while they wait.
const JOBS: usize = 12;
const WAITING: usize = 6;
const THREADS: usize = 8;
/// Bytes gathered before they are written.
const GATHER: usize = 512 << 10;
/// Zeros are looked for in blocks of this size, as file systems allocate them.
const BLOCK: usize = 4096;

/// Counters for a progress bar, and the way to stop.
#[derive(Debug, Default)]
pub struct Progress {
    pub entries: AtomicU64,
    pub bytes: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// What came back.
#[derive(Debug)]
pub struct Restored {
    pub entries: u64,
    pub bytes: u64,
    /// What did not, or not in every respect.
    pub problems: Vec<Problem>,
}

/// A file with its one part, or none if it is empty.
struct Small {
    item: Item,
    part: Option<Part>,
    role: Role,
}

struct Large {
    item: Item,
    role: Role,
    file: File,
    parts_left: AtomicUsize,
    failed: AtomicBool,
}

/// A large file is many.
enum Task {
    Small(Box<Small>),
    Part(Arc<Large>, Part),
}

impl Task {
    fn parts(&self) -> (&Item, Option<&Part>, &Role) {
        match self {
            Self::Small(small) => (&small.item, small.part.as_ref(), &small.role),
            Self::Part(large, part) => (&large.item, Some(part), &large.role),
        }
    }
}

type Job = Vec<Task>;

struct Shared<'a> {
    reader: &'a Reader,
    tree: &'a Tree,
    progress: &'a Progress,
    error: Mutex<Option<RestoreError>>,
    problems: Mutex<Vec<Problem>>,
}

/// Fills `tree` from `reader`. Blocks; must be called where blocking is allowed, inside the runtime.
///
/// # Errors
/// The first that concerns more than one file; the target is incomplete then.
pub fn restore(
    reader: &Reader,
    tree: Tree,
    selection: &Selection,
    threads: usize,
    progress: &Progress,
) -> Result<Restored, RestoreError> {
    let twice = Twice::find(reader, selection)?;
    let shared = Shared { reader, tree: &tree, progress, error: Mutex::default(), problems: Mutex::default() };
    let threads = threads.min(THREADS);
    let (jobs, queue) = bounded::<Job>(WAITING.min(JOBS - threads));
    let fed = std::thread::scope(|scope| {
        for number in 0..threads {
            let (shared, queue) = (&shared, queue.clone());
            let worker = std::thread::Builder::new().name(format!("restore-{number}"));
            worker.spawn_scoped(scope, move || shared.work(&queue)).map_err(RestoreError::Thread)?;
        }
        drop(queue);
        let mut feeder = Feeder {
            shared: &shared,
            selection,
            jobs,
            twice,
            tasks: Vec::new(),
            bytes: 0,
            links: Vec::new(),
            strays: Strays::default(),
            found: vec![false; selection.paths().len()],
        };
        feeder.feed()?;
        Ok::<_, RestoreError>(feeder.end())
    });
    let stopped = progress.is_stopped();
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let (links, found) = fed?;
    if stopped {
        return Err(RestoreError::Stopped);
    }
    if let Some(at) = found.iter().position(|found| !found) {
        return Err(RestoreError::NotThere(String::from_utf8_lossy(&selection.paths()[at]).into_owned()));
    }
    let mut problems = shared.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    let lost: BTreeSet<_> = problems.iter().map(|problem| problem.path.clone()).collect();
    for link in &links {
        if link.link.as_ref().is_some_and(|file| lost.contains(file)) {
            problems.push(Problem::link_to_lost(link.path.clone()));
            continue;
        }
        tree.make(link)?;
        progress.entries.fetch_add(1, Ordering::Relaxed);
    }
    problems.extend(tree.finish()?);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Restored { entries: count(&progress.entries), bytes: count(&progress.bytes), problems })
}

/// Why the feeder stops early; whoever failed has noted why.
enum Stop {
    Elsewhere,
    Error(RestoreError),
}

impl<E: Into<RestoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

struct Feeder<'a> {
    shared: &'a Shared<'a>,
    selection: &'a Selection,
    jobs: Sender<Job>,
    twice: Twice,
    /// To be sorted, and their bytes.
    tasks: Vec<Task>,
    bytes: u64,
    links: Vec<Entry>,
    strays: Strays,
    found: Vec<bool>,
}

impl Feeder<'_> {
    fn feed(&mut self) -> Result<(), RestoreError> {
        let reader = self.shared.reader;
        let mut fed = walk(reader, |item| self.item(item));
        if fed.is_ok() && !self.strays.is_empty() {
            fed = walk(reader, |item| self.stray(item));
        }
        match fed.and_then(|()| self.flush()) {
            Ok(()) | Err(Stop::Elsewhere) => Ok(()),
            Err(Stop::Error(error)) => {
                self.shared.progress.stop();
                Err(error)
            }
        }
    }

    /// Lets the workers end, and gives what is left to do.
    fn end(self) -> (Vec<Entry>, Vec<bool>) {
        (self.links, self.found)
    }

    fn item(&mut self, item: Item) -> Result<(), Stop> {
        if self.shared.progress.is_stopped() {
            return Err(Stop::Elsewhere);
        }
        let entry = &item.entry;
        if let Some(at) = self.selection.position(&entry.path) {
            self.found[at] = true;
        } else if !(self.selection.is_all() || entry.kind == Kind::Directory && self.selection.needs(&entry.path)) {
            return Ok(());
        }
        if entry.kind == Kind::Hardlink {
            self.links.extend(self.strays.sift(self.selection, item.entry));
            return Ok(());
        }
        self.make(item)
    }

    /// What was not asked for itself, but a hard link to it was.
    fn stray(&mut self, item: Item) -> Result<(), Stop> {
        match self.strays.claim(item) {
            None => Ok(()),
            Some((item, links)) => {
                self.links.extend(links);
                self.make(item)
            }
        }
    }

    fn make(&mut self, item: Item) -> Result<(), Stop> {
        if item.entry.kind == Kind::File {
            return self.file(item);
        }
        self.shared.tree.make(&item.entry)?;
        self.shared.progress.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn file(&mut self, item: Item) -> Result<(), Stop> {
        let reader = self.shared.reader;
        let mut parts = match reader.parts(&item) {
            Ok(parts) => parts,
            Err(error) if concerns_one_file(&error) => {
                self.shared.lost(&item, &error);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let role = self.twice.role(reader, &item);
        self.bytes += item.entry.size;
        if parts.len() <= 1 {
            self.tasks.push(Task::Small(Box::new(Small { item, part: parts.pop(), role })));
        } else {
            let file = self.shared.tree.file(&item.entry)?;
            file.set_len(item.entry.size).map_err(|source| write_error(&item.entry, source))?;
            let parts_left = AtomicUsize::new(parts.len());
            let large = Arc::new(Large { item, role, file, parts_left, failed: AtomicBool::new(false) });
            self.tasks.extend(parts.into_iter().map(|part| Task::Part(large.clone(), part)));
        }
        if self.tasks.len() >= SORTED || self.bytes >= SORTED_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.bytes = 0;
        self.tasks.sort_by_key(|task| {
            let (item, part, _) = task.parts();
            item.begins_at(part)
        });
        let (mut job, mut bytes) = (Job::new(), 0);
        for task in std::mem::take(&mut self.tasks) {
            if self.shared.progress.is_stopped() {
                return Err(Stop::Elsewhere);
            }
            let (item, part, role) = task.parts();
            if let Some(part) = part {
                self.shared.ahead(item, part, role);
            }
            bytes += item.entry.size.min(PART);
            job.push(task);
            if job.len() >= BATCH_FILES || bytes >= PART {
                self.send(std::mem::take(&mut job))?;
                bytes = 0;
            }
        }
        if job.is_empty() { Ok(()) } else { self.send(job) }
    }

    fn send(&self, job: Job) -> Result<(), Stop> {
        self.jobs.send(job).map_err(|_| Stop::Elsewhere)
    }
}

impl Shared<'_> {
    /// Works until the queue is closed. After a failure it only empties the queue.
    fn work(&self, queue: &Receiver<Job>) {
        for job in queue {
            if self.progress.is_stopped() {
                continue;
            }
            let done = job.iter().try_for_each(|task| match task {
                Task::Small(file) => self.small(file),
                Task::Part(large, part) => self.part(large, part),
            });
            if let Err(error) = done {
                self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.progress.stop();
            }
        }
    }

    /// What fails here fails again where it is read.
    fn ahead(&self, item: &Item, part: &Part, role: &Role) {
        if matches!(role, Role::Again(first) if first.path().is_some()) {
            return;
        }
        if let Err(error) = self.reader.ahead(item, part) {
            tracing::debug!(error = &error as &dyn std::error::Error, "not fetched ahead");
        }
    }

    fn small(&self, Small { item, part, role }: &Small) -> Result<(), RestoreError> {
        if self.progress.is_stopped() {
            return Ok(());
        }
        let file = self.tree.file(&item.entry)?;
        if !item.is_stream() || item.entry.sparse == Some(true) {
            file.set_len(item.entry.size).map_err(|source| write_error(&item.entry, source))?;
        }
        if part.map_or(Ok(true), |part| self.fill(item, &file, &part, role))? {
            self.finish(&item.entry, file, role)
        } else {
            self.discard(&item.entry)
        }
    }

    fn part(&self, large: &Arc<Large>, part: &Part) -> Result<(), RestoreError> {
        if !large.failed.load(Ordering::Relaxed) && !self.fill(&large.item, &large.file, part, &large.role)? {
            large.failed.store(true, Ordering::Relaxed);
        }
        if large.parts_left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let entry = &large.item.entry;
        if large.failed.load(Ordering::Relaxed) {
            return self.discard(entry);
        }
        let file = large.file.try_clone().map_err(|source| write_error(entry, source))?;
        self.finish(entry, file, &large.role)
    }

    /// Writes a part of a file; false if the repository does not have it any more.
    fn fill(&self, item: &Item, file: &File, part: &Part, role: &Role) -> Result<bool, RestoreError> {
        let mut gather = Gather { file, sparse: item.entry.sparse == Some(true), at: 0, bytes: Vec::new() };
        let mut emit = |offset: u64, bytes: &[u8]| {
            if self.progress.is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            gather.take(offset, bytes)
        };
        let copied = match role {
            Role::Again(first) => self.copy(first, item, part, &mut emit),
            Role::Alone | Role::First(_) => Ok(false),
        };
        let read = copied.and_then(|copied| if copied { Ok(()) } else { self.reader.read(item, part, &mut emit) });
        match read.and_then(|()| gather.flush().map_err(ReadError::Emit)) {
            Ok(()) => Ok(true),
            Err(ReadError::Emit(_)) if self.progress.is_stopped() => Ok(true),
            Err(ReadError::Emit(source)) => Err(write_error(&item.entry, source)),
            Err(ReadError::Repo(error)) if concerns_one_file(&error) => {
                self.lost(item, &error);
                Ok(false)
            }
            Err(ReadError::Repo(error)) => Err(error.into()),
        }
    }

    /// From where the same content was restored to; false if it is not there, or not any more.
    fn copy(
        &self,
        first: &First,
        item: &Item,
        part: &Part,
        emit: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<bool, ReadError> {
        let Some(from) = first.path().and_then(|path| self.tree.open(path).ok()) else { return Ok(false) };
        self.reader.read_copy(item, part, &mut |offset, bytes| from.read_exact_at(bytes, offset), emit)
    }

    fn finish(&self, entry: &Entry, file: File, role: &Role) -> Result<(), RestoreError> {
        if !self.progress.is_stopped() {
            self.tree.finish_file(entry, file)?;
            self.progress.entries.fetch_add(1, Ordering::Relaxed);
            if let Role::First(first) = role {
                first.is_restored();
            }
        }
        Ok(())
    }

    /// A file with holes where its content should be must not be mistaken for the file.
    fn discard(&self, entry: &Entry) -> Result<(), RestoreError> {
        Ok(self.tree.discard(entry)?)
    }

    fn lost(&self, item: &Item, error: &RepoError) {
        let problem = Problem::lost(item.entry.path.clone(), error);
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    }
}

fn write_error(entry: &Entry, source: io::Error) -> RestoreError {
    RestoreError::Write { path: String::from_utf8_lossy(&entry.path).into_owned(), source }
}

/// Others may be whole.
pub(super) fn concerns_one_file(error: &RepoError) -> bool {
    match error {
        RepoError::Damaged { .. } | RepoError::Foreign { .. } => true,
        RepoError::Store(error) => error.kind.blames_object(),
        _ => false,
    }
}

/// Joins neighbouring pieces, so that a page is not a system call.
struct Gather<'a> {
    file: &'a File,
    sparse: bool,
    at: u64,
    bytes: Vec<u8>,
}

impl Gather<'_> {
    fn take(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let follows = offset == self.at + self.bytes.len() as u64;
        if !follows || self.bytes.len() + bytes.len() > GATHER {
            self.flush()?;
        }
        if self.bytes.is_empty() {
            if bytes.len() >= GATHER / 4 {
                return write_block(self.file, self.sparse, offset, bytes);
            }
            self.at = offset;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        write_block(self.file, self.sparse, self.at, &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

/// Writes, leaving out zeros if the file has holes; its length is set already then.
pub(super) fn write_block(file: &File, sparse: bool, offset: u64, bytes: &[u8]) -> io::Result<()> {
    if !sparse {
        return file.write_all_at(bytes, offset);
    }
    // Blocks of the file, not of the piece.
    let head = (BLOCK - (offset % BLOCK as u64) as usize) % BLOCK;
    let (head, rest) = bytes.split_at(head.min(bytes.len()));
    let mut at = offset;
    for block in std::iter::once(head).chain(rest.chunks(BLOCK)) {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, at)?;
        }
        at += block.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn pieces_are_written_where_they_belong() {
        let mut expected = vec![0; 3 << 20];
        for sparse in [false, true] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(expected.len() as u64).unwrap();
            let mut gather = Gather { file: &file, sparse, at: 0, bytes: Vec::new() };
            let pieces =
                [(0, 5000), (5000, 100), (1 << 20, 300_000), (5100, 1), ((2 << 20) - 7, 14), ((3 << 20) - 1, 1)];
            for (offset, length) in pieces {
                expected[offset..offset + length].fill(7);
                gather.take(offset as u64, &expected[offset..offset + length]).unwrap();
            }
            gather.flush().unwrap();
            let mut is = vec![1; expected.len()];
            file.read_exact_at(&mut is, 0).unwrap();
            assert!(is == expected);
        }
    }

    #[test]
    fn holes_stay_holes() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[600_000] = 1;
        file.set_len(bytes.len() as u64).unwrap();
        write_block(&file, true, 0, &bytes).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10);
    }
}
