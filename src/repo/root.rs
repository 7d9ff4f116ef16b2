//! The root: what a repository is, who may read it and who writes it (`docs/format.md`, "Root").
//!
//! `lifeboat.json` is the first state; every change is a further full state `_root/<number>`, signed with the root key and
//! naming its predecessor's digest. Nothing is ever rewritten.

use crate::id::{RepositoryId, Sequence, SourceName};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{KeeperKey, RootKey, Secret32, Signer, WriterKey, hex, repository_id, unhex, verify};
use crate::store::{ObjectMeta, PutOptions, Store, StoreErrorKind, list_all};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// The newest format this version writes and reads.
pub const FORMAT: u16 = 1;
pub(crate) const ROOT: &str = "lifeboat.json";
pub(crate) const AMENDMENTS: &str = "_root/";
const SIGNATURE: &str = "lifeboat.dev 2026 root";

/// What a recipient is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opens everything, the writer and keeper keys included.
    Recovery,
    /// Opens snapshots, for automated drills.
    Drill,
    /// Opens snapshots, held by a third party.
    Escrow,
}

/// Someone who can read snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    pub name: String,
    pub role: Role,
    /// An age X25519 recipient, `age1…`.
    pub key: String,
}

impl Recipient {
    fn parse(&self) -> Result<age::x25519::Recipient> {
        age::x25519::Recipient::from_str(&self.key).map_err(|why| {
            RepoError::Refused(format!("recipient {}: {:?} is no age recipient: {why}", self.name, self.key))
        })
    }
}

/// A secret wrapped to one recipient (an age file, base64).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wrap {
    pub recipient: String,
    pub age: String,
}

impl Wrap {
    pub fn new(recipient: &Recipient, secret: &[u8]) -> Result<Self> {
        let sealed = age::encrypt(&recipient.parse()?, secret)
            .map_err(|why| RepoError::Refused(format!("wrap a key to recipient {}: {why}", recipient.name)))?;
        Ok(Self { recipient: recipient.name.clone(), age: BASE64_STANDARD.encode(sealed) })
    }

    pub fn open(&self, identity: &Identity) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        let sealed = BASE64_STANDARD.decode(&self.age).ok()?;
        age::decrypt(&identity.0, &sealed).ok().map(zeroize::Zeroizing::new)
    }
}

/// The private half of a recipient: what people keep offline.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    #[must_use]
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Reads an age identity: the first line that begins with `AGE-SECRET-KEY-`; other lines are comments.
    ///
    /// # Errors
    /// No such line, or not a valid identity.
    pub fn from_text(text: &str) -> Result<Self> {
        let line = text.lines().map(str::trim).find(|line| line.starts_with("AGE-SECRET-KEY-")).ok_or_else(|| {
            RepoError::Refused("the recovery identity cannot be read: no line begins with AGE-SECRET-KEY-".into())
        })?;
        let identity = age::x25519::Identity::from_str(line)
            .map_err(|why| RepoError::Refused(format!("the recovery identity cannot be read: {why}")))?;
        Ok(Self(identity))
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        use age::secrecy::ExposeSecret;
        self.0.to_string().expose_secret().to_owned()
    }

    #[must_use]
    pub fn public(&self) -> String {
        self.0.to_public().to_string()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.public())
    }
}

/// One writer key in the life of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Writer {
    /// 1, 2, …; also the number of the lineages' epochs under this key.
    pub generation: u32,
    pub verifying_key: String,
    /// Set when the key was rotated: per source, the last snapshot that still counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<BTreeMap<String, u64>>,
    /// What a later version put here: it goes into the next state as it is.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    lifeboat: u16,
    id: String,
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    time: Timestamp,
    /// The public half of the root key; its hash is the repository's id.
    root: String,
    /// The public halves of the keeper keys, newest first.
    keepers: Vec<String>,
    writers: Vec<Writer>,
    recipients: Vec<Recipient>,
    wraps: Vec<Wrap>,
    /// As in [`Writer`].
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// `{"record": …, "signature": "…"}`; the signature covers the record's bytes as they stand.
#[derive(Serialize, Deserialize)]
struct Signed<'a> {
    #[serde(borrow)]
    record: &'a RawValue,
    signature: String,
}

