//! A store that fails on command, for crash tests.
//!
//! Operations are counted from 1 over everything that reaches the store: `put`, `upload`, each `write`, `finish`, `get`,
//! `get_range`, `head`, `list`, `list_roots`, `delete` and `retain`. Giving an upload up is not an operation: a killed
//! process does not do it.

use super::{Features, ObjectMeta, PutOptions, Result, Store, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong. The number is that of an operation, the first being 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    Nothing,
    /// Every operation from this one on fails and does nothing: the process was killed here.
    From(u64),
    /// This one fails and does nothing.
    Only(u64),
    /// This one is carried out and reported as failed: the answer was lost.
    AnswerLost(u64),
    /// This one is carried out and reported as failed, every later one fails and does nothing: the process was killed
    /// between the store's work and the answer.
    KilledAfter(u64),
    /// This one never returns.
    Hang(u64),
    /// Every operation takes longer, by up to this much: some overtake others.
    Delay(Duration),
}

/// How reads of an object are falsified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// The object ends after so many bytes.
    Truncate(u64),
    /// One bit of the byte at this offset is the other way round.
    FlipBit(u64),
}

/// The switchboard of a [`Faulty`] store, shared with the test.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    kind: StoreErrorKind,
    operations: u64,
    fetched: u64,
    corrupt: BTreeMap<String, Corruption>,
}

impl Default for Faults {
    fn default() -> Self {
        let kind = StoreErrorKind::Other;
        Self {
            state: Mutex::new(State {
                fault: Fault::Nothing,
                kind,
                operations: 0,
                fetched: 0,
                corrupt: BTreeMap::new(),
            }),
        }
    }
}

enum Verdict {
    Perform,
    PerformThenFail,
    Fail,
    Hang,
    Delay(Duration),
}

impl Faults {
    /// Begins counting anew with this fault, reported as `Other`.
    pub fn set(&self, fault: Fault) {
        self.set_as(fault, StoreErrorKind::Other);
    }

    /// Begins counting anew with this fault, reported as `kind`.
    pub fn set_as(&self, fault: Fault, kind: StoreErrorKind) {
        let mut state = self.state();
        (state.operations, state.fetched) = (0, 0);
        state.fault = fault;
        state.kind = kind;
    }

    /// Operations since the fault was set.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Bytes that ranged reads have given since the fault was set.
    pub fn fetched(&self) -> u64 {
        self.state().fetched
    }

    /// Falsifies what is read of `key` from now on.
    pub fn corrupt(&self, key: &str, corruption: Corruption) {
        self.state().corrupt.insert(key.to_owned(), corruption);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn corruption(&self, key: &str) -> Option<Corruption> {
        self.state().corrupt.get(key).copied()
    }

    fn verdict(&self) -> (Verdict, StoreErrorKind) {
        let mut state = self.state();
        state.operations += 1;
        let this = state.operations;
        let verdict = match state.fault {
            Fault::From(n) if this >= n => Verdict::Fail,
            Fault::Only(n) if this == n => Verdict::Fail,
            Fault::AnswerLost(n) | Fault::KilledAfter(n) if this == n => Verdict::PerformThenFail,
            Fault::KilledAfter(n) if this > n => Verdict::Fail,
            Fault::Hang(n) if this == n => Verdict::Hang,
            Fault::Delay(time) => Verdict::Delay(time * (this * 3 % 8) as u32 / 8),
            _ => Verdict::Perform,
        };
        (verdict, state.kind)
    }

    async fn apply<T>(
        &self,
        action: &'static str,
        object: &str,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (verdict, kind) = self.verdict();
        let failed = || StoreError::new(kind, action, object).because("fault injected by a test");
        match verdict {
            Verdict::Perform => operation.await,
            Verdict::PerformThenFail => operation.await.and_then(|_| Err(failed())),
            Verdict::Fail => Err(failed()),
            Verdict::Hang => std::future::pending().await,
            Verdict::Delay(time) => {
                tokio::time::sleep(time).await;
                operation.await
            }
        }
    }
}

/// A decorator that fails as its [`Faults`] say.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn read_falsified(&self, key: &str, corruption: Corruption) -> Result<Bytes> {
        let body = self.inner.get(key).await?;
        Ok(match corruption {
            Corruption::Truncate(size) => body.slice(..body.len().min(size as usize)),
            Corruption::FlipBit(offset) => {
                let mut body = BytesMut::from(body);
                if let Some(byte) = body.get_mut(offset as usize) {
                    *byte ^= 1;
                }
                body.freeze()
            }
        })
    }
}

