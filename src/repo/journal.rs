//! What a restore did, kept in the repository, so that it can go on from another machine (`docs/format.md`, "Journals").
//!
//! One object per record, `_restores/<id>/<number>`, sealed under a key that only recovery identities lead to: a journal
//! says which programs run next, so whoever can merely write to the bucket must not be able to write one. Records are
//! numbered without gaps and created once: of two processes that carry out the same restore, one learns of the other. Each is
//! bound to the object before it: whoever can delete cannot put old records behind new ones.

use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{RootKey, Secret32};
use crate::repo::root::Root;
use crate::repo::seal::{open_document, seal_document};
use crate::store::{PutOptions, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

const PLACE: &str = "_restores/";
const KEY: &str = "lifeboat.dev 2026 restore journal";
/// Bytes of a record.
const LARGEST: usize = 16 << 20;
/// Records of a journal.
const MOST: u32 = 999_999;
/// BLAKE3 of a record's object.
type Digest = [u8; 32];
/// What the first record is chained to.
const NOTHING: Digest = [0; 32];
/// Records that are read at a time.
const AT_ONCE: usize = 16;

/// The journals of a repository.
#[derive(Clone, Debug)]
pub struct Journals {
    store: Arc<dyn Store>,
    root: Root,
    key: Secret32,
    /// The record that was written last, and the digest of its object.
    last: Arc<Mutex<Option<(String, u32, Digest)>>>,
}

/// What became of a record that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Somebody else wrote another one of this number.
    Taken,
}

/// What a journal is called: letters, digits and hyphens, so that it is one part of an object's name.
fn check(id: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=80).contains(&id.len()) && id.bytes().all(fits) {
        Ok(())
    } else {
        Err(RepoError::Refused(format!("{id:?} is no restore's id: expected lower-case letters, digits and hyphens")))
    }
}

impl Journals {
    pub(super) fn new(store: Arc<dyn Store>, root: Root, key: &RootKey) -> Self {
        Self { key: key.derive(KEY), store, root, last: Arc::default() }
    }

    fn aad(&self, id: &str, number: u32, before: &Digest) -> Vec<u8> {
        let mut aad = self.root.id.0.to_vec();
        aad.extend_from_slice(&number.to_le_bytes());
        aad.extend_from_slice(before);
        aad.extend_from_slice(id.as_bytes());
        aad
    }