/// Writes a signed JSON document.
pub(crate) fn sign_json<T: Serialize>(signer: &Signer, context: &str, record: &T) -> Result<Vec<u8>> {
    let broken = |why| RepoError::Refused(format!("encode a {context} record: {why}"));
    let raw = serde_json::value::to_raw_value(record).map_err(broken)?;
    let signature = hex(&signer.sign(context, raw.get().as_bytes()));
    serde_json::to_vec(&Signed { record: &raw, signature }).map_err(broken)
}

/// Reads a signed JSON document; `public` picks the key by the record's content.
pub(crate) fn open_json<'a, T: Deserialize<'a>>(
    object: &str,
    bytes: &'a [u8],
    context: &str,
    public: impl FnOnce(&T) -> Result<[u8; 32]>,
) -> Result<T> {
    let signed: Signed<'a> = serde_json::from_slice(bytes).map_err(|why| RepoError::damaged(object, why))?;
    let record: T = serde_json::from_str(signed.record.get()).map_err(|why| RepoError::damaged(object, why))?;
    let signature: [u8; 64] =
        unhex(&signed.signature).ok_or_else(|| RepoError::damaged(object, "its signature is not hexadecimal"))?;
    if verify(&public(&record)?, context, signed.record.get().as_bytes(), &signature) {
        Ok(record)
    } else {
        Err(RepoError::Foreign {
            object: object.into(),
            reason: "its signature is not of the key that must have made it".into(),
        })
    }
}

pub(crate) fn key_field(object: &str, text: &str) -> Result<[u8; 32]> {
    unhex(text).ok_or_else(|| RepoError::damaged(object, "a public key is not 64 hexadecimal digits"))
}

#[derive(Serialize, Deserialize)]
struct Secrets {
    writer: String,
    keeper: String,
    root: String,
}

/// The keys that the root holds for recovery recipients.
#[derive(Clone, Debug)]
pub struct RootKeys {
    pub writer: WriterKey,
    pub keeper: KeeperKey,
    pub root: RootKey,
}

/// The newest state of the root.
#[derive(Clone, Debug)]
pub struct Root {
    pub id: RepositoryId,
    created: Timestamp,
    record: Record,
    digest: [u8; 32],
    /// The number of the next state: the first above this one under which nothing lies, a state or not.
    next: Sequence,
}

impl Root {
    /// Makes the root of a new repository, and its keys: nothing is written until [`Root::create`].
    ///
    /// # Errors
    /// `Refused` without a recovery recipient or with a bad one.
    pub fn prepare(recipients: Vec<Recipient>, now: Timestamp) -> Result<(Self, RootKeys, Bytes)> {
        check_recipients(&recipients)?;
        let keys = RootKeys { writer: WriterKey::random(), keeper: KeeperKey::random(), root: RootKey::random() };
        let public = keys.root.signer().public();
        let id = repository_id(&public);
        let record = Record {
            lifeboat: FORMAT,
            id: id.to_string(),
            number: 1,
            previous: None,
            time: now,
            root: hex(&public),
            keepers: vec![hex(&keys.keeper.signer(id).public())],
            writers: vec![Writer {
                generation: 1,
                verifying_key: hex(&keys.writer.signer(id).public()),
                retired: None,
                rest: BTreeMap::new(),
            }],
            wraps: wrap_secrets(&recipients, &keys)?,
            recipients,
            rest: BTreeMap::new(),
        };
        let bytes = sign_json(&keys.root.signer(), SIGNATURE, &record)?;
        let digest = *blake3::hash(&bytes).as_bytes();
        Ok((Self { id, created: now, record, digest, next: Sequence(2) }, keys, Bytes::from(bytes)))
    }

