//! `kind: Repository`: where snapshots live, and how they are sent there.

use super::At;
use super::decode::Wrong;
use super::node::Node;
use super::quantity::Size;
use crate::policy::duration;
use crate::policy::duration::Shown;
use crate::secret::SecretRef;
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    #[serde(skip)]
    pub name: String,
    #[serde(skip)]
    pub at: At,
    pub url: Url,
    /// Always there when `url` is `s3://…`.
    pub s3: Option<S3>,
    /// What the agent needs to back up.
    pub writer_key: Option<SecretRef>,
    /// What pruning needs.
    pub keeper_key: Option<SecretRef>,
    /// The recovery identity, which opens everything: kept by people, never given to an agent.
    pub identity: Option<SecretRef>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub compression: Compression,
    /// How long a pruned snapshot's packs stay.
    #[serde(default = "three_days", with = "duration::text")]
    pub grace_period: Duration,
    /// A run that takes longer commits nothing.
    #[serde(default = "one_day", with = "duration::text")]
    pub run_limit: Duration,
}

fn three_days() -> Duration {
    Duration::from_hours(3 * 24)
}

fn one_day() -> Duration {
    Duration::from_hours(24)
}

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    Directory(PathBuf),
    S3 {
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("expected file:///PATH, an absolute path, or s3://BUCKET/PREFIX{0}")]
pub struct InvalidUrl(&'static str);

impl std::str::FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if rest.contains('@') {
                return Err(InvalidUrl("; credentials are given by reference, under spec.s3.credentials"));
            }
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fine) {
                return Err(InvalidUrl("; a bucket's name has 3 to 63 lower-case letters, digits, hyphens and dots"));
            }
            let prefix = prefix.trim_matches('/').to_owned();
            if prefix.split('/').any(|part| part == "." || part == "..") || prefix.contains(['?', '#']) {
                return Err(InvalidUrl("; the prefix has no \".\" or \"..\" parts, no \"?\" and no \"#\""));
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        }
        let path = Path::new(text.strip_prefix("file://").unwrap_or(text));
        if path.is_absolute() { Ok(Self::Directory(path.into())) } else { Err(InvalidUrl("")) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3 {
    /// Another server than Amazon's: "https://minio.example.org:9000".
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The bucket is in the path, not in the host name.
    #[serde(default)]
    pub path_style: bool,
    /// Absent: the usual places (environment, web identity, instance metadata).
    pub credentials: Option<Credentials>,
    pub server_side_encryption: Option<ServerSideEncryption>,
    pub object_lock: Option<ObjectLock>,
    /// Objects above this size are sent in parts of it.
    pub part_size: Option<Size>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    pub access_key_id: SecretRef,
    pub secret_access_key: SecretRef,
    pub session_token: Option<SecretRef>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerSideEncryption {
    #[serde(rename = "type")]
    pub kind: Encryption,
    /// With aws:kms only; absent: the account's default key.
    pub kms_key_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Encryption {
    #[serde(rename = "AES256")]
    Aes256,
    #[serde(rename = "aws:kms")]
    Kms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectLock {
    pub mode: LockMode,
    pub minimum_days: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    Governance,
    Compliance,
}

/// Bytes per second; absent: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    pub upload: Option<Size>,
    pub download: Option<Size>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compression {
    /// As zstd counts: -7 (fastest) to 19 (smallest).
    pub level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        Self { level: 1 }
    }
}

const PART_SIZES: std::ops::RangeInclusive<u64> = 5 << 20..=5 << 30;

impl Repository {
    /// A repository of which nothing is known but its URL.
    #[must_use]
    pub fn at(url: Url) -> Self {
        Self {
            name: url.to_string(),
            at: At::default(),
            s3: matches!(url, Url::S3 { .. }).then(S3::default),
            url,
            writer_key: None,
            keeper_key: None,
            identity: None,
            limits: Limits::default(),
            compression: Compression::default(),
            grace_period: three_days(),
            run_limit: one_day(),
        }
    }

    /// What no type can say. `document` has the lines.
    pub(super) fn check(&self, document: &Node) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut say = |field: &str, message: String| {
            wrong.push(Wrong { line: document.line_of(field), field: field.into(), message });
        };
        if self.grace_period <= self.run_limit {
            say(
                "spec.gracePeriod",
                format!(
                    "it must be longer than runLimit ({}), or a sweep could remove what a running backup builds on; it is {}",
                    Shown(self.run_limit),
                    Shown(self.grace_period)
                ),
            );
        }
        if !(-7..=19).contains(&self.compression.level) {
            say("spec.compression.level", "expected a level from -7 (fastest) to 19 (smallest)".into());
        }
        for (field, limit) in [("upload", self.limits.upload), ("download", self.limits.download)] {
            if limit == Some(Size(0)) {
                say(&format!("spec.limits.{field}"), "nothing would ever be sent; leave it out for no limit".into());
            }
        }
        let Some(s3) = &self.s3 else { return wrong };
        if matches!(self.url, Url::Directory(_)) {
            say("spec.s3", "the repository is a directory; remove this, or change url to s3://BUCKET/PREFIX".into());
        }
        if let Some(endpoint) = &s3.endpoint {
            let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                say("spec.s3.endpoint", "expected https://HOST[:PORT], without credentials".into());
            }
        }
        if s3.part_size.is_some_and(|size| !PART_SIZES.contains(&size.0)) {
            say("spec.s3.partSize", "S3 takes parts from 5MiB to 5GiB".into());
        }
        if s3.server_side_encryption.as_ref().is_some_and(|e| e.kind == Encryption::Aes256 && e.kms_key_id.is_some()) {
            say("spec.s3.serverSideEncryption.kmsKeyId", "only type aws:kms has a key id".into());
        }
        if s3.object_lock.is_some_and(|lock| lock.minimum_days == 0) {
            say("spec.s3.objectLock.minimumDays", "expected at least 1".into());
        }
        wrong
    }
}
