//! The two copies of a source's lineage: what one has and the other lacks.

use super::{DIFFERS, Replicated, SMALL};
use crate::id::Sequence;
use crate::repo::epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::prune;
use crate::repo::root::Wrap;
use crate::repo::transfer::{Sound, sound};
use crate::store::{ObjectMeta, StoreErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// The two copies of a source's lineage.
pub(super) struct Lineages {
    pub from: Lineage,
    pub to: Lineage,
}

impl Lineages {
    /// The replica's newest snapshot, whatever its state; where both have it, it must be the same.
    pub async fn compare(
        &self,
        listed: &[(Sequence, ObjectMeta)],
        there: &[(Sequence, ObjectMeta)],
        done: &mut Replicated,
    ) -> Result<Option<Snapshot>> {
        let newest = self.to.newest_where(|_| true).await?;
        for over in newest.stepped_over {
            done.found(&over.object, format!("at the replica: {}", over.error.problem()), Some(over.sequence));
        }
        let Some(tip) = newest.snapshot else { return Ok(None) };
        let theirs = listed.iter().find(|(sequence, _)| *sequence == tip.sequence());
        if let Some((sequence, meta)) = theirs {
            match sound(self.from.read(*sequence, meta).await)? {
                Ok(snapshot) if snapshot.manifest.digest == tip.manifest.digest => {}
                Ok(_) => done.found(&meta.key, DIFFERS.into(), Some(*sequence)),
                Err(error) => done.found(&meta.key, error.problem(), Some(*sequence)),
            }
        }
        let highest = listed.first().map_or(Sequence(0), |(sequence, _)| *sequence);
        if let Some((sequence, meta)) = there.first().filter(|(sequence, _)| *sequence > highest) {
            // The highest number is never pruned.
            done.found(&meta.key, "only the replica has it; it is missing where it comes from".into(), Some(*sequence));
        }
        Ok(Some(tip))
    }

    /// The snapshots that the replica lacks and did not prune, oldest first.
    pub async fn wanted(
        &self,
        listed: Vec<(Sequence, ObjectMeta)>,
        there: &[(Sequence, ObjectMeta)],
        done: &mut Replicated,
    ) -> Result<Vec<(Sequence, ObjectMeta)>> {
        let highest = there.first().map_or(Sequence(0), |(sequence, _)| *sequence);
        let there: BTreeMap<Sequence, u64> = there.iter().map(|(sequence, meta)| (*sequence, meta.size)).collect();
        let mut wanted = Vec::new();
        for (sequence, meta) in listed.into_iter().rev() {
            match there.get(&sequence) {
                None => wanted.push((sequence, meta)),
                Some(size) if *size == meta.size => {}
                Some(_) => done.found(&meta.key, DIFFERS.into(), Some(sequence)),
            }
        }
        if wanted.first().is_some_and(|(sequence, _)| *sequence < highest) {
            let (records, _) = prune::records(&self.to).await?;
            let gone: BTreeSet<Sequence> = records.iter().flat_map(prune::Record::removed).map(|(s, _)| s).collect();
            wanted.retain(|(sequence, _)| !gone.contains(sequence));
        }
        Ok(wanted)
    }

    /// Reads manifests; those that do not count are findings.
    pub async fn read(
        &self,
        batch: &[(Sequence, ObjectMeta)],
        done: &mut Replicated,
    ) -> Result<Vec<(Snapshot, Bytes)>> {
        let mut reads = futures_util::stream::iter(batch)
            .map(|(sequence, meta)| async move { (*sequence, meta, self.from.read_with_bytes(*sequence, meta).await) })
            .buffered(SMALL);
        let mut snapshots = Vec::new();
        while let Some((sequence, meta, read)) = reads.next().await {
            match sound(read)? {
                Ok(read) => snapshots.push(read),
                Err(error) if self.still_has(&meta.key).await? => {
                    done.found(&meta.key, error.problem(), Some(sequence));
                }
                Err(_) => {}
            }
        }
        Ok(snapshots)
    }

    pub async fn still_has(&self, object: &str) -> Result<bool> {
        match self.from.store.head(object).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// An object below `<source>/keys/`, checked as far as it can be; `None` for what is neither an epoch nor a wrap.
pub(crate) async fn key_object(from: &Lineage, key: &str) -> Result<Sound<Option<Bytes>>> {
    let name = key.strip_prefix(&format!("{}/keys/", from.source)).and_then(|rest| rest.split_once('/'));
    let Some((number, name)) = name else { return Ok(Ok(None)) };
    let Some(number) = number.parse::<u32>().ok().filter(|parsed| format!("{parsed:04}") == number) else {
        return Ok(Ok(None));
    };
    let read = async {
        let bytes = from.store.get(key).await?;
        if name == "epoch.json" {
            epoch::check(&from.root, &from.source, number, &bytes)?;
        } else if name.ends_with(".age.json") {
            serde_json::from_slice::<Wrap>(&bytes).map_err(|why| RepoError::damaged(key, why))?;
        } else {
            return Ok(None);
        }
        Ok(Some(bytes))
    };
    sound(read.await)
}
