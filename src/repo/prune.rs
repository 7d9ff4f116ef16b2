//! Forgetting snapshots and sweeping the packs that nothing names any more. Planned first, carried out after.
//!
//! Two steps keep a running backup safe, which may build on what is being forgotten: a signed prune record takes the
//! snapshots away; the packs that it sets free are deleted only when the grace period, longer than any run may last, has
//! passed since that record by the store's own clock, and after the references were read again.

use crate::id::{PackId, Sequence};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{KeeperKey, hex, unhex};
use crate::repo::lineage::{Lineage, Snapshot};
use crate::repo::manifest::State;
use crate::repo::pack;
use crate::repo::root::{open_json, sign_json};
use crate::store::{ObjectMeta, PutOptions, StoreErrorKind, list_all};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

pub(crate) const SIGNATURE: &str = "lifeboat.dev 2026 prune";

/// `<source>/pruned/<number>`: what was taken away, and which packs that set free.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    repository: String,
    source: String,
    number: u64,
    time: Timestamp,
    removed: Vec<Removed>,
    freed: Vec<String>,
    #[serde(skip)]
    stored_at: Timestamp,
    #[serde(skip)]
    object: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Removed {
    sequence: u64,
    /// BLAKE3 of the manifest, so that the chain can still be followed.
    digest: String,
}

impl Record {
    /// The snapshots taken away, and the digests of their manifests.
    pub fn removed(&self) -> impl Iterator<Item = (Sequence, [u8; 32])> + '_ {
        let possible = self.removed.iter().filter(|r| (1..=Sequence::MAX).contains(&r.sequence));
        possible.filter_map(|r| Some((Sequence(r.sequence), unhex(&r.digest)?)))
    }
}

pub(crate) fn prefix(lineage: &Lineage) -> String {
    format!("{}/pruned/", lineage.source)
}

/// `<source>/pruned-elsewhere/`: in a replica, the records of the repository that it is a replica of. They explain which
/// snapshots are not here, and take none away.
pub(crate) fn prefix_elsewhere(lineage: &Lineage) -> String {
    format!("{}/pruned-elsewhere/", lineage.source)
}

/// Records, newest first, and what lies among them and is none (damaged or foreign).
pub(crate) type Records = (Vec<Record>, Vec<(ObjectMeta, RepoError)>);

/// Every prune record of this repository's own.
pub(crate) async fn records(lineage: &Lineage) -> Result<Records> {
    records_below(lineage, &prefix(lineage)).await
}

/// Every prune record of repositories that this one is a replica of.
pub(crate) async fn records_elsewhere(lineage: &Lineage) -> Result<Records> {
    records_below(lineage, &prefix_elsewhere(lineage)).await
}

/// The snapshots that any record takes away, and the digests of their manifests; and what is no record.
pub(crate) async fn explained(
    lineage: &Lineage,
) -> Result<(BTreeMap<Sequence, [u8; 32]>, Vec<(ObjectMeta, RepoError)>)> {
    let (elsewhere, mut others) = records_elsewhere(lineage).await?;
    let (own, more) = records(lineage).await?;
    others.extend(more);
    Ok((elsewhere.iter().chain(&own).flat_map(Record::removed).collect(), others))
}

async fn records_below(lineage: &Lineage, prefix: &str) -> Result<Records> {
    let objects = list_all(lineage.store.as_ref(), prefix).await?;
    let keepers = lineage.root.keepers()?;
    let mut reads = std::pin::pin!(read(lineage, &keepers, objects));
    let (mut records, mut others) = (Vec::new(), Vec::new());
    while let Some((object, record)) = reads.next().await {
        match sound(record)? {
            Ok(record) => records.push(record),
            Err(error) => others.push((object, error)),
        }
    }
    Ok((records, others))
}

/// Reads records one by one, some ahead.
fn read<'a>(
    lineage: &'a Lineage,
    keepers: &'a [[u8; 32]],
    objects: Vec<ObjectMeta>,
) -> impl Stream<Item = (ObjectMeta, Result<Record>)> + 'a {
    let read = move |object: ObjectMeta| async move {
        let record = match lineage.store.get(&object.key).await {
            Ok(bytes) => open_record(lineage, &object, &bytes, keepers),
            Err(error) => Err(error.into()),
        };
        (object, record)
    };
    futures_util::stream::iter(objects).map(read).buffered(8)
}

