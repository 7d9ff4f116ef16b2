//! A directory as a store.
//!
//! A write goes to a file below `.tmp`, is synced, and only then renamed to its key, never over an existing file; then
//! the directory is synced. What killed writers left in `.tmp` is removed a day later by the first write of a later
//! process, judged by the file system's clock. Empty directories stay: removing them would race with writers.
//! Symbolic links inside the store are not objects.

mod listing;

use super::key::{check_key, check_prefix};
use super::pool::{Pool, Pooled};
use super::{Features, MAX_WHOLE, ObjectMeta, PutOptions, Result, Store, StoreError, StoreErrorKind, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags};
use rustix::rand::GetRandomFlags;
use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

const TEMPORARY: &str = ".tmp";
/// A range of so many bytes is worth a buffer that is used again.
const POOLED: u64 = 256 << 10;
const LEFT_OVER_AFTER: Duration = Duration::from_hours(24);

/// A store in a local (or mounted) directory.
#[derive(Clone, Debug)]
pub struct Local {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Directories known to survive a crash: made, and synced into their parent.
    durable: Mutex<HashSet<PathBuf>>,
    left_overs: Once,
    pool: Arc<Pool>,
}

impl Local {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// `NotFound`: perhaps a file system is not mounted.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let failed = |e| StoreError::io("open", root.display().to_string(), e);
        let found = fs::metadata(&root).map_err(failed)?;
        if !found.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(Self {
            shared: Arc::new(Shared { root, durable: Mutex::default(), left_overs: Once::new(), pool: Arc::default() }),
        })
    }

    /// Opens a directory, making it first if it is absent.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)
            .and_then(|()| {
                sync_directory(root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
            })
            .map_err(|e| StoreError::io("create", root.display().to_string(), e))?;
        Self::open(root)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &str,
        work: impl FnOnce(&Shared, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        check_key(action, key)?;
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        blocking(move || work(&shared, &key).map_err(|e| io_error(action, key, e))).await
    }
}

/// Runs file system work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(StoreError::new(StoreErrorKind::Other, "run", "a file system task").because(e)),
    }
}

fn io_error(action: &'static str, key: impl Into<String>, error: io::Error) -> StoreError {
    // `a` is a file: there is no `a/b`.
    if error.kind() == io::ErrorKind::NotADirectory && action == "read" {
        return StoreError::new(StoreErrorKind::NotFound, action, key).because(error);
    }
    StoreError::io(action, key, error)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn modified(found: &Metadata) -> io::Result<Timestamp> {
    Timestamp::try_from(found.modified()?).map_err(io::Error::other)
}

impl Shared {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Opens an object; a directory is none.
    fn object(&self, key: &str) -> io::Result<(File, u64)> {
        let file = File::open(self.path(key))?;
        let found = file.metadata()?;
        if found.is_file() { Ok((file, found.len())) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let directory = self.root.join(TEMPORARY);
        let path = directory.join(random_name()?);
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::create_dir(&directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => create()?,
            },
            other => other?,
        };
        self.left_overs.call_once(|| {
            if let Err(error) = remove_left_overs(&directory, &file) {
                tracing::warn!(%error, directory = %directory.display(), "cannot remove what killed writers left");
            }
        });
        Ok(Temporary { file, path: Some(path) })
    }

    /// Makes `directory` (below the root) and its parents, and syncs each into its parent once per process.
    fn ensure_directory(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root || self.durable().contains(directory) {
            return Ok(());
        }
        let Some(parent) = directory.parent() else { return Ok(()) };
        self.ensure_directory(parent)?;
        match fs::create_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => sync_directory(parent)?,
        }
        self.durable().insert(directory.to_owned());
        Ok(())
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was written durable and visible under `key`.
    fn publish(&self, mut temporary: Temporary, key: &str) -> io::Result<()> {
        temporary.file.sync_all()?;
        let target = self.path(key);
        let directory = target.parent().unwrap_or(&self.root);
        self.ensure_directory(directory)?;
        if let Err(e) = temporary.rename(&target) {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(e);
            }
            // Somebody removed a directory behind our back.
            self.durable().clear();
            self.ensure_directory(directory)?;
            temporary.rename(&target)?;
        }
        sync_directory(directory)
    }
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Removes files that were last written a day before `now`, a file just made.
fn remove_left_overs(directory: &Path, now: &File) -> io::Result<()> {
    let now = now.metadata()?.modified()?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let old = match entry.metadata() {
            Ok(found) => now.duration_since(found.modified()?).is_ok_and(|age| age > LEFT_OVER_AFTER),
            Err(_) => false,
        };
        if old {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A file that is not an object yet; removed on drop unless it became one.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// Never replaces `target`.
    fn rename(&mut self, target: &Path) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = None,
            // A file system without RENAME_NOREPLACE: a hard link does not replace either. Drop removes the other name.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
                fs::hard_link(path, target)?;
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, path = %path.display(), "cannot remove a temporary file; a later write will");
        }
    }
}

