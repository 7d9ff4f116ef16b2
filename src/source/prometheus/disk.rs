//! The snapshot on the server's disk, and its removal.

use crate::source::SourceError;
use rustix::fs::{Access, access};
use std::io;
use std::path::{Path, PathBuf};

/// Removed with the last that holds it: whoever reads a file of it, or is still to.
pub(super) struct Snapshot {
    pub path: PathBuf,
}

impl Snapshot {
    pub fn new(data: &Path, name: &str) -> Self {
        Self { path: data.join("snapshots").join(name) }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let (path, error) = (self.path.display(), &error as &dyn std::error::Error);
                tracing::error!(%path, error, "the snapshot stays on Prometheus' disk, and keeps blocks from going: remove it");
            }
            _ => {}
        }
    }
}

/// Without this, every run would leave a snapshot behind.
pub(super) fn must_be_writable(data: &Path) -> Result<(), SourceError> {
    let snapshots = data.join("snapshots");
    for path in [data, &snapshots] {
        match access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            Err(rustix::io::Errno::NOENT) if path == snapshots => {}
            Err(error) => {
                return Err(SourceError::System {
                    attempt: format!("use Prometheus' data directory {}", path.display()),
                    text: io::Error::from(error).to_string(),
                    need:
                        "mount it, for reading and writing: a snapshot is made there by the server, and removed again"
                            .into(),
                });
            }
            Ok(()) => {}
        }
    }
    Ok(())
}
