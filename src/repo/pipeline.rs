//! The threads between a source and the packs: they read contents, cut and hash them, and compress and hand over what is
//! new. Every queue is bounded; whoever finds the compression queue full compresses itself, so nobody waits for a thread
//! that waits for them.

use crate::entry::{Entry, Input, Layout, OnError, Problem, Verdict};
use crate::id::ChunkId;
use crate::repo::chunking::{COARSE, Cutter, FINE, MAX_CHUNK};
use crate::repo::codec::Compressor;
use crate::repo::epoch::Epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{FRAME, MAX_FRAME, OpenFrame, Stretch, push_place};
use crate::repo::keys::WriterKeys;
use crate::repo::known::{Known, PageState};
use crate::repo::pack::{Frame, Items, ZeroPages};
use crate::repo::packer::Packer;
use crate::repo::seal::Class;
use crate::store::pool::Pool;
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A content of fewer bytes is read into a buffer of its size.
const SMALL: u64 = 128 << 10;

/// Where an entry's bytes came to be.
#[derive(Debug)]
pub(crate) enum Stored {
    Nothing,
    Chunks(Vec<Stretch>),
    Pages {
        space: u64,
        page_size: u32,
        digest: u128,
        /// (pack of the base or of this run, plaintext bytes in it).
        held: Vec<(u32, u64)>,
        fresh: Vec<Stretch>,
    },
}

/// A captured entry, in the order in which the source gave them.
#[derive(Debug)]
pub(crate) struct Done {
    pub index: u64,
    /// The path's keyed hash.
    pub name: u64,
    /// `None`: it could not be captured and is left out.
    pub entry: Option<(Entry, Stored, Option<crate::entry::Fingerprint>)>,
    pub problem: Option<Problem>,
}

/// Contents to read.
pub(crate) struct Job {
    pub index: u64,
    pub name: u64,
    pub entry: Entry,
    pub input: Input,
    /// Keeps the compression queue open while contents are being read.
    pub closed: Sender<Closed>,
}

/// A full frame and its place in line.
pub(crate) struct Closed {
    ticket: u64,
    frame: OpenFrame,
}

/// Counters that a progress bar reads while a run goes on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Entries captured.
    pub entries: AtomicU64,
    /// Plaintext bytes captured, read or known to be unchanged.
    pub bytes: AtomicU64,
    /// Plaintext bytes that were new.
    pub new_bytes: AtomicU64,
}

/// What all threads of a run share.
pub(crate) struct Shared {
    pub epoch: Arc<Epoch>,
    pub known: Known,
    pub packer: Packer,
    pub progress: Arc<Progress>,
    level: i32,
    coarse: Cutter,
    fine: Cutter,
    frames: AtomicU32,
    tickets: AtomicU64,
    stopped: AtomicBool,
    error: Mutex<Option<RepoError>>,
    /// One open frame of chunks per worker. Here, so that whoever needs a frame's place can close it.
    open: Vec<Mutex<Option<OpenFrame>>>,
    pool: Arc<Pool>,
    /// Page files of this run: a page may be in a pack only once.
    spaces: Mutex<HashSet<u64>>,
}

impl Shared {
    pub fn new(epoch: Arc<Epoch>, known: Known, packer: Packer, level: i32, workers: usize) -> Result<Self> {
        let gear = epoch.writer_keys()?.gear_table();
        let (coarse, fine) = (Cutter::new(gear.clone(), COARSE), Cutter::new(gear, FINE));
        let pool = packer.pool().clone();
        Ok(Self {
            epoch,
            known,
            packer,
            progress: Arc::default(),
            level,
            coarse,
            fine,
            frames: AtomicU32::new(0),
            tickets: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            error: Mutex::new(None),
            open: (0..workers).map(|_| Mutex::new(None)).collect(),
            pool,
            spaces: Mutex::default(),
        })
    }

    pub fn keys(&self) -> Result<&WriterKeys> {
        self.epoch.writer_keys()
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends the run; the first reason counts, but an upload's own words replace the words of those it left waiting.
    pub fn fail(&self, error: RepoError) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let says_more = !matches!(error, RepoError::Stopped);
        if first.as_ref().is_none_or(|e| says_more && matches!(e, RepoError::UploadFailed { .. })) {
            *first = Some(error);
        }
    }

