//! Objects in memory, for tests: a deterministic clock, and Object Lock on request.

use super::key::{check_key, check_prefix};
use super::{Features, MAX_WHOLE, ObjectMeta, PutOptions, Result, Store, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store that lives as long as the last handle to it: clones share their objects.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    shared: Arc<Mutex<Shared>>,
    lock: bool,
}

#[derive(Debug, Default)]
struct Shared {
    objects: BTreeMap<String, Object>,
    now: Timestamp,
}

#[derive(Debug)]
struct Object {
    body: Bytes,
    modified: Timestamp,
    retain_until: Option<Timestamp>,
}

impl Memory {
    /// Without Object Lock; the clock stands at the Unix epoch until [`Memory::set_now`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Honours `retain_until`.
    pub fn with_lock() -> Self {
        Self { lock: true, ..Self::default() }
    }

    /// Sets the store's clock: the `modified` of what is written from now on, and what retention is compared with.
    pub fn set_now(&self, now: Timestamp) {
        self.shared().now = now;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        let mut shared = self.shared();
        if shared.objects.contains_key(key) {
            return Err(StoreError::new(StoreErrorKind::AlreadyExists, "create", key));
        }
        let retain_until = options.retain_until.filter(|_| self.lock);
        let modified = shared.now;
        shared.objects.insert(key.to_owned(), Object { body, modified, retain_until });
        Ok(())
    }

    fn read<T>(&self, key: &str, read: impl FnOnce(&Object) -> Result<T>) -> Result<T> {
        check_key("read", key)?;
        let shared = self.shared();
        read(shared.objects.get(key).ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "read", key))?)
    }
}

#[async_trait]
impl Store for Memory {
    fn url(&self) -> String {
        "memory:".to_owned()
    }

    fn features(&self) -> Features {
        Features { lock: self.lock, versions: false }
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        check_key("create", key)?;
        self.insert(key, body, options)
    }

    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>> {
        check_key("create", key)?;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_owned(), options, body: BytesMut::new() }))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.read(key, |object| match object.body.len() as u64 {
            0..=MAX_WHOLE => Ok(object.body.clone()),
            _ => Err(StoreError::new(StoreErrorKind::TooLarge, "read", key)),
        })
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.read(key, |object| {
            let size = object.body.len() as u64;
            match offset.checked_add(length) {
                Some(end) if end <= size => Ok(object.body.slice(offset as usize..end as usize)),
                _ => Err(StoreError::new(StoreErrorKind::Truncated, "read", key)),
            }
        })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.read(key, |object| {
            Ok(ObjectMeta { key: key.to_owned(), size: object.body.len() as u64, modified: object.modified })
        })
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let shared = self.shared();
        Ok(shared
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, o)| ObjectMeta { key: key.clone(), size: o.body.len() as u64, modified: o.modified })
            .collect())
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        let shared = self.shared();
        let mut roots: Vec<String> =
            shared.objects.keys().filter_map(|key| Some(key.split_once('/')?.0.to_owned())).collect();
        roots.sort();
        roots.dedup();
        Ok(roots)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        let mut shared = self.shared();
        let now = shared.now;
        if shared.objects.get(key).and_then(|o| o.retain_until).is_some_and(|until| until > now) {
            return Err(StoreError::new(StoreErrorKind::Locked, "delete", key));
        }
        shared.objects.remove(key);
        Ok(())
    }

    async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        check_key("extend the lock of", key)?;
        if !self.lock {
            return Ok(());
        }
        let mut shared = self.shared();
        let Some(object) = shared.objects.get_mut(key) else {
            return Err(StoreError::new(StoreErrorKind::NotFound, "extend the lock of", key));
        };
        object.retain_until = object.retain_until.max(Some(until));
        Ok(())
    }
}

struct MemoryUpload {
    store: Memory,
    key: String,
    options: PutOptions,
    body: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.body.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.store.insert(&self.key, self.body.freeze(), self.options)
    }

    async fn abort(self: Box<Self>) {}
}
