//! Packs: tens of MiB of sealed frames and a tail that describes them (`docs/format.md`, "Packs").
//!
//! ```text
//! magic (8) · pack id (16) · frame … frame · table · directory · table length (4) · directory length (4) · digest (16) · magic (8)
//!                                            └──────────────────────────── tail ─────────────────────────────────────────┘
//! ```
//! The table is plain: whoever holds no key can check every frame's digest. The directory is sealed for the writer: it
//! says what each frame holds, chunk by chunk or page by page, and binds the table. Pure: bytes in, bytes out.

use crate::id::{ChunkId, PackId, RepositoryId, SourceName};
use crate::repo::codec::{Codec, MAX_RAW, decode, decompress, pack_document, unpack_document};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{Secret32, WriterKeys, random};
use crate::repo::seal::{
    Class, OVERHEAD, SealKey, decapsulate, encapsulate, frame_aad, info, open_document, seal_document,
};

const MAGIC: &[u8; 8] = b"LBPACK\x00\x01";
const TAIL_MAGIC: &[u8; 8] = b"LBPKEND\x01";
/// Bytes before the first frame.
pub(crate) const HEADER: u64 = 24;
/// Bytes after the directory.
pub(crate) const TRAILER: usize = 32;
/// Page sizes that the format allows, bytes.
pub(crate) const MIN_PAGE: u32 = 512;
pub(crate) const MAX_PAGE: u32 = 1 << 20;
/// No page number is larger, so that offsets fit.
pub(crate) const MAX_PAGES: u64 = 1 << 42;
/// No sealed frame is larger: what does not compress is stored as it is.
const MAX_SEALED: usize = MAX_RAW + OVERHEAD;
/// No tail is larger.
pub(crate) const MAX_TAIL: u32 = 128 << 20;
/// No directory unpacks to more.
const MAX_DIRECTORY: usize = 64 << 20;

/// The object of a pack.
pub(crate) fn object(source: &SourceName, pack: PackId) -> String {
    format!("{}{pack}", prefix(source))
}

pub(crate) fn prefix(source: &SourceName) -> String {
    format!("{source}/packs/")
}

#[derive(Clone, Debug, minicbor::Encode, minicbor::Decode)]
pub(crate) struct FrameSeal {
    #[n(0)]
    pub class: Class,
    #[n(1)]
    pub sealed: u32,
    #[cbor(n(2), with = "minicbor::bytes")]
    pub digest: [u8; 16],
}

#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct Table {
    #[n(0)]
    pub pack: PackId,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub encapsulation: [u8; 32],
    #[n(2)]
    pub epoch: u32,
    #[n(3)]
    pub frames: Vec<FrameSeal>,
}

/// What a frame's plaintext is made of.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) enum Items {
    /// Chunks of these lengths, back to back.
    #[n(0)]
    Chunks(#[n(0)] Vec<u32>),
    /// Whole pages: their space, their size, and runs of (first page, count).
    #[n(1)]
    Pages(#[n(0)] u64, #[n(1)] u32, #[n(2)] Vec<(u64, u32)>),
}

impl Items {
    fn count(&self) -> usize {
        match self {
            Items::Chunks(lengths) => lengths.len(),
            Items::Pages(_, _, runs) => runs.iter().map(|run| run.1 as usize).sum(),
        }
    }

    fn raw_len(&self) -> u64 {
        match self {
            Items::Chunks(lengths) => lengths.iter().fold(0, |sum: u64, &l| sum.saturating_add(u64::from(l))),
            Items::Pages(_, size, runs) => {
                let bytes = |run: &(u64, u32)| u64::from(run.1) * u64::from(*size);
                runs.iter().fold(0, |sum: u64, run| sum.saturating_add(bytes(run)))
            }
        }
    }
}

#[derive(Clone, Debug, minicbor::Encode, minicbor::Decode)]
pub(crate) struct FrameContents {
    #[n(0)]
    codec: Codec,
    #[n(1)]
    pub items: Items,
}

#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct Directory {
    #[n(0)]
    pub frames: Vec<FrameContents>,
    /// 16 bytes per item, in the frames' order.
    #[cbor(n(1), with = "minicbor::bytes")]
    ids: Vec<u8>,
    /// Pages that are zeros from here on, which earlier packs may say otherwise of.
    #[n(2)]
    pub zeros: Vec<ZeroPages>,
}