    pub fn take_error(&self) -> Option<RepoError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn open_frame(&self, class: Class, items: Items) -> OpenFrame {
        let number = self.frames.fetch_add(1, Ordering::Relaxed);
        OpenFrame { number, class, items, ids: Vec::new(), raw: self.pool.take_empty() }
    }

    /// Gives a full frame its place in line. Every ticket must reach the packer.
    pub fn close(&self, frame: OpenFrame) -> Closed {
        Closed { ticket: self.tickets.fetch_add(1, Ordering::SeqCst), frame }
    }

    /// Compresses a frame and hands it to the packer.
    pub fn store(&self, closed: Closed, compressor: &mut Compressor) -> Result<()> {
        let Closed { ticket, frame } = closed;
        self.progress.new_bytes.fetch_add(frame.raw.len() as u64, Ordering::Relaxed);
        let broken = |why: io::Error| RepoError::Refused(format!("compress a frame: {why}"));
        let (codec, stored, spare) = compressor.compress(frame.raw, self.pool.take()).map_err(broken)?;
        self.pool.give(spare);
        let (class, items, ids) = (frame.class, frame.items, frame.ids);
        self.packer.submit(ticket, frame.number, Frame { class, codec, items, ids, stored })
    }

    pub fn compressor(&self) -> Result<Compressor> {
        Compressor::new(self.level)
            .map_err(|why| RepoError::Refused(format!("compression level {}: {why}", self.level)))
    }

    /// Closes and stores the frames that the workers have open.
    pub fn flush(&self, compressor: &mut Compressor) -> Result<()> {
        for slot in &self.open {
            let frame = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A frame without items was opened for a chunk that turned out to be known.
            if let Some(frame) = frame.filter(|frame| !frame.ids.is_empty()) {
                self.store(self.close(frame), compressor)?;
            }
        }
        Ok(())
    }
}

