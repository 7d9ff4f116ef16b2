//! A lineage's keys under one writer key: `<source>/keys/<epoch>/epoch.json`, and one `<recipient>-<random>.age.json` for
//! each recipient that was added later (`docs/format.md`, "Epochs").

use crate::id::{RepositoryId, Sequence, SourceName};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{Secret32, Signer, WriterKey, WriterKeys, hex, random};
use crate::repo::root::{Identity, LineageSecrets, Recipient, Root, Wrap, key_field, open_json, sign_json};
use crate::repo::seal::{KEM_ID, generate_pair, public_half};
use crate::store::{ObjectMeta, PutOptions, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SIGNATURE: &str = "lifeboat.dev 2026 epoch";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    repository: String,
    source: String,
    epoch: u32,
    /// The writer key that signed it.
    generation: u32,
    kem: u16,
    public: String,
    pub verifying_key: String,
    /// The first snapshot that may be signed under this epoch.
    from: u64,
    pub wraps: Vec<Wrap>,
}

/// What anybody may know of an epoch, and its wraps. Says nothing about whether this version can use it.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub number: u32,
    pub generation: u32,
    pub from: Sequence,
    kem: u16,
    public: String,
    pub verifying_key: [u8; 32],
    /// Set when the writer key was rotated: the last snapshot that still counts.
    pub retired_at: Option<Sequence>,
    wraps: Vec<Wrap>,
}

impl Checked {
    /// One that signs as `verifying_key`, under which everything from the first snapshot on counts.
    #[cfg(test)]
    pub(crate) fn first(verifying_key: [u8; 32]) -> Self {
        let (public, wraps) = (hex(&generate_pair().1), Vec::new());
        Self {
            number: 1,
            generation: 1,
            from: Sequence(1),
            kem: KEM_ID,
            public,
            verifying_key,
            retired_at: None,
            wraps,
        }
    }
}

/// One epoch, opened as far as the keys at hand allow.
#[derive(Debug)]
pub struct Epoch {
    pub number: u32,
    pub(crate) generation: u32,
    pub(crate) public: [u8; 32],
    pub(crate) verifying_key: [u8; 32],
    pub(crate) writer: Option<WriterKeys>,
    /// Only with the writer key: readers do not sign.
    pub(crate) signer: Option<Signer>,
    pub(crate) private: Option<Secret32>,
}

impl Epoch {
    /// # Errors
    /// `WrongKey` without a writer key or recovery identity.
    pub(crate) fn writer_keys(&self) -> Result<&WriterKeys> {
        self.writer
            .as_ref()
            .ok_or_else(|| RepoError::WrongKey { what: "key", object: format!("epoch {}", self.number) })
    }
}

/// The keys that a command was given.
#[derive(Clone, Debug)]
pub enum Access {
    /// Sizes, times and digests only.
    None,
    Writer(WriterKey),
    Recipient(Identity),
}

fn directory(source: &SourceName, epoch: u32) -> String {
    format!("{source}/keys/{epoch:04}/")
}

fn object(source: &SourceName, epoch: u32) -> String {
    format!("{}epoch.json", directory(source, epoch))
}

/// Loads an epoch, and checks who signed it; `Ok(None)` if it was never begun.
pub(crate) async fn load(store: &dyn Store, root: &Root, source: &SourceName, number: u32) -> Result<Option<Checked>> {
    match store.get(&object(source, number)).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
        Ok(bytes) => check(root, source, number, &bytes).map(Some),
    }
}

/// Opens an epoch as far as the keys at hand allow.
///
/// # Errors
/// `NewerKeys` for a KEM that this version does not know; `WrongKey`, `Damaged`, `Foreign`.
pub(crate) async fn open(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    checked: &Checked,
    access: &Access,
) -> Result<Epoch> {
    let number = checked.number;
    let object = object(source, number);
    if checked.kem != KEM_ID {
        return Err(RepoError::NewerKeys { object, kem: checked.kem });
    }
    let mut epoch = Epoch {
        number,
        generation: checked.generation,
        public: key_field(&object, &checked.public)?,
        verifying_key: checked.verifying_key,
        writer: None,
        signer: None,
        private: None,
    };
    match access {
        Access::None => {}
        Access::Writer(key) => {
            // Only the key of this generation opens it; another generation's snapshots stay sealed.
            let generation = root.writer(epoch.generation);
            if generation.is_some_and(|writer| hex(&key.signer(root.id).public()) == writer.verifying_key) {
                epoch.writer = Some(WriterKeys::new(key.lineage_secret(root.id, source, number)));
                epoch.signer = Some(key.lineage_signer(root.id, source, number));
            }
        }
        Access::Recipient(identity) => {
            let (private, writer) = unwrap(store, source, number, &checked.wraps, identity, &epoch.public).await?;
            (epoch.private, epoch.writer) = (Some(private), Some(WriterKeys::new(writer)));
        }
    }
    if epoch.signer.as_ref().is_some_and(|signer| signer.public() != epoch.verifying_key) {
        return Err(RepoError::Foreign {
            object,
            reason: "its verifying key is not the one derived from its secret".into(),
        });
    }
    Ok(epoch)
}

