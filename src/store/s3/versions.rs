//! Versioned buckets: the first version of a name is the true one, whatever was laid on top of it.

use super::error::{failed, other};
use super::{Bucket, date, length, page, timestamp};
use crate::store::key::is_part;
use crate::store::{ObjectMeta, Result, StoreError, StoreErrorKind};
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::operation::list_object_versions::builders::ListObjectVersionsFluentBuilder;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode, ObjectVersion};
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many names are remembered; then all are forgotten.
const REMEMBERED: usize = 10_000;

/// The version of what was written while versioning was off.
const NO_VERSION: &str = "null";

#[derive(Clone, Debug)]
pub(super) struct FirstVersion {
    pub id: String,
    pub size: u64,
    pub modified: Timestamp,
}

/// First versions seen. They never change, they only go.
#[derive(Debug, Default)]
pub(super) struct FirstVersions {
    known: Mutex<HashMap<String, FirstVersion>>,
}

impl FirstVersions {
    fn known(&self) -> MutexGuard<'_, HashMap<String, FirstVersion>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: &str, first: FirstVersion) {
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key.to_owned(), first);
    }

    pub(super) fn forget(&self, key: &str) {
        self.known().remove(key);
    }
}

/// A place in the listing of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marker {
    key: String,
    version: Option<String>,
}

impl Bucket {
    /// One page of versions, and where the next begins.
    async fn version_page(
        &self,
        prefix: &str,
        marker: Option<Marker>,
        adjust: impl FnOnce(ListObjectVersionsFluentBuilder) -> ListObjectVersionsFluentBuilder,
    ) -> Result<(ListObjectVersionsOutput, Option<Marker>)> {
        let (key, version) = marker.clone().map(|m| (m.key, m.version)).unzip();
        let request = self
            .client
            .list_object_versions()
            .bucket(&self.settings.bucket)
            .prefix(self.full(prefix))
            .set_key_marker(key)
            .set_version_id_marker(version.flatten());
        let answer = adjust(request).send().await.map_err(|e| failed("list", self.full(prefix), &e))?;
        if answer.is_truncated() != Some(true) {
            return Ok((answer, None));
        }
        let next = answer
            .next_key_marker()
            .map(|key| Marker { key: key.to_owned(), version: answer.next_version_id_marker().map(str::to_owned) });
        if next.is_none() || next == marker {
            return Err(other("list", self.full(prefix), "the server says there is more and not where"));
        }
        Ok((answer, next))
    }

    /// The first version of `key`, from memory or from the bucket.
    pub(super) async fn first_version(&self, key: &str) -> Result<FirstVersion> {
        if let Some(first) = self.first.known().get(key) {
            return Ok(first.clone());
        }
        self.ask_first_version(key).await
    }

