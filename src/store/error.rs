//! What can go wrong with an object, and whether trying again can help.

/// The kinds that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    NotFound,
    AlreadyExists,
    /// The credentials do not allow it.
    Denied,
    /// A retention date forbids it.
    Locked,
    /// The object is shorter than was asked for.
    Truncated,
    /// The object is larger than any that is read whole.
    TooLarge,
    /// No room left.
    Full,
    /// The store was opened for reading only.
    ReadOnly,
    /// Throttled, timed out, connection lost, 5xx: worth another try.
    Unavailable,
    /// Anything else; not worth another try.
    Other,
}

impl StoreErrorKind {
    /// The object itself is to blame, not the way to it: others can still be read.
    #[must_use]
    pub fn blames_object(self) -> bool {
        matches!(self, Self::NotFound | Self::Truncated | Self::TooLarge)
    }
}

/// `action` on `object` failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {object}: {}", describe(*kind))]
pub struct StoreError {
    pub kind: StoreErrorKind,
    /// What was attempted: "read", "create", "list", "delete", "extend the lock of".
    pub action: &'static str,
    /// The key or prefix, with the store's URL where that helps.
    pub object: String,
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    #[must_use]
    pub fn new(kind: StoreErrorKind, action: &'static str, object: impl Into<String>) -> Self {
        Self { kind, action, object: object.into(), source: None }
    }

    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An error of the operating system.
    #[must_use]
    pub fn io(action: &'static str, object: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => StoreErrorKind::NotFound,
            Io::AlreadyExists => StoreErrorKind::AlreadyExists,
            Io::PermissionDenied => StoreErrorKind::Denied,
            Io::ReadOnlyFilesystem => StoreErrorKind::ReadOnly,
            Io::StorageFull | Io::QuotaExceeded => StoreErrorKind::Full,
            Io::UnexpectedEof => StoreErrorKind::Truncated,
            Io::FileTooLarge => StoreErrorKind::TooLarge,
            Io::Interrupted | Io::TimedOut => StoreErrorKind::Unavailable,
            _ => StoreErrorKind::Other,
        };
        Self::new(kind, action, object).because(source)
    }

    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }
}

fn describe(kind: StoreErrorKind) -> &'static str {
    match kind {
        StoreErrorKind::NotFound => "it does not exist",
        StoreErrorKind::AlreadyExists => "it exists already",
        StoreErrorKind::Denied => "access denied",
        StoreErrorKind::Locked => "a retention date (Object Lock) forbids it",
        StoreErrorKind::Truncated => "it is shorter than it should be",
        StoreErrorKind::TooLarge => "it is larger than such an object can be",
        StoreErrorKind::Full => "no space left",
        StoreErrorKind::ReadOnly => "the store was opened for reading only",
        StoreErrorKind::Unavailable => "the store is unavailable",
        StoreErrorKind::Other => "failed",
    }
}