/// One thread's tools.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    slot: usize,
    compressor: Compressor,
    done: Sender<Vec<Done>>,
    frames: Receiver<Closed>,
    buffer: Vec<u8>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, slot: usize, done: Sender<Vec<Done>>, frames: Receiver<Closed>) -> Result<Self> {
        let compressor = shared.compressor()?;
        Ok(Self { shared, slot, compressor, done, frames, buffer: Vec::new() })
    }

    /// Works until there is nothing more to come.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let frames = &self.frames.clone();
        let never = crossbeam_channel::never();
        let mut jobs = jobs;
        loop {
            // Frames first: they hold memory.
            let closed = match frames.try_recv() {
                Ok(closed) => Some(closed),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => None,
            };
            if let Some(closed) = closed {
                self.store(closed);
                continue;
            }
            crossbeam_channel::select! {
                recv(frames) -> closed => match closed {
                    Ok(closed) => self.store(closed),
                    Err(_) => return,
                },
                recv(jobs) -> job => match job {
                    Ok(job) => self.read(job),
                    Err(_) => jobs = &never,
                },
            }
        }
    }

    fn store(&mut self, closed: Closed) {
        if self.shared.is_stopped() {
            return;
        }
        if let Err(error) = self.shared.store(closed, &mut self.compressor) {
            self.shared.fail(error);
        }
    }

    fn read(&mut self, job: Job) {
        if self.shared.is_stopped() {
            return;
        }
        let Job { index, name, mut entry, input, closed } = job;
        let (on_error, fingerprint, layout) = (input.on_error, input.fingerprint, input.layout);
        let read = self.content(&mut entry, input.open, layout, &closed);
        let done = match read {
            Ok((stored, Verdict::Consistent)) => {
                Done { index, name, entry: Some((entry, stored, fingerprint)), problem: None }
            }
            Ok((stored, Verdict::Changed(text))) => {
                let problem = Some(Problem { path: entry.path.clone(), text });
                Done { index, name, entry: Some((entry, stored, None)), problem }
            }
            Err(Failure::Content(why)) if on_error == OnError::Report => {
                let text = why.to_string();
                Done { index, name, entry: None, problem: Some(Problem { path: entry.path, text }) }
            }
            Err(Failure::Content(source)) => {
                let what = String::from_utf8_lossy(&entry.path).into_owned();
                return self.shared.fail(RepoError::Capture { what, source });
            }
            Err(Failure::Repo(error)) => return self.shared.fail(error),
        };
        // The receiver is gone only when the run has failed.
        let _ = self.done.send(vec![done]);
    }

    fn content(
        &mut self,
        entry: &mut Entry,
        open: crate::entry::Open,
        layout: Layout,
        closed: &Sender<Closed>,
    ) -> Result<(Stored, Verdict), Failure> {
        let mut content = open()?;
        let (size, stored) = match layout {
            Layout::Content | Layout::Records => self.chunks(entry, layout, content.as_mut(), closed)?,
            Layout::Pages(page_size) => self.pages(&entry.path, page_size, content.as_mut(), closed)?,
        };
        entry.size = size;
        Ok((stored, content.finish()?))
    }

    fn hand_over(&mut self, frame: OpenFrame, closed: &Sender<Closed>) -> Result<()> {
        let mut frame = self.shared.close(frame);
        loop {
            frame = match closed.try_send(frame) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(frame)) => frame,
                Err(TrySendError::Disconnected(frame)) => return self.shared.store(frame, &mut self.compressor),
            };
            // The oldest first: those behind it in line are kept in memory until it is stored.
            match self.frames.try_recv() {
                Ok(oldest) => self.shared.store(oldest, &mut self.compressor)?,
                Err(_) => return self.shared.store(frame, &mut self.compressor),
            }
        }
    }

    fn chunks(
        &mut self,
        entry: &Entry,
        layout: Layout,
        content: &mut dyn crate::entry::Content,
        closed: &Sender<Closed>,
    ) -> Result<(u64, Stored), Failure> {
        let shared = self.shared.clone();
        let cutter = if layout == Layout::Records { &shared.fine } else { &shared.coarse };
        let mut stretches = Vec::new();
        // One byte more than it should have finds out that a small file has grown.
        let mut small = entry.size < SMALL;
        self.buffer.resize(if small { entry.size as usize + 1 } else { 2 * MAX_CHUNK }, 0);
        let (mut start, mut end, mut total, mut ended) = (0, 0, 0, false);
        loop {
            while !ended && end < self.buffer.len() {
                let read = content.read(&mut self.buffer[end..])?;
                ended = read == 0;
                end += read;
            }
            if small && !ended {
                // It has grown past what was expected of it.
                small = false;
                self.buffer.resize(2 * MAX_CHUNK, 0);
                continue;
            }
            while end - start >= MAX_CHUNK || (ended && start < end) {
                let length = cutter.cut(&self.buffer[start..end]);
                let chunk = start..start + length;
                self.chunk(chunk, &mut stretches, closed)?;
                start += length;
                total += length as u64;
            }
            if ended {
                return Ok((total, Stored::Chunks(stretches)));
            }
            if self.shared.is_stopped() {
                return Err(Failure::stopped());
            }
            self.buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
    }

    fn chunk(
        &mut self,
        range: std::ops::Range<usize>,
        stretches: &mut Vec<Stretch>,
        closed: &Sender<Closed>,
    ) -> Result<()> {
        let shared = self.shared.clone();
        let crowded = |frame: &mut OpenFrame| !frame.ids.is_empty() && frame.raw.len() + range.len() > MAX_FRAME;
        let full = shared.open[self.slot].lock().unwrap_or_else(PoisonError::into_inner).take_if(crowded);
        if let Some(full) = full {
            self.hand_over(full, closed)?;
        }
        let bytes = &self.buffer[range];
        let length = bytes.len() as u64;
        let id = shared.keys()?.chunk_id(bytes);
        let mut slot = shared.open[self.slot].lock().unwrap_or_else(PoisonError::into_inner);
        let mut frame = slot.take().unwrap_or_else(|| shared.open_frame(Class::Data, Items::Chunks(Vec::new())));
        let fresh = frame.next_place();
        let place = if let Some(known) = shared.known.claim(id, fresh)? {
            known
        } else {
            let from = frame.raw.len();
            frame.raw.extend_from_slice(bytes);
            frame.take_chunk(id, from);
            fresh
        };
        shared.progress.bytes.fetch_add(length, Ordering::Relaxed);
        push_place(stretches, place, length);
        if frame.is_full() {
            drop(slot);
            self.hand_over(frame, closed)
        } else {
            *slot = Some(frame);
            Ok(())
        }
    }

    /// Compares pages with the base's by position and takes those that differ.
    fn pages(
        &mut self,
        path: &[u8],
        page_size: u32,
        content: &mut dyn crate::entry::Content,
        closed: &Sender<Closed>,
    ) -> Result<(u64, Stored), Failure> {
        let shared = self.shared.clone();
        let space = shared.keys()?.space(path, page_size);
        if !shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).insert(space) {
            let name = String::from_utf8_lossy(path);
            return Err(RepoError::Refused(format!("the source captured {name} twice in one run")).into());
        }
        let page = page_size as usize;
        let window = (FRAME / page).max(1);
        self.buffer.resize(window * page, 0);
        let mut take = PageTaker::new(&shared, space, page_size);
        let (mut first, mut size) = (0, 0);
        loop {
            let mut end = 0;
            while end < self.buffer.len() {
                match content.read(&mut self.buffer[end..])? {
                    0 => break,
                    read => end += read,
                }
            }
            if end == 0 {
                break;
            }
            size += end as u64;
            let padded = end.next_multiple_of(page);
            self.buffer[end..padded].fill(0);
            let buffer = std::mem::take(&mut self.buffer);
            let full = take.window(first, &buffer[..padded]);
            self.buffer = buffer;
            for frame in full? {
                self.hand_over(frame, closed)?;
            }
            shared.progress.bytes.fetch_add(end as u64, Ordering::Relaxed);
            first += window as u64;
            if end < self.buffer.len() {
                break;
            }
            if shared.is_stopped() {
                return Err(Failure::stopped());
            }
        }
        let PageTaker { frame, held, fresh, zeros, digest, .. } = take;
        if let Some(frame) = frame {
            self.hand_over(frame, closed)?;
        }
        let mut held: Vec<_> = held.into_iter().collect();
        if !zeros.is_empty() {
            held.push((shared.packer.zeros(ZeroPages { space, runs: zeros })?, 1));
        }
        held.sort_unstable();
        Ok((size, Stored::Pages { space, page_size, digest, held, fresh }))
    }
}

