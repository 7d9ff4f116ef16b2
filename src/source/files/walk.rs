//! The walk: one `statx` and one `llistxattr` per name; no file is opened that has no second name.
//!
//! Of the directories above, only the nearest stay open, so that depth costs no descriptors. The way back up is `..`,
//! which must be the directory that the walk came from.

use super::ahead::{Ahead, Listed, Names, Opened};
use super::content::{Opener, nanoseconds};
use super::control_plane;
use super::pattern::Patterns;
use super::xattrs;
use super::{Context, Facts, Sink, SourceError, Spec};
use crate::entry::{Entry, Fingerprint, Input, Kind, Layout, OnError, Open, Problem};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

pub const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Directories that stay open, from the deepest up.
const OPEN: usize = 64;
/// Longer paths than this are not handed to the kernel.
const PATH: usize = 4096;

/// Bytes of names that are asked for at a time.
pub const LIST: usize = 128 << 10;

/// Device and inode.
pub type Id = (u32, u32, u64);

/// A directory that is being walked.
struct Frame {
    /// `None`: closed because the walk is far below, or never opened because it cannot be read.
    directory: Option<Arc<OwnedFd>>,
    id: Id,
    /// The path from `/` led here when it was opened.
    by_path: bool,
    names: Names,
    /// Length of the path with its trailing slash.
    prefix: usize,
    /// Matched by an include pattern, itself or by a directory above.
    included: bool,
    /// Its own entry, kept back until something below it is included.
    pending: Option<Entry>,
}

/// The first name of a file that has several.
struct First {
    path: Vec<u8>,
    unseen: u32,
}

/// Who is asked for extended attributes first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Path,
    Descriptor,
    /// It is known that there are none.
    Nobody,
}

impl Ask {
    fn of(by_path: bool) -> Self {
        if by_path { Self::Path } else { Self::Descriptor }
    }
}

pub struct Walk<'a> {
    spec: &'a Spec,
    include: &'a Patterns,
    exclude: &'a Patterns,
    context: &'a Context,
    sink: &'a mut dyn Sink,
    frames: Vec<Frame>,
    /// From `/`; what is below the root begins at `base`.
    path: Vec<u8>,
    base: usize,
    root_device: (u32, u32),
    links: HashMap<Id, First>,
    ahead: Ahead,
    xattrs: xattrs::Reader,
    opener: Arc<Opener>,
    buffer: Vec<u8>,
    steps: u64,
    files: u64,
    entries: u64,
    bytes: u64,
    seen: control_plane::Seen,
}

pub fn check(path: &Path) -> Result<(), SourceError> {
    let root = open_root(path)?;
    if kind_of(&stat(&root, c"", AtFlags::EMPTY_PATH).map_err(|error| root_error(path, error))?)
        == Some(Kind::Directory)
    {
        list(&root, &mut Vec::with_capacity(32 << 10)).map_err(|error| root_error(path, error))?;
    }
    Ok(())
}

impl<'a> Walk<'a> {
    pub fn new(
        spec: &'a Spec,
        include: &'a Patterns,
        exclude: &'a Patterns,
        context: &'a Context,
        sink: &'a mut dyn Sink,
    ) -> Self {
        Self {
            spec,
            include,
            exclude,
            context,
            sink,
            frames: Vec::new(),
            path: Vec::new(),
            base: 0,
            root_device: (0, 0),
            links: HashMap::new(),
            ahead: Ahead::start(),
            xattrs: xattrs::Reader::default(),
            opener: Arc::default(),
            buffer: Vec::with_capacity(LIST),
            steps: 0,
            files: 0,
            entries: 0,
            bytes: 0,
            seen: control_plane::Seen::default(),
        }
    }