    /// Writes what [`Root::prepare`] made: from now on there is a repository.
    ///
    /// # Errors
    /// `AlreadyInitialised`, `NotEmpty`.
    pub async fn create(store: &dyn Store, prepared: Bytes) -> Result<()> {
        // A second root would make all that was written under a lost first one worthless.
        if let Ok([other, ..]) = store.list("", None, 1).await.as_deref()
            && other.key != ROOT
            && store.head(ROOT).await.is_err_and(|error| error.kind == StoreErrorKind::NotFound)
        {
            return Err(RepoError::NotEmpty { url: store.url(), object: other.key.clone() });
        }
        match store.put(ROOT, prepared, PutOptions::default()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                Err(RepoError::AlreadyInitialised { url: store.url() })
            }
            other => Ok(other?),
        }
    }

    /// Reads the newest state.
    ///
    /// # Errors
    /// `NoRepository`, `NewerFormat`, `Damaged`, `Foreign`.
    pub async fn load(store: &dyn Store) -> Result<Self> {
        let bytes = match store.get(ROOT).await {
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                return Err(RepoError::NoRepository { url: store.url() });
            }
            other => other?,
        };
        let first: Record = parse(ROOT, &bytes, |r: &Record| key_field(ROOT, &r.root))?;
        let id = RepositoryId::from_str(&first.id)?;
        let public = key_field(ROOT, &first.root)?;
        if repository_id(&public) != id {
            return Err(RepoError::Foreign {
                object: ROOT.into(),
                reason: "its id is not that of its root key".into(),
            });
        }
        let listed = list_all(store, AMENDMENTS).await?;
        let numbered = |meta: &ObjectMeta| Sequence::from_object_name(&meta.key[AMENDMENTS.len()..]);
        let taken: BTreeSet<Sequence> = listed.iter().filter_map(numbered).collect();
        let (created, mut newest) = (first.time, (first, bytes));
        for meta in listed {
            let Some(number) = numbered(&meta) else { continue };
            if let Some(state) = state(store, &meta.key, number, &newest.0.id, public).await? {
                newest = state;
                break;
            }
            tracing::warn!(object = meta.key, "stepped over a root state that is damaged or foreign");
        }
        let (record, bytes) = newest;
        let next = Sequence(record.number).next_free(&taken);
        Ok(Self { id, created, record, digest: *blake3::hash(&bytes).as_bytes(), next })
    }

    /// A state that nobody need have signed, to see what a decoder makes of it.
    pub(crate) fn unsigned(bytes: &[u8]) -> Option<Self> {
        let mut read = None;
        let _ = parse(ROOT, bytes, |record: &Record| {
            read = Some(record.clone());
            key_field(ROOT, &record.root)
        });
        let record = read?;
        let (id, created, digest) = (record.id.parse().ok()?, record.time, *blake3::hash(bytes).as_bytes());
        Some(Self { id, created, record, digest, next: Sequence(2) })
    }

    /// The number of the newest state.
    pub(crate) fn number(&self) -> u64 {
        self.record.number
    }

    #[must_use]
    pub fn recipients(&self) -> &[Recipient] {
        &self.record.recipients
    }

    /// When the repository was made.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The keys that prune records may be signed with.
    pub(crate) fn keepers(&self) -> Result<Vec<[u8; 32]>> {
        self.record.keepers.iter().map(|key| key_field(ROOT, key)).collect()
    }

    pub(crate) fn writer(&self, generation: u32) -> Option<&Writer> {
        self.record.writers.iter().find(|w| w.generation == generation)
    }

    /// The generation that may write now.
    pub(crate) fn current_writer(&self) -> Result<&Writer> {
        let last = self.record.writers.iter().max_by_key(|w| w.generation);
        last.ok_or_else(|| RepoError::damaged(ROOT, "it names no writer"))
    }

    /// Checks that `key` is the writer key of now and gives its generation.
    ///
    /// # Errors
    /// `WrongKey`, and `RotatedKey` when it is one of before.
    pub fn accept_writer(&self, key: &WriterKey) -> Result<u32> {
        let public = hex(&key.signer(self.id).public());
        let current = self.current_writer()?;
        if current.verifying_key == public {
            return Ok(current.generation);
        }
        if self.record.writers.iter().any(|w| w.verifying_key == public) {
            return Err(RepoError::RotatedKey { repository: self.id });
        }
        Err(RepoError::WrongKey { what: "writer key", object: format!("repository {}", self.id) })
    }

    /// The writer and keeper keys, for a recovery identity.
    ///
    /// # Errors
    /// `WrongKey`.
    pub fn unlock(&self, identity: &Identity) -> Result<RootKeys> {
        let wrong = || RepoError::WrongKey { what: "recovery identity", object: format!("repository {}", self.id) };
        let plain = self.record.wraps.iter().find_map(|wrap| wrap.open(identity)).ok_or_else(wrong)?;
        let secrets: Secrets = serde_json::from_slice(&plain).map_err(|why| RepoError::damaged(ROOT, why))?;
        let root =
            unhex(&secrets.root).ok_or_else(|| RepoError::damaged(ROOT, "the wrapped root key is not hexadecimal"))?;
        let root = RootKey(Secret32(root));
        if repository_id(&root.signer().public()) != self.id {
            return Err(RepoError::Foreign {
                object: ROOT.into(),
                reason: "its wraps hold another repository's key".into(),
            });
        }
        let (writer, keeper) = (WriterKey::from_text(&secrets.writer)?, KeeperKey::from_text(&secrets.keeper)?);
        Ok(RootKeys { writer, keeper, root })
    }

    /// # Errors
    /// `WrongKey`.
    pub fn accept_keeper(&self, key: &KeeperKey) -> Result<()> {
        if self.keepers()?.contains(&key.signer(self.id).public()) {
            Ok(())
        } else {
            Err(RepoError::WrongKey { what: "keeper key", object: format!("repository {}", self.id) })
        }
    }

    /// Writes the next state with other recipients.
    ///
    /// # Errors
    /// `Refused` when another change came first.
    pub async fn set_recipients(
        &self,
        store: &dyn Store,
        keys: &RootKeys,
        recipients: Vec<Recipient>,
        now: Timestamp,
    ) -> Result<Self> {
        check_recipients(&recipients)?;
        let wraps = wrap_secrets(&recipients, keys)?;
        self.amend(store, keys, now, |record| (record.recipients, record.wraps) = (recipients, wraps)).await
    }

    /// Writes the next state with a new writer key. `last` names each source's newest snapshot that still counts.
    ///
    /// # Errors
    /// As [`Root::set_recipients`].
    pub async fn rotate_writer(
        &self,
        store: &dyn Store,
        keys: RootKeys,
        last: BTreeMap<SourceName, Sequence>,
        now: Timestamp,
    ) -> Result<(Self, RootKeys)> {
        let keys = RootKeys { writer: WriterKey::random(), ..keys };
        let wraps = wrap_secrets(&self.record.recipients, &keys)?;
        let generation = self.current_writer()?.generation + 1;
        let verifying_key = hex(&keys.writer.signer(self.id).public());
        let last: BTreeMap<_, _> =
            last.into_iter().map(|(source, sequence)| (source.to_string(), sequence.0)).collect();
        let root = self
            .amend(store, &keys, now, |record| {
                record.wraps = wraps;
                for writer in record.writers.iter_mut().filter(|w| w.retired.is_none()) {
                    writer.retired = Some(last.clone());
                }
                record.writers.push(Writer { generation, verifying_key, retired: None, rest: BTreeMap::new() });
            })
            .await?;
        Ok((root, keys))
    }

    async fn amend(
        &self,
        store: &dyn Store,
        keys: &RootKeys,
        now: Timestamp,
        change: impl FnOnce(&mut Record),
    ) -> Result<Self> {
        let mut record = self.record.clone();
        record.number = self.next.0;
        record.previous = Some(hex(&self.digest));
        record.time = now;
        change(&mut record);
        let bytes = sign_json(&keys.root.signer(), SIGNATURE, &record)?;
        let digest = *blake3::hash(&bytes).as_bytes();
        let object = format!("{AMENDMENTS}{}", self.next.object_name());
        match store.put(&object, Bytes::from(bytes), PutOptions::default()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Err(RepoError::Refused(
                "the repository's keys were changed meanwhile; look at them and try again".into(),
            )),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(Self { digest, record, next: self.next.next(), ..self.clone() }),
        }
    }
}

