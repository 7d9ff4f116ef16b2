//! What is known of the packs at the replica, and what is to be done for those that a snapshot names.

use super::lineages::Lineages;
use super::{DIFFERS, Replicated};
use crate::id::PackId;
use crate::repo::error::Result;
use crate::repo::lineage::Snapshot;
use crate::repo::manifest::PackRef;
use crate::repo::pack;
use crate::repo::transfer::{Put, Sound};
use crate::store::list_all;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Copy,
    /// It is there, and no snapshot of the replica names it yet.
    Look,
    Differs,
}

#[derive(Debug)]
pub(super) struct Job {
    pub reference: PackRef,
    pub what: What,
}

pub(super) type PackKey = (PackId, u64, [u8; 16]);

pub(super) fn key(reference: &PackRef) -> PackKey {
    (reference.pack, reference.size, reference.tail_digest)
}

/// What is known of the packs at the replica.
pub(super) struct Packs {
    there: BTreeMap<PackId, u64>,
    /// Named by a snapshot of the replica.
    pub vouched: BTreeSet<PackId>,
    planned: BTreeSet<PackKey>,
    pub failed: BTreeMap<PackKey, String>,
    /// There before, and named by nothing until now.
    pub left_over: Vec<PackRef>,
    /// Put or extended in this run.
    pub locked: BTreeSet<PackId>,
}

impl Packs {
    pub async fn at(lineages: &Lineages, tip: Option<&Snapshot>) -> Result<Self> {
        let prefix = pack::prefix(&lineages.to.source);
        let listed = list_all(lineages.to.store.as_ref(), &prefix).await?;
        let there = listed.into_iter().filter_map(|o| Some((o.key[prefix.len()..].parse().ok()?, o.size))).collect();
        let vouched = tip.iter().flat_map(|tip| tip.manifest.header.packs.iter().map(|r| r.pack)).collect();
        Ok(Self {
            there,
            vouched,
            planned: BTreeSet::new(),
            failed: BTreeMap::new(),
            left_over: Vec::new(),
            locked: BTreeSet::new(),
        })
    }

    /// What is to be done for a snapshot's packs, beyond what is planned already.
    pub fn jobs(&mut self, references: &[PackRef]) -> Vec<Job> {
        let mut jobs = Vec::new();
        for reference in references.iter().filter(|r| self.planned.insert(key(r))) {
            let what = match self.there.get(&reference.pack) {
                None => What::Copy,
                Some(size) if *size != reference.size => What::Differs,
                Some(_) if self.vouched.contains(&reference.pack) => continue,
                Some(_) => What::Look,
            };
            jobs.push(Job { reference: reference.clone(), what });
        }
        jobs
    }

    pub fn settle(&mut self, job: &Job, outcome: Sound<Put>, done: &mut Replicated) {
        match outcome {
            Ok(Put::Written) => {
                done.packs += 1;
                done.bytes += job.reference.size;
                self.locked.insert(job.reference.pack);
            }
            Ok(Put::Same) => self.left_over.push(job.reference.clone()),
            Ok(Put::Differs) => _ = self.failed.insert(key(&job.reference), DIFFERS.into()),
            Err(error) => _ = self.failed.insert(key(&job.reference), error.problem()),
        }
    }
}
