//! Where chunks are, by their ids, in little memory: of those in the base's packs only a number is kept, since the packs'
//! directories hold the ids.

use super::IdMap;
use crate::id::ChunkId;
use crate::repo::frame::Place;
use crate::repo::pack::PackIndex;
use std::sync::Arc;

pub(super) struct Chunks {
    /// Number of the first item, number of the pack, its directory.
    packs: Vec<(u32, u32, Arc<PackIndex>)>,
    /// Numbers of items, each at its id's slot or behind it. At least half of them are free.
    slots: Vec<u32>,
    /// Of this run, the last ones and those before them.
    fresh: [IdMap<ChunkId, Place>; 2],
}

/// So many of this run's chunks are remembered, and at most as many again: what comes again after more is stored again.
const FRESH: usize = (1 << 21) / 8 * 7;

const FREE: u32 = u32::MAX;

impl Chunks {
    /// Of the base's packs, those that may be used. What is in several is taken from the last.
    pub fn new(directories: &[Option<Arc<PackIndex>>]) -> Self {
        let (mut packs, mut items, mut chunks) = (Vec::new(), 0_u32, 0);
        for (pack, index) in (0..).zip(directories) {
            let Some(index) = index else { continue };
            // Of what cannot be numbered nothing is known: it is stored again.
            let Some(end) = items.checked_add(index.items()).filter(|end| *end < FREE) else { break };
            packs.push((items, pack, index.clone()));
            chunks += index.chunk_frames().map(|frame| index.frame_ids(frame).count()).sum::<usize>();
            items = end;
        }
        let mut this = Self { packs, slots: vec![FREE; 2 * chunks], fresh: Default::default() };
        for at in 0..this.packs.len() {
            let (first, _, index) = this.packs[at].clone();
            for frame in index.chunk_frames() {
                for (ordinal, id) in index.frame_ids(frame) {
                    if let Some(slot) = this.slot(id) {
                        this.slots[slot] = first + ordinal;
                    }
                }
            }
        }
        this
    }

    /// Where a chunk is; if it is nowhere, it is `fresh` from now on.
    pub fn claim(&mut self, id: ChunkId, fresh: Place) -> Option<Place> {
        if let Some(known) = self.old(id) {
            return Some(known);
        }
        if let Some(known) = self.fresh.iter().find_map(|fresh| fresh.get(&id)) {
            return Some(*known);
        }
        if self.fresh[0].len() == FRESH {
            self.fresh.swap(0, 1);
            self.fresh[0].clear();
        }
        self.fresh[0].insert(id, fresh);
        None
    }

    fn old(&self, id: ChunkId) -> Option<Place> {
        let item = self.slots.get(self.slot(id)?).copied().filter(|item| *item != FREE)?;
        let (first, pack, _) = self.packs.get(self.pack_of(item))?;
        Some(Place::old(*pack, item - first))
    }

    /// The slot that has an id, or the free one where it belongs. `None` if there are none at all.
    fn slot(&self, id: ChunkId) -> Option<usize> {
        let slots = self.slots.len();
        // Ids are keyed hashes: their first bits spread them.
        let hash = u64::from_be_bytes(id.0[..8].try_into().expect("eight bytes"));
        let first = ((u128::from(hash) * slots as u128) >> 64) as usize;
        let has_room = |slot: &usize| self.slots[*slot] == FREE || self.id(self.slots[*slot]) == Some(id);
        (first..slots).chain(0..first).find(has_room)
    }

    fn pack_of(&self, item: u32) -> usize {
        self.packs.partition_point(|(first, ..)| *first <= item).saturating_sub(1)
    }

    fn id(&self, item: u32) -> Option<ChunkId> {
        let (first, _, index) = self.packs.get(self.pack_of(item))?;
        index.id(item - first)
    }
}