    /// What record `number` is chained to: what was written here, whatever lies there now.
    async fn before(&self, id: &str, number: u32) -> Result<Digest> {
        if number == 1 {
            return Ok(NOTHING);
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match last.filter(|(of, before, _)| of == id && before + 1 == number) {
            Some((.., digest)) => Ok(digest),
            None => Ok(digest(&self.store.get(&object(id, number - 1)).await?)),
        }
    }

    fn remember(&self, id: &str, number: u32, sealed: &[u8]) -> Written {
        let written = (id.to_owned(), number, digest(sealed));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
        Written::Done
    }

    /// Writes record `number` of journal `id`; the first is 1.
    pub async fn write(&self, id: &str, number: u32, record: &[u8]) -> Result<Written> {
        check(id)?;
        if record.len() > LARGEST || !(1..=MOST).contains(&number) {
            return Err(RepoError::Refused(format!("record {number} of restore {id} is too large, or one too many")));
        }
        let object = object(id, number);
        let before = self.before(id, number).await?;
        let sealed = seal_document(&self.key, &self.aad(id, number, &before), record.to_vec());
        let sealed = Bytes::from(sealed);
        match self.store.put(&object, sealed.clone(), PutOptions::default()).await {
            Ok(()) => Ok(self.remember(id, number, &sealed)),
            // Perhaps our own, whose answer was lost on the way.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                let there = self.store.get(&object).await?;
                let same = self.open(id, number, &before, &there).is_ok_and(|found| found == record);
                Ok(if same { self.remember(id, number, &there) } else { Written::Taken })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, id: &str, number: u32, before: &Digest, sealed: &[u8]) -> Result<Vec<u8>> {
        open_document(&self.key, &self.aad(id, number, before), sealed)
            .map_err(|why| RepoError::Foreign { object: object(id, number), reason: why.to_string() })
    }

    /// All records of a journal, in order.
    ///
    /// # Errors
    /// `Foreign` for a record that was not written by a recovery identity's holder, or was moved.
    pub async fn read(&self, id: &str) -> Result<Vec<Vec<u8>>> {
        check(id)?;
        let there = list_all(self.store.as_ref(), &format!("{PLACE}{id}/")).await?;
        let names: BTreeSet<_> = there.into_iter().map(|meta| meta.key).collect();
        // Records are numbered without gaps; what lies behind one is nobody's.
        let numbers: Vec<u32> = (1..=MOST).take_while(|number| names.contains(&object(id, *number))).collect();
        let reads = numbers.into_iter().map(|number| async move { self.store.get(&object(id, number)).await });
        let sealed: Vec<_> = futures_util::stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
        let mut before = NOTHING;
        let mut records = Vec::with_capacity(sealed.len());
        for (number, sealed) in (1..).zip(sealed) {
            records.push(self.open(id, number, &before, &sealed)?);
            before = digest(&sealed);
        }
        Ok(records)
    }

    /// The ids of all journals, and when the store took the newest record of each, by the store's own clock.
    pub async fn list(&self) -> Result<BTreeMap<String, Timestamp>> {
        let mut newest = BTreeMap::new();
        for object in list_all(self.store.as_ref(), PLACE).await? {
            let id = object.key.strip_prefix(PLACE).and_then(|rest| rest.split('/').next());
            if let Some(id) = id.filter(|id| check(id).is_ok()) {
                let known = newest.entry(id.to_owned()).or_insert(object.modified);
                *known = object.modified.max(*known);
            }
        }
        Ok(newest)
    }
}

fn digest(sealed: &[u8]) -> Digest {
    *blake3::hash(sealed).as_bytes()
}

fn object(id: &str, number: u32) -> String {
    format!("{PLACE}{id}/{number:06}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Identity, Recipient, Repository, Role};
    use crate::store::Memory;

    async fn repository(store: &Arc<dyn Store>) -> (Repository, Identity) {
        let identity = Identity::generate();
        let recipient = Recipient { name: "ann".into(), role: Role::Recovery, key: identity.public() };
        let (repository, _) = Repository::create(store.clone(), vec![recipient], Timestamp::UNIX_EPOCH).await.unwrap();
        (repository, identity)
    }

    #[tokio::test]
    async fn a_record_is_written_once_and_read_by_recovery_identities() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let (repository, identity) = repository(&store).await;
        let journals = repository.journals(&identity).unwrap();
        assert_eq!(journals.write("r-1", 1, b"one").await.unwrap(), Written::Done);
        assert_eq!(journals.write("r-1", 1, b"one").await.unwrap(), Written::Done);
        assert_eq!(journals.write("r-1", 1, b"other").await.unwrap(), Written::Taken);
        assert_eq!(journals.write("r-1", 2, b"two").await.unwrap(), Written::Done);
        assert_eq!(journals.read("r-1").await.unwrap(), [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(journals.list().await.unwrap().into_keys().collect::<Vec<_>>(), ["r-1"]);
        assert!(repository.journals(&Identity::generate()).is_err());
        assert!(journals.write("../x", 1, b"").await.is_err());
        assert_eq!(repository.sources().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_record_that_somebody_else_put_there_is_not_believed() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let (repository, identity) = repository(&store).await;
        let journals = repository.journals(&identity).unwrap();
        journals.write("r-1", 1, b"one").await.unwrap();
        let moved = store.get(&object("r-1", 1)).await.unwrap();
        store.put(&object("r-1", 2), moved.clone(), PutOptions::default()).await.unwrap();
        assert!(matches!(journals.read("r-1").await, Err(RepoError::Foreign { .. })));
        store.put(&object("r-2", 1), moved, PutOptions::default()).await.unwrap();
        assert!(matches!(journals.read("r-2").await, Err(RepoError::Foreign { .. })));
    }

    /// Whoever can delete keeps the end of a journal, lets somebody go on from its beginning, and puts the end back.
    #[tokio::test]
    async fn an_old_end_does_not_fit_a_new_middle() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let (repository, identity) = repository(&store).await;
        let journals = repository.journals(&identity).unwrap();
        for (number, record) in (1..).zip(["resolved", "begun", "done"]) {
            journals.write("r-1", number, record.as_bytes()).await.unwrap();
        }
        let done = store.get(&object("r-1", 3)).await.unwrap();
        for number in [3, 2] {
            store.delete(&object("r-1", number)).await.unwrap();
        }
        assert!(journals.write("r-1", 3, b"done").await.is_err());
        journals.write("r-1", 2, b"begun").await.unwrap();
        store.put(&object("r-1", 3), done, PutOptions::default()).await.unwrap();
        assert!(matches!(journals.read("r-1").await, Err(RepoError::Foreign { .. })));
    }
}