#[async_trait]
impl Store for Local {
    fn url(&self) -> String {
        format!("file://{}", self.shared.root.display())
    }

    fn features(&self) -> Features {
        Features::default()
    }

    async fn put(&self, key: &str, body: Bytes, _options: PutOptions) -> Result<()> {
        self.blocking("create", key, move |shared, key| {
            let mut temporary = shared.temporary()?;
            temporary.file.write_all(&body)?;
            shared.publish(temporary, key)
        })
        .await
    }

    async fn upload(&self, key: &str, _options: PutOptions) -> Result<Box<dyn Upload>> {
        let temporary = self.blocking("create", key, |shared, _| shared.temporary()).await?;
        Ok(Box::new(LocalUpload { shared: Arc::clone(&self.shared), key: key.to_owned(), temporary: Some(temporary) }))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.blocking("read", key, |shared, key| {
            let (mut file, size) = shared.object(key)?;
            if size > MAX_WHOLE {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let mut body = Vec::with_capacity(size as usize);
            file.read_to_end(&mut body)?;
            Ok(body.into())
        })
        .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.blocking("read", key, move |shared, key| {
            let (file, size) = shared.object(key)?;
            // Before anything is allocated: the length may be nonsense.
            if offset.checked_add(length).is_none_or(|end| end > size) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if length < POOLED {
                let mut body = vec![0; length as usize];
                file.read_exact_at(&mut body, offset)?;
                return Ok(body.into());
            }
            let mut body = shared.pool.take();
            body.resize(length as usize, 0);
            file.read_exact_at(&mut body, offset)?;
            Ok(Bytes::from_owner(Pooled::new(body, &shared.pool)))
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.blocking("read", key, |shared, key| {
            let found = fs::symlink_metadata(shared.path(key))?;
            if !found.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(ObjectMeta { key: key.to_owned(), size: found.len(), modified: modified(&found)? })
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>> {
        check_prefix(prefix)?;
        let (shared, prefix, after) = (Arc::clone(&self.shared), prefix.to_owned(), after.map(str::to_owned));
        blocking(move || {
            listing::list(&shared.root, &prefix, after.as_deref().unwrap_or(""), limit)
                .map_err(|e| StoreError::io("list", format!("{}/{prefix}", shared.root.display()), e))
        })
        .await
    }

    async fn list_roots(&self) -> Result<Vec<String>> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            listing::roots(&shared.root).map_err(|e| StoreError::io("list", shared.root.display().to_string(), e))
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.blocking("delete", key, |shared, key| match fs::remove_file(shared.path(key)) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            other => other,
        })
        .await
    }

    async fn retain(&self, key: &str, _until: Timestamp) -> Result<()> {
        check_key("extend the lock of", key)
    }
}

struct LocalUpload {
    shared: Arc<Shared>,
    key: String,
    /// Gone once a write has failed or was given up half way.
    temporary: Option<Temporary>,
}

impl LocalUpload {
    fn take(&mut self) -> Result<Temporary> {
        self.temporary.take().ok_or_else(|| {
            StoreError::new(StoreErrorKind::Other, "create", &self.key).because("an earlier write of it has failed")
        })
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, piece: Bytes) -> Result<()> {
        let mut temporary = self.take()?;
        let key = self.key.clone();
        let written = blocking(move || match temporary.file.write_all(&piece) {
            Ok(()) => Ok(temporary),
            Err(e) => Err(io_error("create", key, e)),
        });
        self.temporary = Some(written.await?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let temporary = self.take()?;
        let Self { shared, key, .. } = *self;
        blocking(move || shared.publish(temporary, &key).map_err(|e| io_error("create", key, e))).await
    }

    async fn abort(self: Box<Self>) {}
}
