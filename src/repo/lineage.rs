//! One source's line of snapshots: finding, trusting and opening them.

use crate::id::{Sequence, SourceName};
use crate::repo::epoch::{self, Access, Checked, Epoch};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::WriterKeys;
use crate::repo::manifest::{self, Catalogue, Manifest, PackRef, State};
use crate::repo::pack::{self, PackIndex};
use crate::repo::prune;
use crate::repo::root::Root;
use crate::store::{ObjectMeta, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Which snapshot of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest that is not in quarantine.
    Latest,
    /// The newest whose recovery point is at or before this moment, not in quarantine.
    At(Timestamp),
    /// By number, in quarantine or not.
    Number(Sequence),
}

/// A snapshot whose signature was checked.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub manifest: Manifest,
    /// `None` without a key that opens it.
    pub catalogue: Option<Catalogue>,
    /// When the store took the manifest, by the store's clock.
    pub stored_at: Timestamp,
    pub manifest_size: u64,
}

impl Snapshot {
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.manifest.header.sequence
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.manifest.header.state
    }

    /// The moment the data represents; the store's time of the manifest where no key opens the catalogue.
    #[must_use]
    pub fn recovery_point(&self) -> Timestamp {
        let stated = self.catalogue.as_ref().map(|c| Timestamp::from_millisecond(c.recovery_point_ms));
        stated.and_then(Result::ok).unwrap_or(self.stored_at)
    }
}

/// A manifest that does not count, and why.
#[derive(Debug)]
pub struct SteppedOver {
    pub sequence: Sequence,
    pub object: String,
    pub error: RepoError,
}

/// The newest end of a lineage.
#[derive(Debug, Default)]
pub struct Newest {
    pub snapshot: Option<Snapshot>,
    pub stepped_over: Vec<SteppedOver>,
    /// The newest that is valid, in quarantine or not, and the digest of its manifest: the next one's parent.
    pub tip: Option<(Sequence, [u8; 32])>,
}

/// What a copy of a lineage has of it.
#[derive(Debug, Default)]
pub struct Shared {
    /// The newest that both have, or that was pruned where it comes from, and that is not in quarantine.
    pub newest: Option<Snapshot>,
    /// The newest after it that only the copy has.
    pub only_there: Option<Sequence>,
    /// The newest after it where the other has another under its number: both were written to.
    pub parted: Option<Sequence>,
}

impl Newest {
    /// The highest number of a valid snapshot.
    #[must_use]
    pub fn highest(&self) -> Option<Sequence> {
        self.tip.map(|tip| tip.0)
    }

    /// The next number: the first above the tip that nothing has, valid or not. A number that somebody put there without
    /// being able to sign must not move the count.
    pub(crate) fn next(&self) -> Sequence {
        let taken: BTreeSet<Sequence> = self.stepped_over.iter().map(|over| over.sequence).collect();
        self.highest().unwrap_or(Sequence(0)).next_free(&taken)
    }
}

/// A handle on one source's snapshots.
#[derive(Debug)]
pub struct Lineage {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) root: Root,
    pub(crate) source: SourceName,
    pub(crate) access: Access,
    epochs: Mutex<BTreeMap<u32, Arc<Epoch>>>,
    /// Those that were looked at, opened or not.
    checked: Mutex<BTreeMap<u32, Arc<Checked>>>,
    /// Numbers that prune records took away, with the digests of those that they name.
    removed: OnceCell<BTreeMap<Sequence, BTreeSet<[u8; 32]>>>,
}

impl Lineage {
    pub(crate) fn new(store: Arc<dyn Store>, root: Root, source: SourceName, access: Access) -> Self {
        let (epochs, checked) = (Mutex::default(), Mutex::default());
        Self { store, root, source, access, epochs, checked, removed: OnceCell::new() }
    }

    #[must_use]
    pub fn source(&self) -> &SourceName {
        &self.source
    }

    /// An epoch, opened as far as the access allows; `None` if it was never begun.
    pub(crate) async fn epoch(&self, number: u32) -> Result<Option<Arc<Epoch>>> {
        let known = self.epochs.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(checked) = self.checked(number).await? else { return Ok(None) };
        let opened = epoch::open(self.store.as_ref(), &self.root, &self.source, &checked, &self.access).await?;
        Ok(Some(self.remember(opened)))
    }

