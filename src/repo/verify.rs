//! Verifying a lineage: is what the snapshots need there, unaltered, and does it read back?
//!
//! Three depths: that every object is there in the right size and every directory opens; that every sealed frame has its
//! digest (no private key needed); that every frame opens and every chunk is what its id says, and every entry finds its
//! bytes (the recovery identity needed). A finding names the object and the snapshots that it hurts.

use crate::id::{PackId, Sequence};
use crate::repo::epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::{Lineage, Snapshot, SteppedOver};
use crate::repo::manifest::PackRef;
use crate::repo::pack::{self, FrameInfo, PackIndex, PackKeys, PlainTail};
use crate::repo::prune;
use crate::repo::reader::Reader;
use crate::store::list_all;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Manifests and directories.
    Structure,
    /// … and every sealed frame against its digest.
    Scrub,
    /// … and every frame opened, every chunk against its id, every entry's list of chunks.
    Data,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub object: String,
    pub problem: String,
    /// The snapshots that cannot be trusted because of it.
    pub snapshots: Vec<Sequence>,
}

/// What a verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    pub snapshots: usize,
    pub packs: usize,
    /// Bytes read from packs.
    pub bytes_read: u64,
    pub findings: Vec<Finding>,
    /// What is in order, and may be somebody else's doing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspicious: Vec<String>,
    /// Objects that were put back from another copy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub healed: Vec<String>,
}

impl Finding {
    /// The key of the object, without the part of it that is named.
    #[must_use]
    pub fn key(&self) -> &str {
        // No key has a space.
        self.object.split(' ').next().unwrap_or_default()
    }
}

/// How far a verification is.
#[derive(Debug, Default)]
pub struct Verifying {
    pub packs: AtomicU64,
    /// Bytes read from packs, and how many are to be read in all.
    pub bytes: AtomicU64,
    pub expected: AtomicU64,
}

fn several(epochs: &[u32]) -> String {
    let names: Vec<_> = epochs.iter().map(|number| format!("{number:04}")).collect();
    format!(
        "the epochs {} are of one writer key: unless the first could not be read for a while, somebody else has that key \
         (lifeboat keys rotate-writer)",
        names.join(", ")
    )
}

struct Needed {
    reference: PackRef,
    epoch: u32,
    by: Vec<Sequence>,
}

impl Lineage {
    /// Verifies every snapshot. `share` (0 to 1) of the packs have their data read, chosen by `lot`: another number
    /// chooses others.
    ///
    /// # Errors
    /// Only a store that does not answer, or a key that is missing; what is wrong with the data is in the findings.
    pub async fn verify(self: &Arc<Self>, depth: Depth, share: f64, lot: u64) -> Result<Verified> {
        self.verify_watched(depth, share, lot, &Verifying::default()).await
    }

    /// [`Lineage::verify`], while somebody looks on.
    ///
    /// # Errors
    /// The same.
    pub async fn verify_watched(
        self: &Arc<Self>,
        depth: Depth,
        share: f64,
        lot: u64,
        seen: &Verifying,
    ) -> Result<Verified> {
        let (snapshots, stepped_over) = self.snapshots().await?;
        let mut verified = Verified { snapshots: snapshots.len(), ..Verified::default() };
        verified.findings.extend(stepped_over.iter().map(finding_of));
        self.check_chain(&snapshots, &stepped_over, &mut verified).await?;
        let second = epoch::second_ones(self.store.as_ref(), &self.root, &self.source).await?;
        verified.suspicious = second.iter().map(|epochs| several(epochs)).collect();

        let packs = needed(&snapshots, &mut verified);
        verified.packs = packs.len();
        let sizes: BTreeMap<String, u64> = list_all(self.store.as_ref(), &pack::prefix(&self.source))
            .await?
            .into_iter()
            .map(|object| (object.key, object.size))
            .collect();
        let read = |pack: &PackId| {
            let draw =
                u64::from_le_bytes(*pack.0.first_chunk().unwrap_or(&[0; 8])) ^ lot.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            depth != Depth::Structure && (draw as f64 / u64::MAX as f64) < share
        };
        let to_read = packs.values().filter(|needed| read(&needed.reference.pack)).map(|needed| needed.reference.size);
        seen.expected.fetch_add(to_read.sum(), Ordering::Relaxed);
        let mut checks = futures_util::stream::iter(packs.into_values())
            .map(|needed| {
                let size = sizes.get(&pack::object(&self.source, needed.reference.pack)).copied();
                let read = read(&needed.reference.pack);
                async move { (self.check_pack(&needed, size, read, depth, seen).await, needed) }
            })
            .buffer_unordered(2);
        while let Some((checked, needed)) = checks.next().await {
            let (bytes, problems) = checked?;
            seen.packs.fetch_add(1, Ordering::Relaxed);
            verified.bytes_read += bytes;
            verified.findings.extend(problems.into_iter().map(|(object, problem)| Finding {
                object,
                problem,
                snapshots: needed.by.clone(),
            }));
        }
        drop(checks);
        if depth == Depth::Data {
            for snapshot in snapshots {
                self.check_entries(snapshot, &mut verified).await?;
            }
        }
        Ok(verified)
    }

