//! The packs of a snapshot as they are read: their directories, and their frames, which are fetched with their neighbours and
//! opened once for all who need them at the time.

use crate::id::ChunkId;
use crate::repo::cache::Cache;
use crate::repo::epoch::Epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::Lineage;
use crate::repo::manifest::{Manifest, PackRef};
use crate::repo::pack::{Located, PackIndex, PackKeys};
use crate::store::pool::{Pool, Pooled};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::{OnceCell, Semaphore};

/// Neighbouring frames are fetched together up to this many sealed bytes: a request costs a server as much as a megabyte.
const EXTENT: u64 = 4 << 20;
/// Extents that are fetched ahead at the same time.
const AHEAD: usize = 8;

/// Memory for what is fetched and opened, bytes.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    extents: usize,
    frames: usize,
}

impl Room {
    /// For contents, which many threads read.
    pub const CONTENTS: Self = Self { extents: 48 << 20, frames: 32 << 20 };
    /// For lists, which are read one after the other.
    pub const LISTS: Self = Self { extents: 8 << 20, frames: 8 << 20 };
}

/// The packs that a manifest lists, by their number there.
pub(super) struct Frames {
    lineage: Arc<Lineage>,
    epoch: Arc<Epoch>,
    /// The manifest's.
    object: String,
    packs: Vec<(PackRef, OnceCell<OpenPack>)>,
    extents: Arc<Cache<(u32, u32), Bytes>>,
    ahead: Arc<Semaphore>,
    opened: Cache<(u32, u32), Pooled>,
    pub pool: Arc<Pool>,
}

struct OpenPack {
    index: Arc<PackIndex>,
    keys: PackKeys,
    extents: Vec<Extent>,
}

/// Neighbouring frames that are fetched together.
struct Extent {
    first: u32,
    offset: u64,
    length: u64,
    /// Frames that nobody has opened yet.
    left: AtomicU32,
}

/// The frame that somebody read last: its pack, its number, its plaintext.
pub(super) type Held = Option<(u32, u32, Arc<Pooled>)>;

impl Frames {
    pub fn new(lineage: Arc<Lineage>, epoch: Arc<Epoch>, manifest: &Manifest, room: Room) -> Self {
        Self {
            lineage,
            epoch,
            object: manifest.object.clone(),
            packs: manifest.header.packs.iter().map(|pack| (pack.clone(), OnceCell::new())).collect(),
            extents: Arc::new(Cache::new(room.extents)),
            ahead: Arc::new(Semaphore::new(AHEAD)),
            opened: Cache::new(room.frames),
            pool: Arc::default(),
        }
    }

    pub fn packs(&self) -> u32 {
        self.packs.len() as u32
    }

    async fn pack(&self, pack: u32) -> Result<&OpenPack> {
        let wrong =
            || RepoError::damaged(&self.object, format!("it refers to pack number {pack}, which it does not list"));
        let (reference, cell) = self.packs.get(pack as usize).ok_or_else(wrong)?;
        cell.get_or_try_init(|| async {
            let keys = self.epoch.writer_keys()?;
            let index = Arc::new(self.lineage.index(reference, keys).await?);
            if index.tail.pack != reference.pack || index.tail.epoch != self.epoch.number {
                return Err(RepoError::Foreign {
                    object: index.object.clone(),
                    reason: "it is another pack than its name says".into(),
                });
            }
            let (id, source) = (self.lineage.root.id, &self.lineage.source);
            let keys = PackKeys::new(id, source, &index.tail, keys, self.epoch.private.as_ref());
            let extents = extents(&index);
            Ok(OpenPack { index, keys, extents })
        })
        .await
    }

    pub async fn index(&self, pack: u32) -> Result<Arc<PackIndex>> {
        Ok(self.pack(pack).await?.index.clone())
    }

