//! Entries onto a disk.
//!
//! Entries come from a snapshot that may be hostile. Every name is created relative to the open descriptor of its
//! directory, which was reached from the root without following a symbolic link; nothing that exists is overwritten.
//! Files are private (mode 0600, directories 0700) until their owner is right. All methods may be called from several
//! threads, as long as a directory comes before its content and a file before its hard links. Memory is that of the
//! directories' metadata, kept for [`Tree::finish`]. From the first entry until then, or until whoever has more to do removes
//! it, a mark lies in the root, so that what was killed half-way is not taken for whole. Deliberately absent: merging into
//! files that exist, and syncing each of them: [`Tree::finish`] does so once for all.

use crate::entry::{Entry, Kind, Problem, Xattr};
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What marks begin with.
const UNFINISHED: &str = ".lifeboat-unfinished-";
const OPEN_DIRECTORIES: usize = 128;
const PROBLEMS: usize = 1000;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The target may hold things already. Those stay: an entry of the name of one that is no directory is an error. The
    /// target's own metadata stays too.
    pub into_existing: bool,
    /// Without one nobody else can see that the target is not whole.
    pub mark: Option<Mark>,
}

/// A file in the root of what is not whole yet.
#[derive(Clone, Debug)]
pub struct Mark {
    name: String,
    text: String,
    stays: bool,
}

impl Mark {
    /// `id` is of this restore alone: a snapshot may hold the mark of another. `what` is restored.
    #[must_use]
    pub fn new(id: &str, what: &str) -> Self {
        let name = format!("{UNFINISHED}{id}");
        let text = format!(
            "lifeboat restores {what} into this directory. While this file is here, files are missing or hold only a part of\n\
             what they should. If no such restore is running, it was broken off: remove what came of it and restore again.\n"
        );
        Self { name, text, stays: false }
    }

    /// With all entries there, more is to be done: until then it stays, and [`Mark::remove`] takes it away.
    #[must_use]
    pub fn staying(self) -> Self {
        Self { stays: true, ..self }
    }