    /// Every number up to the highest is there, or named in a prune record; every parent is the one it was.
    async fn check_chain(
        &self,
        snapshots: &[Snapshot],
        stepped_over: &[SteppedOver],
        verified: &mut Verified,
    ) -> Result<()> {
        let (removed, others) = prune::explained(self).await?;
        verified.findings.extend(others.into_iter().map(|(object, error)| Finding {
            object: object.key,
            problem: error.problem(),
            snapshots: Vec::new(),
        }));
        let mut known = removed;
        known.extend(snapshots.iter().map(|s| (s.sequence(), s.manifest.digest)));
        let damaged: BTreeSet<Sequence> = stepped_over.iter().map(|s| s.sequence).collect();
        let mut missing = |sequence: Sequence, problem: String| {
            let object = crate::repo::manifest::object(&self.source, sequence);
            verified.findings.push(Finding { object, problem, snapshots: vec![sequence] });
        };
        let mut expected = 1;
        for sequence in known.keys() {
            // Damaged ones are reported already.
            let gap: Vec<u64> =
                (expected..sequence.0).take(1000).filter(|n| !damaged.contains(&Sequence(*n))).collect();
            if let Some(first) = gap.first() {
                let problem = match sequence.0 - 1 {
                    last if last == *first => "it is missing, and no prune record explains it".into(),
                    last => format!("snapshots {first} to {last} are missing, and no prune record explains it"),
                };
                missing(Sequence(*first), problem);
            }
            expected = sequence.0 + 1;
        }
        for snapshot in snapshots {
            if let Some(parent) = snapshot.manifest.header.parent
                && known.get(&parent.sequence).is_some_and(|digest| *digest != parent.digest)
            {
                let child = snapshot.sequence();
                missing(
                    parent.sequence,
                    format!("it is not the snapshot that number {child} was built on (replaced?)"),
                );
            }
        }
        Ok(())
    }

    async fn check_pack(
        &self,
        needed: &Needed,
        size: Option<u64>,
        read: bool,
        depth: Depth,
        seen: &Verifying,
    ) -> Result<(u64, Vec<(String, String)>)> {
        let object = pack::object(&self.source, needed.reference.pack);
        let found = |problem: String| Ok((0, vec![(object.clone(), problem)]));
        match size {
            None => return found("the pack is missing".into()),
            Some(size) if size != needed.reference.size => {
                return found(format!("it has {size} bytes and should have {}", needed.reference.size));
            }
            Some(_) => {}
        }
        let epoch = self.epoch_of(&object, needed.epoch).await?;
        let tail = match self.tail(&needed.reference).await {
            Err(error) => return broken(error).and_then(|e| found(e.problem())),
            Ok(tail) => tail,
        };
        let plain = match PlainTail::parse(&object, &tail, needed.reference.size) {
            Err(error) => return found(error.problem()),
            Ok(plain) => plain,
        };
        let index = match &epoch.writer {
            None => None,
            Some(keys) => match PackIndex::open(object.clone(), &tail, needed.reference.size, keys) {
                Err(error) => return broken(error).and_then(|e| found(e.problem())),
                Ok(index) => Some(index),
            },
        };
        if !read {
            return Ok((0, Vec::new()));
        }
        let opened = match (&index, &epoch.writer, depth) {
            (Some(index), Some(keys), Depth::Data) => {
                let pack_keys = PackKeys::new(self.root.id, &self.source, &index.tail, keys, epoch.private.as_ref());
                Some((index, keys, pack_keys))
            }
            (_, _, Depth::Data) => {
                return Err(RepoError::WrongKey { what: "key", object });
            }
            _ => None,
        };
        let (mut bytes, mut problems, mut opened_frame) = (pack::HEADER, Vec::new(), Vec::new());
        match self.store.get_range(&object, 0, pack::HEADER).await.map_err(RepoError::from) {
            Err(error) => problems.push((object.clone(), broken(error)?.to_string())),
            Ok(head) if head != pack::head(plain.pack)[..] => {
                problems.push((object.clone(), "it does not begin as a pack of its name does".into()));
            }
            Ok(_) => {}
        }
        for (number, frame) in (0..).zip(&plain.frames) {
            let frame_name = format!("{object} (frame {number})");
            bytes += u64::from(frame.sealed);
            seen.bytes.fetch_add(u64::from(frame.sealed), Ordering::Relaxed);
            let sealed = match self.sealed(&object, frame).await {
                Err(error) => {
                    problems.push((frame_name, broken(error)?.problem()));
                    continue;
                }
                Ok(sealed) => sealed,
            };
            if !pack::frame_is_sound(frame, &sealed) {
                problems.push((frame_name, pack::UNSOUND.into()));
                continue;
            }
            let Some((index, keys, pack_keys)) = &opened else { continue };
            match index.open_frame(number, &sealed, pack_keys, &mut opened_frame) {
                Err(error @ RepoError::WrongKey { .. }) => return Err(error),
                Err(error) => problems.push((frame_name, error.problem())),
                Ok(()) => {
                    let wrong = index
                        .frame_items(number)
                        .into_iter()
                        .filter(|at| keys.chunk_id(&opened_frame[at.offset as usize..][..at.length as usize]) != at.id);
                    let wrong = wrong.count();
                    if wrong > 0 {
                        problems.push((frame_name, format!("{wrong} of its chunks are not what their ids say")));
                    }
                }
            }
        }
        Ok((bytes, problems))
    }

