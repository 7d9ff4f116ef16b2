//! A store that refuses to be changed.

use super::{Features, ObjectMeta, PutOptions, Result, Store, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::sync::Arc;

/// Forwards reads; every write is [`StoreErrorKind::ReadOnly`].
#[derive(Clone, Debug)]
pub struct ReadOnly {
    inner: Arc<dyn Store>,
}

impl ReadOnly {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }
}

fn refuse<T>(action: &'static str, key: &str) -> Result<T> {
    Err(StoreError::new(StoreErrorKind::ReadOnly, action, key))
}

#[async_trait]
impl Store for ReadOnly {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn put(&self, key: &str, _body: Bytes, _options: PutOptions) -> Result<()> {
        refuse("create", key)
    }

    async fn upload(&self, key: &str, _options: PutOptions) -> Result<Box<dyn Upload>> {
        refuse("create", key)
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.inner.get_range(key, offset, length).await
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
        refuse("delete", key)
    }

    async fn retain(&self, key: &str, _until: Timestamp) -> Result<()> {
        refuse("extend the lock of", key)
    }
}