/// Checks who signed an epoch.
///
/// # Errors
/// `Damaged`, `Foreign`.
pub(crate) fn check(root: &Root, source: &SourceName, number: u32, bytes: &[u8]) -> Result<Checked> {
    let object = object(source, number);
    let unknown = || RepoError::Foreign { object: object.clone(), reason: "the root knows no such writer".into() };
    let record: Record = open_json(&object, bytes, SIGNATURE, |record: &Record| {
        key_field(&object, &root.writer(record.generation).ok_or_else(unknown)?.verifying_key)
    })?;
    let writer = root.writer(record.generation).ok_or_else(unknown)?;
    if record.repository != root.id.to_string() || record.source != source.as_str() || record.epoch != number {
        return Err(RepoError::Foreign { object, reason: "it is another repository's or another source's".into() });
    }
    Ok(Checked {
        number,
        generation: record.generation,
        from: Sequence(record.from),
        kem: record.kem,
        public: record.public,
        verifying_key: key_field(&object, &record.verifying_key)?,
        retired_at: writer.retired.as_ref().map(|last| Sequence(last.get(source.as_str()).copied().unwrap_or(0))),
        wraps: record.wraps,
    })
}

async fn unwrap(
    store: &dyn Store,
    source: &SourceName,
    number: u32,
    wraps: &[Wrap],
    identity: &Identity,
    public: &[u8; 32],
) -> Result<(Secret32, Secret32)> {
    // A wrap is believed when its private half belongs to the epoch's public one; others are stepped over.
    let open = |wrap: &Wrap| {
        let plain = wrap.open(identity)?;
        let secrets: LineageSecrets = serde_json::from_slice(&plain).ok()?;
        secrets.parse().filter(|(private, _)| public_half(private).as_ref() == Some(public))
    };
    if let Some(secrets) = wraps.iter().find_map(open) {
        return Ok(secrets);
    }
    let directory = directory(source, number);
    for added in list_all(store, &directory).await?.into_iter().filter(|o| o.key.ends_with(".age.json")) {
        let bytes = match store.get(&added.key).await {
            Err(e) if e.kind.blames_object() => continue,
            other => other?,
        };
        if let Some(secrets) = serde_json::from_slice(&bytes).ok().as_ref().and_then(open) {
            return Ok(secrets);
        }
    }
    Err(RepoError::WrongKey { what: "recovery identity", object: format!("{directory}epoch.json") })
}

/// The epoch to write under: the first sound one of this writer key's generation, begun if there is none. That costs a
/// full snapshot at most. Not a later one: a thief of the writer key may have begun it, and have kept its private half.
pub(crate) async fn current(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    key: &WriterKey,
    from: Sequence,
) -> Result<Epoch> {
    const ATTEMPTS: usize = 8;
    let generation = root.accept_writer(key)?;
    for _ in 0..ATTEMPTS {
        let taken = numbers(store, source).await?;
        for number in &taken {
            let epoch =
                load_sound(store, root, source, *number, Some(generation), &Access::Writer(key.clone())).await?;
            if let Some(epoch) = epoch {
                return Ok(epoch);
            }
        }
        let free = (1..=u32::MAX).find(|number| !taken.contains(number));
        let number =
            free.ok_or_else(|| RepoError::Refused(format!("source {source} has no number left for an epoch")))?;
        begin(store, root, source, key, generation, number, from).await?;
    }
    Err(RepoError::Busy(source.clone()))
}

/// [`load`] and [`open`], which step over what is damaged or foreign: anyone who can write may have put it there. Only of one
/// generation, if that is given: whoever has the key of another may have put what nobody opens there.
async fn load_sound(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    number: u32,
    generation: Option<u32>,
    access: &Access,
) -> Result<Option<Epoch>> {
    let opened = async {
        match load(store, root, source, number).await? {
            Some(checked) if generation.is_some_and(|wanted| wanted != checked.generation) => Ok(None),
            Some(checked) => open(store, root, source, &checked, access).await.map(Some),
            None => Ok(None),
        }
    };
    match opened.await {
        Err(error @ (RepoError::Damaged { .. } | RepoError::Foreign { .. })) => {
            tracing::warn!(%source, epoch = number, %error, "stepped over an epoch");
            Ok(None)
        }
        other => other,
    }
}

