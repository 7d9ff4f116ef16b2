//! Trying again: exponential backoff with full jitter, bounded in attempts and in time.
//!
//! Only errors that say so are tried again. A create-only write whose answer was lost is not blindly reported as a
//! conflict by the next attempt: what lies there is compared first. The pieces of an upload are not repeated here, since
//! they are not kept; a store repeats them itself where it can.

use super::{Features, ObjectMeta, PutOptions, Result, Store, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::rand::GetRandomFlags;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included.
    pub attempts: u32,
    /// The longest pause after the first attempt; doubled after each further one.
    pub base: Duration,
    /// No pause is longer.
    pub cap: Duration,
    /// No attempt begins later than this after the first.
    pub total: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            base: Duration::from_millis(200),
            cap: Duration::from_secs(20),
            total: Duration::from_mins(3),
        }
    }
}

impl RetryPolicy {
    /// The pause after `attempt` (the first is 1), for a `share` chosen at random from 0..=u32::MAX.
    fn pause(&self, attempt: u32, share: u32) -> Duration {
        let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = self.base.saturating_mul(factor).min(self.cap);
        longest.mul_f64(f64::from(share) / f64::from(u32::MAX))
    }

    pub(super) async fn run<T, F: Future<Output = Result<T>>>(&self, mut attempt: impl FnMut(u32) -> F) -> Result<T> {
        let start = Instant::now();
        let mut number = 1;
        loop {
            let error = match attempt(number).await {
                Err(e) if e.is_retryable() && number < self.attempts => e,
                other => return other,
            };
            let pause = self.pause(number, random_share());
            if start.elapsed() + pause > self.total {
                return Err(error);
            }
            tracing::debug!(error = &error as &dyn std::error::Error, attempt = number, ?pause, "trying again");
            tokio::time::sleep(pause).await;
            number += 1;
        }
    }
}

fn random_share() -> u32 {
    let mut bytes = [0; 4];
    // Without random numbers there is no jitter, only the longest pause.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()).map_or(u32::MAX, |_| u32::from_be_bytes(bytes))
}

/// A decorator that tries again.
#[derive(Clone, Debug)]
pub struct Retrying {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
}

impl Retrying {
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }
}

