//! Bringing a second copy of a repository up to date: a replica, under the same id and the same keys.
//!
//! Invariants: the replica is a repository at every moment, since the root comes first, then per lineage the keys, the
//! packs and the manifests, oldest first, each when all that it names is there; everything is put create-only and checked
//! on the way, by signature or by digest, for which no secret key is needed; what is there already is compared by name
//! and size, and read only where nothing vouches for it (a pack that no snapshot of the replica names, the newest
//! manifest of both). Nothing is ever removed: what was pruned where it comes from stays, and a replica's own keeper
//! decides. What is unsound is reported and left out, and the rest goes on.
//! Deliberately absent: any state beside the two stores; running again is how a run is resumed.

mod lineages;
mod packs;

use crate::id::{Sequence, SourceName};
use crate::repo::epoch::{self, Access};
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::root::{self, Root};
use crate::repo::transfer::{Locking, Put, Sound, checked_tail, copy_pack, put, sound};
use crate::repo::verify::Finding;
use crate::repo::{Repository, pack, prune};
use crate::store::{ObjectMeta, PutOptions, Store, list_all};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

use lineages::Lineages;
pub(crate) use lineages::key_object;
use packs::{Job, Packs, What, key};

/// What concerns the whole repository: the root's states, which are copied first; journals of restores, which concern the place
/// where they are; leavings of `store check` and `doctor`.
const NOT_COPIED: [&str; 3] = ["_root", "_restores", "_check"];
/// Packs on their way at once, of all sources together.
const PACKS_AT_ONCE: usize = 4;
/// Manifests that are read ahead of their packs.
const BATCH: usize = 16;
/// Small requests at once.
const SMALL: usize = 8;

/// How a replica is brought up to date.
#[derive(Debug)]
pub struct Replicating {
    /// How long what a copied snapshot names must stay.
    pub locking: Locking,
    /// Say what would be copied, and copy nothing.
    pub dry_run: bool,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Copying {
    pub packs: AtomicU64,
    /// Bytes copied, and how many are known to be needed.
    pub bytes: AtomicU64,
    pub expected: AtomicU64,
}

/// The newest snapshot that is not in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub sequence: Sequence,
    /// Its recovery point; the writer's clock at commit where no key opens the catalogue.
    pub time: Timestamp,
}

/// What was copied of a source (or would be), and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicated {
    pub snapshots: usize,
    pub packs: usize,
    /// Bytes of all that was copied.
    pub bytes: u64,
    /// What is unsound, here or there, and what differs.
    pub findings: Vec<Finding>,
    pub from: Option<Point>,
    /// Of what is from here, also if it was pruned here.
    pub to: Option<Point>,
    /// The newest of the replica that was another than here before anything was copied.
    pub parted: Option<Sequence>,
}

impl Replicated {
    /// How far the replica is behind: the newest recovery point less that of the replica. `None` if there is none.
    #[must_use]
    pub fn lag(&self) -> Option<Duration> {
        let behind = self.from?.time.duration_since(self.to?.time);
        Some(Duration::try_from(behind).unwrap_or_default())
    }

    fn found(&mut self, object: &str, problem: String, snapshot: Option<Sequence>) {
        if let Some(known) = self.findings.iter_mut().find(|f| f.object == object && f.problem == problem) {
            known.snapshots.extend(snapshot);
        } else {
            let snapshots = snapshot.into_iter().collect();
            self.findings.push(Finding { object: object.into(), problem, snapshots });
        }
    }
}

/// A replica that is being brought up to date.
#[derive(Debug)]
pub struct Replication {
    from: Repository,
    to: Repository,
    how: Replicating,
    permits: Semaphore,
    pub seen: Arc<Copying>,
    /// What was copied of the root.
    pub root: Replicated,
}