    pub(super) async fn ask_first_version(&self, key: &str) -> Result<FirstVersion> {
        let full = self.full(key);
        let (mut first, mut marker) = (None, None);
        loop {
            let (answer, next) = self.version_page(key, marker, |request| request).await?;
            // Newest first, so the last one of this name is its first version.
            if let Some(version) = answer.versions().iter().rfind(|v| v.key() == Some(&full)) {
                first = Some(describe(key, version)?);
            }
            // Names that only begin like this one come after it.
            match next {
                Some(next) if next.key == full => marker = Some(next),
                _ => break,
            }
        }
        let first = first.ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "read", key))?;
        self.first.remember(key, first.clone());
        Ok(first)
    }

    /// After a write: whether it became the first version.
    pub(super) async fn check_first(&self, key: &str, written: Option<&str>) -> Result<()> {
        if !self.features.versions {
            return Ok(());
        }
        let first = self.policy.run(|_| self.ask_first_version(key)).await?;
        if written.unwrap_or(NO_VERSION) == first.id {
            return Ok(());
        }
        Err(StoreError::new(StoreErrorKind::AlreadyExists, "create", key)
            .because("an earlier version of it exists, perhaps hidden by a delete marker"))
    }

    pub(super) async fn list_first_versions(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>> {
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut marker = after.filter(|a| !a.is_empty()).map(|after| Marker { key: self.full(after), version: None });
        loop {
            let page = page(limit.saturating_add(1));
            let (answer, next) = self.version_page(prefix, marker, |request| request.max_keys(page)).await?;
            for version in answer.versions() {
                let Some(meta) = self.meta(version.key(), version.size(), version.last_modified())? else { continue };
                if after.is_some_and(|after| meta.key.as_str() <= after) {
                    continue;
                }
                match found.last_mut() {
                    Some(newer) if newer.key == meta.key => *newer = meta,
                    _ => found.push(meta),
                }
            }
            // The last name of a page may have older versions on the next.
            if next.is_none() || found.len() > limit {
                found.truncate(limit);
                return Ok(found);
            }
            marker = next;
        }
    }

    pub(super) async fn version_roots(&self) -> Result<Vec<String>> {
        let (mut roots, mut marker) = (Vec::new(), None);
        loop {
            let (answer, next) = self.version_page("", marker, |request| request.delimiter("/")).await?;
            for root in answer.common_prefixes().iter().filter_map(|common| self.root(common.prefix())) {
                // A place may hold nothing but delete markers.
                if is_part(&root) && !self.list_first_versions(&format!("{root}/"), None, 1).await?.is_empty() {
                    roots.push(root);
                }
            }
            if next.is_none() {
                return Ok(roots);
            }
            marker = next;
        }
    }

    /// Removes all versions and delete markers, the first version last: were it gone and a later one still there, that
    /// one would be taken for the true one.
    pub(super) async fn delete_versions(&self, key: &str) -> Result<()> {
        self.first.forget(key);
        let full = self.full(key);
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let (answer, next) = self.version_page(key, marker, |request| request).await?;
            let versions = answer.versions().iter().filter(|v| v.key() == Some(&full)).map(|v| (false, v.version_id()));
            let markers =
                answer.delete_markers().iter().filter(|m| m.key() == Some(&full)).map(|m| (true, m.version_id()));
            all.extend(markers.chain(versions).filter_map(|(marker, id)| Some((marker, id?.to_owned()))));
            match next {
                Some(next) if next.key == full => marker = Some(next),
                _ => break,
            }
        }
        // Of all pages: versions from the newest to the first, then the markers, which hide nothing from us.
        all.sort_by_key(|(is_marker, _)| *is_marker);
        for (_, id) in all {
            let request = self.client.delete_object().bucket(&self.settings.bucket).key(&full).version_id(id);
            match request.send().await.map_err(|e| failed("delete", key, &e)) {
                Err(e) if e.kind != StoreErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) async fn retain(&self, key: &str, until: Timestamp) -> Result<()> {
        const ACTION: &str = "extend the lock of";
        let until = date(until);
        let first = self.first_version(key).await?;
        // Not GetObjectRetention: not every server's answer to it can be read.
        let held = self
            .client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(self.full(key))
            .version_id(&first.id)
            .send()
            .await
            .map_err(|e| failed(ACTION, key, &e))?
            .object_lock_retain_until_date;
        if held.is_some_and(|held| held >= until) {
            return Ok(());
        }
        let mode = self.lock_mode().map(|mode| ObjectLockRetentionMode::from(mode.as_str()));
        let retention = ObjectLockRetention::builder().set_mode(mode).retain_until_date(until).build();
        let request = self
            .client
            .put_object_retention()
            .bucket(&self.settings.bucket)
            .key(self.full(key))
            .version_id(&first.id)
            .retention(retention);
        request.send().await.map_err(|e| failed(ACTION, key, &e)).map(|_| ())
    }
}

fn describe(key: &str, version: &ObjectVersion) -> Result<FirstVersion> {
    Ok(FirstVersion {
        id: version.version_id().unwrap_or(NO_VERSION).to_owned(),
        size: length(key, version.size())?,
        modified: timestamp(key, version.last_modified())?,
    })
}