    pub fn run(mut self) -> Result<Facts, SourceError> {
        let fail = |error| root_error(&self.spec.path, error);
        let root = open_root(&self.spec.path)?;
        let seen = stat(&root, c"", AtFlags::EMPTY_PATH).map_err(fail)?;
        self.root_device = device(&seen);
        let frame = if kind_of(&seen) == Some(Kind::Directory) {
            let names = list(&root, &mut self.buffer).map_err(fail)?;
            self.start_at(&self.spec.path);
            let mut pending = self.entry(&root, c"", &seen, Ask::of(false));
            if let Some(entry) = &mut pending {
                entry.path = b".".to_vec();
            }
            self.frame(root, id(&seen), names, self.include.is_empty(), pending)
        } else {
            let no_name = || SourceError::Spec { what: format!("{} names no file", self.spec.path.display()) };
            let (Some(parent), Some(name)) = (self.spec.path.parent(), self.spec.path.file_name()) else {
                return Err(no_name());
            };
            let directory = open_root(parent)?;
            let seen = stat(&directory, c"", AtFlags::EMPTY_PATH).map_err(fail)?;
            let name = CString::new(name.as_bytes()).map_err(|_| no_name())?;
            self.start_at(parent);
            self.frame(directory, id(&seen), vec![name], true, None)
        };
        self.frames.push(frame);
        self.walk()?;
        if self.entries == 0 {
            return Err(SourceError::Empty { path: self.spec.path.display().to_string() });
        }
        let mut details = self.seen.facts(&self.spec.path);
        details.extend([
            ("root".to_owned(), self.spec.path.display().to_string()),
            ("entries".to_owned(), self.entries.to_string()),
            ("bytes".to_owned(), self.bytes.to_string()),
        ]);
        Ok(Facts { objects: Some(self.files), details, ..Facts::default() })
    }

    fn start_at(&mut self, root: &Path) {
        self.path.extend_from_slice(root.as_os_str().as_bytes());
        if !self.path.ends_with(b"/") {
            self.path.push(b'/');
        }
        self.base = self.path.len();
    }

    /// For the directory that the path, with its trailing slash, names now.
    fn frame(&self, directory: OwnedFd, id: Id, names: Vec<CString>, included: bool, pending: Option<Entry>) -> Frame {
        Frame {
            directory: Some(Arc::new(directory)),
            id,
            by_path: leads_to(&self.path, id),
            names: Names::new(names),
            prefix: self.path.len(),
            included,
            pending,
        }
    }