impl Replication {
    /// Copies the states of the root; if there is no repository yet, there is one from now on.
    ///
    /// # Errors
    /// `Refused` if another repository is there; a store's.
    pub async fn begin(from: &Repository, to: Arc<dyn Store>, how: Replicating) -> Result<Self> {
        let theirs = match Root::load(to.as_ref()).await {
            Err(RepoError::NoRepository { .. }) => None,
            other => Some(other?),
        };
        if let Some(theirs) = theirs.as_ref().filter(|theirs| theirs.id != from.root.id) {
            return Err(RepoError::Refused(format!(
                "{} holds another repository ({}, not {}): nothing is copied there",
                to.url(),
                theirs.id,
                from.root.id
            )));
        }
        let newest = [Some(&from.root), theirs.as_ref()].into_iter().flatten().max_by_key(|root| root.number());
        let newest = newest.unwrap_or(&from.root).clone();
        let mut this = Self {
            from: from.clone(),
            to: Repository { store: to, root: newest },
            how,
            permits: Semaphore::new(PACKS_AT_ONCE),
            seen: Arc::default(),
            root: Replicated::default(),
        };
        this.copy_root(theirs.is_some()).await?;
        for name in from.store.list_roots().await? {
            if name.starts_with('_') && !NOT_COPIED.contains(&name.as_str()) {
                let problem = "it is not copied: this version does not know what it is";
                this.root.found(&name, problem.into(), None);
            }
        }
        Ok(this)
    }

    fn options(&self) -> PutOptions {
        self.how.locking.options(self.to.store.as_ref())
    }

    async fn copy_root(&mut self, exists: bool) -> Result<()> {
        let mut objects = root::objects(self.from.store.as_ref()).await?;
        // The first state, then the later ones, the oldest first.
        objects[1..].reverse();
        let there: BTreeSet<String> =
            if exists { root::objects(self.to.store.as_ref()).await?.into_iter().collect() } else { BTreeSet::new() };
        for object in objects {
            let bytes = if object == root::ROOT {
                Some(root::first_bytes(self.from.store.as_ref(), &self.from.root).await?)
            } else {
                root::state_bytes(self.from.store.as_ref(), &object, &self.from.root).await?
            };
            let Some(bytes) = bytes else {
                let problem = "it is no state of the root (damaged or foreign)";
                self.root.found(&object, problem.into(), None);
                continue;
            };
            let mut done = std::mem::take(&mut self.root);
            self.small(&object, &bytes, there.contains(&object), &mut done).await?;
            self.root = done;
        }
        if self.options().retain_until.is_some() && !self.how.dry_run {
            self.retain(root::objects(self.to.store.as_ref()).await?).await?;
        }
        Ok(())
    }

    /// Copies a small object that was found sound, or compares it with what is there.
    async fn small(&self, object: &str, bytes: &Bytes, there: bool, done: &mut Replicated) -> Result<()> {
        let outcome = match (there, self.how.dry_run) {
            (false, true) => Put::Written,
            (false, false) => put(self.to.store.as_ref(), object, bytes, self.options()).await?,
            (true, _) => match sound(self.to.store.get(object).await.map_err(RepoError::from))? {
                Ok(theirs) if theirs == *bytes => Put::Same,
                _ => Put::Differs,
            },
        };
        match outcome {
            Put::Written => done.bytes += bytes.len() as u64,
            Put::Same => {}
            Put::Differs => done.found(object, DIFFERS.into(), None),
        }
        Ok(())
    }

    /// Moves locks of the replica's objects to where those of new ones are.
    async fn retain(&self, objects: Vec<String>) -> Result<()> {
        let Some(until) = self.options().retain_until else { return Ok(()) };
        let store = &self.to.store;
        futures_util::stream::iter(objects.into_iter().map(Ok::<_, RepoError>))
            .try_for_each_concurrent(SMALL, |object| async move { Ok(store.retain(&object, until).await?) })
            .await
    }

    /// Copies what the replica lacks of a source. What was copied stands, whatever comes after; again goes on from there.
    ///
    /// # Errors
    /// A store that does not answer or refuses; what is unsound is in the findings.
    pub async fn source(&self, source: &SourceName, access: &Access) -> Result<Replicated> {
        // Judged by the newer root of the two: one that was rolled back must not bring a retired key to life again.
        let root = self.to.root.clone();
        let from = Lineage::new(self.from.store.clone(), root, source.clone(), access.clone());
        let to = self.to.lineage(source, access.clone());
        let lineages = Lineages { from, to };
        let mut done = Replicated::default();
        let listed = lineages.from.list().await?;
        let there = lineages.to.list().await?;
        self.copy_keys(&lineages, &mut done).await?;
        self.copy_records(&lineages, &mut done).await?;
        let tip = lineages.compare(&listed, &there, &mut done).await?;
        let wanted = lineages.wanted(listed, &there, &mut done).await?;
        let mut shared = lineages.to.shared_with(&lineages.from).await?;
        done.parted = shared.parted; // what is copied now goes on top of it
        if !wanted.is_empty() {
            self.copy_snapshots(&lineages, wanted, tip.as_ref(), &mut done).await?;
            shared = lineages.to.shared_with(&lineages.from).await?;
        }
        done.from = lineages.from.newest().await?.snapshot.as_ref().map(point);
        done.to = shared.newest.as_ref().map(point);
        Ok(done)
    }

