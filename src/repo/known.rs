//! What the lineage holds already, as far as the next snapshot may use it: chunks by id, pages by position, unchanged
//! files by fingerprint. Read from the base snapshot's packs, on demand.

use crate::entry::Fingerprint;
use crate::id::{ChunkId, PackId};
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{Place, Stretch};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::manifest::{PackRef, Ref, SegmentRef};
use crate::repo::pack::PackIndex;
use crate::repo::reader::Reader;
use crate::repo::segment::{Hints, decode};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Ids are keyed hashes: any eight of their bytes are a good hash.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write_usize(&mut self, _: usize) {}
}

type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// What is known of an unchanged file.
pub(crate) struct Hinted {
    pub fingerprint: Fingerprint,
    pub stretches: Vec<Stretch>,
}

/// Hints of the base snapshot in little memory. They come in the order of its entries while the source is walked, which is
/// mostly the order in which they are asked for.
#[derive(Default)]
struct HintTable {
    state: Mutex<HintState>,
    more: Condvar,
}

#[derive(Default)]
struct HintState {
    hints: Vec<StoredHint>,
    stretches: Vec<(Place, u32)>,
    /// Behind the last hint that was found.
    cursor: usize,
    /// The places of the first hints, by path. Made when somebody asks out of order.
    by_path: IdMap<u64, u32>,
    indexed: usize,
    /// All are there, or why there will be no more.
    ended: Option<Result<()>>,
}

struct StoredHint {
    path: u64,
    fingerprint: Fingerprint,
    /// Of `stretches`.
    range: (u32, u32),
}

impl HintState {
    /// Looks a little further than the last time, since files vanish, and then everywhere.
    fn find(&mut self, path: u64) -> Option<&StoredHint> {
        const FEW: usize = 16;
        let ahead = self.hints.iter().skip(self.cursor).take(FEW).position(|hint| hint.path == path);
        let at = if let Some(ahead) = ahead {
            self.cursor + ahead
        } else if self.ended.is_some() || self.cursor + FEW <= self.hints.len() {
            let new = (self.indexed as u32..).zip(&self.hints[self.indexed..]);
            self.by_path.extend(new.map(|(at, hint)| (hint.path, at)));
            self.indexed = self.hints.len();
            *self.by_path.get(&path)? as usize
        } else {
            return None;
        };
        self.cursor = at + 1;
        self.hints.get(at)
    }
}

