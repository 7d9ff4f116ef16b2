//! Contents that a restore makes more than once. The further ones are copied from the first, which is on the disk already:
//! they lie wherever the first lay, so they would be fetched and unpacked again, each with all that surrounds it.

use crate::repo::{Item, Reader, RepoError};
use crate::restore::Selection;
use crate::restore::supply::walk;
use roaring::RoaringTreemap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Firsts that are kept, each some hundred bytes; contents beyond are restored as if they were single.
const FIRSTS: usize = 65_536;

/// The first of several.
pub(super) struct First {
    item: Item,
    restored: AtomicBool,
}

impl First {
    /// Where it is, if it is whole.
    pub fn path(&self) -> Option<&[u8]> {
        self.restored.load(Ordering::Acquire).then_some(&*self.item.entry.path)
    }

    pub fn is_restored(&self) {
        self.restored.store(true, Ordering::Release);
    }
}

/// What an entry is to others of the same content.
#[derive(Clone)]
pub(super) enum Role {
    Alone,
    First(Arc<First>),
    Again(Arc<First>),
}

pub(super) struct Twice {
    /// Where such contents begin.
    begins: RoaringTreemap,
    firsts: HashMap<u64, Arc<First>>,
}

impl Twice {
    /// Goes through the list of entries.
    pub fn find(reader: &Reader, selection: &Selection) -> Result<Self, RepoError> {
        let (mut once, mut begins) = (RoaringTreemap::new(), RoaringTreemap::new());
        walk::<RepoError>(reader, |item| {
            if let Some(begin) = begin(&item)
                && selection.contains(&item.entry.path)
                && !once.insert(begin)
            {
                begins.insert(begin);
            }
            Ok(())
        })?;
        Ok(Self { begins, firsts: HashMap::new() })
    }

    pub fn role(&mut self, reader: &Reader, item: &Item) -> Role {
        let Some(begin) = begin(item).filter(|begin| self.begins.contains(*begin)) else { return Role::Alone };
        let full = self.firsts.len() >= FIRSTS;
        match self.firsts.entry(begin) {
            Entry::Occupied(first) if reader.same_chunks(item, reader, &first.get().item) => {
                Role::Again(first.get().clone())
            }
            Entry::Vacant(free) if !full => {
                let first = First { item: item.clone(), restored: AtomicBool::new(false) };
                Role::First(free.insert(Arc::new(first)).clone())
            }
            _ => Role::Alone,
        }
    }
}

fn begin(item: &Item) -> Option<u64> {
    item.begins_at(None).map(|(pack, ordinal)| u64::from(pack) << 32 | u64::from(ordinal))
}
