//! Reading a snapshot: its entries in order, and their bytes. Needs the manifest, the directories of the packs it names
//! and ranged reads; nothing else.
//!
//! What is read is checked: frames against their seals, chunks against their ids. The reading calls block and may be made
//! from many threads; frames that several of them need are read once.

use crate::entry::{Entry, Kind, Problem};
use crate::id::ChunkId;
use crate::repo::cache::Cache;
use crate::repo::epoch::Epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::manifest::{Catalogue, Ref};
use crate::repo::pack::{Located, MAX_PAGE, MAX_PAGES, MIN_PAGE, PackIndex, PackKeys, PageRun};
use crate::repo::segment::{Body, Entries, decode};
use crate::store::pool::{Pool, Pooled};
use bytes::Bytes;
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

/// Neighbouring frames are fetched together up to this many sealed bytes.
const EXTENT: u64 = 2 << 20;
/// Memory for fetched extents and for opened frames, bytes.
const EXTENTS: usize = 48 << 20;
const FRAMES: usize = 32 << 20;
/// Chunks that are read by one thread; but a file has no more parts than this.
const PART: u64 = 32;
const PARTS: u64 = 64;
/// Pages whose places are looked up at a time.
const WINDOW: u64 = 4_096;

/// One entry of a snapshot and where its bytes are.
#[derive(Clone, Debug)]
pub struct Item {
    pub entry: Entry,
    place: Place,
}

impl Item {
    /// Whether [`Reader::read`] gives every byte, from start to end.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.page_size().is_none()
    }

    /// Of what is laid out in pages.
    #[must_use]
    pub fn page_size(&self) -> Option<u64> {
        if let Place::Pages(pages) = &self.place { Some(pages.size.into()) } else { None }
    }
}

#[derive(Clone, Debug)]
enum Place {
    Nothing,
    /// (pack, first ordinal, count).
    Chunks(Vec<(u32, u32, u32)>),
    Pages(Pages),
}

#[derive(Clone, Debug)]
struct Pages {
    space: u64,
    size: u32,
    digest: u128,
    /// Set when the directories were found to name all its pages, and no others.
    checked: Arc<OnceCell<()>>,
}

struct OpenPack {
    index: Arc<PackIndex>,
    keys: PackKeys,
    /// First frame of each extent.
    extents: Vec<u32>,
}

/// An open snapshot.
pub struct Reader {
    runtime: Handle,
    lineage: Arc<Lineage>,
    snapshot: Snapshot,
    catalogue: Catalogue,
    epoch: Arc<Epoch>,
    packs: Vec<OnceCell<OpenPack>>,
    extents: Cache<(u32, u32), Bytes>,
    frames: Cache<(u32, u32), Pooled>,
    pool: Arc<Pool>,
}

/// A content chunk or page on its way out: offset in the file, bytes.
pub type Emit<'a> = dyn FnMut(u64, &[u8]) -> std::io::Result<()> + 'a;

/// Why bytes did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The receiver's own.
    #[error("write what was read")]
    Emit(#[source] std::io::Error),
}

impl Reader {
    /// # Errors
    /// `WrongKey` without any key.
    pub async fn open(lineage: Arc<Lineage>, snapshot: Snapshot) -> Result<Self> {
        let header = &snapshot.manifest.header;
        let epoch = lineage.epoch_of(&snapshot.manifest.object, header.epoch).await?;
        let catalogue = snapshot
            .catalogue
            .clone()
            .ok_or_else(|| RepoError::WrongKey { what: "key", object: snapshot.manifest.object.clone() })?;
        let packs = header.packs.iter().map(|_| OnceCell::new()).collect();
        let (runtime, pool) = (Handle::current(), Arc::default());
        let (extents, frames) = (Cache::new(EXTENTS), Cache::new(FRAMES));
        Ok(Self { runtime, lineage, snapshot, catalogue, epoch, packs, extents, frames, pool })
    }

    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// # Errors
    /// `WrongKey` unless the key at hand opens names and contents.
    pub fn check_access(&self) -> Result<()> {
        match self.epoch.private {
            Some(_) => Ok(()),
            None => Err(RepoError::WrongKey { what: "writer key", object: self.snapshot.manifest.object.clone() }),
        }
    }

