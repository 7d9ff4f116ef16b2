//! Puts captured entries back in the source's order, cuts them into segments and stores those that the base does not hold.
//!
//! A segment can be written when all its chunks have places; until then it waits here. When too many wait, the frames
//! they wait for are closed.

use crate::entry::{Entry, Fingerprint, Problem};
use crate::id::{ChunkId, PackId};
use crate::repo::codec::{Compressor, MAX_RAW};
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{OpenFrame, Place, Stretch};
use crate::repo::manifest::{PackRef, Ref, SegmentRef};
use crate::repo::pack::{Items, encode};
use crate::repo::pipeline::{Done, Shared, Stored};
use crate::repo::seal::Class;
use crate::repo::segment::{self, Body, Entries, Hint, Hints, MAX_ENTRIES, PackTable, is_boundary, push_run};
use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A segment is cut when its lists would grow past this, bytes (estimated).
const MAX_LIST: usize = 4 << 20;
/// So many segments may wait for their chunks' places.
const MAX_WAITING: usize = 16;
/// How far the source may run ahead of the oldest entry that is still being read.
const WINDOW: u64 = 32_768;

/// Holds the source back while an early entry is not done.
#[derive(Default)]
pub(crate) struct Window {
    assembled: Mutex<u64>,
    moved: Condvar,
}

impl Window {
    /// Blocks until entry `index` is inside the window, or `give_up` says so.
    pub fn wait(&self, index: u64, give_up: impl Fn() -> bool) {
        let mut assembled = self.assembled.lock().unwrap_or_else(PoisonError::into_inner);
        while index >= *assembled + WINDOW && !give_up() {
            // The time-out only lets a failed run be noticed.
            let wait = self.moved.wait_timeout(assembled, Duration::from_millis(50));
            assembled = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn advance(&self, to: u64) {
        *self.assembled.lock().unwrap_or_else(PoisonError::into_inner) = to;
        self.moved.notify_all();
    }
}

struct Captured {
    name: u64,
    entry: Entry,
    stored: Stored,
    fingerprint: Option<Fingerprint>,
}

struct Pending {
    first: u64,
    id: ChunkId,
    /// Where the list is, and its bytes.
    entries: (Place, u64),
    hints: (Place, u64),
}

/// What could not be captured as it should be: how much, and the first of it.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    first: Vec<Problem>,
    pub count: u64,
}

impl Problems {
    /// A manifest must stay readable where everything fails.
    const KEPT: usize = 10_000;

    pub fn add(&mut self, problem: Problem) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(problem);
        }
    }

    pub fn append(&mut self, other: Self) {
        let count = self.count + other.count;
        other.first.into_iter().for_each(|problem| self.add(problem));
        self.count = count;
    }

    /// The first, and how many more there are.
    pub fn told(mut self) -> Vec<Problem> {
        let more = self.count - self.first.len() as u64;
        if more > 0 {
            self.first.push(Problem { path: Vec::new(), text: format!("{more} more problems") });
        }
        self.first
    }
}

/// All that a manifest needs to know of the entries.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub packs: Vec<PackRef>,
    pub segments: Vec<SegmentRef>,
    pub entries: u64,
    pub bytes: u64,
    pub problems: Problems,
    /// Entries that could not be captured.
    pub left_out: u64,
}

pub(crate) struct Assembler {
    shared: Arc<Shared>,
    window: Arc<Window>,
    compressor: Compressor,
    /// Changes after this moment (Unix nanoseconds) might share their time stamp with the read: no hint for them.
    racy_after_ns: i64,
    next: u64,
    early: BTreeMap<u64, Done>,
    current: Vec<Captured>,
    current_len: usize,
    waiting: VecDeque<Vec<Captured>>,
    entries_frame: Option<OpenFrame>,
    hints_frame: Option<OpenFrame>,
    segments: Vec<Pending>,
    live: HashMap<u32, u64>,
    entries: u64,
    bytes: u64,
    problems: Problems,
    left_out: u64,
}

impl Assembler {
    pub fn new(shared: Arc<Shared>, window: Arc<Window>, racy_after_ns: i64) -> Result<Self> {
        let compressor = shared.compressor()?;
        Ok(Self {
            shared,
            window,
            compressor,
            racy_after_ns,
            next: 0,
            early: BTreeMap::new(),
            current: Vec::new(),
            current_len: 0,
            waiting: VecDeque::new(),
            entries_frame: None,
            hints_frame: None,
            segments: Vec::new(),
            live: HashMap::new(),
            entries: 0,
            bytes: 0,
            problems: Problems::default(),
            left_out: 0,
        })
    }