/// Runs of (first page, count) of a space.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct ZeroPages {
    #[n(0)]
    pub space: u64,
    #[n(1)]
    pub runs: Vec<(u64, u32)>,
}

/// A frame on its way into a pack.
pub(crate) struct Frame {
    pub class: Class,
    pub codec: Codec,
    pub items: Items,
    pub ids: Vec<ChunkId>,
    /// Compressed, not yet sealed.
    pub stored: Vec<u8>,
}

/// What a finished pack is, as manifests name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub pack: PackId,
    pub size: u64,
    pub tail_len: u32,
    pub tail_digest: [u8; 16],
}

/// A pack's first [`HEADER`] bytes.
pub(crate) fn head(pack: PackId) -> Vec<u8> {
    [&MAGIC[..], &pack.0].concat()
}

fn directory_key(keys: &WriterKeys, pack: PackId) -> Secret32 {
    keys.sealing_key("lifeboat.dev 2026 pack directory", &pack.0)
}

fn writer_frame_key(keys: &WriterKeys, pack: PackId) -> SealKey {
    SealKey::new(&keys.sealing_key("lifeboat.dev 2026 writer frame", &pack.0))
}

fn digest16(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    out
}

/// Writes one pack; the caller sends what it returns, in order.
pub(crate) struct PackWriter {
    pack: PackId,
    table: Table,
    directory: Directory,
    data: SealKey,
    writer: SealKey,
    size: u64,
    raw: u64,
    items: u32,
}

impl PackWriter {
    /// A new pack and its first bytes. `None` if the lineage's public key is not one.
    pub fn new(
        repository: RepositoryId,
        source: &SourceName,
        epoch: u32,
        public: &[u8; 32],
        keys: &WriterKeys,
    ) -> Option<(Self, Vec<u8>)> {
        let pack = PackId(random());
        let (encapsulation, secret) = encapsulate(public, &info("pack", repository, source, &pack.0))?;
        let table = Table { pack, encapsulation, epoch, frames: Vec::new() };
        let writer = writer_frame_key(keys, pack);
        let directory = Directory { frames: Vec::new(), ids: Vec::new(), zeros: Vec::new() };
        let data = SealKey::new(&secret);
        let this = Self { pack, table, directory, data, writer, size: HEADER, raw: 0, items: 0 };
        Some((this, head(pack)))
    }

    pub fn id(&self) -> PackId {
        self.pack
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Plaintext bytes so far.
    pub fn raw(&self) -> u64 {
        self.raw
    }

    /// How many items the pack holds so far; the next frame's first ordinal.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// Seals a frame: its bytes in the pack.
    pub fn append(&mut self, frame: Frame) -> Vec<u8> {
        let number = self.table.frames.len() as u32;
        let aad = frame_aad(self.pack, number, frame.class);
        let mut bytes = frame.stored;
        let key = if frame.class == Class::Data { &self.data } else { &self.writer };
        key.seal(number, &aad, &mut bytes);
        self.table.frames.push(FrameSeal { class: frame.class, sealed: bytes.len() as u32, digest: digest16(&bytes) });
        self.items += frame.ids.len() as u32;
        self.raw += frame.items.raw_len();
        self.size += bytes.len() as u64;
        self.directory.ids.extend(frame.ids.iter().flat_map(|id| id.0));
        self.directory.frames.push(FrameContents { codec: frame.codec, items: frame.items });
        bytes
    }

    /// Says that pages are zeros.
    pub fn zeros(&mut self, zeros: ZeroPages) {
        self.directory.zeros.push(zeros);
    }

    /// The tail, and what the pack is.
    pub fn finish(self, keys: &WriterKeys) -> std::io::Result<(Vec<u8>, Finished)> {
        let mut tail = encode(&self.table);
        let aad = [&self.pack.0[..], blake3::hash(&tail).as_bytes()].concat();
        let table_len = tail.len() as u32;
        let plain = pack_document(&encode(&self.directory))?;
        let sealed = seal_document(&directory_key(keys, self.pack), &aad, plain);
        tail.extend_from_slice(&sealed);
        append_trailer(&mut tail, table_len);
        let finished = Finished {
            pack: self.pack,
            size: self.size + tail.len() as u64,
            tail_len: tail.len() as u32,
            tail_digest: digest16(&tail),
        };
        Ok((tail, finished))
    }
}

/// Ends a tail whose first `table_len` bytes are the table.
pub(crate) fn append_trailer(tail: &mut Vec<u8>, table_len: u32) {
    let digest = digest16(tail);
    let directory_len = tail.len() as u32 - table_len;
    tail.extend_from_slice(&table_len.to_le_bytes());
    tail.extend_from_slice(&directory_len.to_le_bytes());
    tail.extend_from_slice(&digest);
    tail.extend_from_slice(TAIL_MAGIC);
}

pub(crate) fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing CBOR to memory cannot fail")
}