    /// What could not be captured.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity.
    pub fn problems(&self) -> Result<Vec<Problem>> {
        let wrong = || RepoError::WrongKey { what: "writer key", object: self.snapshot.manifest.object.clone() };
        let private = self.epoch.private.as_ref().ok_or_else(wrong)?;
        Ok(self.snapshot.manifest.private(&self.lineage.source, private)?.problems)
    }

    async fn pack(&self, pack: u32) -> Result<&OpenPack> {
        let wrong = || {
            let object = &self.snapshot.manifest.object;
            RepoError::damaged(object, format!("it refers to pack number {pack}, which it does not list"))
        };
        let cell = self.packs.get(pack as usize).ok_or_else(wrong)?;
        cell.get_or_try_init(|| async {
            let reference = &self.snapshot.manifest.header.packs[pack as usize];
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

    pub(crate) async fn index(&self, pack: u32) -> Result<Arc<PackIndex>> {
        Ok(self.pack(pack).await?.index.clone())
    }

    /// The plaintext of a frame.
    async fn frame(&self, pack: u32, frame: u32) -> Result<Arc<Pooled>> {
        let open = self.pack(pack).await?;
        let get = || async {
            let extent = open.extents.partition_point(|first| *first <= frame) - 1;
            let first = open.extents[extent];
            let bad = || RepoError::damaged(&open.index.object, format!("it has no frame {frame}"));
            let info = open.index.tail.frames.get(frame as usize).ok_or_else(bad)?;
            let start = open.index.tail.frames[first as usize].offset;
            let last = open.extents.get(extent + 1).map_or(open.index.tail.frames.len(), |next| *next as usize) - 1;
            let fetch = || async {
                let last = &open.index.tail.frames[last];
                let length = last.offset + u64::from(last.sealed) - start;
                let bytes = self.lineage.store.get_range(&open.index.object, start, length).await?;
                let size = bytes.len();
                Ok::<_, RepoError>((bytes, size))
            };
            let extent = (pack, extent as u32);
            let bytes = self.extents.get(extent, fetch).await?;
            let at = (info.offset - start) as usize;
            let sealed = bytes.get(at..at + info.sealed as usize).ok_or_else(bad)?;
            let mut plain = self.pool.take();
            open.index.open_frame(frame, sealed, &open.keys, &mut plain)?;
            if frame as usize == last {
                // Whoever reads forward does not come back.
                self.extents.forget(extent);
            }
            let size = plain.capacity();
            Ok((Pooled::new(plain, &self.pool), size))
        };
        self.frames.get((pack, frame), get).await
    }

    /// One chunk, checked against its id.
    pub(crate) async fn chunk(&self, at: Ref) -> Result<Vec<u8>> {
        let index = self.index(at.pack).await?;
        let bad = || RepoError::damaged(&index.object, format!("it has no item {}", at.ordinal));
        let located = index.locate(at.ordinal).ok_or_else(bad)?;
        let frame = self.frame(at.pack, located.frame).await?;
        let bytes = &frame[located.offset as usize..][..located.length as usize];
        self.check(&index, located.id, bytes)?;
        Ok(bytes.to_vec())
    }

    fn check(&self, index: &PackIndex, id: ChunkId, bytes: &[u8]) -> Result<()> {
        if self.epoch.writer_keys()?.chunk_id(bytes) == id {
            Ok(())
        } else {
            Err(RepoError::damaged(&index.object, format!("the content of chunk {id} is not what its id says")))
        }
    }

    /// Reads the entries in order, a segment at a time, until `each` says to stop by an error.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity, `Damaged`, a store's, or `each`'s own.
    pub async fn segments<E: From<RepoError>>(
        &self,
        mut each: impl FnMut(Vec<Item>) -> Result<(), E>,
    ) -> Result<(), E> {
        let object = &self.snapshot.manifest.object;
        let places: Vec<Ref> = self.catalogue.segments.iter().map(|segment| segment.entries).collect();
        let lists = futures_util::stream::iter(places).map(|place| self.chunk(place)).buffered(4);
        let mut lists = std::pin::pin!(lists);
        let packs: std::collections::HashMap<_, _> =
            (0..).zip(&self.snapshot.manifest.header.packs).map(|(i, p)| (p.pack, i)).collect();
        while let Some(bytes) = lists.next().await {
            let list: Entries = decode(object, &bytes?)?;
            let known: Vec<Option<u32>> = list.packs.iter().map(|p| packs.get(p).copied()).collect();
            let items = list.entries.into_iter().map(|stored| {
                let file = stored.entry.kind == Kind::File;
                let fits = if stored.body == Body::None { !file || stored.entry.size == 0 } else { file };
                if !fits {
                    return Err(RepoError::damaged(
                        object,
                        "an entry has content that it cannot have, or lacks what it should have",
                    ));
                }
                let place = match stored.body {
                    Body::None => Place::Nothing,
                    Body::Pages(space, size, digest) => {
                        if !(MIN_PAGE..=MAX_PAGE).contains(&size) || stored.entry.size / u64::from(size) > MAX_PAGES {
                            return Err(RepoError::damaged(object, "a file has pages of a size that cannot be"));
                        }
                        let digest = u128::from_le_bytes(digest);
                        Place::Pages(Pages { space, size, digest, checked: Arc::default() })
                    }
                    Body::Chunks(runs) => {
                        let run = |r: crate::repo::segment::Run| {
                            let pack = known.get(r.pack as usize).copied().flatten();
                            pack.map(|pack| (pack, r.first, r.count))
                        };
                        Place::Chunks(runs.into_iter().map(run).collect::<Option<_>>().ok_or_else(|| {
                            RepoError::damaged(object, "an entry names a pack that the snapshot does not list")
                        })?)
                    }
                };
                Ok(Item { entry: stored.entry, place })
            });
            each(items.collect::<Result<_>>()?)?;
        }
        Ok(())
    }

    /// All entries in order. For sources of many entries, prefer [`Reader::segments`].
    ///
    /// # Errors
    /// As [`Reader::segments`].
    pub async fn items(&self) -> Result<Vec<Item>> {
        let mut all = Vec::new();
        self.segments::<RepoError>(|items| {
            all.extend(items);
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// Checks that all bytes of an entry have a place, without reading them.
    pub(crate) async fn locate(&self, item: &Item) -> Result<()> {
        let runs = match &item.place {
            Place::Nothing => return Ok(()),
            Place::Pages(pages) => return self.check_pages(item, pages).await,
            Place::Chunks(runs) => runs,
        };
        let size = self.located(runs).await?.iter().map(|at| u64::from(at.length)).sum();
        if size == item.entry.size { Ok(()) } else { Err(self.wrong_size(item, size)) }
    }

    /// Whether an entry's content and that of `theirs`, an entry of the snapshot that `other` reads, are the very same
    /// chunks. Costs no read; what is equal may also lie elsewhere.
    #[must_use]
    pub fn same_chunks(&self, item: &Item, other: &Self, theirs: &Item) -> bool {
        let pack =
            |reader: &Self, at: u32| reader.snapshot.manifest.header.packs.get(at as usize).map(|pack| pack.pack);
        match (&item.place, &theirs.place) {
            (Place::Nothing, Place::Nothing) => true,
            (Place::Chunks(ours), Place::Chunks(theirs)) => {
                ours.len() == theirs.len()
                    && ours.iter().zip(theirs).all(|(a, b)| {
                        (a.1, a.2) == (b.1, b.2) && pack(self, a.0).is_some_and(|a| Some(a) == pack(other, b.0))
                    })
            }
            _ => false,
        }
    }

    /// Whether the contents are equal, by the ids of what they are made of: only directories are read. `None` where ids do
    /// not say, since other keys made them or the content was cut in another way.
    ///
    /// # Errors
    /// `Damaged`, a store's.
    pub async fn same_content(&self, item: &Item, other: &Self, theirs: &Item) -> Result<Option<bool>> {
        if (&self.lineage.source, self.epoch.number) != (&other.lineage.source, other.epoch.number) {
            return Ok(None);
        }
        match (&item.place, &theirs.place) {
            (Place::Nothing, Place::Nothing) => Ok(Some(true)),
            (Place::Pages(a), Place::Pages(b)) if a.size == b.size => Ok(Some(a.digest == b.digest)),
            (Place::Chunks(a), Place::Chunks(b)) => {
                let ids = |chunks: Vec<Located>| chunks.into_iter().map(|at| at.id).collect::<Vec<_>>();
                Ok(Some(ids(self.located(a).await?) == ids(other.located(b).await?)))
            }
            _ => Ok(None),
        }
    }

    /// Where each chunk of `runs` is, by the directories.
    async fn located(&self, runs: &[(u32, u32, u32)]) -> Result<Vec<Located>> {
        let mut chunks = Vec::new();
        for &(pack, first, count) in runs {
            let index = self.index(pack).await?;
            for ordinal in first..first.saturating_add(count) {
                let bad = || RepoError::damaged(&index.object, format!("it has no item {ordinal}"));
                chunks.push(index.locate(ordinal).ok_or_else(bad)?);
            }
        }
        Ok(chunks)
    }

    fn wrong_size(&self, item: &Item, size: u64) -> RepoError {
        let name = String::from_utf8_lossy(&item.entry.path);
        let reason = format!("{name} has {size} bytes in it and should have {}", item.entry.size);
        RepoError::damaged(&self.snapshot.manifest.object, reason)
    }

    /// Cuts an entry's content, in order, into parts that can be read on their own: `(from, to)` in bytes for pages, else
    /// in chunks.
    #[must_use]
    pub fn parts(&self, item: &Item) -> Vec<(u64, u64)> {
        const MOST: u64 = 4_096;
        let size = item.entry.size;
        match &item.place {
            Place::Pages(pages) => {
                let window = WINDOW * u64::from(pages.size);
                let step = window * (size / window / MOST).max(4);
                (0..size.div_ceil(step)).map(|i| (i * step, size.min((i + 1) * step))).collect()
            }
            Place::Chunks(runs) => {
                let chunks = runs.iter().map(|run| u64::from(run.2)).sum::<u64>();
                let step = chunks.div_ceil(PARTS).max(PART);
                (0..chunks.div_ceil(step).max(1)).map(|i| (i * step, chunks.min((i + 1) * step))).collect()
            }
            Place::Nothing => vec![(0, 0)],
        }
    }

    /// Reads one of [`Reader::parts`] and gives it to `emit`, in any order for pages, else from start to end. Of pages,
    /// any range of whole pages will do, and zeros are left out: the receiver begins with zeros. Blocks.
    ///
    /// # Errors
    /// `Damaged`, a store's, the receiver's.
    pub fn read(&self, item: &Item, part: (u64, u64), emit: &mut Emit<'_>) -> Result<(), ReadError> {
        match &item.place {
            Place::Nothing => Ok(()),
            Place::Chunks(runs) => self.read_chunks(item, runs, part, emit),
            Place::Pages(pages) => self.read_pages(item, pages, part, emit),
        }
    }

    fn read_chunks(
        &self,
        item: &Item,
        runs: &[(u32, u32, u32)],
        part: (u64, u64),
        emit: &mut Emit<'_>,
    ) -> Result<(), ReadError> {
        let (mut offset, mut number) = (0, 0);
        for &(pack, first, count) in runs {
            let index = self.runtime.block_on(self.index(pack))?;
            let mut frame: Option<(u32, Arc<Pooled>)> = None;
            for ordinal in first..first.saturating_add(count) {
                let bad = || RepoError::damaged(&index.object, format!("it has no item {ordinal}"));
                let at = index.locate(ordinal).ok_or_else(bad)?;
                let start = offset;
                offset += u64::from(at.length);
                number += 1;
                if !(part.0 < number && number <= part.1) {
                    continue;
                }
                let open = match frame.take() {
                    Some((number, open)) if number == at.frame => open,
                    _ => self.runtime.block_on(self.frame(pack, at.frame))?,
                };
                let bytes = &open[at.offset as usize..][..at.length as usize];
                self.check(&index, at.id, bytes)?;
                emit(start, bytes).map_err(ReadError::Emit)?;
                frame = Some((at.frame, open));
            }
        }
        if offset == item.entry.size { Ok(()) } else { Err(self.wrong_size(item, offset).into()) }
    }

    fn read_pages(&self, item: &Item, pages: &Pages, part: (u64, u64), emit: &mut Emit<'_>) -> Result<(), ReadError> {
        self.runtime.block_on(pages.checked.get_or_try_init(|| self.check_pages(item, pages)))?;
        let size = u64::from(pages.size);
        let end = part.1.min(item.entry.size).div_ceil(size);
        let mut from = part.0 / size;
        while let Some(window) = self.runtime.block_on(self.next_window(pages.space, from, end))? {
            self.read_window(item, pages, window, emit)?;
            from = window.1;
        }
        Ok(())
    }

    /// The directories name every page of the file, and the right ones: a pack that is not listed must not become zeros.
    async fn check_pages(&self, item: &Item, pages: &Pages) -> Result<()> {
        let keys = self.epoch.writer_keys()?;
        let end = item.entry.size.div_ceil(u64::from(pages.size.max(1)));
        let (mut digest, mut from) = (0u128, 0);
        while let Some(window) = self.next_window(pages.space, from, end).await? {
            for (_, index, run) in self.window(pages.space, window).await? {
                for i in 0..run.count {
                    let id = run.ordinal.and_then(|first| index.id(first + i));
                    digest = digest.wrapping_add(id.map_or(0, |id| keys.page_mark(run.first + u64::from(i), id)));
                }
            }
            from = window.1;
        }
        if digest == pages.digest {
            Ok(())
        } else {
            let name = String::from_utf8_lossy(&item.entry.path);
            let reason = format!("the packs it lists do not hold the pages of {name} that it should have");
            Err(RepoError::damaged(&self.snapshot.manifest.object, reason))
        }
    }

    /// The next pages before `end` that anything is said of: a file may be much larger than what it holds.
    async fn next_window(&self, space: u64, from: u64, end: u64) -> Result<Option<(u64, u64)>> {
        let mut next = end;
        for pack in 0..self.packs.len() as u32 {
            next = next.min(self.index(pack).await?.next_page(space, from).unwrap_or(end));
        }
        Ok((next < end).then(|| (next, end.min(next + WINDOW))))
    }

    /// What holds each page of a window, in runs; pages that nothing holds are zeros.
    async fn window(&self, space: u64, (from, to): (u64, u64)) -> Result<Vec<(u32, Arc<PackIndex>, PageRun)>> {
        let mut taken = vec![false; (to - from) as usize];
        let mut found: Vec<(u32, Arc<PackIndex>, PageRun)> = Vec::new();
        // The last pack that has a page holds it.
        for pack in (0..self.packs.len() as u32).rev() {
            let index = self.index(pack).await?;
            for run in index.page_runs(space, from, to) {
                for i in 0..run.count {
                    let page = run.first + u64::from(i);
                    if std::mem::replace(&mut taken[(page - from) as usize], true) {
                        continue;
                    }
                    let ordinal = run.ordinal.map(|first| first + i);
                    match found.last_mut() {
                        Some((held, _, last))
                            if *held == pack
                                && last.end() == page
                                && last.ordinal.map(|o| o + last.count) == ordinal =>
                        {
                            last.count += 1;
                        }
                        _ => found.push((pack, index.clone(), PageRun { space, first: page, count: 1, ordinal })),
                    }
                }
            }
        }
        Ok(found)
    }

    fn read_window(
        &self,
        item: &Item,
        pages: &Pages,
        window: (u64, u64),
        emit: &mut Emit<'_>,
    ) -> Result<(), ReadError> {
        let size = u64::from(pages.size);
        let mut frame: Option<(u32, u32, Arc<Pooled>)> = None;
        for (pack, index, run) in self.runtime.block_on(self.window(pages.space, window))? {
            let Some(first) = run.ordinal else { continue };
            for i in 0..run.count {
                let bad = || RepoError::damaged(&index.object, format!("it has no item {}", first + i));
                let at = index.locate(first + i).ok_or_else(bad)?;
                let open = match frame.take() {
                    Some((held, number, open)) if (held, number) == (pack, at.frame) => open,
                    _ => self.runtime.block_on(self.frame(pack, at.frame))?,
                };
                let bytes = &open[at.offset as usize..][..at.length as usize];
                self.check(&index, at.id, bytes)?;
                let offset = (run.first + u64::from(i)) * size;
                if bytes.len() as u64 != size {
                    return Err(RepoError::damaged(&index.object, "a page has another size than its file's").into());
                }
                let length = size.min(item.entry.size - offset) as usize;
                emit(offset, &bytes[..length]).map_err(ReadError::Emit)?;
                frame = Some((pack, at.frame, open));
            }
        }
        Ok(())
    }
}

/// Groups neighbouring frames: the first frame of each group.
fn extents(index: &PackIndex) -> Vec<u32> {
    let mut firsts = Vec::new();
    let mut size = 0;
    for (number, frame) in (0..).zip(&index.tail.frames) {
        if firsts.is_empty() || size + u64::from(frame.sealed) > EXTENT {
            firsts.push(number);
            size = 0;
        }
        size += u64::from(frame.sealed);
    }
    firsts
}