    /// The plaintext of a frame.
    pub async fn open(&self, pack: u32, frame: u32) -> Result<Arc<Pooled>> {
        let open = self.pack(pack).await?;
        let get = || async {
            let bad = || RepoError::damaged(&open.index.object, format!("it has no frame {frame}"));
            let info = open.index.tail.frames.get(frame as usize).ok_or_else(bad)?;
            let number = open.extent_of(frame);
            let extent = &open.extents[number];
            let key = (pack, number as u32);
            let bytes = self.extents.get(key, || self.fetch(open, extent)).await?;
            let at = (info.offset - extent.offset) as usize;
            let sealed = bytes.get(at..at + info.sealed as usize).ok_or_else(bad)?;
            let mut plain = self.pool.take();
            open.index.open_frame(frame, sealed, &open.keys, &mut plain)?;
            if extent.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1) {
                // Readers go forward: what was opened once is seldom opened again.
                self.extents.forget(key);
            }
            let size = plain.capacity();
            Ok((Pooled::new(plain, &self.pool), size))
        };
        self.opened.get((pack, frame), get).await
    }

    /// The frame that is held, or another in its place.
    pub async fn turn_to(&self, held: &mut Held, pack: u32, frame: u32) -> Result<Arc<Pooled>> {
        let open = match held.take() {
            Some((of, number, open)) if (of, number) == (pack, frame) => open,
            _ => self.open(pack, frame).await?,
        };
        *held = Some((pack, frame, open.clone()));
        Ok(open)
    }

    fn fetch(&self, open: &OpenPack, extent: &Extent) -> impl Future<Output = Result<(Bytes, usize)>> + Send + use<> {
        let (store, object) = (self.lineage.store.clone(), open.index.object.clone());
        let (offset, length) = (extent.offset, extent.length);
        async move {
            let bytes = store.get_range(&object, offset, length).await?;
            let size = bytes.len();
            Ok((bytes, size))
        }
    }

    /// Begins to fetch the extents that hold these items of a pack. A failure is left to whoever reads. Waits while much is
    /// being fetched.
    pub async fn fetch_ahead(&self, pack: u32, first: u32, count: u32) -> Result<()> {
        let open = self.pack(pack).await?;
        let frame = |ordinal| open.index.locate(ordinal).map(|at| at.frame);
        let last = first + count.saturating_sub(1);
        let (Some(from), Some(to)) = (frame(first), frame(last)) else { return Ok(()) };
        for number in open.extent_of(from)..=open.extent_of(to) {
            let (key, extent) = ((pack, number as u32), &open.extents[number]);
            if extent.left.load(Relaxed) == 0 || self.extents.holds(key) {
                continue;
            }
            let (extents, fetch) = (self.extents.clone(), self.fetch(open, extent));
            let Ok(turn) = self.ahead.clone().acquire_owned().await else { return Ok(()) };
            tokio::spawn(async move {
                let fetched = extents.get(key, || fetch).await.map(drop);
                drop(turn);
                fetched.err()
            });
        }
        Ok(())
    }

    /// Whether these are the bytes of that id.
    pub fn check(&self, index: &PackIndex, id: ChunkId, bytes: &[u8]) -> Result<()> {
        if self.epoch.writer_keys()?.chunk_id(bytes) == id {
            Ok(())
        } else {
            Err(RepoError::damaged(&index.object, format!("the content of chunk {id} is not what its id says")))
        }
    }
}

impl OpenPack {
    /// The number of the extent that a frame is in.
    fn extent_of(&self, frame: u32) -> usize {
        self.extents.partition_point(|extent| extent.first <= frame) - 1
    }
}

pub(super) fn locate(index: &PackIndex, ordinal: u32) -> Result<Located> {
    index.locate(ordinal).ok_or_else(|| RepoError::damaged(&index.object, format!("it has no item {ordinal}")))
}

/// Groups neighbouring frames.
fn extents(index: &PackIndex) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (number, frame) in (0..).zip(&index.tail.frames) {
        let sealed = u64::from(frame.sealed);
        match extents.last_mut() {
            Some(extent) if extent.length + sealed <= EXTENT => {
                extent.length += sealed;
                *extent.left.get_mut() += 1;
            }
            _ => extents.push(Extent { first: number, offset: frame.offset, length: sealed, left: AtomicU32::new(1) }),
        }
    }
    extents
}