/// A frame in place.
#[derive(Clone, Debug)]
pub(crate) struct FrameInfo {
    pub class: Class,
    pub offset: u64,
    pub sealed: u32,
    pub digest: [u8; 16],
}

/// The plain half of a tail.
#[derive(Debug)]
pub(crate) struct PlainTail {
    pub pack: PackId,
    pub epoch: u32,
    pub encapsulation: [u8; 32],
    pub frames: Vec<FrameInfo>,
    pub table_len: usize,
    directory_len: usize,
}

/// Lengths of (table, directory) from a pack's last [`TRAILER`] bytes.
pub(crate) fn trailer(object: &str, bytes: &[u8]) -> Result<(u32, u32)> {
    let bad = || RepoError::damaged(object, "it does not end as a pack does (cut off?)");
    let trailer: &[u8; TRAILER] = bytes.last_chunk().ok_or_else(bad)?;
    if &trailer[24..] != TAIL_MAGIC {
        return Err(bad());
    }
    let number = |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
    Ok((number(0), number(4)))
}

impl PlainTail {
    /// Reads a tail; `size` is the whole pack's.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn parse(object: &str, tail: &[u8], size: u64) -> Result<Self> {
        let (table_len, directory_len) = trailer(object, tail)?;
        let (table_len, directory_len) = (table_len as usize, directory_len as usize);
        let body = tail.len() - TRAILER;
        if table_len.checked_add(directory_len) != Some(body) {
            return Err(RepoError::damaged(object, "its tail has other lengths than it says"));
        }
        if digest16(&tail[..body]) != tail[body + 8..body + 24] {
            return Err(RepoError::damaged(object, "its tail does not have the digest it should"));
        }
        let table: Table = decode(&tail[..table_len]).map_err(|why| RepoError::damaged(object, why))?;
        if table.frames.iter().any(|f| f.sealed as usize > MAX_SEALED) {
            return Err(RepoError::damaged(object, "a frame is larger than the format allows"));
        }
        let mut offset = HEADER;
        let frames = table
            .frames
            .iter()
            .map(|f| {
                let info = FrameInfo { class: f.class, offset, sealed: f.sealed, digest: f.digest };
                offset += u64::from(f.sealed);
                info
            })
            .collect();
        if offset.checked_add(tail.len() as u64) != Some(size) {
            return Err(RepoError::damaged(object, "its frames do not add up to its size"));
        }
        Ok(Self {
            pack: table.pack,
            epoch: table.epoch,
            encapsulation: table.encapsulation,
            frames,
            table_len,
            directory_len,
        })
    }
}

#[derive(Debug)]
enum Place {
    /// Offsets of the chunks in the plaintext, one more than there are.
    Chunks(Vec<u32>),
    /// Pages of this size.
    Pages(u32),
}

#[derive(Debug)]
struct FramePlace {
    first: u32,
    count: u32,
    codec: Codec,
    raw: u32,
    place: Place,
}

/// Where one item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub frame: u32,
    /// In the frame's plaintext.
    pub offset: u32,
    pub length: u32,
    pub id: ChunkId,
}

/// Consecutive pages of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageRun {
    pub space: u64,
    pub first: u64,
    pub count: u32,
    /// Ordinal of the first page; `None` for pages of zeros.
    pub ordinal: Option<u32>,
}

impl PageRun {
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// A pack's tail, opened.
#[derive(Debug)]
pub(crate) struct PackIndex {
    pub object: String,
    pub tail: PlainTail,
    frames: Vec<FramePlace>,
    ids: Vec<u8>,
    /// Sorted by space and first page, without overlaps.
    pages: Vec<PageRun>,
}

impl PackIndex {
    /// Opens the directory behind a plain tail.
    ///
    /// # Errors
    /// `Damaged`, or `WrongKey` when the writer key does not open it.
    pub fn open(object: String, bytes: &[u8], size: u64, keys: &WriterKeys) -> Result<Self> {
        let tail = PlainTail::parse(&object, bytes, size)?;
        let plain = open_directory(&object, bytes, &tail, keys)?;
        let directory = decode(&plain).map_err(|why| RepoError::damaged(&object, why))?;
        Self::new(object, tail, directory)
    }

