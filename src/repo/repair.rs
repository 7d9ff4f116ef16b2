//! Putting back what is missing or rotten, from another copy of the repository.
//!
//! Invariants: what is put back was checked first, by signature or by digest; what is sound here is never touched; a
//! rotten object is removed only when a sound one is known to be there for it, and what a retention date holds is left as
//! it is, and said so. No secret key is needed, only the right to remove and to put.
//! Deliberately absent: judging between two sound objects that differ. That is for people.

use crate::id::{Sequence, SourceName};
use crate::repo::epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::Lineage;
use crate::repo::manifest::PackRef;
use crate::repo::replicate::key_object;
use crate::repo::root::{self, Root};
use crate::repo::transfer::{Locking, check_pack, copy_pack, sound};
use crate::repo::verify::{Depth, Finding, Verified, Verifying};
use crate::repo::{Repository, manifest, pack, prune};
use crate::store::{ObjectMeta, PutOptions, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

/// What a repair has done so far.
#[derive(Debug, Default)]
struct Work {
    healed: Vec<String>,
    /// What no verification finds.
    findings: Vec<Finding>,
    /// Why an object could not be put back.
    reasons: BTreeMap<String, String>,
}

impl Work {
    fn left(&mut self, object: &str, reason: impl Into<String>) {
        self.reasons.insert(object.into(), reason.into());
    }

    /// Makes room for a sound object. `false` if the rotten one cannot be removed.
    async fn remove(&mut self, store: &dyn Store, object: &str) -> Result<bool> {
        // Whoever may not put there learns so before anything is gone. What is there is not overwritten.
        match store.put(object, Bytes::new(), PutOptions::default()).await {
            Err(error) if error.kind != StoreErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        match store.delete(object).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::Locked => {
                self.left(
                    object,
                    "a retention date (Object Lock) holds the rotten object; the other copy has it whole",
                );
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts `bytes` at `object`, in place of what is there.
    async fn put(&mut self, lineage: (&dyn Store, &Locking), object: &str, bytes: Bytes, there: bool) -> Result<()> {
        let (store, locking) = lineage;
        if there && !self.remove(store, object).await? {
            return Ok(());
        }
        store.put(object, bytes, locking.options(store)).await?;
        self.healed.push(object.into());
        Ok(())
    }
}

/// A root that was looked after.
#[derive(Debug)]
pub struct Mended {
    pub repository: Repository,
    /// Objects that were put back.
    pub healed: Vec<String>,
    pub findings: Vec<Finding>,
}

impl Repository {
    /// Opens the repository in `store`, after its root's objects were put back from `other` where they were missing or
    /// rotten.
    ///
    /// # Errors
    /// `Refused` if another repository is there, or nothing that belongs to this one; a store's.
    pub async fn mend(store: Arc<dyn Store>, other: &Self, locking: &Locking) -> Result<Mended> {
        let here = match Root::load(store.as_ref()).await {
            Ok(root) => Some(root),
            Err(RepoError::NoRepository { .. } | RepoError::Damaged { .. } | RepoError::Foreign { .. }) => None,
            Err(error) => return Err(error),
        };
        let belongs = match &here {
            Some(root) => root.id == other.root.id,
            None => belongs(store.as_ref(), &other.root).await?,
        };
        if !belongs {
            let (url, id) = (store.url(), other.root.id);
            return Err(RepoError::Refused(format!("{url} is no copy of repository {id}: nothing is put there")));
        }
        let (mut work, mut findings) = (Work::default(), Vec::new());
        for object in root::objects(other.store.as_ref()).await? {
            let first = object == root::ROOT;
            let theirs = if first {
                Some(root::first_bytes(other.store.as_ref(), &other.root).await?)
            } else {
                root::state_bytes(other.store.as_ref(), &object, &other.root).await?
            };
            let Some(theirs) = theirs else { continue };
            let ours = present(store.as_ref(), &object).await?;
            if ours.as_ref() == Some(&theirs) {
                continue;
            }
            let sound = if first {
                here.is_some()
            } else {
                root::state_bytes(store.as_ref(), &object, &other.root).await?.is_some()
            };
            if sound && ours.is_some() {
                findings.push(Finding { object, problem: BOTH_SOUND.into(), snapshots: Vec::new() });
                continue;
            }
            work.put((store.as_ref(), locking), &object, theirs, ours.is_some()).await?;
        }
        findings.extend(work.reasons.into_iter().map(|(object, problem)| Finding {
            object,
            problem,
            snapshots: Vec::new(),
        }));
        Ok(Mended { repository: Self::open(store).await?, healed: work.healed, findings })
    }
}

const BOTH_SOUND: &str = "both copies of it are sound, and they differ";

/// Whether an epoch in `store` was signed by a writer of `root`.
async fn belongs(store: &dyn Store, root: &Root) -> Result<bool> {
    for source in store.list_roots().await?.iter().filter_map(|name| SourceName::from_str(name).ok()) {
        for number in epoch::numbers(store, &source).await? {
            let epoch = epoch::load(store, root, &source, number).await;
            if matches!(sound(epoch)?, Ok(Some(_))) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What lies there, sound or not; `None` if nothing does.
async fn present(store: &dyn Store, object: &str) -> Result<Option<Bytes>> {
    match store.get(object).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) if error.kind.blames_object() => Ok(Some(Bytes::new())),
        Err(error) => Err(error.into()),
    }
}

/// The names of the objects below `prefix`, without it.
async fn names(store: &dyn Store, prefix: &str) -> Result<BTreeSet<String>> {
    Ok(list_all(store, prefix).await?.into_iter().map(|object| object.key[prefix.len()..].to_owned()).collect())
}

/// A source's lineage in two copies of a repository, under one root.
struct Pair<'a> {
    here: Arc<Lineage>,
    other: Arc<Lineage>,
    locking: &'a Locking,
}

impl Lineage {
    /// Verifies, at `depth`, and puts back from `other` what is missing or rotten. What could be is in `healed`, what
    /// could not in `findings`, with the reason.
    ///
    /// # Errors
    /// As [`Lineage::verify`]; what was put back stands, and again is safe.
    pub async fn repair(
        self: &Arc<Self>,
        other: &Repository,
        locking: &Locking,
        depth: Depth,
        seen: &Verifying,
    ) -> Result<Verified> {
        let copy = || {
            let lineage = |store: &Arc<dyn Store>| {
                let (root, source, access) = (self.root.clone(), self.source.clone(), self.access.clone());
                Arc::new(Self::new(store.clone(), root, source, access))
            };
            Pair { here: lineage(&self.store), other: lineage(&other.store), locking }
        };
        let mut work = Work::default();
        copy().keys(&mut work).await?;
        // Others from here on: an epoch that was put back is to be read anew.
        let pair = copy();
        pair.records(&mut work).await?;
        pair.manifests(&mut work).await?;
        let pair = copy();
        let mut verified = pair.here.verify_watched(depth, 1.0, 0, seen).await?;
        pair.packs(&mut verified, &mut work).await?;
        for finding in &mut verified.findings {
            if let Some(reason) = work.reasons.get(finding.key()) {
                finding.problem += &format!("; not repaired: {reason}");
            }
        }
        verified.findings.append(&mut work.findings);
        verified.healed = work.healed;
        Ok(verified)
    }
}

impl Pair<'_> {
    fn place(&self) -> (&dyn Store, &Locking) {
        (self.here.store.as_ref(), self.locking)
    }

    async fn keys(&self, work: &mut Work) -> Result<()> {
        let store = self.here.store.as_ref();
        for object in epoch::objects(self.other.store.as_ref(), &self.other.source).await? {
            let Ok(Some(theirs)) = key_object(&self.other, &object).await? else { continue };
            let ours = present(store, &object).await?;
            if ours.as_ref() == Some(&theirs) {
                continue;
            }
            match ours {
                Some(_) if key_object(&self.here, &object).await?.is_ok() => {
                    work.findings.push(Finding { object, problem: BOTH_SOUND.into(), snapshots: Vec::new() });
                }
                ours => work.put(self.place(), &object, theirs, ours.is_some()).await?,
            }
        }
        Ok(())
    }

    /// Prune records that are rotten. What is a copy's own is another's of elsewhere; never the own of both, which are
    /// records of two keepers: one of them would take away here what it took away there.
    async fn records(&self, work: &mut Work) -> Result<()> {
        let (_, rotten) = prune::explained(&self.here).await?;
        if rotten.is_empty() {
            return Ok(());
        }
        let (own, elsewhere) = (prune::prefix(&self.here), prune::prefix_elsewhere(&self.here));
        let ours: BTreeSet<String> = names(self.here.store.as_ref(), &elsewhere).await?;
        let theirs = names(self.other.store.as_ref(), &elsewhere).await?;
        let keepers = self.here.root.keepers()?;
        for (meta, _) in rotten {
            let candidates: Vec<String> = if let Some(name) = meta.key.strip_prefix(&own) {
                let longer = format!("{name}-");
                let named = theirs.iter().filter(|their| their.starts_with(&longer) && !ours.contains(*their));
                named.map(|name| format!("{elsewhere}{name}")).collect()
            } else {
                let name = &meta.key[elsewhere.len()..];
                let short = prune::own_name(name);
                vec![meta.key.clone(), format!("{own}{short}")]
            };
            let mut found = Vec::new();
            for candidate in candidates {
                let read = async {
                    let bytes = self.other.store.get(&candidate).await?;
                    // It must be right under the name that it is to have.
                    prune::open_record(&self.here, &meta, &bytes, &keepers).map(|_| bytes)
                };
                let fits = |bytes: &Bytes| meta.key.starts_with(&own) || prune::has_digest_of_name(&meta.key, bytes);
                found.extend(sound(read.await)?.ok().filter(fits));
            }
            match found.first() {
                Some(bytes) if found.iter().all(|other| other == bytes) => {
                    work.put(self.place(), &meta.key, bytes.clone(), true).await?;
                }
                Some(_) => work.left(&meta.key, BOTH_SOUND),
                None => work.left(&meta.key, NOT_THERE),
            }
        }
        Ok(())
    }

    /// Manifests that are missing or do not count; and where the other copy explains a gap, its record.
    async fn manifests(&self, work: &mut Work) -> Result<()> {
        let (_, stepped_over) = self.here.snapshots().await?;
        let missing = self.here.missing().await?;
        let theirs: BTreeMap<Sequence, ObjectMeta> = self.other.list().await?.into_iter().collect();
        let wanted = stepped_over.iter().map(|over| (over.sequence, true)).chain(missing.iter().map(|s| (*s, false)));
        let mut unknown = BTreeSet::new();
        for (sequence, there) in wanted {
            let object = manifest::object(&self.here.source, sequence);
            let Some(meta) = theirs.get(&sequence) else {
                unknown.insert(sequence);
                work.left(&object, NOT_THERE);
                continue;
            };
            match sound(self.other.read_with_bytes(sequence, meta).await)? {
                Ok((_, bytes)) => work.put(self.place(), &object, bytes, there).await?,
                Err(error) => {
                    work.left(&object, format!("the other copy has none that is sound either: {}", error.problem()));
                }
            }
        }
        self.gaps(&unknown, work).await
    }

    async fn gaps(&self, unknown: &BTreeSet<Sequence>, work: &mut Work) -> Result<()> {
        if unknown.is_empty() {
            return Ok(());
        }
        let elsewhere = prune::prefix_elsewhere(&self.here);
        for (name, bytes) in prune::explaining(&self.other, unknown).await? {
            let object = format!("{elsewhere}{name}");
            if present(self.here.store.as_ref(), &object).await?.is_none() {
                work.put(self.place(), &object, bytes, false).await?;
            }
        }
        Ok(())
    }

    async fn packs(&self, verified: &mut Verified, work: &mut Work) -> Result<()> {
        let prefix = pack::prefix(&self.here.source);
        let keys: BTreeSet<String> =
            verified.findings.iter().map(|f| f.key().to_owned()).filter(|key| key.starts_with(&prefix)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let (snapshots, _) = self.here.snapshots().await?;
        let named = snapshots.iter().flat_map(|snapshot| &snapshot.manifest.header.packs);
        let named: BTreeMap<String, &PackRef> =
            named.map(|reference| (pack::object(&self.here.source, reference.pack), reference)).collect();
        for key in keys {
            let Some(reference) = named.get(&key) else { continue };
            if let Err(error) = check_pack(&self.other, reference).await? {
                work.left(&key, format!("the other copy has none that is sound either: {}", error.problem()));
                continue;
            }
            if check_pack(&self.here, reference).await?.is_ok() {
                work.left(&key, "both copies are as they were written");
                continue;
            }
            let store = self.here.store.as_ref();
            let there = match store.head(&key).await {
                Ok(_) => true,
                Err(error) if error.kind == StoreErrorKind::NotFound => false,
                Err(error) => return Err(error.into()),
            };
            if there && !work.remove(store, &key).await? {
                continue;
            }
            match copy_pack(&self.other, reference, &self.here, self.locking.options(store)).await? {
                Ok(_) => {
                    work.healed.push(key.clone());
                    verified.findings.retain(|finding| finding.key() != key);
                }
                Err(error) => work.left(&key, error.problem()),
            }
        }
        Ok(())
    }
}

const NOT_THERE: &str = "the other copy does not have it";