#[async_trait]
impl Store for Faulty {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        self.faults.apply("create", key, self.inner.put(key, body, options)).await
    }

    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>> {
        let inner = self.faults.apply("create", key, self.inner.upload(key, options)).await?;
        Ok(Box::new(FaultyUpload { inner, key: key.to_owned(), faults: Arc::clone(&self.faults) }))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.faults
            .apply("read", key, async {
                match self.faults.corruption(key) {
                    Some(corruption) => self.read_falsified(key, corruption).await,
                    None => self.inner.get(key).await,
                }
            })
            .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.faults
            .apply("read", key, async {
                let Some(corruption) = self.faults.corruption(key) else {
                    let bytes = self.inner.get_range(key, offset, length).await?;
                    self.faults.state().fetched += bytes.len() as u64;
                    return Ok(bytes);
                };
                let body = self.read_falsified(key, corruption).await?;
                match offset.checked_add(length) {
                    Some(end) if end <= body.len() as u64 => Ok(body.slice(offset as usize..end as usize)),
                    _ => Err(StoreError::new(StoreErrorKind::Truncated, "read", key)),
                }
            })
            .await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.faults
            .apply("read", key, async {
                let mut meta = self.inner.head(key).await?;
                if let Some(Corruption::Truncate(size)) = self.faults.corruption(key) {
                    meta.size = meta.size.min(size);
                }
                Ok(meta)
            })
            .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        self.faults.apply("list", prefix, self.inner.list(prefix, after, limit)).await
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        self.faults.apply("list", "", self.inner.list_roots()).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.faults.apply("delete", key, self.inner.delete(key)).await
    }

    async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        self.faults.apply("extend the lock of", key, self.inner.retain(key, until)).await
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    key: String,
    faults: Arc<Faults>,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.faults.apply("create", &self.key, self.inner.write(piece)).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let Self { inner, key, faults } = *self;
        faults.apply("create", &key, inner.finish()).await
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn store() -> (Memory, Faulty, Arc<Faults>) {
        let (memory, faults) = (Memory::new(), Arc::new(Faults::default()));
        (memory.clone(), Faulty::new(Arc::new(memory), Arc::clone(&faults)), faults)
    }

    async fn put(store: &dyn Store, key: &str) -> Result<()> {
        store.put(key, Bytes::from_static(b"abc"), PutOptions::default()).await
    }

    #[tokio::test]
    async fn a_killed_process_does_nothing_more() {
        let (memory, store, faults) = store();
        faults.set(Fault::From(2));
        put(&store, "a").await.unwrap();
        assert_eq!(put(&store, "b").await.unwrap_err().kind, StoreErrorKind::Other);
        assert!(store.get("a").await.is_err());
        assert!(memory.get("b").await.is_err());
        assert_eq!(faults.operations(), 3);
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_object() {
        let (memory, store, faults) = store();
        faults.set_as(Fault::AnswerLost(1), StoreErrorKind::Unavailable);
        assert!(put(&store, "a").await.unwrap_err().is_retryable());
        assert_eq!(memory.get("a").await.unwrap(), "abc");
        faults.set(Fault::KilledAfter(1));
        assert!(put(&store, "b").await.is_err());
        assert!(put(&store, "c").await.is_err());
        assert!(memory.get("b").await.is_ok() && memory.get("c").await.is_err());
    }

    #[tokio::test]
    async fn corruption_falsifies_reads_only() {
        let (memory, store, faults) = store();
        put(&store, "a").await.unwrap();
        faults.corrupt("a", Corruption::FlipBit(1));
        assert_eq!(store.get("a").await.unwrap(), "acc");
        assert_eq!(store.get_range("a", 1, 2).await.unwrap(), "cc");
        faults.corrupt("a", Corruption::Truncate(2));
        assert_eq!(store.head("a").await.unwrap().size, 2);
        assert_eq!(store.get_range("a", 1, 2).await.unwrap_err().kind, StoreErrorKind::Truncated);
        assert_eq!(memory.get("a").await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn an_upload_that_fails_leaves_nothing() {
        let (memory, store, faults) = store();
        for n in 1..=3 {
            faults.set(Fault::Only(n));
            let result: Result<()> = async {
                let mut upload = store.upload("a", PutOptions::default()).await?;
                upload.write(Bytes::from_static(b"x")).await?;
                upload.finish().await
            }
            .await;
            assert!(result.is_err(), "{n}");
            assert!(memory.get("a").await.is_err(), "{n}");
        }
    }
}