/// A record, or why it is none. A store that does not answer is neither.
fn sound(record: Result<Record>) -> Result<Result<Record, RepoError>> {
    match record {
        Err(error) if !matches!(error, RepoError::Damaged { .. } | RepoError::Foreign { .. }) => Err(error),
        other => Ok(other),
    }
}

/// Checks the record in `bytes`, which lie at `object`.
pub(crate) fn open_record(
    lineage: &Lineage,
    object: &ObjectMeta,
    bytes: &[u8],
    keepers: &[[u8; 32]],
) -> Result<Record> {
    let mut opened = Err(RepoError::damaged(&object.key, "the repository names no keeper"));
    for keeper in keepers {
        opened = open_json(&object.key, bytes, SIGNATURE, |_: &Record| Ok(*keeper));
        if opened.is_ok() {
            break;
        }
    }
    let mut record: Record = opened?;
    let elsewhere = object.key.starts_with(&prefix_elsewhere(lineage));
    let name = object.key.rsplit('/').next().unwrap_or_default();
    let named = Sequence::from_object_name(if elsewhere { own_name(name) } else { name });
    if record.repository != lineage.root.id.to_string()
        || record.source != lineage.source.as_str()
        || named != Some(Sequence(record.number))
    {
        let reason = "it is another repository's, source's or number's".into();
        return Err(RepoError::Foreign { object: object.key.clone(), reason });
    }
    record.stored_at = object.modified;
    record.object.clone_from(&object.key);
    Ok(record)
}

/// The name, under `pruned-elsewhere/`, of the record that another copy has as `name` of its own.
pub(crate) fn name_elsewhere(name: &str, bytes: &[u8]) -> String {
    format!("{name}-{}", hex(&blake3::hash(bytes).as_bytes()[..8]))
}

/// The name that a record of elsewhere has where it comes from.
pub(crate) fn own_name(name: &str) -> &str {
    let end = name.match_indices('-').nth(1).map_or(name.len(), |(at, _)| at);
    &name[..end]
}

/// Whether `bytes` are those that the key of a record of elsewhere is named after.
pub(crate) fn has_digest_of_name(key: &str, bytes: &[u8]) -> bool {
    let name = key.rsplit('/').next().unwrap_or_default();
    name_elsewhere(own_name(name), bytes) == name
}

/// The records that take any of `wanted` away, under the names that they have elsewhere.
pub(crate) async fn explaining(lineage: &Lineage, wanted: &BTreeSet<Sequence>) -> Result<Vec<(String, Bytes)>> {
    let mut found = Vec::new();
    for prefix in [prefix(lineage), prefix_elsewhere(lineage)] {
        let (records, _) = records_below(lineage, &prefix).await?;
        for record in records.iter().filter(|r| r.removed().any(|(sequence, _)| wanted.contains(&sequence))) {
            let bytes = lineage.store.get(&record.object).await?;
            let name = record.object[prefix.len()..].to_owned();
            let own = prefix == self::prefix(lineage);
            found.push((if own { name_elsewhere(&name, &bytes) } else { name }, bytes));
        }
    }
    Ok(found)
}

/// How far back [`Lineage::missing_lately`] looks: a week of snapshots every five minutes.
const LATELY: u64 = 2_016;

/// What a prune would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Snapshots to take away.
    pub remove: Vec<Sequence>,
    /// Packs that only they name, and their bytes: to be deleted when the grace period has passed.
    pub freed: usize,
    pub freed_bytes: u64,
    /// Packs that nothing names already, and their bytes.
    pub unreferenced: usize,
    pub unreferenced_bytes: u64,
    /// Manifests that cannot be read and are taken to name nothing.
    pub ignore: Vec<Sequence>,
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub removed: Vec<Sequence>,
    pub deleted_packs: usize,
    pub deleted_bytes: u64,
    /// Packs that wait for the grace period.
    pub waiting: usize,
    /// Objects that a retention date (Object Lock) still holds.
    pub locked: usize,
}