    async fn sealed(&self, object: &str, frame: &FrameInfo) -> Result<Bytes> {
        Ok(self.store.get_range(object, frame.offset, u64::from(frame.sealed)).await?)
    }

    /// That every entry finds all its bytes; their content was checked with the packs.
    async fn check_entries(self: &Arc<Self>, snapshot: Snapshot, verified: &mut Verified) -> Result<()> {
        let sequence = snapshot.sequence();
        let object = snapshot.manifest.object.clone();
        let reader = Reader::open(self.clone(), snapshot).await?;
        // What many entries need and is not there is told once.
        let mut problems = BTreeSet::new();
        let (mut entries, stated) = (0, reader.catalogue().entries);
        let mut lists = std::pin::pin!(reader.lists(1, |_| true));
        while let Some(items) = lists.next().await {
            let items = match items {
                Ok(items) => items,
                Err(error) => {
                    problems.insert(broken(error)?.problem());
                    entries = stated; // it is not known
                    break;
                }
            };
            entries += items.len() as u64;
            for item in &items {
                if let Err(error) = reader.locate(item).await {
                    problems.insert(broken(error)?.problem());
                }
            }
        }
        if entries != stated {
            problems.insert(format!("it lists {entries} entries and should list {stated}"));
        }
        verified.findings.extend(problems.into_iter().map(|problem| Finding {
            object: object.clone(),
            problem,
            snapshots: vec![sequence],
        }));
        Ok(())
    }
}

/// The packs that snapshots name. Two that name one pack differently contradict each other.
fn needed(snapshots: &[Snapshot], verified: &mut Verified) -> BTreeMap<PackId, Needed> {
    let mut packs: BTreeMap<PackId, Needed> = BTreeMap::new();
    for snapshot in snapshots {
        let header = &snapshot.manifest.header;
        for reference in &header.packs {
            let fresh = || Needed { reference: reference.clone(), epoch: header.epoch, by: Vec::new() };
            let needed = packs.entry(reference.pack).or_insert_with(fresh);
            needed.by.push(header.sequence);
            if (needed.reference.size, needed.reference.tail_digest) != (reference.size, reference.tail_digest) {
                let problem = format!("it describes pack {} differently than other snapshots do", reference.pack);
                let object = snapshot.manifest.object.clone();
                verified.findings.push(Finding { object, problem, snapshots: vec![header.sequence] });
            }
        }
    }
    packs
}

fn finding_of(over: &SteppedOver) -> Finding {
    let problem = over.error.problem();
    let object = over.error.object().unwrap_or(&over.object).to_owned();
    Finding { object, problem, snapshots: vec![over.sequence] }
}

/// What is wrong with the data is a finding; a store that does not answer, or a missing key, is an error.
fn broken(error: RepoError) -> Result<RepoError> {
    match &error {
        RepoError::Damaged { .. } | RepoError::Foreign { .. } => Ok(error),
        RepoError::Store(e) if e.kind.blames_object() => Ok(error),
        _ => Err(error),
    }
}
