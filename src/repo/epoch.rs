//! A lineage's keys under one writer key: `<source>/keys/<epoch>/epoch.json`, and one `<recipient>.age.json` for each
//! recipient that was added later (`docs/format.md`, "Epochs").

use crate::id::{RepositoryId, Sequence, SourceName};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{Secret32, Signer, WriterKey, WriterKeys, hex};
use crate::repo::root::{Identity, LineageSecrets, Recipient, Root, Wrap, key_field, open_json, sign_json};
use crate::repo::seal::{KEM_ID, generate_pair, public_half};
use crate::store::{PutOptions, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) const SIGNATURE: &str = "lifeboat.dev 2026 epoch";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    repository: String,
    source: String,
    epoch: u32,
    kem: u16,
    public: String,
    pub verifying_key: String,
    /// The first snapshot that may be signed under this epoch.
    from: u64,
    pub wraps: Vec<Wrap>,
}

/// One epoch, opened as far as the keys at hand allow.
#[derive(Debug)]
pub struct Epoch {
    pub number: u32,
    pub from: Sequence,
    pub(crate) public: [u8; 32],
    pub(crate) verifying_key: [u8; 32],
    pub(crate) writer: Option<WriterKeys>,
    /// Only with the writer key: readers do not sign.
    pub(crate) signer: Option<Signer>,
    pub(crate) private: Option<Secret32>,
    /// Set when the writer key was rotated: the last snapshot that still counts.
    pub(crate) retired_at: Option<Sequence>,
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

/// Loads an epoch; `Ok(None)` if it was never begun.
pub(crate) async fn load(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    number: u32,
    access: &Access,
) -> Result<Option<Epoch>> {
    let object = object(source, number);
    let bytes = match store.get(&object).await {
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let writer = root
        .writer(number)
        .ok_or_else(|| RepoError::Foreign { object: object.clone(), reason: "the root knows no such writer".into() })?;
    let record: Record = open_json(&object, &bytes, SIGNATURE, |_: &Record| key_field(&object, &writer.verifying_key))?;
    if record.repository != root.id.to_string() || record.source != source.as_str() || record.epoch != number {
        return Err(RepoError::Foreign { object, reason: "it is another repository's or another source's".into() });
    }
    if record.kem != KEM_ID {
        return Err(RepoError::damaged(object, format!("its KEM {:#06x} is not known", record.kem)));
    }
    let mut epoch = Epoch {
        number,
        from: Sequence(record.from),
        public: key_field(&object, &record.public)?,
        verifying_key: key_field(&object, &record.verifying_key)?,
        writer: None,
        signer: None,
        private: None,
        retired_at: writer.retired.as_ref().map(|last| Sequence(last.get(source.as_str()).copied().unwrap_or(0))),
    };
    match access {
        Access::None => {}
        Access::Writer(key) => {
            // Only the key of this generation opens it; another generation's snapshots stay sealed.
            if hex(&key.signer(root.id).public()) == writer.verifying_key {
                epoch.writer = Some(WriterKeys::new(key.lineage_secret(root.id, source, number)));
                epoch.signer = Some(key.lineage_signer(root.id, source, number));
            }
        }
        Access::Recipient(identity) => {
            let (private, writer) = unwrap(store, source, number, record.wraps, identity, &epoch.public).await?;
            (epoch.private, epoch.writer) = (Some(private), Some(WriterKeys::new(writer)));
        }
    }
    if epoch.signer.as_ref().is_some_and(|signer| signer.public() != epoch.verifying_key) {
        return Err(RepoError::Foreign {
            object,
            reason: "its verifying key is not the one derived from its secret".into(),
        });
    }
    Ok(Some(epoch))
}

async fn unwrap(
    store: &dyn Store,
    source: &SourceName,
    number: u32,
    wraps: Vec<Wrap>,
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
        let bytes = store.get(&added.key).await?;
        if let Some(secrets) = serde_json::from_slice(&bytes).ok().as_ref().and_then(open) {
            return Ok(secrets);
        }
    }
    Err(RepoError::WrongKey { what: "recovery identity", object: format!("{directory}epoch.json") })
}

/// Begins an epoch: makes its key pair, wraps the private half to every recipient and forgets it. If another writer
/// began it at the same moment, theirs is loaded.
pub(crate) async fn begin(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    key: &WriterKey,
    number: u32,
    from: Sequence,
) -> Result<Epoch> {
    let (private, public) = generate_pair();
    let secret = key.lineage_secret(root.id, source, number);
    let plain = serde_json::to_vec(&LineageSecrets::new(&private, &secret))
        .map_err(|why| RepoError::Refused(format!("encode the lineage's keys: {why}")))?;
    let plain = zeroize::Zeroizing::new(plain);
    let record = Record {
        repository: root.id.to_string(),
        source: source.to_string(),
        epoch: number,
        kem: KEM_ID,
        public: hex(&public),
        verifying_key: hex(&key.lineage_signer(root.id, source, number).public()),
        from: from.0,
        wraps: root.recipients().iter().map(|r| Wrap::new(r, &plain)).collect::<Result<_>>()?,
    };
    let bytes = sign_json(&key.signer(root.id), SIGNATURE, &record)?;
    match store.put(&object(source, number), Bytes::from(bytes), PutOptions::default()).await {
        Err(e) if e.kind != StoreErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let loaded = load(store, root, source, number, &Access::Writer(key.clone())).await?;
    loaded.ok_or_else(|| RepoError::damaged(object(source, number), "it was written and cannot be read back"))
}

/// Wraps the keys of every epoch of `source` to one more recipient.
pub(crate) async fn add_recipient(
    store: &dyn Store,
    root: &Root,
    source: &SourceName,
    identity: &Identity,
    recipient: &Recipient,
) -> Result<u32> {
    let mut added = 0;
    for number in 1..=root.current_writer()?.generation {
        let Some(epoch) = load(store, root, source, number, &Access::Recipient(identity.clone())).await? else {
            continue;
        };
        let (Some(private), Some(writer)) = (&epoch.private, &epoch.writer) else { continue };
        let plain = serde_json::to_vec(&LineageSecrets::new(private, writer.secret()))
            .map_err(|why| RepoError::Refused(format!("encode the lineage's keys: {why}")))?;
        let wrap = Wrap::new(recipient, &zeroize::Zeroizing::new(plain))?;
        let bytes = serde_json::to_vec(&wrap).map_err(|why| RepoError::Refused(format!("encode a wrap: {why}")))?;
        let object = format!("{}{}.age.json", directory(source, number), recipient.name);
        match store.put(&object, Bytes::from(bytes), PutOptions::default()).await {
            Err(e) if e.kind != StoreErrorKind::AlreadyExists => return Err(e.into()),
            _ => added += 1,
        }
    }
    Ok(added)
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
