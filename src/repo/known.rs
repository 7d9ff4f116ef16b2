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
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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

/// Hints of the base snapshot in little memory.
#[derive(Default)]
struct HintTable {
    by_path: IdMap<u64, (Fingerprint, u32, u32)>,
    stretches: Vec<(Place, u32)>,
}

pub(crate) struct Known {
    runtime: Handle,
    reader: Option<Reader>,
    /// By index into the base's packs: not to be used any more.
    refresh: Vec<bool>,
    by_pack: HashMap<PackId, u32>,
    segments: IdMap<ChunkId, SegmentRef>,
    hints: HintTable,
    directories: OnceLock<Vec<Option<Arc<PackIndex>>>>,
    chunks: Mutex<Option<IdMap<ChunkId, Place>>>,
}

impl Known {
    /// Nothing is known: a first snapshot.
    pub fn nothing() -> Self {
        Self {
            runtime: Handle::current(),
            reader: None,
            refresh: Vec::new(),
            by_pack: HashMap::new(),
            segments: IdMap::default(),
            hints: HintTable::default(),
            directories: OnceLock::from(Vec::new()),
            chunks: Mutex::new(Some(IdMap::default())),
        }
    }

    /// Reads the base snapshot's hints.
    pub async fn load(lineage: Arc<Lineage>, base: Snapshot, refresh: Vec<bool>) -> Result<Self> {
        let catalogue = base
            .catalogue
            .as_ref()
            .ok_or_else(|| RepoError::WrongKey { what: "writer key", object: base.manifest.object.clone() })?;
        let segments = catalogue.segments.clone();
        let by_pack: HashMap<_, _> = (0..).zip(&base.manifest.header.packs).map(|(i, p)| (p.pack, i)).collect();
        let reader = Reader::open(lineage, base).await?;
        let mut this = Self {
            runtime: Handle::current(),
            refresh,
            by_pack,
            segments: IdMap::default(),
            hints: HintTable::default(),
            directories: OnceLock::new(),
            chunks: Mutex::new(None),
            reader: Some(reader),
        };
        this.load_hints(&segments).await?;
        for segment in segments {
            if this.usable(segment.entries.pack) && this.usable(segment.hints.pack) {
                this.segments.insert(segment.id, segment);
            }
        }
        Ok(this)
    }

    async fn load_hints(&mut self, segments: &[SegmentRef]) -> Result<()> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let places: Vec<Ref> = segments.iter().map(|segment| segment.hints).collect();
        let mut lists = futures_util::stream::iter(places).map(|place| reader.chunk(place)).buffered(8);
        let mut table = HintTable::default();
        while let Some(bytes) = lists.try_next().await? {
            let hints: Hints = decode("a hint list", &bytes)?;
            let packs: Vec<Option<u32>> = hints.packs.iter().map(|p| self.usable_pack(*p)).collect();
            table.by_path.reserve(hints.hints.len());
            for hint in &hints.hints {
                let start = table.stretches.len();
                let places = hint.runs.iter().map(|run| {
                    let pack = (*packs.get(run.pack as usize)?)?;
                    Some((Place::old(pack, run.first), run.count))
                });
                let Some(places) = places.collect::<Option<Vec<_>>>() else { continue };
                table.stretches.extend(places);
                let range = (hint.fingerprint(), start as u32, table.stretches.len() as u32);
                table.by_path.insert(hint.path, range);
            }
        }
        drop(lists);
        self.hints = table;
        Ok(())
    }

    fn usable(&self, pack: u32) -> bool {
        self.refresh.get(pack as usize) == Some(&false)
    }

    fn usable_pack(&self, pack: PackId) -> Option<u32> {
        self.by_pack.get(&pack).copied().filter(|&i| self.usable(i))
    }

    /// The base's packs.
    pub fn packs(&self) -> &[PackRef] {
        self.reader.as_ref().map_or(&[], |r| &r.snapshot().manifest.header.packs)
    }

    /// What the base says of a file, if all of it may still be used.
    pub fn hint(&self, path: u64) -> Option<Hinted> {
        let (fingerprint, start, end) = *self.hints.by_path.get(&path)?;
        let places = self.hints.stretches.get(start as usize..end as usize)?;
        let total: u64 = places.iter().map(|p| u64::from(p.1)).sum();
        // Which of several runs holds how many bytes is not known here; it only guides what to store afresh.
        let share = |count: u32| (u128::from(fingerprint.size) * u128::from(count) / u128::from(total.max(1))) as u64;
        let stretches = places.iter().map(|&(first, count)| Stretch { first, count, bytes: share(count) }).collect();
        Some(Hinted { fingerprint, stretches })
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    Nothing,
    Zeros { pack: u32 },
    Held { pack: u32, id: ChunkId },
}
