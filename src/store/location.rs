//! Where a repository is, as people write it.

use std::path::PathBuf;
use std::str::FromStr;

/// `/path`, `file:///path` or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Local(PathBuf),
    S3 { bucket: String, prefix: String },
}

/// Does not repeat what was written: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("not a location: write an absolute path, file:///path or s3://bucket/prefix")]
    Unknown,
    #[error("a location holds no credentials: refer to them by file or environment variable")]
    Credentials,
    #[error("a bucket's name is 3 to 63 lower-case letters, digits, dots and hyphens")]
    Bucket,
    #[error("a prefix is made of parts of printable ASCII joined by '/', none empty or beginning with a dot")]
    Prefix,
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return s3(rest);
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.starts_with('/') && !path.contains('\0') {
            Ok(Self::Local(path.into()))
        } else {
            Err(LocationError::Unknown)
        }
    }
}

fn s3(rest: &str) -> Result<Location, LocationError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err(LocationError::Credentials);
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) || bucket.starts_with(['-', '.']) {
        return Err(LocationError::Bucket);
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() && super::key::check_key("open", prefix).is_err() {
        return Err(LocationError::Prefix);
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_written_back() {
        for (text, shown) in [
            ("/srv/backup", "file:///srv/backup"),
            ("file:///srv/backup", "file:///srv/backup"),
            ("s3://backups", "s3://backups"),
            ("s3://backups/", "s3://backups"),
            ("s3://backups/prod/eu/", "s3://backups/prod/eu"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), shown);
        }
        for (text, error) in [
            ("", LocationError::Unknown),
            ("srv/backup", LocationError::Unknown),
            ("file://host/path", LocationError::Unknown),
            ("https://example.org/x", LocationError::Unknown),
            ("s3://key:secret@bucket/x", LocationError::Credentials),
            ("s3://B", LocationError::Bucket),
            ("s3:///x", LocationError::Bucket),
            ("s3://bucket//x", LocationError::Prefix),
            ("s3://bucket/../x", LocationError::Prefix),
        ] {
            assert_eq!(text.parse::<Location>().unwrap_err(), error, "{text}");
        }
    }
}