fn named_packs<'a>(snapshots: impl IntoIterator<Item = &'a Snapshot>) -> BTreeSet<PackId> {
    snapshots.into_iter().flat_map(|s| s.manifest.header.packs.iter().map(|p| p.pack)).collect()
}

/// What a lineage holds now.
struct Holdings {
    snapshots: Vec<Snapshot>,
    /// Packs in the store.
    packs: Vec<(PackId, ObjectMeta)>,
}

impl Lineage {
    /// Numbers below the highest that neither a manifest nor a prune record explains: somebody hid or removed those
    /// snapshots. The first thousand.
    ///
    /// # Errors
    /// A store's.
    pub async fn missing(&self) -> Result<Vec<Sequence>> {
        let mut known: BTreeSet<Sequence> = self.list().await?.into_iter().map(|(sequence, _)| sequence).collect();
        let highest = known.last().map_or(0, |sequence| sequence.0);
        if known.len() as u64 == highest {
            return Ok(Vec::new());
        }
        known.extend(explained(self).await?.0.into_keys());
        Ok((1..highest).map(Sequence).filter(|sequence| !known.contains(sequence)).take(1000).collect())
    }

    /// As [`Lineage::missing`], among the last [`LATELY`] numbers. Reads no more prune records than it takes to explain those,
    /// however many there are.
    pub async fn missing_lately(&self) -> Result<Vec<Sequence>> {
        let known: BTreeSet<Sequence> = self.list().await?.into_iter().map(|(sequence, _)| sequence).collect();
        let highest = known.last().map_or(0, |sequence| sequence.0);
        let lately = (highest.saturating_sub(LATELY).max(1)..highest).map(Sequence);
        let mut gaps: BTreeSet<Sequence> = lately.filter(|sequence| !known.contains(sequence)).collect();
        let keepers = self.root.keepers()?;
        for prefix in [prefix(self), prefix_elsewhere(self)] {
            if gaps.is_empty() {
                break;
            }
            // The newest come first.
            let objects = list_all(self.store.as_ref(), &prefix).await?;
            let mut records = std::pin::pin!(read(self, &keepers, objects));
            while !gaps.is_empty()
                && let Some((_, record)) = records.next().await
            {
                let removed =
                    sound(record)?.map(|record| record.removed().map(|(sequence, _)| sequence).collect::<Vec<_>>());
                for sequence in removed.into_iter().flatten() {
                    gaps.remove(&sequence);
                }
            }
        }
        Ok(gaps.into_iter().take(1000).collect())
    }

    async fn look(&self, ignore: &[Sequence]) -> Result<Holdings> {
        let (snapshots, stepped_over) = self.snapshots().await?;
        if let Some(over) = stepped_over.into_iter().find(|over| !ignore.contains(&over.sequence)) {
            // What a damaged manifest names is not known; nothing is removed on a guess.
            return Err(RepoError::PruneBlocked { object: over.object, source: Box::new(over.error) });
        }
        let prefix = pack::prefix(&self.source);
        let packs = list_all(self.store.as_ref(), &prefix).await?;
        let packs =
            packs.into_iter().filter_map(|o| Some((PackId::from_str(&o.key[prefix.len()..]).ok()?, o))).collect();
        Ok(Holdings { snapshots, packs })
    }

    /// What removing `remove` would do. A manifest that cannot be read stops everything, since what it needs is not known;
    /// `ignore` names those that a person has judged to be foreign.
    ///
    /// # Errors
    /// `Refused` when the newest good snapshot or the highest number is among them; a damaged manifest.
    pub async fn plan_prune(&self, remove: &[Sequence], ignore: &[Sequence]) -> Result<Plan> {
        let Holdings { snapshots, packs } = self.look(ignore).await?;
        let (plan, _) = plan(&snapshots, &packs, remove)?;
        Ok(Plan { ignore: ignore.to_vec(), ..plan })
    }

