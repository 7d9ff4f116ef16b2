//! Amazon S3 and servers that speak its protocol.
//!
//! Every write is create-only (`If-None-Match: *`). In a versioned bucket the first version of a name is the true one:
//! reads look past delete markers and later versions, at the price of one more request for an object not seen before, and
//! a write that turns out not to be the first version is `AlreadyExists` (a delete marker hides a name from
//! `If-None-Match`, so the bucket is asked after the write). Reading such a bucket needs the rights to list versions
//! and to get them.
//!
//! The SDK repeats nothing. [`super::Retrying`] repeats whole operations; the requests of an upload are repeated here,
//! because only the upload still holds what it sends.

mod error;
mod settings;
mod upload;
mod versions;

pub use error::failed;
pub use settings::{Credentials, Encryption, LockMode, Settings, account, client};

use super::conformance::Rival;
use super::key::{check_key, check_prefix};
use super::{
    Features, MAX_WHOLE, ObjectMeta, PutOptions, Result, RetryPolicy, Store, StoreError, StoreErrorKind, Upload,
};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::types::{ObjectLockEnabled, ObjectLockMode, ServerSideEncryption};
use aws_smithy_types::DateTime;
use bytes::{Bytes, BytesMut};
use error::other;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use upload::S3Upload;
use versions::FirstVersions;

/// For one request; a body has as long again.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(5);

/// Whoever waits longer for a store to answer is told why.
const PATIENT_ATTEMPTS: u32 = 4;

/// A bucket, or a part of one.
#[derive(Clone, Debug)]
pub struct S3 {
    bucket: Arc<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    client: Client,
    settings: Settings,
    features: Features,
    first: FirstVersions,
    policy: RetryPolicy,
}

impl S3 {
    /// Connects, and asks the bucket for its versioning and its Object Lock.
    ///
    /// # Errors
    /// `NotFound` if there is no such bucket; `Other` if Object Lock is wanted and the bucket has none.
    pub async fn open(mut settings: Settings) -> Result<Self> {
        settings.prefix = settings.prefix.trim_matches('/').to_owned();
        settings.part_size = settings.part_size.max(5 << 20);
        if !settings.prefix.is_empty() {
            check_key("open", &settings.prefix)?;
        }
        let client = client(&settings).await;
        let mut bucket = Bucket {
            client,
            settings,
            features: Features::default(),
            first: FirstVersions::default(),
            policy: RetryPolicy::default(),
        };
        let asked = bucket.policy.run(|attempt| {
            if attempt == PATIENT_ATTEMPTS {
                tracing::warn!(url = bucket.url(), "the store does not answer; trying again for a while");
            }
            bucket.ask_features()
        });
        bucket.features = asked.await?;
        Ok(Self { bucket: Arc::new(bucket) })
    }
}

impl Bucket {
    fn url(&self) -> String {
        let Settings { bucket, prefix, .. } = &self.settings;
        if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") }
    }