    /// Takes entries until there are no more, then finishes the packs. `None` when the run has failed.
    pub fn run(mut self, done: &Receiver<Vec<Done>>) -> Option<Assembled> {
        for batch in done {
            if let Err(error) = batch.into_iter().try_for_each(|entry| self.sort(entry)) {
                self.shared.fail(error);
                return None;
            }
            self.window.advance(self.next);
        }
        if self.shared.is_stopped() {
            return None;
        }
        let shared = self.shared.clone();
        self.finish().map_err(|error| shared.fail(error)).ok()
    }

    /// Takes an entry when its turn has come, and those that waited for it.
    fn sort(&mut self, entry: Done) -> Result<()> {
        if entry.index != self.next {
            self.early.insert(entry.index, entry);
            return Ok(());
        }
        self.next += 1;
        self.take(entry)?;
        while let Some(entry) = self.early.remove(&self.next) {
            self.next += 1;
            self.take(entry)?;
        }
        Ok(())
    }

    fn take(&mut self, done: Done) -> Result<()> {
        done.problem.into_iter().for_each(|problem| self.problems.add(problem));
        let Some((entry, stored, fingerprint)) = done.entry else {
            self.left_out += 1;
            return Ok(());
        };
        self.entries += 1;
        self.bytes += entry.size;
        if is_boundary(done.name) || self.current.len() >= MAX_ENTRIES || self.current_len >= MAX_LIST {
            self.cut()?;
        }
        self.current_len += estimate(&entry, &stored);
        self.current.push(Captured { name: done.name, entry, stored, fingerprint });
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        self.current_len = 0;
        self.waiting.push_back(std::mem::take(&mut self.current));
        if self.waiting.len() > MAX_WAITING {
            self.shared.flush(&mut self.compressor)?;
        }
        self.write_ready()
    }

