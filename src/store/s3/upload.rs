//! Uploads: one request if the object is small, parts sent several at a time otherwise.

use super::Bucket;
use super::error::{failed, other};
use crate::store::{PutOptions, Result, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Parts on their way at once; each is in memory.
const IN_FLIGHT: usize = 4;

pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: String,
    options: PutOptions,
    buffer: BytesMut,
    size: u64,
    parts: Option<Parts>,
    broken: bool,
}

impl S3Upload {
    pub(super) fn new(bucket: Arc<Bucket>, key: &str, options: PutOptions) -> Self {
        let key = key.to_owned();
        Self { bucket, key, options, buffer: BytesMut::new(), size: 0, parts: None, broken: false }
    }

    async fn send_buffer(&mut self) -> Result<()> {
        let body = self.buffer.split().freeze();
        let parts = match &mut self.parts {
            Some(parts) => parts,
            none => none.insert(Parts::begin(Arc::clone(&self.bucket), &self.key, self.options).await?),
        };
        parts.send(body).await
    }

    async fn take(&mut self, mut piece: Bytes) -> Result<()> {
        let part_size = self.bucket.settings.part_size;
        while !piece.is_empty() {
            if self.buffer.len() == part_size {
                self.send_buffer().await?;
                self.buffer.reserve(part_size);
            }
            let room = part_size - self.buffer.len();
            self.buffer.extend_from_slice(&piece.split_to(room.min(piece.len())));
        }
        Ok(())
    }

    async fn put_whole(&mut self) -> Result<()> {
        let (bucket, key, options) = (&self.bucket, &self.key, self.options);
        let body = &self.buffer.split().freeze();
        bucket
            .policy
            .run(|attempt| async move {
                match bucket.put(key, body.clone(), options).await {
                    // An earlier attempt may have been carried out.
                    Err(e) if attempt > 1 && e.kind == StoreErrorKind::AlreadyExists => {
                        if bucket.read(key, None).await? == *body { Ok(()) } else { Err(e) }
                    }
                    other => other,
                }
            })
            .await
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        if self.broken {
            return Err(other("create", &self.key, "an earlier write of it has failed"));
        }
        self.broken = true;
        self.size += piece.len() as u64;
        self.take(piece).await?;
        self.broken = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        if self.broken {
            return Err(other("create", &self.key, "an earlier write of it has failed"));
        }
        if self.parts.is_none() {
            return self.put_whole().await;
        }
        if !self.buffer.is_empty() {
            self.send_buffer().await?;
        }
        match &mut self.parts {
            Some(parts) => parts.complete(self.size).await,
            None => Ok(()),
        }
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(mut parts) = self.parts.take() {
            parts.sending.shutdown().await;
            parts.give_up().await;
        }
    }
}

/// A multipart upload; given up on drop unless completed.
struct Parts {
    bucket: Arc<Bucket>,
    key: String,
    id: String,
    sending: JoinSet<Result<CompletedPart>>,
    sent: Vec<CompletedPart>,
    next: i32,
    open: bool,
}