    /// Carries a plan out: the record, the manifests, then the packs whose grace period has passed (those first, if the store is
    /// full to the last byte).
    ///
    /// # Errors
    /// As [`Lineage::plan_prune`]; `WrongKey` for another keeper's key; a store's. What was done stands; again is safe.
    pub async fn prune(&self, plan: &Plan, keeper: &KeeperKey, grace: Duration, now: Timestamp) -> Result<Pruned> {
        self.root.accept_keeper(keeper)?;
        let Holdings { snapshots, packs } = self.look(&plan.ignore).await?;
        let (checked, freed) = self::plan(&snapshots, &packs, &plan.remove)?;
        let mut pruned = Pruned { removed: checked.remove.clone(), ..Pruned::default() };
        let (mut records, mut others) = records(self).await?;
        // An interrupted prune, or a lock, may have left some that a record names already.
        let named: BTreeSet<(Sequence, [u8; 32])> = records.iter().flat_map(Record::removed).collect();
        let going = snapshots.iter().filter(|snapshot| checked.remove.contains(&snapshot.sequence()));
        let new: Vec<&Snapshot> =
            going.filter(|snapshot| !named.contains(&(snapshot.sequence(), snapshot.manifest.digest))).collect();
        let free: BTreeSet<&String> = records.iter().flat_map(|record| &record.freed).collect();
        if !new.is_empty() || freed.iter().any(|pack| !free.contains(&pack.to_string())) {
            let record = async || self.write_record((&records, &others), &new, &freed, keeper, now).await;
            match record().await {
                // Not even the record finds room: what was set free earlier can go first.
                Err(RepoError::Store(full)) if full.kind == StoreErrorKind::Full => {
                    let mut early = Pruned::default();
                    self.sweep(plan, &records, &others, grace, &mut early).await?;
                    if early.deleted_packs == 0 {
                        return Err(full.into());
                    }
                    (pruned.deleted_packs, pruned.deleted_bytes) = (early.deleted_packs, early.deleted_bytes);
                    record().await?;
                }
                other => other?,
            }
            (records, others) = self::records(self).await?;
        }
        // What the records name is not enough: those of another copy of the repository fit here too.
        let gone: BTreeSet<Sequence> = checked.remove.iter().copied().collect();
        for (sequence, object) in self.list().await?.into_iter().filter(|(s, _)| gone.contains(s)) {
            match self.store.delete(&object.key).await {
                Err(e) if e.kind == StoreErrorKind::Locked => pruned.locked += 1,
                Err(e) => return Err(e.into()),
                Ok(()) => tracing::debug!(source = %self.source, %sequence, "removed a manifest"),
            }
        }
        self.sweep(plan, &records, &others, grace, &mut pruned).await?;
        Ok(pruned)
    }

    async fn write_record(
        &self,
        (records, others): (&[Record], &[(ObjectMeta, RepoError)]),
        removed: &[&Snapshot],
        freed: &BTreeSet<PackId>,
        keeper: &KeeperKey,
        now: Timestamp,
    ) -> Result<()> {
        let prefix = prefix(self);
        let numbered = |object: &ObjectMeta| Sequence::from_object_name(&object.key[prefix.len()..]);
        let taken = others.iter().filter_map(|(object, _)| numbered(object)).collect();
        let number = records.first().map_or(Sequence(0), |r| Sequence(r.number)).next_free(&taken);
        let removed = removed.iter().map(|s| Removed { sequence: s.sequence().0, digest: hex(&s.manifest.digest) });
        let record = Record {
            repository: self.root.id.to_string(),
            source: self.source.to_string(),
            number: number.0,
            time: now,
            removed: removed.collect(),
            freed: freed.iter().map(ToString::to_string).collect(),
            stored_at: now,
            object: String::new(),
        };
        let bytes = sign_json(&keeper.signer(self.root.id), SIGNATURE, &record)?;
        match self
            .store
            .put(&format!("{prefix}{}", number.object_name()), Bytes::from(bytes), PutOptions::default())
            .await
        {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Err(RepoError::Busy(self.source.clone())),
            other => Ok(other?),
        }
    }