/// The root's objects, for whoever must keep them as long as snapshots.
pub(crate) async fn objects(store: &dyn Store) -> Result<Vec<String>> {
    let states = list_all(store, AMENDMENTS).await?;
    Ok(std::iter::once(ROOT.to_owned()).chain(states.into_iter().map(|object| object.key)).collect())
}

/// The bytes of the first state of `root`.
///
/// # Errors
/// A store's, `Damaged`, `Foreign`.
pub(crate) async fn first_bytes(store: &dyn Store, root: &Root) -> Result<Bytes> {
    let bytes = store.get(ROOT).await?;
    let public = key_field(ROOT, &root.record.root)?;
    let record = parse(ROOT, &bytes, |_| Ok(public))?;
    if record.id == root.record.id && record.root == root.record.root {
        return Ok(bytes);
    }
    Err(RepoError::Foreign { object: ROOT.into(), reason: "it is another repository's".into() })
}

/// The bytes of a later state of `root`; `None` for what is none.
///
/// # Errors
/// As [`state`].
pub(crate) async fn state_bytes(store: &dyn Store, object: &str, root: &Root) -> Result<Option<Bytes>> {
    let Some(number) = object.strip_prefix(AMENDMENTS).and_then(Sequence::from_object_name) else { return Ok(None) };
    let public = key_field(ROOT, &root.record.root)?;
    Ok(state(store, object, number, &root.record.id, public).await?.map(|(_, bytes)| bytes))
}