impl Parts {
    async fn begin(bucket: Arc<Bucket>, key: &str, options: PutOptions) -> Result<Self> {
        let (sse, kms_key) = bucket.encryption();
        let (mode, until) = bucket.lock_until(options);
        let request = bucket
            .client
            .create_multipart_upload()
            .bucket(&bucket.settings.bucket)
            .key(bucket.full(key))
            .checksum_algorithm(aws_sdk_s3::types::ChecksumAlgorithm::Crc32)
            .set_server_side_encryption(sse)
            .set_ssekms_key_id(kms_key)
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until);
        let answer = bucket
            .policy
            .run(|_| async { request.clone().send().await.map_err(|e| failed("create", key, &e)) })
            .await?;
        let Some(id) = answer.upload_id else { return Err(other("create", key, "the server gave the upload no id")) };
        let (key, sending) = (key.to_owned(), JoinSet::new());
        Ok(Self { bucket, key, id, sending, sent: Vec::new(), next: 1, open: true })
    }

    async fn send(&mut self, body: Bytes) -> Result<()> {
        while self.sending.len() >= IN_FLIGHT {
            self.join_one().await?;
        }
        let (bucket, key, id, number) = (Arc::clone(&self.bucket), self.key.clone(), self.id.clone(), self.next);
        self.next += 1;
        self.sending.spawn(async move { bucket.send_part(&key, &id, number, &body).await });
        Ok(())
    }

    async fn join_one(&mut self) -> Result<()> {
        if let Some(part) = self.sending.join_next().await {
            self.sent.push(part.map_err(|e| StoreError::new(StoreErrorKind::Other, "create", &self.key).because(e))??);
        }
        Ok(())
    }

    async fn complete(&mut self, size: u64) -> Result<()> {
        while !self.sending.is_empty() {
            self.join_one().await?;
        }
        self.sent.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.sent))).build();
        let (bucket, key) = (&self.bucket, &self.key);
        let request = bucket
            .client
            .complete_multipart_upload()
            .bucket(&bucket.settings.bucket)
            .key(bucket.full(key))
            .upload_id(&self.id)
            .if_none_match("*")
            .multipart_upload(parts);
        let request = &request;
        bucket
            .policy
            .run(|attempt| async move {
                match request.clone().send().await.map_err(|e| failed("create", key, &e)) {
                    Ok(answer) => bucket.check_first(key, answer.version_id()).await,
                    // An earlier attempt may have been carried out: then the upload is gone and the object there.
                    Err(e)
                        if attempt > 1
                            && matches!(e.kind, StoreErrorKind::AlreadyExists | StoreErrorKind::NotFound) =>
                    {
                        bucket.already_ours(key, size, e).await
                    }
                    Err(e) => Err(e),
                }
            })
            .await?;
        self.open = false;
        Ok(())
    }

    /// Tells the server to forget the parts. What is left of them if this fails, a lifecycle rule of the bucket removes.
    fn give_up(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.open = false;
        let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
        let request = bucket
            .client
            .abort_multipart_upload()
            .bucket(&bucket.settings.bucket)
            .key(bucket.full(&key))
            .upload_id(&self.id);
        async move {
            if let Err(error) = request.send().await.map_err(|e| failed("give up the upload of", key, &e))
                && error.kind != StoreErrorKind::NotFound
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "parts of an upload stay in the bucket");
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if self.open
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            self.sending.abort_all();
            runtime.spawn(self.give_up());
        }
    }
}

impl Bucket {
    async fn send_part(&self, key: &str, id: &str, number: i32, body: &Bytes) -> Result<CompletedPart> {
        let answer = self
            .policy
            .run(|_| async {
                self.client
                    .upload_part()
                    .bucket(&self.settings.bucket)
                    .key(self.full(key))
                    .upload_id(id)
                    .part_number(number)
                    .checksum_algorithm(aws_sdk_s3::types::ChecksumAlgorithm::Crc32)
                    .body(body.clone().into())
                    .send()
                    .await
                    .map_err(|e| failed("create", key, &e))
            })
            .await?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .build())
    }

    /// Whether what lies under `key` is what an attempt without an answer has written, judged by its size.
    async fn already_ours(&self, key: &str, size: u64, error: StoreError) -> Result<()> {
        let found = if self.features.versions {
            self.ask_first_version(key).await.map(|first| first.size)
        } else {
            let request = self.client.head_object().bucket(&self.settings.bucket).key(self.full(key));
            match request.send().await {
                Ok(answer) => super::length(key, answer.content_length()),
                Err(e) => Err(failed("read", key, &e)),
            }
        };
        match found {
            Ok(found) if found == size => Ok(()),
            Err(e) if e.is_retryable() => Err(e),
            _ => Err(error),
        }
    }
}