    fn walk(&mut self) -> Result<(), SourceError> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(directory) = frame.directory.clone() else {
                self.leave();
                continue;
            };
            let path = frame.by_path.then(|| &self.path[..frame.prefix]);
            let Some(listed) = frame.names.next(&self.ahead, &directory, path) else {
                self.leave();
                continue;
            };
            self.path.truncate(frame.prefix);
            self.path.extend_from_slice(listed.name.as_bytes());
            let (included, by_path) = (frame.included, frame.by_path);
            self.steps += 1;
            if self.steps.is_multiple_of(256) {
                self.context.go_on()?;
            }
            self.visit(&directory, listed, included, by_path)?;
        }
        Ok(())
    }

    /// Leaves the deepest directory, and sees to it that the one above is open.
    fn leave(&mut self) {
        let Some(left) = self.frames.pop() else { return };
        self.path.truncate(left.prefix);
        if left.by_path && !leads_to(&self.path, left.id) {
            self.problem("it was moved while it was captured; extended attributes of what it holds may be missing");
        }
        let Some(above) = self.frames.last_mut().filter(|above| above.directory.is_none()) else { return };
        let back = left.directory.ok_or(Errno::NOENT).and_then(|below| {
            let directory = fs::openat(&below, c"..", DIRECTORY, Mode::empty())?;
            if id(&stat(&directory, c"", AtFlags::EMPTY_PATH)?) == above.id { Ok(directory) } else { Err(Errno::NOENT) }
        });
        match back {
            Ok(directory) => above.directory = Some(Arc::new(directory)),
            Err(error) => {
                self.path.truncate(above.prefix);
                above.names = Names::new(Vec::new());
                self.failed("come back to it from below, to capture the rest (was something in it moved?)", error);
            }
        }
    }

    fn visit(
        &mut self,
        directory: &Arc<OwnedFd>,
        listed: Listed,
        included: bool,
        by_path: bool,
    ) -> Result<(), SourceError> {
        let Listed { name, seen, bare } = listed;
        let seen = match seen.unwrap_or_else(|| stat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(seen) => seen,
            Err(Errno::NOENT) => {
                self.problem("it vanished before it was captured");
                return Ok(());
            }
            Err(error) => {
                self.failed("read its metadata", error);
                return Ok(());
            }
        };
        let Some(kind) = kind_of(&seen) else {
            self.problem("it is of an unknown type");
            return Ok(());
        };
        let is_directory = kind == Kind::Directory;
        if !self.exclude.is_empty() && self.exclude.is_match(&self.path[self.base..], is_directory) {
            return Ok(());
        }
        let included = included || self.include.is_match(&self.path[self.base..], is_directory);
        if !included && !is_directory {
            return Ok(());
        }
        let ask = if bare { Ask::Nobody } else { Ask::of(by_path) };
        let Some(mut entry) = self.entry(directory, &name, &seen, ask) else { return Ok(()) };
        if is_directory {
            return self.descend(directory, &name, entry, included);
        }
        let mut early = None;
        if seen.stx_nlink > 1 && !self.is_further_name(&mut entry, &seen) {
            // Were it opened later only, and this name gone by then, the other names would have no content.
            if kind == Kind::File {
                match self.opener.open(directory, &name, seen.stx_uid, fingerprint(&seen)) {
                    Ok(content) => early = Some(content),
                    Err(error) => {
                        self.problem(&error.to_string());
                        return Ok(());
                    }
                }
            }
            self.links.insert(id(&seen), First { path: entry.path.clone(), unseen: seen.stx_nlink - 1 });
        }
        let input = (entry.kind == Kind::File).then(|| {
            self.files += 1;
            self.bytes += entry.size;
            let (fingerprint, uid) = (fingerprint(&seen), seen.stx_uid);
            let open: Open = if let Some(content) = early {
                Box::new(move || Ok(content))
            } else {
                let (directory, opener) = (Arc::clone(directory), Arc::clone(&self.opener));
                Box::new(move || opener.open(&directory, &name, uid, fingerprint))
            };
            Input { layout: Layout::Content, fingerprint: Some(fingerprint), on_error: OnError::Report, open }
        });
        self.flush()?;
        self.entries += 1;
        self.seen.note(&entry.path);
        Ok(self.sink.add(entry, input)?)
    }

    /// Makes the entry a hard link if the file has been captured under another name.
    fn is_further_name(&mut self, entry: &mut Entry, seen: &Statx) -> bool {
        let Slot::Occupied(mut first) = self.links.entry(id(seen)) else { return false };
        entry.kind = Kind::Hardlink;
        (entry.link, entry.size, entry.sparse) = (Some(first.get().path.clone()), 0, None);
        (entry.rdev, entry.xattrs) = (None, None);
        first.get_mut().unseen -= 1;
        if first.get().unseen == 0 {
            first.remove();
        }
        true
    }

    fn descend(&mut self, parent: &Arc<OwnedFd>, name: &CStr, entry: Entry, included: bool) -> Result<(), SourceError> {
        if let Some(Opened { directory, id, by_path, listed, left }) = self.ahead.take(parent, name, self.steps) {
            self.path.push(b'/');
            let (names, prefix) = (Names::of(listed, left), self.path.len());
            let pending = Some(entry);
            return self.enter(Frame { directory: Some(directory), id, by_path, names, prefix, included, pending });
        }
        let opened = fs::openat(parent, name, DIRECTORY, Mode::empty());
        let opened = opened.and_then(|directory| Ok((stat(&directory, c"", AtFlags::EMPTY_PATH)?, directory)));
        let frame = match opened {
            Ok((seen, directory)) => {
                let mut names = Vec::new();
                if !self.spec.one_file_system || device(&seen) == self.root_device {
                    match list(&directory, &mut self.buffer) {
                        Ok(listed) => names = listed,
                        Err(error) => self.failed("list the directory", error),
                    }
                }
                self.path.push(b'/');
                self.frame(directory, id(&seen), names, included, Some(entry))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                self.problem("it vanished before it was captured");
                return Ok(());
            }
            Err(error) => {
                self.failed("open the directory", error);
                let (names, pending) = (Names::new(Vec::new()), Some(entry));
                let prefix = self.path.len() + 1;
                Frame { directory: None, id: (0, 0, 0), by_path: false, names, prefix, included, pending }
            }
        };
        self.enter(frame)
    }

    fn enter(&mut self, frame: Frame) -> Result<(), SourceError> {
        let included = frame.included;
        self.frames.push(frame);
        self.look_ahead();
        if let Some(far_above) = self.frames.len().checked_sub(OPEN + 1) {
            self.frames[far_above].directory = None;
        }
        if included { self.flush() } else { Ok(()) }
    }

    /// Has the directory opened that comes next: one below, or one beside.
    fn look_ahead(&mut self) {
        let only = self.spec.one_file_system.then_some(self.root_device);
        for Frame { directory, names, prefix, .. } in self.frames.iter().rev().take(2) {
            let Some(directory) = directory else { return };
            if let Some(name) = names.next_directory() {
                let path = || [&self.path[..*prefix], name.to_bytes(), b"/"].concat();
                return self.ahead.expect(directory, name, self.steps, only, path);
            }
        }
    }

    /// Gives the sink the directories above that it has not got yet.
    fn flush(&mut self) -> Result<(), SourceError> {
        let first = self.frames.iter().rposition(|frame| frame.pending.is_none()).map_or(0, |index| index + 1);
        for frame in &mut self.frames[first..] {
            if let Some(entry) = frame.pending.take() {
                if entry.path != b"." {
                    self.entries += 1;
                }
                self.sink.add(entry, None)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, directory: &OwnedFd, name: &CStr, seen: &Statx, ask: Ask) -> Option<Entry> {
        let kind = kind_of(seen)?;
        let size = if kind == Kind::File { seen.stx_size } else { 0 };
        let link = match kind {
            Kind::Symlink => match fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) => Some(target.into_bytes()),
                Err(error) => {
                    self.failed("read the link", error);
                    return None;
                }
            },
            _ => None,
        };
        let (sink, path, below) = (&mut *self.sink, &self.path, &self.path[self.base..]);
        let failed = |action: &str, error| {
            sink.problem(Problem { path: below.to_vec(), text: failure(action, error) });
        };
        let by_path = Some(path.as_slice()).filter(|path| ask == Ask::Path && path.len() < PATH);
        let xattrs = match ask {
            Ask::Nobody => None,
            Ask::Path | Ask::Descriptor => self.xattrs.read(directory, name, by_path, device(seen), failed),
        };
        Some(Entry {
            path: below.to_vec(),
            kind,
            mode: u32::from(seen.stx_mode) & 0o7777,
            uid: seen.stx_uid,
            gid: seen.stx_gid,
            mtime_ns: nanoseconds(seen.stx_mtime.tv_sec, seen.stx_mtime.tv_nsec),
            size,
            link,
            rdev: matches!(kind, Kind::CharDevice | Kind::BlockDevice)
                .then(|| fs::makedev(seen.stx_rdev_major, seen.stx_rdev_minor)),
            xattrs,
            sparse: (kind == Kind::File && seen.stx_blocks.saturating_mul(512) < size).then_some(true),
        })
    }

    fn failed(&mut self, action: &str, error: Errno) {
        self.problem(&failure(action, error));
    }

    fn problem(&mut self, text: &str) {
        let path = &self.path[self.base..];
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        self.sink.problem(Problem { path, text: text.to_owned() });
    }
}