    /// Writes the segments at the head of the line whose chunks all have places.
    fn write_ready(&mut self) -> Result<()> {
        while let Some(first) = self.waiting.front() {
            if !self.shared.packer.all_placed(first.iter().flat_map(|captured| stretches(&captured.stored))) {
                return Ok(());
            }
            if let Some(captured) = self.waiting.pop_front() {
                self.write(captured)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, captured: Vec<Captured>) -> Result<()> {
        let shared = self.shared.clone();
        let keys = shared.keys()?;
        let (mut packs, mut entries) = (PackTable::default(), Vec::with_capacity(captured.len()));
        let (mut hint_packs, mut hints) = (PackTable::default(), Vec::new());
        let first = captured.first().map_or(0, |captured| captured.name);
        for Captured { name, entry, stored, fingerprint } in captured {
            let placed = self.place(&stored)?;
            if let Some(f) = fingerprint.filter(|f| f.ctime_ns.max(f.mtime_ns) <= self.racy_after_ns) {
                hints.push(Hint::new(name, &f, runs(&placed, &mut hint_packs)));
            }
            let body = match stored {
                Stored::Nothing => Body::None,
                Stored::Chunks(_) => Body::Chunks(runs(&placed, &mut packs)),
                Stored::Pages { space, page_size, digest, .. } => Body::Pages(space, page_size, digest.to_le_bytes()),
            };
            entries.push(segment::Stored { entry, body });
        }
        let entries = encode(&Entries { packs: packs.packs, entries });
        let hints = encode(&Hints { packs: hint_packs.packs, hints });
        if entries.len().max(hints.len()) > MAX_RAW {
            return Err(RepoError::Refused("a file is scattered over too many pieces; its list is too large".into()));
        }
        let id = keys.chunk_id(&[&(entries.len() as u64).to_le_bytes()[..], &entries, &hints].concat());
        let (at_entries, at_hints) = match shared.known.segment(id) {
            Some((e, h)) => (Place::old(e.pack, e.ordinal), Place::old(h.pack, h.ordinal)),
            None => (self.list(Class::Data, &entries)?, self.list(Class::Writer, &hints)?),
        };
        let (entries, hints) = ((at_entries, entries.len() as u64), (at_hints, hints.len() as u64));
        self.segments.push(Pending { first, id, entries, hints });
        Ok(())
    }

    /// The pack and first ordinal of each of an entry's stretches; counts them as live.
    fn place(&mut self, stored: &Stored) -> Result<Vec<(PackId, u32, u32)>> {
        let shared = self.shared.clone();
        let mut placed = Vec::new();
        for stretch in stretches(stored) {
            let (pack, ordinal) = shared.packer.resolve(stretch).ok_or_else(lost)?;
            *self.live.entry(pack).or_default() += stretch.bytes;
            if let Stored::Chunks(_) = stored {
                placed.push((self.pack_id(pack)?, ordinal, stretch.count));
            }
        }
        if let Stored::Pages { held, .. } = stored {
            for (pack, bytes) in held {
                *self.live.entry(*pack).or_default() += bytes;
            }
        }
        Ok(placed)
    }

    fn pack_id(&self, pack: u32) -> Result<PackId> {
        let base = self.shared.known.packs().get(pack as usize).map(|p| p.pack);
        base.or_else(|| self.shared.packer.pack_id(pack)).ok_or_else(lost)
    }

    /// Appends a list to the frame of its class.
    fn list(&mut self, class: Class, bytes: &[u8]) -> Result<Place> {
        let shared = self.shared.clone();
        let slot = if class == Class::Data { &mut self.entries_frame } else { &mut self.hints_frame };
        let mut frame = slot.take().unwrap_or_else(|| shared.open_frame(class, Items::Chunks(Vec::new())));
        let place = frame.next_place();
        let from = frame.raw.len();
        frame.raw.extend_from_slice(bytes);
        frame.take_chunk(shared.keys()?.chunk_id(bytes), from);
        if frame.is_full() {
            shared.store(shared.close(frame), &mut self.compressor)?;
        } else {
            *slot = Some(frame);
        }
        Ok(place)
    }

    fn finish(mut self) -> Result<Assembled> {
        let shared = self.shared.clone();
        self.cut()?;
        shared.flush(&mut self.compressor)?;
        self.write_ready()?;
        if !self.waiting.is_empty() || !self.early.is_empty() {
            return Err(lost());
        }
        for frame in [self.entries_frame.take(), self.hints_frame.take()].into_iter().flatten() {
            shared.store(shared.close(frame), &mut self.compressor)?;
        }
        let made = shared.packer.finish()?;
        let at = |place: Place| shared.packer.resolve(&Stretch { first: place, count: 1, bytes: 0 }).ok_or_else(lost);
        let mut segments = Vec::with_capacity(self.segments.len());
        for pending in &self.segments {
            let (entries, hints) = (at(pending.entries.0)?, at(pending.hints.0)?);
            *self.live.entry(entries.0).or_default() += pending.entries.1;
            *self.live.entry(hints.0).or_default() += pending.hints.1;
            segments.push((pending.first, pending.id, entries, hints));
        }
        let mut index = HashMap::new();
        let mut packs = Vec::new();
        for (old, mut pack) in (0..).zip(shared.known.packs().iter().cloned().chain(made)) {
            let live = self.live.get(&old).copied().unwrap_or(0);
            if live > 0 {
                pack.live = live.min(pack.raw.max(1));
                index.insert(old, packs.len() as u32);
                packs.push(pack);
            }
        }
        let to_ref = |(pack, ordinal): (u32, u32)| index.get(&pack).map(|&pack| Ref { pack, ordinal }).ok_or_else(lost);
        let segments = segments
            .into_iter()
            .map(|(first, id, e, h)| Ok(SegmentRef { first, id, entries: to_ref(e)?, hints: to_ref(h)? }))
            .collect::<Result<_>>()?;
        let Self { entries, bytes, problems, left_out, .. } = self;
        Ok(Assembled { packs, segments, entries, bytes, problems, left_out })
    }
}

fn stretches(stored: &Stored) -> &[Stretch] {
    match stored {
        Stored::Nothing => &[],
        Stored::Chunks(stretches) | Stored::Pages { fresh: stretches, .. } => stretches,
    }
}

fn runs(placed: &[(PackId, u32, u32)], table: &mut PackTable) -> Vec<segment::Run> {
    let mut runs = Vec::new();
    for &(pack, first, count) in placed {
        push_run(&mut runs, table.index(pack), first, count);
    }
    runs
}

fn estimate(entry: &Entry, stored: &Stored) -> usize {
    let xattrs = entry.xattrs.iter().flatten().map(|x| x.name.len() + x.value.len()).sum::<usize>();
    48 + entry.path.len() + entry.link.as_ref().map_or(0, Vec::len) + xattrs + 12 * stretches(stored).len()
}

fn lost() -> RepoError {
    RepoError::Refused("a chunk has no place (a defect of Lifeboat; nothing was committed)".into())
}