#[async_trait]
impl Store for Retrying {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        let (inner, body) = (&self.inner, &body);
        self.policy
            .run(|attempt| async move {
                match inner.put(key, body.clone(), options).await {
                    // An earlier attempt may have been carried out.
                    Err(e) if e.kind == StoreErrorKind::AlreadyExists && attempt > 1 => {
                        if inner.get(key).await? == *body { Ok(()) } else { Err(e) }
                    }
                    other => other,
                }
            })
            .await
    }

    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>> {
        let inner = self.policy.run(|_| self.inner.upload(key, options)).await?;
        Ok(Box::new(RetryingUpload { inner, store: self.clone(), key: key.to_owned(), size: 0 }))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.policy.run(|_| self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.policy.run(|_| self.inner.get_range(key, offset, length)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.policy.run(|_| self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        self.policy.run(|_| self.inner.list(prefix, after, limit)).await
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        self.policy.run(|_| self.inner.list_roots()).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.policy.run(|_| self.inner.delete(key)).await
    }

    async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        self.policy.run(|_| self.inner.retain(key, until)).await
    }
}

struct RetryingUpload {
    inner: Box<dyn Upload>,
    store: Retrying,
    key: String,
    size: u64,
}

#[async_trait]
impl Upload for RetryingUpload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        let size = piece.len() as u64;
        self.inner.write(piece).await?;
        self.size += size;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let Self { inner, store, key, size } = *self;
        let Err(lost) = inner.finish().await else { return Ok(()) };
        if !lost.is_retryable() {
            return Err(lost);
        }
        // The answer is lost, the object perhaps not.
        match store.head(&key).await {
            Ok(found) if found.size == size => Ok(()),
            Ok(_) => Err(StoreError::new(StoreErrorKind::AlreadyExists, "create", key).because(lost)),
            Err(_) => Err(lost),
        }
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fault, Faults, Faulty, Memory};
    use super::*;

    const OPTIONS: PutOptions = PutOptions { retain_until: None };

    fn store() -> (Memory, Retrying, Arc<Faults>) {
        let (memory, faults) = (Memory::new(), Arc::new(Faults::default()));
        let inner = Faulty::new(Arc::new(memory.clone()), Arc::clone(&faults));
        let policy = RetryPolicy { attempts: 3, base: Duration::ZERO, ..RetryPolicy::default() };
        (memory, Retrying::new(Arc::new(inner), policy), faults)
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let longest = |attempt| policy.pause(attempt, u32::MAX);
        assert_eq!(longest(1), Duration::from_millis(200));
        assert_eq!(longest(2), Duration::from_millis(400));
        assert_eq!(longest(4), Duration::from_millis(1600));
        assert_eq!(longest(40), Duration::from_secs(20));
        assert_eq!(longest(u32::MAX), Duration::from_secs(20));
        assert_eq!(policy.pause(4, 0), Duration::ZERO);
        assert!(policy.pause(4, u32::MAX / 2) < Duration::from_millis(801));
    }

    #[tokio::test]
    async fn attempts_are_bounded_and_only_for_what_may_pass() {
        let (_, store, faults) = store();
        faults.set_as(Fault::From(1), StoreErrorKind::Unavailable);
        assert!(store.get("a").await.unwrap_err().is_retryable());
        assert_eq!(faults.operations(), 3);
        faults.set_as(Fault::From(1), StoreErrorKind::Denied);
        assert_eq!(store.get("a").await.unwrap_err().kind, StoreErrorKind::Denied);
        assert_eq!(faults.operations(), 1);
    }

    #[tokio::test]
    async fn no_attempt_begins_after_the_total_time() {
        let (_, mut store, faults) = store();
        store.policy = RetryPolicy { attempts: 1000, total: Duration::ZERO, ..RetryPolicy::default() };
        faults.set_as(Fault::From(1), StoreErrorKind::Unavailable);
        assert!(store.head("a").await.is_err());
        assert!(faults.operations() < 3);
    }

    #[tokio::test]
    async fn a_put_whose_answer_was_lost_is_not_a_conflict() {
        let (memory, store, faults) = store();
        faults.set_as(Fault::AnswerLost(1), StoreErrorKind::Unavailable);
        store.put("a", Bytes::from_static(b"mine"), OPTIONS).await.unwrap();
        assert_eq!(memory.get("a").await.unwrap(), "mine");
        faults.set(Fault::Nothing);
        let again = store.put("a", Bytes::from_static(b"mine"), OPTIONS).await.unwrap_err();
        assert_eq!(again.kind, StoreErrorKind::AlreadyExists, "a first attempt that meets an object is a conflict");
    }

    #[tokio::test]
    async fn another_writer_s_object_is_a_conflict() {
        let (memory, store, faults) = store();
        memory.put("a", Bytes::from_static(b"theirs"), OPTIONS).await.unwrap();
        faults.set_as(Fault::Only(1), StoreErrorKind::Unavailable);
        let error = store.put("a", Bytes::from_static(b"mine"), OPTIONS).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn an_upload_whose_last_answer_was_lost_is_looked_for() {
        let (memory, store, faults) = store();
        for (fault, kept) in [(Fault::AnswerLost(3), true), (Fault::Only(3), false)] {
            faults.set_as(fault, StoreErrorKind::Unavailable);
            let key = format!("a/{kept}");
            let mut upload = store.upload(&key, OPTIONS).await.unwrap();
            upload.write(Bytes::from_static(b"mine")).await.unwrap();
            assert_eq!(upload.finish().await.is_ok(), kept);
            assert_eq!(memory.head(&key).await.is_ok(), kept);
        }
    }
}