    pub(crate) fn new(object: String, tail: PlainTail, directory: Directory) -> Result<Self> {
        if directory.frames.len() != tail.frames.len() {
            return Err(RepoError::damaged(&object, "its directory and its table disagree"));
        }
        let mut this = Self { object, tail, frames: Vec::new(), ids: directory.ids, pages: Vec::new() };
        let mut first: u32 = 0;
        for contents in directory.frames {
            let count = this.place(first, contents)?;
            first = first.checked_add(count).ok_or_else(|| this.bad("it has too many items"))?;
        }
        if this.ids.len() as u64 != u64::from(first) * 16 {
            return Err(this.bad("its directory has another number of ids than items"));
        }
        for zeros in directory.zeros {
            let run = |(first, count)| PageRun { space: zeros.space, first, count, ordinal: None };
            this.pages.extend(zeros.runs.into_iter().map(run));
        }
        this.pages.sort_unstable();
        let sound = |run: &PageRun| run.first <= MAX_PAGES && run.end() <= MAX_PAGES;
        let apart = |pair: &[PageRun]| pair[0].space != pair[1].space || pair[0].end() <= pair[1].first;
        if !this.pages.iter().all(sound) || !this.pages.windows(2).all(apart) {
            return Err(this.bad("its directory names a page twice"));
        }
        Ok(this)
    }

    fn place(&mut self, first: u32, contents: FrameContents) -> Result<u32> {
        let raw = contents.items.raw_len();
        if raw > MAX_RAW as u64 {
            return Err(self.bad("a frame is larger than the format allows"));
        }
        let count = contents.items.count() as u32;
        let place = match contents.items {
            Items::Chunks(lengths) => {
                let mut offsets = Vec::with_capacity(lengths.len() + 1);
                offsets.push(0);
                offsets.extend(lengths.iter().scan(0, |at, l| {
                    *at += l;
                    Some(*at)
                }));
                Place::Chunks(offsets)
            }
            Items::Pages(space, size, runs) => {
                if !(MIN_PAGE..=MAX_PAGE).contains(&size) {
                    return Err(self.bad("a page has a size that the format does not allow"));
                }
                let mut ordinal = first;
                for (page, count) in runs {
                    self.pages.push(PageRun { space, first: page, count, ordinal: Some(ordinal) });
                    ordinal = ordinal.wrapping_add(count); // `open` refuses what overflows
                }
                Place::Pages(size)
            }
        };
        self.frames.push(FramePlace { first, count, codec: contents.codec, raw: raw as u32, place });
        Ok(count)
    }

    /// How many items the pack holds.
    pub fn items(&self) -> u32 {
        (self.ids.len() / 16) as u32
    }

    pub fn id(&self, ordinal: u32) -> Option<ChunkId> {
        let at = ordinal as usize * 16;
        self.ids.get(at..at + 16).map(|id| ChunkId(id.try_into().expect("a slice of 16")))
    }

    pub fn locate(&self, ordinal: u32) -> Option<Located> {
        let id = self.id(ordinal)?;
        let frame = self.frames.partition_point(|f| f.first + f.count <= ordinal);
        let place = self.frames.get(frame)?;
        let within = (ordinal - place.first) as usize;
        let (offset, length) = match &place.place {
            Place::Chunks(offsets) => (offsets[within], offsets[within + 1] - offsets[within]),
            Place::Pages(size) => (within as u32 * size, *size),
        };
        Some(Located { frame: frame as u32, offset, length, id })
    }

    /// The first page of a space, at or after `from`, that the pack says something of.
    pub fn next_page(&self, space: u64, from: u64) -> Option<u64> {
        let next = self.pages.partition_point(|run| (run.space, run.end()) <= (space, from));
        self.pages.get(next).filter(|run| run.space == space).map(|run| run.first.max(from))
    }

    /// What the pack says of pages `from..to` of a space, cut to that window, in order.
    pub fn page_runs(&self, space: u64, from: u64, to: u64) -> impl Iterator<Item = PageRun> + '_ {
        let start = self.pages.partition_point(|run| (run.space, run.end()) <= (space, from));
        self.pages[start..].iter().take_while(move |run| run.space == space && run.first < to).map(move |run| {
            let first = run.first.max(from);
            let skipped = (first - run.first) as u32;
            PageRun {
                space,
                first,
                count: (run.end().min(to) - first) as u32,
                ordinal: run.ordinal.map(|o| o + skipped),
            }
        })
    }