impl HintTable {
    fn lock(&self) -> MutexGuard<'_, HintState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: Result<()>) {
        self.lock().ended = Some(how);
        self.more.notify_all();
    }

    /// Waits until `found` finds something, or there is nothing more to come. The first who asks learns why.
    fn wait<T>(&self, found: impl Fn(&mut HintState) -> Option<T>, give_up: impl Fn() -> bool) -> Result<Option<T>> {
        let mut state = self.lock();
        loop {
            if let Some(found) = found(&mut state) {
                return Ok(Some(found));
            }
            match &state.ended {
                Some(Ok(())) => return Ok(None),
                Some(Err(_)) => return state.ended.replace(Err(RepoError::Stopped)).unwrap_or(Ok(())).map(|()| None),
                None if give_up() => return Err(RepoError::Stopped),
                // The time-out only lets a failed run be noticed.
                None => {
                    let wait = self.more.wait_timeout(state, Duration::from_millis(50));
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

pub(crate) struct Known {
    runtime: Handle,
    reader: Option<Arc<Reader>>,
    /// By index into the base's packs: not to be used any more.
    refresh: Vec<bool>,
    segments: IdMap<ChunkId, SegmentRef>,
    hints: Arc<HintTable>,
    directories: OnceLock<Vec<Option<Arc<PackIndex>>>>,
    chunks: Mutex<Option<IdMap<ChunkId, Place>>>,
}

impl Known {
    /// Nothing is known: a first snapshot.
    pub fn nothing() -> Self {
        let hints = Arc::<HintTable>::default();
        hints.end(Ok(()));
        Self {
            runtime: Handle::current(),
            reader: None,
            refresh: Vec::new(),
            segments: IdMap::default(),
            hints,
            directories: OnceLock::from(Vec::new()),
            chunks: Mutex::new(Some(IdMap::default())),
        }
    }

    /// Begins to read the base snapshot's hints. Nothing of `lost` packs is used, nor read.
    pub async fn load(lineage: Arc<Lineage>, base: Snapshot, mut refresh: Vec<bool>, lost: &[bool]) -> Result<Self> {
        refresh.iter_mut().zip(lost).for_each(|(refresh, lost)| *refresh |= lost);
        let is_there = |pack: u32| lost.get(pack as usize) == Some(&false);
        let catalogue = base
            .catalogue
            .as_ref()
            .ok_or_else(|| RepoError::WrongKey { what: "writer key", object: base.manifest.object.clone() })?;
        let segments = catalogue.segments.clone();
        let reader = Arc::new(Reader::open(lineage, base).await?);
        let hints = Arc::<HintTable>::default();
        let mut this = Self {
            runtime: Handle::current(),
            refresh,
            segments: IdMap::default(),
            hints: hints.clone(),
            directories: OnceLock::new(),
            chunks: Mutex::new(None),
            reader: Some(reader.clone()),
        };
        let usable = (0..).zip(this.packs()).filter(|(i, _)| this.usable(*i));
        let packs: HashMap<PackId, u32> = usable.map(|(i, p)| (p.pack, i)).collect();
        let places = segments.iter().map(|segment| segment.hints).filter(|hints| is_there(hints.pack)).collect();
        this.runtime.spawn(async move { hints.end(load_hints(&reader, places, &packs, &hints).await) });
        for segment in segments {
            if this.usable(segment.entries.pack) && this.usable(segment.hints.pack) {
                this.segments.insert(segment.id, segment);
            }
        }
        Ok(this)
    }

    fn usable(&self, pack: u32) -> bool {
        self.refresh.get(pack as usize) == Some(&false)
    }

    /// The base's packs.
    pub fn packs(&self) -> &[PackRef] {
        self.reader.as_ref().map_or(&[], |r| &r.snapshot().manifest.header.packs)
    }

    /// What the base says of a file, if all of it may still be used. Blocks while that is not known, unless `give_up` says so.
    pub fn hint(&self, path: u64, give_up: impl Fn() -> bool) -> Result<Option<Hinted>> {
        let found = |hints: &mut HintState| {
            let StoredHint { fingerprint, range: (start, end), .. } = *hints.find(path)?;
            let places = hints.stretches.get(start as usize..end as usize)?;
            let total: u64 = places.iter().map(|p| u64::from(p.1)).sum();
            // Which of several runs holds how many bytes is not known here; it only guides what to store afresh.
            let share =
                |count: u32| (u128::from(fingerprint.size) * u128::from(count) / u128::from(total.max(1))) as u64;
            let stretches =
                places.iter().map(|&(first, count)| Stretch { first, count, bytes: share(count) }).collect();
            Some(Hinted { fingerprint, stretches })
        };
        self.hints.wait(found, give_up)
    }

    /// Waits until the base's hints have been read to the end, whether anybody needed them or not. Blocks.
    pub fn check(&self, give_up: impl Fn() -> bool) -> Result<()> {
        self.hints.wait(|_| None::<()>, give_up).map(|_| ())
    }

    /// Where an equal segment is stored already.
    pub fn segment(&self, id: ChunkId) -> Option<(Ref, Ref)> {
        self.segments.get(&id).map(|s| (s.entries, s.hints))
    }

    fn directories(&self) -> Result<&[Option<Arc<PackIndex>>]> {
        if let Some(loaded) = self.directories.get() {
            return Ok(loaded);
        }
        let Some(reader) = &self.reader else { return Ok(&[]) };
        let loaded = self.runtime.block_on(async {
            futures_util::stream::iter(0..self.refresh.len() as u32)
                .map(
                    |pack| async move { if self.usable(pack) { reader.index(pack).await.map(Some) } else { Ok(None) } },
                )
                .buffered(8)
                .try_collect()
                .await
        });
        let loaded: Vec<_> = loaded?;
        Ok(self.directories.get_or_init(|| loaded))
    }

    /// Where a chunk is; if it is nowhere, it is `fresh` from now on, and the caller stores it. Blocks.
    pub fn claim(&self, id: ChunkId, fresh: Place) -> Result<Option<Place>> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.is_none() {
            let mut all = IdMap::default();
            for (pack, index) in (0..).zip(self.directories()?) {
                let Some(index) = index else { continue };
                for frame in index.chunk_frames() {
                    for (ordinal, id) in index.frame_ids(frame) {
                        all.insert(id, Place::old(pack, ordinal));
                    }
                }
            }
            *chunks = Some(all);
        }
        let Some(chunks) = chunks.as_mut() else { return Ok(None) };
        match chunks.entry(id) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(Some(*known.get())),
            std::collections::hash_map::Entry::Vacant(unknown) => {
                unknown.insert(fresh);
                Ok(None)
            }
        }
    }

    /// What the base holds for pages `from..to` of a space: per page its pack and id, or zeros, or nothing. Blocks.
    pub fn pages(&self, space: u64, from: u64, to: u64) -> Result<Vec<PageState>> {
        let mut states = vec![PageState::Nothing; (to - from) as usize];
        let mut open = states.len();
        // The last pack that has a page holds it. Packs to refresh take part in nothing.
        for (pack, index) in self.directories()?.iter().enumerate().rev() {
            let pack = pack as u32;
            let Some(index) = index else { continue };
            for run in index.page_runs(space, from, to) {
                for i in 0..run.count {
                    let state = &mut states[(run.first - from) as usize + i as usize];
                    if *state == PageState::Nothing {
                        *state = match run.ordinal {
                            None => PageState::Zeros { pack },
                            Some(o) => index.id(o + i).map_or(PageState::Nothing, |id| PageState::Held { pack, id }),
                        };
                        open -= 1;
                    }
                }
            }
            if open == 0 {
                break;
            }
        }
        Ok(states)
    }
}

/// Reads hint lists, `packs` saying which may be used and where they are among the base's.
async fn load_hints(reader: &Reader, places: Vec<Ref>, packs: &HashMap<PackId, u32>, into: &HintTable) -> Result<()> {
    let mut lists = futures_util::stream::iter(places).map(|place| reader.chunk(place)).buffered(8);
    while let Some(bytes) = lists.try_next().await? {
        let hints: Hints = decode("a hint list", &bytes)?;
        let packs: Vec<Option<u32>> = hints.packs.iter().map(|p| packs.get(p).copied()).collect();
        let mut state = into.lock();
        let HintState { hints: table, stretches, .. } = &mut *state;
        for hint in &hints.hints {
            let start = stretches.len();
            for run in &hint.runs {
                if let Some(pack) = packs.get(run.pack as usize).copied().flatten() {
                    stretches.push((Place::old(pack, run.first), run.count));
                }
            }
            if stretches.len() - start == hint.runs.len() {
                let range = (start as u32, stretches.len() as u32);
                table.push(StoredHint { path: hint.path, fingerprint: hint.fingerprint(), range });
            } else {
                stretches.truncate(start);
            }
        }
        drop(state);
        into.more.notify_all();
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    Nothing,
    Zeros { pack: u32 },
    Held { pack: u32, id: ChunkId },
}