    /// # Errors
    /// It is still there, or would be again if the machine stopped now.
    pub fn remove(&self, root: &Path) -> io::Result<()> {
        match std::fs::remove_file(root.join(&self.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(root)?.sync_all()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("open the target directory {}", path.display())]
    Target { path: PathBuf, source: io::Error },
    #[error("the target {} is not empty; name an empty or new directory, or say --into-existing", path.display())]
    NotEmpty { path: PathBuf },
    #[error(
        "the target {} holds a restore that was broken off or is under way, as {} in it says; if none is under way, remove \
         the directory, or name another", path.display(), mark.display()
    )]
    Unfinished { path: PathBuf, mark: OsString },
    #[error("the snapshot holds the path {path:?}, which {why}; nothing is written there (the snapshot may be forged)")]
    Path { path: OsString, why: &'static str },
    #[error("{path:?} exists already in the target; restore into an empty directory")]
    Exists { path: OsString },
    #[error("{action} {path:?}")]
    Io { action: &'static str, path: OsString, source: io::Error },
}

type Result<T> = std::result::Result<T, TreeError>;

/// A directory that entries are restored into.
pub struct Tree {
    keep_root: bool,
    mark: Option<Mark>,
    marked: Mutex<bool>,
    root: Arc<OwnedFd>,
    open: Mutex<HashMap<Vec<u8>, Arc<OwnedFd>>>,
    directories: Mutex<Vec<Entry>>,
    problems: Mutex<(Vec<Problem>, u64)>,
    /// Whom new files belong to, unless the directory says otherwise.
    user: (u32, u32),
}

impl Tree {
    pub fn create(root: &Path, options: Options) -> Result<Self> {
        let fail = |source: io::Error| TreeError::Target { path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(fail)?;
        if !options.into_existing {
            let mut held = std::fs::read_dir(root).map_err(fail)?.peekable();
            let empty = held.peek().is_none();
            for entry in held {
                let name = entry.map_err(fail)?.file_name();
                if name.as_bytes().starts_with(UNFINISHED.as_bytes()) {
                    return Err(TreeError::Unfinished { path: root.to_owned(), mark: name });
                }
            }
            if !empty {
                return Err(TreeError::NotEmpty { path: root.to_owned() });
            }
        }
        // The person who restores chose the root; it may be a link.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(root, flags, Mode::empty()).map_err(|error| fail(error.into()))?;
        Ok(Self {
            keep_root: options.into_existing,
            mark: options.mark,
            marked: Mutex::default(),
            root: Arc::new(root),
            open: Mutex::default(),
            directories: Mutex::default(),
            problems: Mutex::default(),
            user: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        })
    }

    /// Creates anything but a file.
    pub fn make(&self, entry: &Entry) -> Result<()> {
        if entry.path == b"." && entry.kind == Kind::Directory {
            if self.keep_root {
                return Ok(());
            }
            lock(&self.directories).push(entry.clone());
            return Ok(());
        }
        self.mark()?;
        let (parent, name) = self.parent(&entry.path)?;
        let directory = parent.as_fd();
        let fail = |action| move |error| io_error(action, &entry.path, error);
        match entry.kind {
            Kind::File => return Err(refuse(&entry.path, "is a file without content")),
            Kind::Directory => {
                match fs::mkdirat(directory, name, Mode::RWXU) {
                    // It must be a directory itself: whatever is restored below opens it without following links.
                    Err(Errno::EXIST) => _ = self.open_below(directory, name, &entry.path)?,
                    other => other.map_err(fail("create the directory"))?,
                }
                lock(&self.directories).push(entry.clone());
                return Ok(());
            }
            Kind::Hardlink => {
                let target = entry.link.as_deref().ok_or_else(|| refuse(&entry.path, "is a hard link to nothing"))?;
                return match self.link(target, directory, name) {
                    Err(TreeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        let target = OsStr::from_bytes(target).display();
                        let text = format!("it is a further name of {target}, which was not captured or not restored");
                        self.problem(&entry.path, &text);
                        Ok(())
                    }
                    Err(TreeError::Exists { .. }) => Err(TreeError::Exists { path: os(&entry.path) }),
                    other => other,
                };
            }
            Kind::Symlink => {
                let target = entry.link.as_deref().unwrap_or_default();
                fs::symlinkat(OsStr::from_bytes(target), directory, name).map_err(fail("create the symbolic link"))?;
            }
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                let (kind, device) = match entry.kind {
                    Kind::Fifo => (FileType::Fifo, 0),
                    Kind::Socket => (FileType::Socket, 0),
                    Kind::CharDevice => (FileType::CharacterDevice, entry.rdev.unwrap_or(0)),
                    _ => (FileType::BlockDevice, entry.rdev.unwrap_or(0)),
                };
                match fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, device) {
                    Err(Errno::PERM | Errno::ACCESS) if device != 0 => {
                        self.problem(&entry.path, "device nodes can be created by root only");
                        return Ok(());
                    }
                    other => other.map_err(fail("create the special file"))?,
                }
            }
        }
        self.dress_by_name(directory, name, entry)
    }

    /// Creates a file to be written by position; what is not written are holes. Then comes [`Tree::finish_file`].
    pub fn file(&self, entry: &Entry) -> Result<File> {
        self.mark()?;
        let (parent, name) = self.parent(&entry.path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let ours = self.user == (entry.uid, entry.gid);
        let mode = if ours { Mode::from_raw_mode(entry.mode & 0o777) } else { Mode::RUSR | Mode::WUSR };
        let file = fs::openat(&*parent, name, flags, mode);
        Ok(file.map_err(|error| io_error("create the file", &entry.path, error))?.into())
    }

    /// Opens a file that was restored, to read what it holds without leaving a trace.
    pub fn open(&self, path: &[u8]) -> Result<File> {
        let (parent, name) = self.parent_if(path, false)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = fs::openat(&*parent, name, flags, Mode::empty());
        Ok(file.map_err(|error| io_error("open the file", path, error))?.into())
    }

    /// Sets the size and the metadata of a file that was written.
    #[expect(clippy::needless_pass_by_value, reason = "nothing is to be written to it afterwards")]
    pub fn finish_file(&self, entry: &Entry, file: File) -> Result<()> {
        let is = fs::fstat(&file).map_err(|error| io_error("read the metadata of", &entry.path, error))?;
        if u64::try_from(is.st_size) != Ok(entry.size) {
            fs::ftruncate(&file, entry.size).map_err(|error| io_error("set the size of", &entry.path, error))?;
        }
        self.dress(file.as_fd(), &is, entry)
    }

    /// Removes a file again whose content cannot be had.
    pub fn discard(&self, entry: &Entry) -> Result<()> {
        let (parent, name) = self.parent(&entry.path)?;
        fs::unlinkat(&*parent, name, AtFlags::empty()).map_err(|error| io_error("remove", &entry.path, error))
    }

    /// Sets the directories' metadata, what lies below before what lies above, makes everything durable, and says what could
    /// not be set on the way.
    pub fn finish(self) -> Result<Vec<Problem>> {
        let mut directories = std::mem::take(&mut *lock(&self.directories));
        directories.sort_unstable_by(|a, b| b.path.cmp(&a.path));
        let is_root = |entry: &&Entry| entry.path == b".";
        let dress = |directory: &OwnedFd, entry: &Entry| {
            let is = fs::fstat(directory).map_err(|error| io_error("read the metadata of", &entry.path, error))?;
            self.dress(directory.as_fd(), &is, entry)
        };
        for entry in directories.iter().filter(|entry| !is_root(entry)) {
            dress(&*self.directory(&entry.path)?, entry)?;
        }
        let durable = |done: rustix::io::Result<()>| {
            done.map_err(|error| io_error("make durable what was written to", b".", error))
        };
        durable(fs::syncfs(&self.root))?;
        // Only now is all of it there, and the root's time is set after its last change.
        if let Some(mark) = self.mark.as_ref().filter(|mark| !mark.stays && *lock(&self.marked)) {
            let removed = fs::unlinkat(&*self.root, mark.name.as_str(), AtFlags::empty());
            removed.map_err(|error| io_error("remove", mark.name.as_bytes(), error))?;
        }
        for entry in directories.iter().filter(is_root) {
            dress(&self.root, entry)?;
        }
        durable(fs::fsync(&self.root))?;
        let (mut problems, more) = std::mem::take(&mut *lock(&self.problems));
        if more > 0 {
            problems.push(Problem { path: Vec::new(), text: format!("{more} more problems of these kinds") });
        }
        Ok(problems)
    }

    /// Before the first entry.
    fn mark(&self) -> Result<()> {
        let Some(mark) = &self.mark else { return Ok(()) };
        let mut marked = lock(&self.marked);
        if !*marked {
            let fail = |source: io::Error| TreeError::Io { action: "create", path: os(mark.name.as_bytes()), source };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(&*self.root, mark.name.as_str(), flags, Mode::RUSR | Mode::WUSR);
            File::from(file.map_err(|error| fail(error.into()))?).write_all(mark.text.as_bytes()).map_err(fail)?;
            *marked = true;
        }
        Ok(())
    }

    /// The open directory that a path's last part lies in, and that part.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p OsStr)> {
        self.parent_if(path, true)
    }

    fn parent_if<'p>(&self, path: &'p [u8], create: bool) -> Result<(Arc<OwnedFd>, &'p OsStr)> {
        check(path)?;
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
            return Ok((Arc::clone(&self.root), OsStr::from_bytes(path)));
        };
        Ok((self.directory_if(&path[..slash], create)?, OsStr::from_bytes(&path[slash + 1..])))
    }

    fn link(&self, target: &[u8], directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let (from, first) = self.parent_if(target, false)?;
        fs::linkat(&*from, first, directory, name, AtFlags::empty())
            .map_err(|error| io_error("create a hard link to", target, error))
    }

    fn directory(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        self.directory_if(path, true)
    }

    fn directory_if(&self, path: &[u8], create: bool) -> Result<Arc<OwnedFd>> {
        let (mut at, mut end) = self.nearest_open(path);
        while end < path.len() {
            let from = if end == 0 { 0 } else { end + 1 };
            end = path[from..].iter().position(|byte| *byte == b'/').map_or(path.len(), |length| from + length);
            let name = OsStr::from_bytes(&path[from..end]);
            let opened = match self.open_below(at.as_fd(), name, path) {
                // Only a part of the snapshot is restored: what lies above is plain.
                Err(TreeError::Io { source, .. }) if create && source.kind() == io::ErrorKind::NotFound => {
                    match fs::mkdirat(&*at, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(io_error("create the directory", path, error)),
                    }
                    self.open_below(at.as_fd(), name, path)?
                }
                other => other?,
            };
            at = Arc::new(opened);
            let mut open = lock(&self.open);
            if open.len() >= OPEN_DIRECTORIES {
                open.clear();
            }
            open.insert(path[..end].to_vec(), Arc::clone(&at));
        }
        Ok(at)
    }

    /// The nearest open directory above or at a path, and the length of its own path.
    fn nearest_open(&self, path: &[u8]) -> (Arc<OwnedFd>, usize) {
        let open = lock(&self.open);
        let ends = std::iter::once(path.len()).chain((0..path.len()).rev().filter(|index| path[*index] == b'/'));
        let mut found = ends.filter_map(|end| open.get(&path[..end]).map(|directory| (Arc::clone(directory), end)));
        found.next().unwrap_or_else(|| (Arc::clone(&self.root), 0))
    }

    #[expect(clippy::unused_self, reason = "one of the steps of a tree")]
    fn open_below(&self, parent: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<OwnedFd> {
        fs::openat(parent, name, DIRECTORY, Mode::empty()).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => refuse(path, "leads through something that is not a directory"),
            error => io_error("open the directory", path, error),
        })
    }

    /// Owner before mode, for changing the owner clears the set-uid bit (and `security.capability`); mode before ACLs,
    /// which refine it; times last.
    fn dress(&self, file: BorrowedFd<'_>, is: &Stat, entry: &Entry) -> Result<()> {
        let mut owned = (is.st_uid, is.st_gid) == (entry.uid, entry.gid);
        if !owned {
            owned = self.soft(entry, "set the owner", fs::fchown(file, owner(entry).0, owner(entry).1))?;
        }
        let mode = mode(entry, owned);
        if Mode::from_raw_mode(is.st_mode) != mode {
            fs::fchmod(file, mode).map_err(|error| io_error("set the mode of", &entry.path, error))?;
        }
        for Xattr { name, value } in entry.xattrs.iter().flatten() {
            let name = OsStr::from_bytes(name);
            self.set_xattr(entry, name, fs::fsetxattr(file, name, value, XattrFlags::empty()));
        }
        fs::futimens(file, &times(entry)).map_err(|error| io_error("set the time of", &entry.path, error))
    }

    /// As [`Self::dress`], for what cannot be opened.
    fn dress_by_name(&self, directory: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry);
        let changed = fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        let owned = self.soft(entry, "set the owner", changed)?;
        let is_link = entry.kind == Kind::Symlink;
        if !is_link || entry.xattrs.is_some() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = fs::openat(directory, name, flags, Mode::empty());
            let opened = opened.map_err(|error| io_error("open", &entry.path, error))?;
            // The descriptor's own path leads to what was opened, whatever its name means by now.
            let own = format!("/proc/self/fd/{}", opened.as_raw_fd());
            if !is_link {
                let changed = fs::chmod(own.as_str(), mode(entry, owned));
                changed.map_err(|error| io_error("set the mode of", &entry.path, error))?;
            }
            let by_name = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
            for Xattr { name, value } in entry.xattrs.iter().flatten() {
                let name = OsStr::from_bytes(name);
                let set = fs::lsetxattr(by_name.as_slice(), name, value, XattrFlags::empty());
                self.set_xattr(entry, name, set);
            }
        }
        fs::utimensat(directory, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| io_error("set the time of", &entry.path, error))
    }

    /// What only root may do is reported, not fatal. True when it was done.
    fn soft(&self, entry: &Entry, action: &'static str, done: rustix::io::Result<()>) -> Result<bool> {
        match done {
            Ok(()) => Ok(true),
            Err(error @ (Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL)) => {
                self.problem(&entry.path, &format!("{action}: {}", io::Error::from(error)));
                Ok(false)
            }
            Err(error) => Err(io_error(action, &entry.path, error)),
        }
    }

    fn set_xattr(&self, entry: &Entry, name: &OsStr, done: rustix::io::Result<()>) {
        if let Err(error) = done {
            let text = format!("set the extended attribute {}: {}", name.display(), io::Error::from(error));
            self.problem(&entry.path, &text);
        }
    }

    fn problem(&self, path: &[u8], text: &str) {
        let mut problems = lock(&self.problems);
        if problems.0.len() < PROBLEMS {
            problems.0.push(Problem { path: path.to_vec(), text: text.to_owned() });
        } else {
            problems.1 += 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a path of a snapshot stays in the directory that it is restored into.
pub(super) fn check(path: &[u8]) -> Result<()> {
    if path.starts_with(b"/") {
        return Err(refuse(path, "is absolute"));
    }
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" => return Err(refuse(path, "has an empty part")),
            b"." | b".." => return Err(refuse(path, "has a part that is not a name")),
            part if part.contains(&0) => return Err(refuse(path, "holds a NUL byte")),
            _ => {}
        }
    }
    Ok(())
}

fn refuse(path: &[u8], why: &'static str) -> TreeError {
    TreeError::Path { path: os(path), why }
}

fn io_error(action: &'static str, path: &[u8], error: Errno) -> TreeError {
    match error {
        Errno::EXIST => TreeError::Exists { path: os(path) },
        error => TreeError::Io { action, path: os(path), source: error.into() },
    }
}

fn os(path: &[u8]) -> OsString {
    OsString::from_vec(path.to_vec())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    // The highest id means "leave it" to the kernel, and none has it.
    let valid = |id: &u32| *id != u32::MAX;
    (Some(entry.uid).filter(valid).map(Uid::from_raw), Some(entry.gid).filter(valid).map(Gid::from_raw))
}

/// A set-uid program must not end up with another owner than it had.
fn mode(entry: &Entry, owned: bool) -> Mode {
    let bits = if owned || entry.kind == Kind::Directory { 0o7777 } else { 0o1777 };
    Mode::from_raw_mode(entry.mode & bits)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: time, last_modification: time }
}