    /// What anybody may know of an epoch; `None` if it was never begun.
    async fn checked(&self, number: u32) -> Result<Option<Arc<Checked>>> {
        let known = self.checked.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let loaded = epoch::load(self.store.as_ref(), &self.root, &self.source, number).await?.map(Arc::new);
        if let Some(loaded) = &loaded {
            self.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(number, loaded.clone());
        }
        Ok(loaded)
    }

    pub(crate) fn remember(&self, epoch: Epoch) -> Arc<Epoch> {
        let epoch = Arc::new(epoch);
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.insert(epoch.number, epoch.clone());
        epoch
    }

    /// The epoch that signed a snapshot.
    pub(crate) async fn epoch_of(&self, object: &str, number: u32) -> Result<Arc<Epoch>> {
        self.epoch(number).await?.ok_or_else(|| self.no_epoch(object, number))
    }

    fn no_epoch(&self, object: &str, number: u32) -> RepoError {
        let reason = format!("it names epoch {number}, which {} does not have", self.source);
        RepoError::Foreign { object: object.into(), reason }
    }

    /// Every manifest object, newest first, by name only.
    ///
    /// # Errors
    /// The listing failed.
    pub async fn list(&self) -> Result<Vec<(Sequence, ObjectMeta)>> {
        let prefix = manifest::prefix(&self.source);
        let all = list_all(self.store.as_ref(), &prefix).await?;
        Ok(all.into_iter().filter_map(|o| Some((Sequence::from_object_name(&o.key[prefix.len()..])?, o))).collect())
    }

    /// Reads and checks one snapshot.
    ///
    /// # Errors
    /// `Damaged`, `Foreign`, a store's.
    pub async fn read(&self, sequence: Sequence, meta: &ObjectMeta) -> Result<Snapshot> {
        Ok(self.read_with_bytes(sequence, meta).await?.0)
    }

    /// [`Lineage::read`], for whoever also wants the object as it is.
    pub(crate) async fn read_with_bytes(&self, sequence: Sequence, meta: &ObjectMeta) -> Result<(Snapshot, Bytes)> {
        let bytes = self.store.get(&meta.key).await?;
        let claimed = Manifest::claimed_epoch(&meta.key, &bytes)?;
        let checked = self.checked(claimed).await?.ok_or_else(|| self.no_epoch(&meta.key, claimed))?;
        // Whoever holds a key that was rotated away may still sign: not under a number that pruning has freed.
        if checked.retired_at.is_some() && self.is_removed(sequence, blake3::hash(&bytes).as_bytes()).await? {
            let reason = "a prune record took this number away".into();
            return Err(RepoError::Foreign { object: meta.key.clone(), reason });
        }
        let mut manifest = Manifest::parse(&bytes, self.root.id, &self.source, sequence, &checked)?;
        // Only of one that counts: an epoch that somebody left, and that no key opens, must not stop whoever reads.
        let epoch = self.epoch_of(&meta.key, claimed).await?;
        let catalogue = epoch.writer.as_ref().map(|keys| manifest.take_catalogue(&self.source, keys)).transpose()?;
        let snapshot = Snapshot { manifest, catalogue, stored_at: meta.modified, manifest_size: meta.size };
        Ok((snapshot, bytes))
    }

    /// What was pruned may still lie here (elsewhere, under a lock, half-way): the very same snapshot, and no other in its place.
    async fn is_removed(&self, sequence: Sequence, digest: &[u8; 32]) -> Result<bool> {
        Ok(self.removed().await?.get(&sequence).is_some_and(|those| !those.contains(digest)))
    }

    async fn removed(&self) -> Result<&BTreeMap<Sequence, BTreeSet<[u8; 32]>>> {
        let read = || async {
            let ((own, _), (elsewhere, _)) = (prune::records(self).await?, prune::records_elsewhere(self).await?);
            let mut removed: BTreeMap<Sequence, BTreeSet<[u8; 32]>> = BTreeMap::new();
            for (sequence, digest) in own.iter().chain(&elsewhere).flat_map(prune::Record::removed) {
                removed.entry(sequence).or_default().insert(digest);
            }
            Ok(removed)
        };
        self.removed.get_or_try_init(read).await
    }

