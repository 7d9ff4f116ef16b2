//! The lists behind a snapshot: entries (for the recipients) and hints (for the writer), cut at the same places. Each is
//! a chunk like any other, so an unchanged stretch is written once (`docs/format.md`, "Segments").

use crate::entry::{Entry, Fingerprint};
use crate::id::PackId;
use crate::repo::codec;
use crate::repo::error::{RepoError, Result};
use std::collections::HashMap;

/// A segment ends before an entry whose path hash has these bits clear: every 2,048 entries on average.
const BOUNDARY: u64 = 0x7ff;
/// … or when it has grown to this many entries.
pub(crate) const MAX_ENTRIES: usize = 8_192;

pub(crate) fn is_boundary(path_hash: u64) -> bool {
    path_hash & BOUNDARY == 0
}

/// Consecutive items of a pack: (index into the list's own packs, first ordinal, count).
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Run {
    #[n(0)]
    pub pack: u32,
    #[n(1)]
    pub first: u32,
    #[n(2)]
    pub count: u32,
}

/// Where an entry's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) enum Body {
    #[n(0)]
    None,
    /// Chunks in order.
    #[n(1)]
    Chunks(#[n(0)] Vec<Run>),
    /// Pages of a space: its name and the page size. Where each page is, the packs' directories say; the digest (little
    /// endian) says whether what they say is complete.
    #[n(2)]
    Pages(#[n(0)] u64, #[n(1)] u32, #[cbor(n(2), with = "minicbor::bytes")] [u8; 16]),
}

#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Stored {
    #[n(0)]
    pub entry: Entry,
    #[n(1)]
    pub body: Body,
}

/// A stretch of the entry list.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct Entries {
    #[n(0)]
    pub packs: Vec<PackId>,
    #[n(1)]
    pub entries: Vec<Stored>,
}

/// Lets the next backup pass over an unchanged file.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Hint {
    /// Keyed hash of the path, 64 bits.
    #[n(0)]
    pub path: u64,
    #[n(1)]
    pub size: u64,
    #[n(2)]
    pub mtime_ns: i64,
    #[n(3)]
    pub ctime_ns: i64,
    #[n(4)]
    pub inode: u64,
    #[n(5)]
    pub runs: Vec<Run>,
}

impl Hint {
    pub fn new(path: u64, f: &Fingerprint, runs: Vec<Run>) -> Self {
        Self { path, size: f.size, mtime_ns: f.mtime_ns, ctime_ns: f.ctime_ns, inode: f.inode, runs }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint { size: self.size, mtime_ns: self.mtime_ns, ctime_ns: self.ctime_ns, inode: self.inode }
    }
}

/// The hints of the entries of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct Hints {
    #[n(0)]
    pub packs: Vec<PackId>,
    #[n(1)]
    pub hints: Vec<Hint>,
}

/// A list's own table of packs, built while its runs are.
#[derive(Debug, Default)]
pub(crate) struct PackTable {
    pub packs: Vec<PackId>,
    index: HashMap<PackId, u32>,
}

impl PackTable {
    pub fn index(&mut self, pack: PackId) -> u32 {
        *self.index.entry(pack).or_insert_with(|| {
            self.packs.push(pack);
            self.packs.len() as u32 - 1
        })
    }
}

/// Appends an item to runs, joining it to the last where it follows.
pub(crate) fn push_run(runs: &mut Vec<Run>, pack: u32, first: u32, count: u32) {
    match runs.last_mut() {
        Some(last)
            if last.pack == pack
                && last.first.checked_add(last.count) == Some(first)
                && last.count.checked_add(count).is_some() =>
        {
            last.count += count;
        }
        _ => runs.push(Run { pack, first, count }),
    }
}

/// Decodes a list.
///
/// # Errors
/// `Damaged`.
pub(crate) fn decode<'a, T: minicbor::Decode<'a, ()>>(object: &str, bytes: &'a [u8]) -> Result<T> {
    codec::decode(bytes).map_err(|why| RepoError::damaged(object, format!("a list in it cannot be read: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_neighbours() {
        let mut runs = Vec::new();
        for (pack, first) in [(0, 5), (0, 6), (1, 7), (1, 9)] {
            push_run(&mut runs, pack, first, 1);
        }
        let flat: Vec<_> = runs.iter().map(|r| (r.pack, r.first, r.count)).collect();
        assert_eq!(flat, [(0, 5, 2), (1, 7, 1), (1, 9, 1)]);
    }
}