/// Those of each writer key that counts, if there are several of one. Agents begin no second one while the first can be read.
pub(crate) async fn second_ones(store: &dyn Store, root: &Root, source: &SourceName) -> Result<Vec<Vec<u32>>> {
    let mut all: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for number in numbers(store, source).await? {
        match load(store, root, source, number).await {
            Ok(Some(epoch)) if epoch.retired_at.is_none() => all.entry(epoch.generation).or_default().push(number),
            Err(RepoError::Store(error)) => return Err(error.into()),
            // Told where it is needed.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(all.into_values().filter(|numbers| numbers.len() > 1).collect())
}

/// The numbers under which something lies that may be an epoch.
pub(crate) async fn numbers(store: &dyn Store, source: &SourceName) -> Result<BTreeSet<u32>> {
    let prefix = format!("{source}/keys/");
    let number = |object: &ObjectMeta| {
        let (number, _) = object.key[prefix.len()..].split_once('/')?;
        number.parse().ok().filter(|parsed| *parsed > 0 && format!("{parsed:04}") == number)
    };
    Ok(list_all(store, &prefix).await?.iter().filter_map(number).collect())
}

/// Begins an epoch: makes its key pair, wraps the private half to every recipient and forgets it. If the number is taken
/// meanwhile, nothing happens.
async fn begin(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    key: &WriterKey,
    generation: u32,
    number: u32,
    from: Sequence,
) -> Result<()> {
    let (private, public) = generate_pair();
    let secret = key.lineage_secret(root.id, source, number);
    let plain = serde_json::to_vec(&LineageSecrets::new(&private, &secret))
        .map_err(|why| RepoError::Refused(format!("encode the lineage's keys: {why}")))?;
    let plain = zeroize::Zeroizing::new(plain);
    let record = Record {
        repository: root.id.to_string(),
        source: source.to_string(),
        epoch: number,
        generation,
        kem: KEM_ID,
        public: hex(&public),
        verifying_key: hex(&key.lineage_signer(root.id, source, number).public()),
        from: from.0,
        wraps: root.recipients().iter().map(|r| Wrap::new(r, &plain)).collect::<Result<_>>()?,
    };
    let bytes = sign_json(&key.signer(root.id), SIGNATURE, &record)?;
    match store.put(&object(source, number), Bytes::from(bytes), PutOptions::default()).await {
        Err(e) if e.kind != StoreErrorKind::AlreadyExists => Err(e.into()),
        _ => Ok(()),
    }
}

/// Wraps the keys of every epoch of `source` to one more recipient.
pub(crate) async fn add_recipient(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    identity: &Identity,
    recipient: &Recipient,
) -> Result<()> {
    for number in numbers(store, source).await? {
        let access = Access::Recipient(identity.clone());
        let epoch = match load_sound(store, root, source, number, None, &access).await {
            // Whoever had a writer key may have left one that nobody opens: the others are wrapped all the same.
            Err(error @ (RepoError::WrongKey { .. } | RepoError::NewerKeys { .. })) => {
                tracing::warn!(%source, epoch = number, %error, "an epoch is left as it is");
                continue;
            }
            other => other?,
        };
        let Some(epoch) = epoch else { continue };
        let (Some(private), Some(writer)) = (&epoch.private, &epoch.writer) else { continue };
        let plain = serde_json::to_vec(&LineageSecrets::new(private, writer.secret()))
            .map_err(|why| RepoError::Refused(format!("encode the lineage's keys: {why}")))?;
        let wrap = Wrap::new(recipient, &zeroize::Zeroizing::new(plain))?;
        let bytes = serde_json::to_vec(&wrap).map_err(|why| RepoError::Refused(format!("encode a wrap: {why}")))?;
        // A name that nobody can have taken: another key may have been added under this recipient's name before.
        let object = format!("{}{}-{}.age.json", directory(source, number), recipient.name, hex(&random::<8>()));
        store.put(&object, Bytes::from(bytes), PutOptions::default()).await?;
    }
    Ok(())
}

/// The key objects of a source, for whoever must keep them as long as its snapshots.
pub(crate) async fn objects(store: &dyn Store, source: &SourceName) -> Result<Vec<String>> {
    let keys = list_all(store, &format!("{source}/keys/")).await?;
    Ok(keys.into_iter().map(|object| object.key).collect())
}

/// Binds a sealed document to the repository and source it is in.
pub(crate) fn document_aad(repository: RepositoryId, source: &SourceName, sequence: Sequence) -> Vec<u8> {
    let mut aad = repository.0.to_vec();
    aad.extend_from_slice(&sequence.0.to_le_bytes());
    aad.extend_from_slice(source.as_str().as_bytes());
    aad
}
