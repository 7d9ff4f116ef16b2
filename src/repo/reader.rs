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
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};

/// Neighbouring frames are fetched together up to this many sealed bytes: a request costs a server as much as a megabyte.
const EXTENT: u64 = 4 << 20;
/// Extents that are fetched ahead at the same time.
const AHEAD: usize = 8;
/// Memory for fetched extents and for opened frames, bytes.
const EXTENTS: usize = 48 << 20;
const FRAMES: usize = 32 << 20;
/// Bytes of a content that are read by one thread, about.
pub const PART: u64 = 4 << 20;
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

    /// Pack and ordinal of the first chunk of a part, or of all: two of the same content begin with the same one, as a rule.
    #[must_use]
    pub fn begins_at(&self, part: Option<&Part>) -> Option<(u32, u32)> {
        let Place::Chunks(runs) = &self.place else { return None };
        let (run, skip) = if let Some(Part::Chunks { run, skip, .. }) = part { (*run, *skip) } else { (0, 0) };
        runs.get(run).map(|run| (run.0, run.1.saturating_add(skip)))
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

/// A stretch of an entry's content, to be read on its own.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// So many chunks, beginning in a run of them, and where that is in the content.
    Chunks { run: usize, skip: u32, count: u32, offset: u64 },
    /// From a byte to a byte, both multiples of the page's size (but for the end), of what is laid out in pages.
    Pages(u64, u64),
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

/// An open snapshot.
pub struct Reader {
    runtime: Handle,
    lineage: Arc<Lineage>,
    snapshot: Snapshot,
    catalogue: Catalogue,
    epoch: Arc<Epoch>,
    packs: Vec<OnceCell<OpenPack>>,
    extents: Arc<Cache<(u32, u32), Bytes>>,
    ahead: Arc<Semaphore>,
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
        let (extents, frames) = (Arc::new(Cache::new(EXTENTS)), Cache::new(FRAMES));
        let ahead = Arc::new(Semaphore::new(AHEAD));
        Ok(Self { runtime, lineage, snapshot, catalogue, epoch, packs, extents, ahead, frames, pool })
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
        self.frames.get((pack, frame), get).await
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

    /// Begins to fetch what [`Reader::read`] of this part will need, so that it need not wait for it. A failure is left to
    /// whoever reads. Blocks while much is being fetched.
    ///
    /// # Errors
    /// A directory is damaged; a store's.
    pub fn ahead(&self, item: &Item, part: &Part) -> Result<()> {
        match (&item.place, *part) {
            (Place::Chunks(runs), Part::Chunks { run, skip, count, .. }) => {
                for (pack, first, count) in stretches(runs, run, skip, count) {
                    self.runtime.block_on(self.fetch_ahead(pack, first, count))?;
                }
            }
            (Place::Pages(pages), Part::Pages(from, to)) => {
                let size = u64::from(pages.size);
                let window = (from / size, to.div_ceil(size));
                for (pack, _, run) in self.runtime.block_on(self.window(pages.space, window))? {
                    if let Some(first) = run.ordinal {
                        self.runtime.block_on(self.fetch_ahead(pack, first, run.count))?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The extents that hold these items of a pack.
    async fn fetch_ahead(&self, pack: u32, first: u32, count: u32) -> Result<()> {
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
            self.runtime.spawn(async move {
                let fetched = extents.get(key, || fetch).await.map(drop);
                drop(turn);
                fetched.err()
            });
        }
        Ok(())
    }

    /// One chunk, checked against its id.
    pub(crate) async fn chunk(&self, at: Ref) -> Result<Vec<u8>> {
        let index = self.index(at.pack).await?;
        let located = locate(&index, at.ordinal)?;
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
                chunks.push(locate(&index, ordinal)?);
            }
        }
        Ok(chunks)
    }

    fn wrong_size(&self, item: &Item, size: u64) -> RepoError {
        let name = String::from_utf8_lossy(&item.entry.path);
        let reason = format!("{name} has {size} bytes in it and should have {}", item.entry.size);
        RepoError::damaged(&self.snapshot.manifest.object, reason)
    }

    /// Cuts an entry's content, in order, into parts. None of what is empty. Blocks.
    ///
    /// # Errors
    /// `Damaged`, a store's.
    pub fn parts(&self, item: &Item) -> Result<Vec<Part>> {
        let size = item.entry.size;
        let runs = match &item.place {
            Place::Nothing => return Ok(Vec::new()),
            Place::Pages(pages) => {
                let step = (PART / u64::from(pages.size)).max(1) * u64::from(pages.size);
                return Ok((0..size.div_ceil(step)).map(|i| Part::Pages(i * step, size.min((i + 1) * step))).collect());
            }
            Place::Chunks(runs) => runs,
        };
        let (mut parts, mut offset, mut end) = (Vec::new(), 0, 0);
        for (run, &(pack, first, length)) in runs.iter().enumerate() {
            let index = self.runtime.block_on(self.index(pack))?;
            for skip in 0..length {
                if offset >= end {
                    parts.push(Part::Chunks { run, skip, count: 0, offset });
                    end = offset + PART;
                }
                if let Some(Part::Chunks { count, .. }) = parts.last_mut() {
                    *count += 1;
                }
                offset += u64::from(locate(&index, first.saturating_add(skip))?.length);
            }
        }
        if offset == size { Ok(parts) } else { Err(self.wrong_size(item, offset)) }
    }

    /// Reads one of [`Reader::parts`] and gives it to `emit`, in any order for pages, else from start to end. Of pages,
    /// any range of whole pages will do, and zeros are left out: the receiver begins with zeros. Blocks.
    ///
    /// # Errors
    /// `Damaged`, a store's, the receiver's.
    pub fn read(&self, item: &Item, part: &Part, emit: &mut Emit<'_>) -> Result<(), ReadError> {
        if let (Place::Pages(pages), Part::Pages(from, to)) = (&item.place, *part) {
            return self.read_pages(item, pages, (from, to), emit);
        }
        let mut held = None;
        self.chunks(item, part, |pack, index, at, offset| {
            let open = self.turn_to(&mut held, pack, at.frame)?;
            let bytes = &open[at.offset as usize..][..at.length as usize];
            self.check(index, at.id, bytes)?;
            emit(offset, bytes).map_err(ReadError::Emit)
        })
    }

    /// The frame that was read last, or another. Blocks.
    fn turn_to(&self, held: &mut Option<(u32, u32, Arc<Pooled>)>, pack: u32, frame: u32) -> Result<Arc<Pooled>> {
        let open = match held.take() {
            Some((of, number, open)) if (of, number) == (pack, frame) => open,
            _ => self.runtime.block_on(self.frame(pack, frame))?,
        };
        *held = Some((pack, frame, open.clone()));
        Ok(open)
    }

    /// As [`Reader::read`], from where the same content is already: `copy` fills a buffer with the bytes at an offset. False
    /// when those are not what they should be; what was given to `emit` before is right. Only for chunks.
    ///
    /// # Errors
    /// `Damaged`, a store's, the receiver's.
    pub fn read_copy(
        &self,
        item: &Item,
        part: &Part,
        copy: &mut dyn FnMut(u64, &mut [u8]) -> std::io::Result<()>,
        emit: &mut Emit<'_>,
    ) -> Result<bool, ReadError> {
        let (mut buffer, mut right) = (self.pool.take(), true);
        let read = self.chunks(item, part, |_, index, at, offset| {
            if right {
                buffer.resize(at.length as usize, 0);
                right = copy(offset, &mut buffer).is_ok() && self.check(index, at.id, &buffer).is_ok();
                if right {
                    emit(offset, &buffer).map_err(ReadError::Emit)?;
                }
            }
            Ok(())
        });
        self.pool.give(buffer);
        read.map(|()| right)
    }

    /// Goes through the chunks of a part: pack, its directory, place, offset in the content.
    fn chunks(
        &self,
        item: &Item,
        part: &Part,
        mut each: impl FnMut(u32, &PackIndex, Located, u64) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let (Place::Chunks(runs), Part::Chunks { run, skip, count, mut offset }) = (&item.place, *part) else {
            return Ok(());
        };
        for (pack, first, count) in stretches(runs, run, skip, count) {
            let index = self.runtime.block_on(self.index(pack))?;
            for ordinal in first..first + count {
                let at = locate(&index, ordinal)?;
                each(pack, &index, at, offset)?;
                offset += u64::from(at.length);
            }
        }
        Ok(())
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
        let mut held = None;
        for (pack, index, run) in self.runtime.block_on(self.window(pages.space, window))? {
            let Some(first) = run.ordinal else { continue };
            for i in 0..run.count {
                let at = locate(&index, first + i)?;
                let open = self.turn_to(&mut held, pack, at.frame)?;
                let bytes = &open[at.offset as usize..][..at.length as usize];
                self.check(&index, at.id, bytes)?;
                let offset = (run.first + u64::from(i)) * size;
                if bytes.len() as u64 != size {
                    return Err(RepoError::damaged(&index.object, "a page has another size than its file's").into());
                }
                let length = size.min(item.entry.size - offset) as usize;
                emit(offset, &bytes[..length]).map_err(ReadError::Emit)?;
            }
        }
        Ok(())
    }
}

impl OpenPack {
    /// The number of the extent that a frame is in.
    fn extent_of(&self, frame: u32) -> usize {
        self.extents.partition_point(|extent| extent.first <= frame) - 1
    }
}

fn locate(index: &PackIndex, ordinal: u32) -> Result<Located> {
    index.locate(ordinal).ok_or_else(|| RepoError::damaged(&index.object, format!("it has no item {ordinal}")))
}

/// What a part is of a content's runs, from that run on and so far into it: pack, first ordinal, count.
fn stretches(
    runs: &[(u32, u32, u32)],
    run: usize,
    skip: u32,
    count: u32,
) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
    runs.get(run..).unwrap_or_default().iter().scan((skip, count), |(skip, left), &(pack, first, length)| {
        let (first, here) = (first + *skip, (*left).min(length.saturating_sub(*skip)));
        let more = *left > 0;
        (*skip, *left) = (0, *left - here);
        more.then_some((pack, first, here))
    })
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