fn failure(action: &str, error: Errno) -> String {
    format!("{action}: {}", std::io::Error::from(error))
}

fn root_error(path: &Path, error: Errno) -> SourceError {
    SourceError::Root { path: path.display().to_string(), source: error.into() }
}

/// The root may be reached through symbolic links; nothing below it is.
fn open_root(path: &Path) -> Result<OwnedFd, SourceError> {
    let open = |flags| fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    match open(OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => open(OFlags::PATH),
        other => other,
    }
    .map_err(|error| root_error(path, error))
}

pub fn stat(directory: &OwnedFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    fs::statx(directory, name, flags | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
}

pub fn list(directory: &OwnedFd, buffer: &mut Vec<u8>) -> rustix::io::Result<Vec<CString>> {
    buffer.clear();
    let mut names = Vec::new();
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut raw = RawDir::new(directory, spare);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a path is still that directory's.
pub fn leads_to(path: &[u8], directory: Id) -> bool {
    path.len() < PATH
        && fs::statx(fs::CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::INO).is_ok_and(|seen| id(&seen) == directory)
}

pub fn device(seen: &Statx) -> (u32, u32) {
    (seen.stx_dev_major, seen.stx_dev_minor)
}

pub fn id(seen: &Statx) -> Id {
    (seen.stx_dev_major, seen.stx_dev_minor, seen.stx_ino)
}

fn fingerprint(seen: &Statx) -> Fingerprint {
    Fingerprint {
        size: seen.stx_size,
        mtime_ns: nanoseconds(seen.stx_mtime.tv_sec, seen.stx_mtime.tv_nsec),
        ctime_ns: nanoseconds(seen.stx_ctime.tv_sec, seen.stx_ctime.tv_nsec),
        inode: seen.stx_ino,
    }
}

fn kind_of(seen: &Statx) -> Option<Kind> {
    Some(match FileType::from_raw_mode(u32::from(seen.stx_mode)) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return None,
    })
}