    /// The bucket's own name for a key or prefix of the store.
    fn full(&self, key: &str) -> String {
        if self.settings.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.settings.prefix) }
    }

    /// The store's key of a name in the bucket.
    fn relative<'a>(&self, full: &'a str) -> Option<&'a str> {
        if self.settings.prefix.is_empty() {
            return Some(full);
        }
        full.strip_prefix(self.settings.prefix.as_str())?.strip_prefix('/')
    }

    fn meta(&self, full: Option<&str>, size: Option<i64>, modified: Option<&DateTime>) -> Result<Option<ObjectMeta>> {
        // Names that no key can have are not ours.
        let Some(key) = full.and_then(|full| self.relative(full)).filter(|key| check_key("list", key).is_ok()) else {
            return Ok(None);
        };
        Ok(Some(ObjectMeta { key: key.to_owned(), size: length(key, size)?, modified: timestamp(key, modified)? }))
    }

    async fn ask_features(&self) -> Result<Features> {
        let name = &self.settings.bucket;
        let versions = match self.client.get_bucket_versioning().bucket(name).send().await {
            // Suspended too: what was there before is still to be looked for.
            Ok(answer) => answer.status().is_some(),
            Err(e) => match failed("ask for the versioning of", self.url(), &e) {
                // Servers without versioning do not know the question.
                e if e.kind == StoreErrorKind::Other => {
                    self.client.head_bucket().bucket(name).send().await.map_err(|e| failed("open", self.url(), &e))?;
                    tracing::debug!(error = &e as &dyn std::error::Error, "taken for a bucket without versioning");
                    false
                }
                e => return Err(e),
            },
        };
        if self.settings.lock.is_none() {
            return Ok(Features { lock: false, versions });
        }
        let answer = match self.client.get_object_lock_configuration().bucket(name).send().await {
            Ok(answer) => Some(answer),
            Err(e) => match failed("ask for the Object Lock of", self.url(), &e) {
                e if matches!(e.kind, StoreErrorKind::NotFound | StoreErrorKind::Other) => None,
                e => return Err(e),
            },
        };
        let enabled = answer.as_ref().and_then(|a| a.object_lock_configuration()?.object_lock_enabled());
        if enabled != Some(&ObjectLockEnabled::Enabled) || !versions {
            return Err(other(
                "open",
                self.url(),
                "Object Lock is wanted and not enabled for this bucket; enable it together with versioning",
            ));
        }
        Ok(Features { lock: true, versions })
    }

    fn lock_mode(&self) -> Option<ObjectLockMode> {
        self.settings.lock.map(|mode| match mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        })
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.settings.encryption {
            Encryption::BucketDefault => (None, None),
            Encryption::Aes256 => (Some(ServerSideEncryption::Aes256), None),
            Encryption::Kms { key_id } => (Some(ServerSideEncryption::AwsKms), key_id.clone()),
        }
    }

    fn lock_until(&self, options: PutOptions) -> (Option<ObjectLockMode>, Option<DateTime>) {
        match options.retain_until {
            Some(until) if self.features.lock => (self.lock_mode(), Some(date(until))),
            _ => (None, None),
        }
    }

    fn put_request(&self, key: &str, body: Bytes, options: PutOptions) -> PutObjectFluentBuilder {
        let (sse, kms_key) = self.encryption();
        let (mode, until) = self.lock_until(options);
        self.client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(self.full(key))
            .if_none_match("*")
            .set_server_side_encryption(sse)
            .set_ssekms_key_id(kms_key)
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .body(body.into())
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        let answer = self.put_request(key, body, options).send().await.map_err(|e| failed("create", key, &e))?;
        self.check_first(key, answer.version_id()).await
    }

    /// Reads the object, or the `range` of it in the notation of HTTP.
    async fn read(&self, key: &str, range: Option<String>) -> Result<Bytes> {
        check_key("read", key)?;
        let whole = range.is_none();
        let request = self.client.get_object().bucket(&self.settings.bucket).key(self.full(key)).set_range(range);
        let request =
            if self.features.versions { request.version_id(self.first_version(key).await?.id) } else { request };
        match request.send().await {
            Ok(answer) if whole && answer.content_length().is_none_or(|l| l.cast_unsigned() > MAX_WHOLE) => {
                Err(StoreError::new(StoreErrorKind::TooLarge, "read", key))
            }
            Ok(answer) => body(key, answer).await,
            Err(e) => {
                let error = failed("read", key, &e);
                if error.kind == StoreErrorKind::NotFound {
                    self.first.forget(key);
                }
                Err(error)
            }
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        let mut continuation = None;
        while found.len() < limit {
            let answer = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(self.full(prefix))
                .set_start_after(after.map(|after| self.full(after)))
                .set_continuation_token(continuation.take())
                .max_keys(page(limit - found.len()))
                .send()
                .await
                .map_err(|e| failed("list", self.full(prefix), &e))?;
            for object in answer.contents() {
                found.extend(self.meta(object.key(), object.size(), object.last_modified())?);
            }
            continuation = answer.next_continuation_token;
            if continuation.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn roots(&self) -> Result<Vec<String>> {
        let mut roots = Vec::new();
        let mut continuation = None;
        loop {
            let answer = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(self.full(""))
                .delimiter("/")
                .set_continuation_token(continuation.take())
                .send()
                .await
                .map_err(|e| failed("list", self.url(), &e))?;
            roots.extend(answer.common_prefixes().iter().filter_map(|common| self.root(common.prefix())));
            continuation = answer.next_continuation_token;
            if continuation.is_none() {
                return Ok(roots);
            }
        }
    }

    fn root(&self, common: Option<&str>) -> Option<String> {
        let root = self.relative(common?)?.strip_suffix('/')?;
        check_key("list", root).is_ok().then(|| root.to_owned())
    }
}

/// So many names a server gives at once, of those wanted.
fn page(wanted: usize) -> i32 {
    const MOST: i32 = 1000;
    i32::try_from(wanted).map_or(MOST, |wanted| wanted.min(MOST))
}

async fn body(key: &str, mut answer: GetObjectOutput) -> Result<Bytes> {
    let expected = length(key, answer.content_length())?;
    let unavailable = || StoreError::new(StoreErrorKind::Unavailable, "read", key);
    let mut body = BytesMut::with_capacity(expected.min(MAX_WHOLE) as usize);
    let read = async {
        while let Some(piece) = answer.body.try_next().await.map_err(|e| unavailable().because(e))? {
            body.extend_from_slice(&piece);
        }
        Ok(())
    };
    tokio::time::timeout(REQUEST_TIMEOUT, read).await.map_err(|e| unavailable().because(e))??;
    if body.len() as u64 != expected {
        return Err(unavailable().because("the answer was cut short"));
    }
    Ok(body.freeze())
}

fn length(key: &str, size: Option<i64>) -> Result<u64> {
    size.and_then(|size| u64::try_from(size).ok()).ok_or_else(|| other("read", key, "the server gave no size"))
}

/// In whole seconds: HEAD answers in no other unit, and a listing must not differ from it.
fn timestamp(key: &str, time: Option<&DateTime>) -> Result<Timestamp> {
    time.and_then(|time| Timestamp::from_second(time.secs()).ok())
        .ok_or_else(|| other("read", key, "the server gave no modification time"))
}

/// In whole seconds, rounded up: what every server understands, and never earlier than asked.
fn date(time: Timestamp) -> DateTime {
    DateTime::from_secs(time.as_second() + i64::from(time.subsec_nanosecond() > 0))
}

#[async_trait]
impl Store for S3 {
    fn url(&self) -> String {
        self.bucket.url()
    }

    fn features(&self) -> Features {
        self.bucket.features
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()> {
        check_key("create", key)?;
        self.bucket.put(key, body, options).await
    }

    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>> {
        check_key("create", key)?;
        Ok(Box::new(S3Upload::new(Arc::clone(&self.bucket), key, options)))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.bucket.read(key, None).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let truncated = || StoreError::new(StoreErrorKind::Truncated, "read", key);
        let end = offset.checked_add(length).ok_or_else(truncated)?;
        if length == 0 {
            return if self.head(key).await?.size < offset { Err(truncated()) } else { Ok(Bytes::new()) };
        }
        let body = self.bucket.read(key, Some(format!("bytes={offset}-{}", end - 1))).await?;
        match (body.len() as u64).cmp(&length) {
            std::cmp::Ordering::Equal => Ok(body),
            std::cmp::Ordering::Less => Err(truncated()),
            std::cmp::Ordering::Greater => Err(other("read", key, "the server sent more than the range asked for")),
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        check_key("read", key)?;
        let bucket = &self.bucket;
        if bucket.features.versions {
            // Not from memory: it may have been deleted by another process.
            let first = bucket.ask_first_version(key).await?;
            return Ok(ObjectMeta { key: key.to_owned(), size: first.size, modified: first.modified });
        }
        let answer = bucket
            .client
            .head_object()
            .bucket(&bucket.settings.bucket)
            .key(bucket.full(key))
            .send()
            .await
            .map_err(|e| failed("read", key, &e))?;
        Ok(ObjectMeta {
            key: key.to_owned(),
            size: length(key, answer.content_length())?,
            modified: timestamp(key, answer.last_modified())?,
        })
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        if self.bucket.features.versions {
            self.bucket.list_first_versions(prefix, after, limit).await
        } else {
            self.bucket.list(prefix, after, limit).await
        }
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        if self.bucket.features.versions { self.bucket.version_roots().await } else { self.bucket.roots().await }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        let bucket = &self.bucket;
        if bucket.features.versions {
            return bucket.delete_versions(key).await;
        }
        let request = bucket.client.delete_object().bucket(&bucket.settings.bucket).key(bucket.full(key));
        match request.send().await.map_err(|e| failed("delete", key, &e)) {
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        check_key("extend the lock of", key)?;
        if self.bucket.features.lock { self.bucket.retain(key, until).await } else { Ok(()) }
    }
}

#[async_trait]
impl Rival for S3 {
    async fn overwrite(&self, key: &str, body: Bytes) -> Result<()> {
        let bucket = &self.bucket;
        let request =
            bucket.client.put_object().bucket(&bucket.settings.bucket).key(bucket.full(key)).body(body.into());
        request.send().await.map_err(|e| failed("overwrite", key, &e)).map(|_| ())
    }

    async fn hide(&self, key: &str) -> Result<()> {
        let bucket = &self.bucket;
        let request = bucket.client.delete_object().bucket(&bucket.settings.bucket).key(bucket.full(key));
        request.send().await.map_err(|e| failed("hide", key, &e)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_dates_are_never_rounded_down() {
        let at = |text: &str| date(text.parse().unwrap()).secs();
        assert_eq!(at("1970-01-01T00:00:10Z"), 10);
        assert_eq!(at("1970-01-01T00:00:10.000000001Z"), 11);
        assert_eq!(at("1970-01-01T00:00:10.9Z"), 11);
    }
}