/// A later state of the root, and its bytes; `None` for what is none: anyone who can write may have put it there.
///
/// # Errors
/// A store's, `NewerFormat`; `Damaged` for one that is signed and cannot be read.
async fn state(
    store: &dyn Store,
    object: &str,
    number: Sequence,
    id: &str,
    public: [u8; 32],
) -> Result<Option<(Record, Bytes)>> {
    let bytes = match store.get(object).await {
        Err(e) if e.kind.blames_object() => return Ok(None),
        other => other?,
    };
    let signed: Result<Place> = open_json(object, &bytes, SIGNATURE, |_| Ok(public));
    match signed {
        Ok(place) if place.id != id || place.number != number.0 => Ok(None), // of another place: put there again
        // Whoever signed it holds the root key: to go on with an older state would be to believe a key that it retired.
        Ok(_) => parse(object, &bytes, |_| Ok(public)).map(|record| Some((record, bytes.clone()))),
        Err(_) => Ok(None),
    }
}

/// Where a state of any format belongs.
#[derive(Deserialize)]
struct Place {
    id: String,
    number: u64,
}

/// What every format's states begin with.
#[derive(Deserialize)]
struct Version {
    lifeboat: u16,
}

impl Version {
    fn too_new(&self, object: &str) -> RepoError {
        RepoError::NewerFormat { object: object.into(), found: self.lifeboat, known: FORMAT }
    }
}

fn parse<'a>(object: &str, bytes: &'a [u8], public: impl FnOnce(&Record) -> Result<[u8; 32]>) -> Result<Record> {
    // Read first on its own: a newer format may change everything else.
    let signed: Signed<'a> = serde_json::from_slice(bytes).map_err(|why| RepoError::damaged(object, why))?;
    let version: Version = serde_json::from_str(signed.record.get()).map_err(|why| RepoError::damaged(object, why))?;
    match version.lifeboat {
        0 => return Err(RepoError::damaged(object, "there is no format 0")),
        1..=FORMAT => {}
        _ => return Err(version.too_new(object)),
    }
    open_json(object, bytes, SIGNATURE, public)
}

fn check_recipients(recipients: &[Recipient]) -> Result<()> {
    for (at, recipient) in recipients.iter().enumerate() {
        recipient.parse()?;
        SourceName::from_str(&recipient.name)
            .map_err(|e| RepoError::Refused(format!("recipient name {:?}: {}", recipient.name, e.rule)))?;
        if recipients[..at].iter().any(|other| other.name == recipient.name) {
            return Err(RepoError::Refused(format!("two recipients are named {}", recipient.name)));
        }
    }
    if recipients.iter().any(|r| r.role == Role::Recovery) {
        Ok(())
    } else {
        Err(RepoError::Refused("a repository needs at least one recipient with the role recovery".into()))
    }
}

fn wrap_secrets(recipients: &[Recipient], keys: &RootKeys) -> Result<Vec<Wrap>> {
    let (writer, keeper) = (keys.writer.to_text(), keys.keeper.to_text());
    let secrets = Secrets { writer, keeper, root: hex(&keys.root.0.0) };
    let plain = serde_json::to_vec(&secrets).map_err(|why| RepoError::Refused(format!("encode the keys: {why}")))?;
    let plain = zeroize::Zeroizing::new(plain);
    recipients.iter().filter(|r| r.role == Role::Recovery).map(|r| Wrap::new(r, &plain)).collect()
}

/// What a lineage's wraps hold.
#[derive(Serialize, Deserialize)]
pub(crate) struct LineageSecrets {
    pub private: String,
    pub writer: String,
}

impl LineageSecrets {
    pub fn new(private: &Secret32, writer: &Secret32) -> Self {
        Self { private: hex(&private.0), writer: hex(&writer.0) }
    }

    pub fn parse(&self) -> Option<(Secret32, Secret32)> {
        Some((Secret32(unhex(&self.private)?), Secret32(unhex(&self.writer)?)))
    }
}