    /// The newest valid snapshot that is not in quarantine. Costs one listing of one page, and one read.
    ///
    /// # Errors
    /// A store's; what is wrong with a single manifest is in `stepped_over`.
    pub async fn newest(&self) -> Result<Newest> {
        self.newest_where(|snapshot| snapshot.state() != State::Quarantined).await
    }

    /// What a replica has of the lineage that it is a copy of.
    ///
    /// # Errors
    /// A store's.
    pub async fn shared_with(&self, origin: &Self) -> Result<Shared> {
        let mut shared = Shared::default();
        for (sequence, meta) in self.list().await? {
            let own = match self.read(sequence, &meta).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    passable(error)?;
                    continue;
                }
            };
            let digest = own.manifest.digest;
            let theirs = match origin.store.head(&meta.key).await {
                Err(error) if error.kind == StoreErrorKind::NotFound => None,
                other => Some(other?),
            };
            let is_same = match &theirs {
                None => origin.removed().await?.get(&sequence).is_some_and(|those| those.contains(&digest)),
                Some(meta) => match origin.read(sequence, meta).await {
                    Ok(theirs) => theirs.manifest.digest == digest,
                    Err(error) => passable(error).map(|_| true)?, // whoever looks at the origin says so
                },
            };
            if !is_same {
                let kind = if theirs.is_some() { &mut shared.parted } else { &mut shared.only_there };
                kind.get_or_insert(sequence);
            } else if own.state() != State::Quarantined {
                shared.newest = Some(own);
                break;
            }
        }
        Ok(shared)
    }

    /// Snapshots from the newest back to the first that is `enough`, that one included.
    ///
    /// # Errors
    /// A store's.
    pub async fn back_to(&self, enough: impl Fn(&Snapshot) -> bool) -> Result<(Vec<Snapshot>, Vec<SteppedOver>)> {
        let passed = Mutex::new(Vec::new());
        let found = self
            .newest_where(|snapshot| {
                passed.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot.clone());
                enough(snapshot)
            })
            .await?;
        Ok((passed.into_inner().unwrap_or_else(PoisonError::into_inner), found.stepped_over))
    }

    pub(crate) async fn newest_where(&self, wanted: impl Fn(&Snapshot) -> bool) -> Result<Newest> {
        const PAGE: usize = 16;
        let prefix = manifest::prefix(&self.source);
        let mut newest = Newest::default();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(&prefix, after.as_deref(), PAGE).await?;
            for meta in &page {
                let Some(sequence) = Sequence::from_object_name(&meta.key[prefix.len()..]) else { continue };
                match self.read(sequence, meta).await {
                    Ok(snapshot) => {
                        newest.tip.get_or_insert((sequence, snapshot.manifest.digest));
                        if wanted(&snapshot) {
                            newest.snapshot = Some(snapshot);
                            return Ok(newest);
                        }
                    }
                    Err(error) => {
                        let (object, error) = (meta.key.clone(), passable(error)?);
                        newest.stepped_over.push(SteppedOver { sequence, object, error });
                    }
                }
            }
            if page.len() < PAGE {
                return Ok(newest);
            }
            after = page.last().map(|meta| meta.key.clone());
        }
    }

    /// Every snapshot, newest first, and what was stepped over.
    ///
    /// # Errors
    /// A store's.
    pub async fn snapshots(&self) -> Result<(Vec<Snapshot>, Vec<SteppedOver>)> {
        use futures_util::StreamExt;
        let listed = self.list().await?;
        let mut reads = futures_util::stream::iter(listed)
            .map(|(sequence, meta)| async move { (sequence, self.read(sequence, &meta).await, meta.key) })
            .buffered(16);
        let (mut snapshots, mut stepped_over) = (Vec::new(), Vec::new());
        while let Some((sequence, read, object)) = reads.next().await {
            match read {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error) => stepped_over.push(SteppedOver { sequence, object, error: passable(error)? }),
            }
        }
        Ok((snapshots, stepped_over))
    }

    /// Finds the snapshot that `selector` means, and what had to be stepped over.
    ///
    /// # Errors
    /// `NoSnapshot`; for a number, whatever is wrong with that very snapshot.
    pub async fn find(&self, selector: &Selector) -> Result<(Snapshot, Vec<SteppedOver>)> {
        let wanted = match selector {
            Selector::Number(sequence) => {
                let key = manifest::object(&self.source, *sequence);
                let meta = match self.store.head(&key).await {
                    Err(e) if e.kind == StoreErrorKind::NotFound => {
                        return Err(self.no_snapshot(format!("has the number {sequence}")));
                    }
                    other => other?,
                };
                return Ok((self.read(*sequence, &meta).await?, Vec::new()));
            }
            Selector::Latest => "counts as latest".to_owned(),
            Selector::At(time) => format!("was taken at or before {time}"),
        };
        let found = self
            .newest_where(|s| {
                s.state() != State::Quarantined
                    && match selector {
                        Selector::At(time) => s.recovery_point() <= *time,
                        _ => true,
                    }
            })
            .await?;
        let snapshot = found.snapshot.ok_or_else(|| self.no_snapshot(wanted))?;
        Ok((snapshot, found.stepped_over))
    }

    fn no_snapshot(&self, wanted: String) -> RepoError {
        RepoError::NoSnapshot { source_name: self.source.clone(), wanted }
    }

    /// The packs that a snapshot names and that are not there in their size, by their objects' names. Reads none of them.
    ///
    /// # Errors
    /// A store's.
    pub async fn lacks(&self, snapshot: &Snapshot) -> Result<Vec<String>> {
        self.lacking(snapshot.manifest.header.packs.iter().collect()).await
    }

    /// Which of these packs are not there in their size.
    pub(crate) async fn lacking(&self, packs: Vec<&PackRef>) -> Result<Vec<String>> {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let named: Vec<_> = packs.into_iter().map(|pack| (pack::object(&self.source, pack.pack), pack.size)).collect();
        let heads = named.into_iter().map(|(object, size)| {
            let store = self.store.clone();
            async move {
                match store.head(&object).await {
                    Ok(meta) if meta.size == size => Ok(None),
                    Ok(_) => Ok(Some(object)),
                    Err(error) if error.kind == StoreErrorKind::NotFound => Ok(Some(object)),
                    Err(error) => Err(RepoError::from(error)),
                }
            }
        });
        let found: Vec<Option<String>> = futures_util::stream::iter(heads).buffered(16).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Reads a pack's tail as its snapshot names it.
    pub(crate) async fn tail(&self, pack: &PackRef) -> Result<Bytes> {
        let object = pack::object(&self.source, pack.pack);
        let at = pack.size.checked_sub(u64::from(pack.tail_len)).filter(|_| pack.tail_len <= pack::MAX_TAIL);
        let at = at.ok_or_else(|| RepoError::damaged(&object, "its manifest gives it a tail larger than itself"))?;
        let tail = self.store.get_range(&object, at, u64::from(pack.tail_len)).await?;
        if pack::tail_is_sound(&tail, &pack.tail_digest) {
            Ok(tail)
        } else {
            Err(RepoError::damaged(object, "its tail is not the one its snapshot names"))
        }
    }

    /// Reads and opens a pack's tail.
    pub(crate) async fn index(&self, pack: &PackRef, keys: &WriterKeys) -> Result<PackIndex> {
        let tail = self.tail(pack).await?;
        PackIndex::open(pack::object(&self.source, pack.pack), &tail, pack.size, keys)
    }
}

/// A manifest that is damaged or foreign is stepped over; a store that does not answer is not.
fn passable(error: RepoError) -> Result<RepoError> {
    match &error {
        RepoError::Store(e) if !e.kind.blames_object() => Err(error),
        RepoError::WrongKey { .. } | RepoError::NewerFormat { .. } | RepoError::NewerKeys { .. } => Err(error),
        _ => Ok(error),
    }
}