    /// Deletes packs that nothing names, of which neither the object nor the record that set it free is younger than the
    /// grace period.
    async fn sweep(
        &self,
        plan: &Plan,
        records: &[Record],
        others: &[(ObjectMeta, RepoError)],
        grace: Duration,
        pruned: &mut Pruned,
    ) -> Result<()> {
        // References are read after the list of packs: a pack that came later is not in the list.
        let prefix = pack::prefix(&self.source);
        let packs = list_all(self.store.as_ref(), &prefix).await?;
        let Holdings { snapshots, .. } = self.look(&plan.ignore).await?;
        let named = named_packs(&snapshots);
        let candidates: Vec<(PackId, ObjectMeta)> = packs
            .into_iter()
            .filter_map(|o| Some((PackId::from_str(&o.key[prefix.len()..]).ok()?, o)))
            .filter(|(pack, _)| !named.contains(pack))
            .collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let store_now = self.store_now().await?;
        let waits = |since: Timestamp| store_now.duration_since(since).as_secs() < grace.as_secs().cast_signed();
        // A record that cannot be read may have set any of them free.
        let unknown = others.iter().any(|(object, _)| waits(object.modified));
        for (pack, object) in candidates {
            let name = pack.to_string();
            let freed = records.iter().filter(|r| r.freed.contains(&name));
            if unknown || waits(object.modified) || freed.into_iter().any(|r| waits(r.stored_at)) {
                pruned.waiting += 1;
                continue;
            }
            match self.store.delete(&object.key).await {
                Err(e) if e.kind == StoreErrorKind::Locked => pruned.locked += 1,
                Err(e) => return Err(e.into()),
                Ok(()) => {
                    pruned.deleted_packs += 1;
                    pruned.deleted_bytes += object.size;
                }
            }
        }
        Ok(())
    }

    /// What time the store has: a keeper whose clock runs ahead must not sweep too early.
    async fn store_now(&self) -> Result<Timestamp> {
        let object = format!("{}/log/clock-{}", self.source, hex(&crate::repo::keys::random::<8>()));
        self.store.put(&object, Bytes::new(), PutOptions::default()).await?;
        let meta = self.store.head(&object).await;
        match self.store.delete(&object).await {
            // A bucket may lock whatever is put there.
            Err(e) if e.kind != StoreErrorKind::Locked => return Err(e.into()),
            _ => {}
        }
        Ok(meta?.modified)
    }
}

fn plan(
    snapshots: &[Snapshot],
    packs: &[(PackId, ObjectMeta)],
    remove: &[Sequence],
) -> Result<(Plan, BTreeSet<PackId>)> {
    let remove: BTreeSet<Sequence> = remove.iter().copied().collect();
    let highest = snapshots.iter().map(Snapshot::sequence).max();
    let newest =
        |wanted: fn(State) -> bool| snapshots.iter().filter(|s| wanted(s.state())).map(Snapshot::sequence).max();
    let kept = [highest, newest(|s| s == State::Good), newest(|s| s != State::Quarantined)];
    if let Some(kept) = kept.into_iter().flatten().find(|s| remove.contains(s)) {
        return Err(RepoError::Refused(format!("snapshot {kept} is the newest (good) one and is never removed")));
    }
    let (going, staying): (Vec<_>, Vec<_>) = snapshots.iter().partition(|s| remove.contains(&s.sequence()));
    let named = named_packs(staying);
    let freed: BTreeSet<PackId> = &named_packs(going.iter().copied()) - &named;
    let all_named = named_packs(snapshots);
    let bytes = |wanted: &dyn Fn(&PackId) -> bool| {
        let sizes = packs.iter().filter(|(pack, _)| wanted(pack)).map(|(_, object)| object.size);
        (sizes.clone().count(), sizes.sum())
    };
    let (freed_count, freed_bytes) = bytes(&|pack| freed.contains(pack));
    let (unreferenced, unreferenced_bytes) = bytes(&|pack| !all_named.contains(pack));
    let remove = going.iter().map(|s| s.sequence()).collect();
    let ignore = Vec::new();
    let plan = Plan { remove, freed: freed_count, freed_bytes, unreferenced, unreferenced_bytes, ignore };
    Ok((plan, freed))
}