    /// The frames that hold chunks of contents.
    pub fn chunk_frames(&self) -> impl Iterator<Item = u32> + '_ {
        let chunks = |&at: &usize| {
            matches!(self.frames[at].place, Place::Chunks(_)) && self.tail.frames[at].class == Class::Data
        };
        (0..self.frames.len()).filter(chunks).map(|at| at as u32)
    }

    /// The items of a frame: (ordinal, id).
    pub fn frame_ids(&self, frame: u32) -> impl Iterator<Item = (u32, ChunkId)> + '_ {
        let ordinals = self.frames.get(frame as usize).map_or(0..0, |f| f.first..f.first + f.count);
        ordinals.filter_map(|ordinal| Some((ordinal, self.id(ordinal)?)))
    }

    fn bad(&self, reason: &str) -> RepoError {
        RepoError::damaged(&self.object, reason)
    }

    /// Where all items of a frame are, for a full check.
    pub fn frame_items(&self, frame: u32) -> Vec<Located> {
        let place = self.frames.get(frame as usize);
        place.map_or_else(Vec::new, |f| (f.first..f.first + f.count).filter_map(|o| self.locate(o)).collect())
    }

    /// Opens a frame's sealed bytes into `plain`, in place of what that held.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn open_frame(&self, frame: u32, bytes: &[u8], keys: &PackKeys, plain: &mut Vec<u8>) -> Result<()> {
        let name = || format!("{} (frame {frame})", self.object);
        let (Some(seal), Some(place)) = (self.tail.frames.get(frame as usize), self.frames.get(frame as usize)) else {
            return Err(RepoError::damaged(name(), "the pack has no such frame"));
        };
        if bytes.len() != seal.sealed as usize || bytes.len() < OVERHEAD {
            return Err(RepoError::damaged(name(), "its bytes do not have the length they should"));
        }
        let key = match seal.class {
            Class::Writer => &keys.writer,
            Class::Data => {
                keys.data.as_ref().ok_or_else(|| RepoError::WrongKey { what: "writer key", object: name() })?
            }
        };
        let aad = frame_aad(self.tail.pack, frame, seal.class);
        let opened = decompress(place.codec, place.raw as usize, plain, |buffer| key.open(frame, &aad, bytes, buffer));
        opened.map_err(|why| {
            let reason = if frame_is_sound(seal, bytes) { why.to_string() } else { UNSOUND.to_owned() };
            RepoError::damaged(name(), reason)
        })
    }
}

/// The directory's plaintext; `bytes` are the whole tail.
pub(crate) fn open_directory(object: &str, bytes: &[u8], tail: &PlainTail, keys: &WriterKeys) -> Result<Vec<u8>> {
    let (table, rest) = bytes.split_at(tail.table_len);
    let aad = [&tail.pack.0[..], blake3::hash(table).as_bytes()].concat();
    let plain = open_document(&directory_key(keys, tail.pack), &aad, &rest[..tail.directory_len])
        .map_err(|_| RepoError::WrongKey { what: "writer key", object: object.into() })?;
    unpack_document(&plain, MAX_DIRECTORY).map_err(|why| RepoError::damaged(object, why))
}

/// What is wrong with a frame that [`frame_is_sound`] refuses.
pub(crate) const UNSOUND: &str = "its bytes do not have the digest they should";

/// Checks a sealed frame against the digest in the table: what a scrub can do without keys.
pub(crate) fn frame_is_sound(info: &FrameInfo, bytes: &[u8]) -> bool {
    bytes.len() == info.sealed as usize && digest16(bytes) == info.digest
}

pub(crate) fn tail_is_sound(tail: &[u8], digest: &[u8; 16]) -> bool {
    digest16(tail) == *digest
}

/// The keys that open a pack's frames.
pub(crate) struct PackKeys {
    data: Option<SealKey>,
    writer: SealKey,
}

impl PackKeys {
    pub fn new(
        repository: RepositoryId,
        source: &SourceName,
        tail: &PlainTail,
        keys: &WriterKeys,
        private: Option<&Secret32>,
    ) -> Self {
        let info = info("pack", repository, source, &tail.pack.0);
        let data = private.and_then(|private| decapsulate(private, &tail.encapsulation, &info).ok());
        Self { data: data.as_ref().map(SealKey::new), writer: writer_frame_key(keys, tail.pack) }
    }
}
