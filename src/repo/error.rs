//! What can go wrong in a repository, told so that the object and the next step are named.

use crate::id::{InvalidId, RepositoryId, Sequence, SourceName};
use crate::store::StoreError;

pub type Result<T, E = RepoError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    #[error("there is no repository at {url}")]
    NoRepository { url: String },
    #[error("{url} holds something already, {object}, and no lifeboat.json")]
    NotEmpty { url: String, object: String },
    #[error("there is a repository at {url} already")]
    AlreadyInitialised { url: String },
    #[error("{object} was written by a newer Lifeboat (format {found}; this one reads up to {known})")]
    NewerFormat { object: String, found: u16, known: u16 },
    #[error("{object} was made by a newer Lifeboat (its keys are of a kind, {kem:#06x}, that this one does not know)")]
    NewerKeys { object: String, kem: u16 },
    /// The bytes are not what the format says; the object is rotten, replaced or foreign.
    #[error("{object} is damaged: {reason}")]
    Damaged { object: String, reason: String },
    #[error("{object} does not belong here: {reason}")]
    Foreign { object: String, reason: String },
    #[error("the {what} at hand does not open {object}")]
    WrongKey { what: &'static str, object: String },
    #[error("this writer key was rotated away: repository {repository} takes nothing more from it")]
    RotatedKey { repository: RepositoryId },
    #[error("source {source_name} has no snapshot that {wanted}")]
    NoSnapshot { source_name: SourceName, wanted: String },
    #[error("another writer keeps committing to source {0}; gave up after several attempts")]
    Busy(SourceName),
    #[error("the run took longer than its limit of {limit_s} s, so its snapshot was not committed")]
    PastRunLimit { limit_s: u64 },
    #[error(
        "snapshot {by} of {source_name} was committed meanwhile and shows a later moment; this older one was not committed"
    )]
    Overtaken { source_name: SourceName, by: Sequence },
    #[error("{object}, which the snapshot would need, was removed while the run went on; it was not committed")]
    Swept { object: String },
    #[error("the capture of {what} failed")]
    Capture { what: String, source: std::io::Error },
    #[error("the capture holds nothing")]
    EmptyCapture,
    #[error("nothing is removed while {object} cannot be read: what it needs is not known")]
    PruneBlocked { object: String, source: Box<RepoError> },
    /// The upload itself says why; this is what those see who still had bytes for it.
    #[error("the upload of pack {pack} of {source_name} failed")]
    UploadFailed { source_name: SourceName, pack: u32 },
    /// The run has failed elsewhere; its own error says why.
    #[error("the run was stopped")]
    Stopped,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RepoError {
    /// The object that is to blame, where one is.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::NewerFormat { object, .. }
            | Self::NewerKeys { object, .. }
            | Self::Damaged { object, .. }
            | Self::Foreign { object, .. }
            | Self::WrongKey { object, .. }
            | Self::Swept { object }
            | Self::PruneBlocked { object, .. } => Some(object),
            Self::Store(error) => Some(&error.object),
            _ => None,
        }
    }

    /// What is wrong, for whoever has named the object already.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Damaged { reason, .. } => format!("damaged: {reason}"),
            Self::Foreign { reason, .. } => format!("does not belong here: {reason}"),
            _ => self.to_string(),
        }
    }

    pub(crate) fn damaged(object: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { object: object.into(), reason: reason.to_string() }
    }
}