    async fn copy_keys(&self, lineages: &Lineages, done: &mut Replicated) -> Result<()> {
        let Lineages { from, to } = lineages;
        let prefix = format!("{}/keys/", from.source);
        let there = sizes(to.store.as_ref(), &prefix).await?;
        for meta in list_all(from.store.as_ref(), &prefix).await? {
            match there.get(&meta.key) {
                Some(size) if *size == meta.size => continue,
                Some(_) => {
                    done.found(&meta.key, DIFFERS.into(), None);
                    continue;
                }
                None => {}
            }
            match key_object(from, &meta.key).await? {
                Ok(Some(bytes)) => self.small(&meta.key, &bytes, false, done).await?,
                Ok(None) => {}
                Err(error) => done.found(&meta.key, error.problem(), None),
            }
        }
        Ok(())
    }

    /// Prune records, which explain gaps, go where the replica's keeper does not look: they take nothing away there.
    async fn copy_records(&self, lineages: &Lineages, done: &mut Replicated) -> Result<()> {
        let Lineages { from, to } = lineages;
        let (own, elsewhere) = (prune::prefix(from), prune::prefix_elsewhere(from));
        let there = sizes(to.store.as_ref(), &elsewhere).await?;
        let handed_on = sizes(from.store.as_ref(), &elsewhere).await?;
        // What came from further away may have the number, and even the size, of one of this repository's own.
        let copied = |meta: &ObjectMeta| {
            let name = format!("{elsewhere}{}-", &meta.key[own.len()..]);
            let mut named = there.range(name.clone()..).take_while(|(key, _)| key.starts_with(&name));
            named.any(|(key, size)| *size == meta.size && !handed_on.contains_key(key))
        };
        let mut wanted = list_all(from.store.as_ref(), &own).await?;
        wanted.retain(|meta| !copied(meta));
        let mut further = list_all(from.store.as_ref(), &elsewhere).await?;
        further.retain(|meta| !there.contains_key(&meta.key));
        wanted.append(&mut further);
        let keepers = from.root.keepers()?;
        for meta in wanted {
            let read = async {
                let bytes = from.store.get(&meta.key).await?;
                prune::open_record(from, &meta, &bytes, &keepers).map(|_| bytes)
            };
            match sound(read.await)? {
                Ok(bytes) if meta.key.starts_with(&own) => {
                    let name = format!("{elsewhere}{}", prune::name_elsewhere(&meta.key[own.len()..], &bytes));
                    self.small(&name, &bytes, there.contains_key(&name), done).await?;
                }
                Ok(bytes) => self.small(&meta.key, &bytes, false, done).await?,
                Err(error) => done.found(&meta.key, error.problem(), None),
            }
        }
        Ok(())
    }

