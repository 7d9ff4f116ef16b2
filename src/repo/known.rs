//! What the lineage holds already, as far as the next snapshot may use it: chunks by id, pages by position, unchanged
//! files by fingerprint. Read from the base snapshot's packs, on demand.

mod chunks;
mod hints;

use crate::entry::Fingerprint;
use crate::id::ChunkId;
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{Place, Stretch};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::manifest::{PackRef, Ref, SegmentRef};
use crate::repo::pack::PackIndex;
use crate::repo::reader::{Reader, Room};
use chunks::Chunks;
use futures_util::{StreamExt, TryStreamExt};
use hints::Hints;
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

pub(crate) struct Known {
    runtime: Handle,
    reader: Option<Arc<Reader>>,
    /// By index into the base's packs: not to be used any more.
    refresh: Vec<bool>,
    segments: IdMap<ChunkId, SegmentRef>,
    hints: Arc<Hints>,
    directories: OnceLock<Vec<Option<Arc<PackIndex>>>>,
    chunks: Mutex<Option<Chunks>>,
}

impl Known {
    /// Nothing is known: a first snapshot.
    pub fn nothing() -> Self {
        Self {
            runtime: Handle::current(),
            reader: None,
            refresh: Vec::new(),
            segments: IdMap::default(),
            hints: Hints::none(),
            directories: OnceLock::from(Vec::new()),
            chunks: Mutex::new(Some(Chunks::new(&[]))),
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
        let reader = Arc::new(Reader::open_in(lineage, base, Room::LISTS).await?);
        let places = segments.iter().map(|segment| segment.hints).filter(|hints| is_there(hints.pack)).collect();
        let mut this = Self {
            runtime: Handle::current(),
            hints: Hints::none(),
            reader: Some(reader.clone()),
            refresh,
            segments: IdMap::default(),
            directories: OnceLock::new(),
            chunks: Mutex::new(None),
        };
        let usable = (0..).zip(this.packs()).filter(|(i, _)| this.usable(*i));
        let packs = usable.map(|(i, pack)| (pack.pack, i)).collect();
        this.hints = Hints::load(reader, places, packs);
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
        self.hints.find(path, give_up)
    }

    /// Waits until the base's hints have been read to the end, whether anybody needed them or not. Blocks.
    pub fn check(&self, give_up: impl Fn() -> bool) -> Result<()> {
        self.hints.check(give_up)
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
            *chunks = Some(Chunks::new(self.directories()?));
        }
        Ok(chunks.as_mut().and_then(|chunks| chunks.claim(id, fresh)))
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
