//! Frames on their way into a pack, and what stands for a chunk's place until its frame has one.

use crate::id::ChunkId;
use crate::repo::pack::Items;
use crate::repo::seal::Class;

/// A frame is closed when it holds this many bytes: enough pages at once for zstd to see their likeness.
pub(crate) const FRAME: usize = 1 << 20;
/// … or when the next chunk would make it larger than this, which bounds the buffers.
pub(crate) const MAX_FRAME: usize = FRAME + FRAME / 2;
/// … or at this many items.
pub(crate) const MAX_ITEMS: usize = 4_096;

/// Where a chunk is: an ordinal in a pack of the base snapshot, or an item in a frame of this run. Consecutive items
/// have consecutive places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

const NEW: u64 = 1 << 63;

impl Place {
    pub fn old(pack: u32, ordinal: u32) -> Self {
        Self(u64::from(pack & 0x7fff_ffff) << 32 | u64::from(ordinal))
    }

    pub fn new(frame: u32, item: u32) -> Self {
        Self(NEW | u64::from(frame & 0x7fff_ffff) << 32 | u64::from(item))
    }

    /// `Ok((frame, item))` of this run, `Err((pack, ordinal))` of the base.
    pub fn split(self) -> Result<(u32, u32), (u32, u32)> {
        let parts = ((self.0 >> 32) as u32 & 0x7fff_ffff, self.0 as u32);
        if self.0 & NEW == 0 { Err(parts) } else { Ok(parts) }
    }
}

/// Consecutive places and the plaintext bytes they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub first: Place,
    pub count: u32,
    pub bytes: u64,
}

/// Appends an item, joining it to the last stretch where it follows.
pub(crate) fn push_place(stretches: &mut Vec<Stretch>, place: Place, bytes: u64) {
    match stretches.last_mut() {
        Some(last) if last.first.0 + u64::from(last.count) == place.0 => {
            last.count += 1;
            last.bytes += bytes;
        }
        _ => stretches.push(Stretch { first: place, count: 1, bytes }),
    }
}

/// A frame that takes items.
#[derive(Debug)]
pub(crate) struct OpenFrame {
    pub number: u32,
    pub class: Class,
    pub items: Items,
    pub ids: Vec<ChunkId>,
    pub raw: Vec<u8>,
}

impl OpenFrame {
    pub fn is_full(&self) -> bool {
        self.raw.len() >= FRAME || self.ids.len() >= MAX_ITEMS
    }

    /// Where the next item will be.
    pub fn next_place(&self) -> Place {
        Place::new(self.number, self.ids.len() as u32)
    }

    /// Takes what was appended to `raw` since `from` as one more chunk.
    pub fn take_chunk(&mut self, id: ChunkId, from: usize) {
        let Items::Chunks(lengths) = &mut self.items else { unreachable!("chunks go into frames of chunks") };
        lengths.push((self.raw.len() - from) as u32);
        self.ids.push(id);
    }

    pub fn push_page(&mut self, id: ChunkId, page: u64, bytes: &[u8]) {
        let Items::Pages(_, _, runs) = &mut self.items else { unreachable!("pages go into frames of pages") };
        match runs.last_mut() {
            Some(last) if last.0 + u64::from(last.1) == page => last.1 += 1,
            _ => runs.push((page, 1)),
        }
        self.raw.extend_from_slice(bytes);
        self.ids.push(id);
    }
}