    async fn copy_snapshots(
        &self,
        lineages: &Lineages,
        wanted: Vec<(Sequence, ObjectMeta)>,
        tip: Option<&Snapshot>,
        done: &mut Replicated,
    ) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut packs = Packs::at(lineages, tip).await?;
        if self.options().retain_until.is_some() && !self.how.dry_run {
            self.retain(epoch::objects(lineages.to.store.as_ref(), &lineages.to.source).await?).await?;
        }
        for batch in wanted.chunks(BATCH) {
            let snapshots = lineages.read(batch, done).await?;
            let jobs: Vec<Vec<Job>> =
                snapshots.iter().map(|(snapshot, _)| packs.jobs(&snapshot.manifest.header.packs)).collect();
            let needed = jobs.iter().flatten().filter(|job| job.what == What::Copy);
            self.seen.expected.fetch_add(needed.map(|job| job.reference.size).sum(), Ordering::Relaxed);
            let counts: Vec<usize> = jobs.iter().map(Vec::len).collect();
            let work = jobs.into_iter().flatten().map(|job| self.pack(lineages, job));
            let mut work = futures_util::stream::iter(work).buffered(PACKS_AT_ONCE);
            for ((snapshot, bytes), count) in snapshots.into_iter().zip(counts) {
                for _ in 0..count {
                    if let Some((job, outcome)) = work.try_next().await? {
                        packs.settle(&job, outcome, done);
                    }
                }
                self.manifest(lineages, &snapshot, &bytes, &mut packs, done).await?;
            }
        }
        self.look_again(lineages, &packs).await
    }

    /// One pack: copied, or looked at.
    async fn pack(&self, lineages: &Lineages, job: Job) -> Result<(Job, Sound<Put>)> {
        let outcome = match job.what {
            _ if self.how.dry_run => Ok(if job.what == What::Copy { Put::Written } else { Put::Same }),
            What::Copy => {
                let _permit = self.permits.acquire().await.map_err(|_| RepoError::Stopped)?;
                copy_pack(&lineages.from, &job.reference, &lineages.to, self.options()).await?
            }
            // What an interrupted run left was whole and checked when it came to be; its tail says that it is that pack.
            What::Look => Ok(match checked_tail(&lineages.to, &job.reference).await? {
                Ok(_) => Put::Same,
                Err(_) => Put::Differs,
            }),
            What::Differs => Ok(Put::Differs),
        };
        if matches!(outcome, Ok(Put::Written)) {
            self.seen.packs.fetch_add(1, Ordering::Relaxed);
            self.seen.bytes.fetch_add(job.reference.size, Ordering::Relaxed);
        }
        Ok((job, outcome))
    }

    /// Makes a snapshot exist at the replica, if all that it names is there.
    async fn manifest(
        &self,
        lineages: &Lineages,
        snapshot: &Snapshot,
        bytes: &Bytes,
        packs: &mut Packs,
        done: &mut Replicated,
    ) -> Result<()> {
        let (object, references) = (&snapshot.manifest.object, &snapshot.manifest.header.packs);
        let failed: Vec<_> =
            references.iter().filter_map(|r| Some((r.pack, packs.failed.get(&key(r))?.clone()))).collect();
        if !failed.is_empty() {
            // A prune may have taken it away since it was listed; then there is nothing to report.
            if lineages.still_has(object).await? {
                for (pack, problem) in failed {
                    done.found(&pack::object(&lineages.from.source, pack), problem, Some(snapshot.sequence()));
                }
            }
            return Ok(());
        }
        let stale: Vec<String> = references
            .iter()
            .filter(|r| packs.locked.insert(r.pack))
            .map(|r| pack::object(&lineages.to.source, r.pack))
            .collect();
        let outcome = if self.how.dry_run {
            Put::Written
        } else {
            self.retain(stale).await?;
            put(lineages.to.store.as_ref(), object, bytes, self.options()).await?
        };
        packs.vouched.extend(references.iter().map(|r| r.pack));
        match outcome {
            Put::Written => {
                done.snapshots += 1;
                done.bytes += bytes.len() as u64;
            }
            Put::Same => {}
            Put::Differs => done.found(object, DIFFERS.into(), Some(snapshot.sequence())),
        }
        Ok(())
    }

    /// What an earlier run left was named by nothing, so the replica's keeper may have swept it in the last moment.
    async fn look_again(&self, lineages: &Lineages, packs: &Packs) -> Result<()> {
        if packs.left_over.is_empty() || self.how.dry_run {
            return Ok(());
        }
        let there = sizes(lineages.to.store.as_ref(), &pack::prefix(&lineages.to.source)).await?;
        for reference in &packs.left_over {
            let object = pack::object(&lineages.to.source, reference.pack);
            if !there.contains_key(&object) {
                copy_pack(&lineages.from, reference, &lineages.to, self.options()).await??;
            }
        }
        Ok(())
    }
}

const DIFFERS: &str = "the replica has another object under this name";

fn point(snapshot: &Snapshot) -> Point {
    let stated = snapshot.catalogue.as_ref().map(|c| c.recovery_point_ms);
    let time = Timestamp::from_millisecond(stated.unwrap_or(snapshot.manifest.header.time_ms));
    Point { sequence: snapshot.sequence(), time: time.unwrap_or(snapshot.stored_at) }
}

async fn sizes(store: &dyn Store, prefix: &str) -> Result<BTreeMap<String, u64>> {
    Ok(list_all(store, prefix).await?.into_iter().map(|object| (object.key, object.size)).collect())
}
