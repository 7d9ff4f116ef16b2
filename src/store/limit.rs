//! A bound on bytes per second, uploads and downloads apart.

use super::{Features, ObjectMeta, PutOptions, Result, Store, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What may pass at once before the rate is felt.
const BURST: Duration = Duration::from_millis(500);

/// Bytes per second; none is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub upload: Option<NonZeroU64>,
    pub download: Option<NonZeroU64>,
}

/// When the bytes let through so far are paid for, counted from the beginning.
#[derive(Debug, Default)]
struct Bucket {
    paid_at: Duration,
}

impl Bucket {
    /// Books `bytes` at `now` and says how long to wait before they may pass.
    fn book(&mut self, now: Duration, bytes: u64, rate: NonZeroU64) -> Duration {
        let due = self.paid_at.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        self.paid_at = due.saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)));
        due.saturating_sub(now).saturating_sub(BURST)
    }
}

#[derive(Debug)]
struct Meter {
    rate: Option<NonZeroU64>,
    begin: Instant,
    bucket: Mutex<Bucket>,
}

impl Meter {
    fn new(rate: Option<NonZeroU64>) -> Arc<Self> {
        Arc::new(Self { rate, begin: Instant::now(), bucket: Mutex::default() })
    }

    async fn pass(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let wait = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.book(self.begin.elapsed(), bytes, rate)
        };
        tokio::time::sleep(wait).await;
    }
}

/// A decorator that slows transfers down; clones share their rates.
#[derive(Clone, Debug)]
pub struct Limited {
    inner: Arc<dyn Store>,
    up: Arc<Meter>,
    down: Arc<Meter>,
}

impl Limited {
    pub fn new(inner: Arc<dyn Store>, rates: Rates) -> Self {
        Self { inner, up: Meter::new(rates.upload), down: Meter::new(rates.download) }
    }
}

#[async_trait]
impl Store for Limited {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        self.up.pass(body.len() as u64).await;
        self.inner.put(key, body, options).await
    }

    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>> {
        let inner = self.inner.upload(key, options).await?;
        Ok(Box::new(LimitedUpload { inner, up: Arc::clone(&self.up) }))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let body = self.inner.get(key).await?;
        // The size is known only now: whoever reads next waits for it.
        self.down.pass(body.len() as u64).await;
        Ok(body)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let body = self.inner.get_range(key, offset, length).await?;
        self.down.pass(body.len() as u64).await;
        Ok(body)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix, after, limit).await
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        self.inner.list_roots().await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        self.inner.retain(key, until).await
    }
}

struct LimitedUpload {
    inner: Box<dyn Upload>,
    up: Arc<Meter>,
}

#[async_trait]
impl Upload for LimitedUpload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.up.pass(piece.len() as u64).await;
        self.inner.write(piece).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish().await
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate_after_a_burst() {
        let rate = NonZeroU64::new(1000).unwrap();
        let ms = Duration::from_millis;
        let mut bucket = Bucket::default();
        assert_eq!(bucket.book(ms(0), 400, rate), ms(0));
        assert_eq!(bucket.book(ms(0), 600, rate), ms(0), "within the burst");
        assert_eq!(bucket.book(ms(0), 1000, rate), ms(500), "a second is booked, half of it is burst");
        assert_eq!(bucket.book(ms(1000), 1, rate), ms(500));
        assert_eq!(bucket.book(ms(60_000), 5000, rate), ms(0), "idle time is not saved up");
        assert_eq!(bucket.book(ms(60_000), 1, rate), ms(4500));
        assert!(bucket.book(ms(60_000), u64::MAX, rate) > ms(4500));
        assert!(bucket.book(ms(60_000), u64::MAX, rate) > Duration::from_hours(1));
    }
}
