//! Reading a snapshot: its entries in order, and their bytes. Needs the manifest, the directories of the packs it names
//! and ranged reads; nothing else.
//!
//! What is read is checked: frames against their seals, chunks against their ids. The reading calls block and may be made
//! from many threads; frames that several of them need are read once.

mod frames;
mod pages;

use crate::entry::{Entry, Kind, Problem};
use crate::id::PackId;
use crate::repo::epoch::Epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::manifest::{Catalogue, Ref, SegmentRef};
use crate::repo::pack::{Located, MAX_PAGE, MAX_PAGES, MIN_PAGE, PackIndex};
use crate::repo::segment::{Body, Entries, decode};
pub(crate) use frames::Room;
use frames::{Frames, locate};
use futures_util::{Stream, StreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

/// Bytes of a content that are read by one thread, about.
pub const PART: u64 = 4 << 20;
/// Lists that are read at a time.
const AHEAD: usize = 4;

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

/// An open snapshot.
pub struct Reader {
    runtime: Handle,
    lineage: Arc<Lineage>,
    snapshot: Snapshot,
    catalogue: Catalogue,
    epoch: Arc<Epoch>,
    frames: Frames,
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
        Self::open_in(lineage, snapshot, Room::CONTENTS).await
    }

    pub(crate) async fn open_in(lineage: Arc<Lineage>, snapshot: Snapshot, room: Room) -> Result<Self> {
        let header = &snapshot.manifest.header;
        let epoch = lineage.epoch_of(&snapshot.manifest.object, header.epoch).await?;
        let catalogue = snapshot
            .catalogue
            .clone()
            .ok_or_else(|| RepoError::WrongKey { what: "key", object: snapshot.manifest.object.clone() })?;
        let frames = Frames::new(lineage.clone(), epoch.clone(), &snapshot.manifest, room);
        Ok(Self { runtime: Handle::current(), lineage, snapshot, catalogue, epoch, frames })
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

    pub(crate) async fn index(&self, pack: u32) -> Result<Arc<PackIndex>> {
        self.frames.index(pack).await
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
                    self.runtime.block_on(self.frames.fetch_ahead(pack, first, count))?;
                }
            }
            (Place::Pages(pages), Part::Pages(from, to)) => {
                let size = u64::from(pages.size);
                let window = (from / size, to.div_ceil(size));
                for (pack, _, run) in self.runtime.block_on(self.window(pages.space, window))? {
                    if let Some(first) = run.ordinal {
                        self.runtime.block_on(self.frames.fetch_ahead(pack, first, run.count))?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// One chunk, checked against its id.
    pub(crate) async fn chunk(&self, at: Ref) -> Result<Vec<u8>> {
        let index = self.index(at.pack).await?;
        let located = locate(&index, at.ordinal)?;
        let frame = self.frames.open(at.pack, located.frame).await?;
        let bytes = &frame[located.offset as usize..][..located.length as usize];
        self.frames.check(&index, located.id, bytes)?;
        Ok(bytes.to_vec())
    }

    /// Reads the entries in order, a segment at a time, until `each` says to stop by an error.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity, `Damaged`, a store's, or `each`'s own.
    pub async fn segments<E: From<RepoError>>(&self, each: impl FnMut(Vec<Item>) -> Result<(), E>) -> Result<(), E> {
        self.each_list(|_| true, each).await
    }

    /// As [`Reader::segments`], without those that both snapshots have: all of them are equal there. None is left out if the
    /// snapshots are of two sources, or sealed with two keys.
    ///
    /// # Errors
    /// As [`Reader::segments`].
    pub async fn segments_unlike<E: From<RepoError>>(
        &self,
        other: &Self,
        each: impl FnMut(Vec<Item>) -> Result<(), E>,
    ) -> Result<(), E> {
        let comparable = (&self.lineage.source, self.epoch.number) == (&other.lineage.source, other.epoch.number);
        let theirs = other.catalogue.segments.iter().filter(|_| comparable).map(|segment| segment.id);
        let theirs: HashSet<_> = theirs.collect();
        self.each_list(|segment| !theirs.contains(&segment.id), each).await
    }

    async fn each_list<E: From<RepoError>>(
        &self,
        wanted: impl Fn(&SegmentRef) -> bool,
        mut each: impl FnMut(Vec<Item>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut lists = std::pin::pin!(self.lists(AHEAD, wanted));
        while let Some(items) = lists.next().await {
            each(items?)?;
        }
        Ok(())
    }

    /// The entries of those segments that are wanted, in order, so many read at a time. With more than one, whoever waits for
    /// something else of this reader between two lists may wait for ever: nobody goes on with what is being read.
    pub(crate) fn lists(
        &self,
        at_once: usize,
        wanted: impl Fn(&SegmentRef) -> bool,
    ) -> impl Stream<Item = Result<Vec<Item>>> + '_ {
        let wanted: Vec<Ref> =
            self.catalogue.segments.iter().filter(|segment| wanted(segment)).map(|segment| segment.entries).collect();
        let packs: HashMap<_, _> = (0..).zip(&self.snapshot.manifest.header.packs).map(|(i, p)| (p.pack, i)).collect();
        let lists = futures_util::stream::iter(wanted).map(|place| self.chunk(place)).buffered(at_once);
        lists.map(move |bytes| self.list(&bytes?, &packs))
    }

    fn list(&self, bytes: &[u8], packs: &HashMap<PackId, u32>) -> Result<Vec<Item>> {
        let object = &self.snapshot.manifest.object;
        let list: Entries = decode(object, bytes)?;
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
        items.collect()
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
            let open = self.runtime.block_on(self.frames.turn_to(&mut held, pack, at.frame))?;
            let bytes = &open[at.offset as usize..][..at.length as usize];
            self.frames.check(index, at.id, bytes)?;
            emit(offset, bytes).map_err(ReadError::Emit)
        })
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
        let (mut buffer, mut right) = (self.frames.pool.take(), true);
        let read = self.chunks(item, part, |_, index, at, offset| {
            if right {
                buffer.resize(at.length as usize, 0);
                right = copy(offset, &mut buffer).is_ok() && self.frames.check(index, at.id, &buffer).is_ok();
                if right {
                    emit(offset, &buffer).map_err(ReadError::Emit)?;
                }
            }
            Ok(())
        });
        self.frames.pool.give(buffer);
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