struct PageTaker<'a> {
    shared: &'a Shared,
    space: u64,
    page_size: u32,
    frame: Option<OpenFrame>,
    held: HashMap<u32, u64>,
    fresh: Vec<Stretch>,
    zeros: Vec<(u64, u32)>,
    digest: u128,
}

impl<'a> PageTaker<'a> {
    fn new(shared: &'a Shared, space: u64, page_size: u32) -> Self {
        let (held, fresh, zeros) = Default::default();
        Self { shared, space, page_size, frame: None, held, fresh, zeros, digest: 0 }
    }

    /// Takes consecutive pages, from page `first` on. Gives the frames that became full.
    fn window(&mut self, first: u64, bytes: &[u8]) -> Result<Vec<OpenFrame>> {
        let page_size = u64::from(self.page_size);
        let count = bytes.len() as u64 / page_size;
        let keys = self.shared.keys()?;
        let states = self.shared.known.pages(self.space, first, first + count)?;
        let mut full = Vec::new();
        for ((number, page), state) in (first..).zip(bytes.chunks_exact(self.page_size as usize)).zip(states) {
            let zero = is_zero(page);
            match state {
                PageState::Nothing if zero => continue,
                PageState::Zeros { pack } if zero => {
                    self.held.entry(pack).and_modify(|live| *live += 1).or_insert(1);
                    continue;
                }
                PageState::Held { .. } if zero => {
                    match self.zeros.last_mut() {
                        Some(last) if last.0 + u64::from(last.1) == number => last.1 += 1,
                        _ => self.zeros.push((number, 1)),
                    }
                    continue;
                }
                _ => {}
            }
            let id: ChunkId = keys.chunk_id(page);
            self.digest = self.digest.wrapping_add(keys.page_mark(number, id));
            if let PageState::Held { pack, id: known } = state
                && known == id
            {
                *self.held.entry(pack).or_default() += page_size;
                continue;
            }
            let (shared, space, size) = (self.shared, self.space, self.page_size);
            let frame =
                self.frame.get_or_insert_with(|| shared.open_frame(Class::Data, Items::Pages(space, size, Vec::new())));
            push_place(&mut self.fresh, frame.next_place(), page_size);
            frame.push_page(id, number, page);
            if frame.is_full() {
                full.extend(self.frame.take());
            }
        }
        Ok(full)
    }
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}

enum Failure {
    Content(io::Error),
    Repo(RepoError),
}

impl Failure {
    fn stopped() -> Self {
        Self::Repo(RepoError::Stopped)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Content(error)
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}
