//! The walk: one `statx` and one `llistxattr` per name, no file is opened.

use super::content::{self, nanoseconds};
use super::pattern::Patterns;
use super::{Context, Facts, Sink, SourceError, Spec};
use crate::entry::{Entry, Fingerprint, Input, Kind, Layout, OnError, Problem, Xattr};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A directory that is being walked.
struct Frame {
    directory: Arc<OwnedFd>,
    names: std::vec::IntoIter<CString>,
    /// Length of the path with its trailing slash.
    prefix: usize,
    /// Matched by an include pattern, itself or by a directory above.
    included: bool,
    /// Its own entry, kept back until something below it is included.
    pending: Option<Entry>,
}

pub struct Walk<'a> {
    spec: &'a Spec,
    include: &'a Patterns,
    exclude: &'a Patterns,
    context: &'a Context,
    sink: &'a mut dyn Sink,
    frames: Vec<Frame>,
    path: Vec<u8>,
    root_device: (u32, u32),
    /// Device of the last name whose file system knows no extended attributes.
    plain_device: Option<(u32, u32)>,
    links: HashMap<(u32, u32, u64), Vec<u8>>,
    buffer: Vec<u8>,
    proc_path: Vec<u8>,
    files: u64,
    entries: u64,
    bytes: u64,
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
            root_device: (0, 0),
            plain_device: None,
            links: HashMap::new(),
            buffer: Vec::with_capacity(128 << 10),
            proc_path: Vec::new(),
            files: 0,
            entries: 0,
            bytes: 0,
        }
    }

    pub fn run(mut self) -> Result<Facts, SourceError> {
        let fail = |error| root_error(&self.spec.path, error);
        let root = open_root(&self.spec.path)?;
        let seen = stat(&root, c"", AtFlags::EMPTY_PATH).map_err(fail)?;
        self.root_device = device(&seen);
        if kind_of(&seen) == Some(Kind::Directory) {
            let names = list(&root, &mut self.buffer).map_err(fail)?;
            let pending = self.entry(&root, c"", b".", &seen);
            let included = self.include.is_empty();
            self.frames.push(Frame {
                directory: Arc::new(root),
                names: names.into_iter(),
                prefix: 0,
                included,
                pending,
            });
        } else {
            let path = self.spec.path.clone();
            let no_name = || SourceError::Spec { what: format!("{} names no file", path.display()) };
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(no_name()) };
            let directory = open_root(parent)?;
            let name = CString::new(name.as_bytes()).map_err(|_| no_name())?;
            self.frames.push(Frame {
                directory: Arc::new(directory),
                names: vec![name].into_iter(),
                prefix: 0,
                included: true,
                pending: None,
            });
        }
        self.walk()?;
        if self.entries == 0 {
            return Err(SourceError::Empty { path: self.spec.path.display().to_string() });
        }
        Ok(Facts {
            objects: Some(self.files),
            details: [
                ("root".to_owned(), self.spec.path.display().to_string()),
                ("entries".to_owned(), self.entries.to_string()),
                ("bytes".to_owned(), self.bytes.to_string()),
            ]
            .into(),
            ..Facts::default()
        })
    }

    fn walk(&mut self) -> Result<(), SourceError> {
        let mut steps = 0_u32;
        while let Some(frame) = self.frames.last_mut() {
            let Some(name) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            self.path.truncate(frame.prefix);
            self.path.extend_from_slice(name.as_bytes());
            let (directory, included) = (Arc::clone(&frame.directory), frame.included);
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(256) {
                self.context.go_on()?;
            }
            self.visit(&directory, name, included)?;
        }
        Ok(())
    }

    fn visit(&mut self, directory: &Arc<OwnedFd>, name: CString, included: bool) -> Result<(), SourceError> {
        let seen = match stat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
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
        if !self.exclude.is_empty() && self.exclude.is_match(&self.path, is_directory) {
            return Ok(());
        }
        let included = included || self.include.is_match(&self.path, is_directory);
        if !included && !is_directory {
            return Ok(());
        }
        let path = std::mem::take(&mut self.path);
        let entry = self.entry(directory, &name, &path, &seen);
        self.path = path;
        let Some(mut entry) = entry else { return Ok(()) };
        if is_directory {
            return self.descend(directory, &name, &seen, entry, included);
        }
        if seen.stx_nlink > 1 {
            let (major, minor) = device(&seen);
            match self.links.entry((major, minor, seen.stx_ino)) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    entry.kind = Kind::Hardlink;
                    (entry.link, entry.size, entry.sparse) = (Some(first.get().clone()), 0, None);
                    (entry.rdev, entry.xattrs) = (None, None);
                }
                std::collections::hash_map::Entry::Vacant(slot) => _ = slot.insert(entry.path.clone()),
            }
        }
        let input = (entry.kind == Kind::File).then(|| {
            self.files += 1;
            self.bytes += entry.size;
            let fingerprint = fingerprint(&seen);
            let directory = Arc::clone(directory);
            let open = Box::new(move || content::open(&directory, &name, fingerprint));
            Input { layout: Layout::Content, fingerprint: Some(fingerprint), on_error: OnError::Report, open }
        });
        self.flush()?;
        self.entries += 1;
        Ok(self.sink.add(entry, input)?)
    }

    fn descend(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        seen: &Statx,
        entry: Entry,
        included: bool,
    ) -> Result<(), SourceError> {
        let mut frame = Frame {
            directory: Arc::new(match fs::openat(parent, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => directory,
                Err(error) => {
                    self.failed("open the directory", error);
                    return Ok(());
                }
            }),
            names: Vec::new().into_iter(),
            prefix: self.path.len() + 1,
            included,
            pending: Some(entry),
        };
        if !self.spec.one_file_system || device(seen) == self.root_device {
            match list(&frame.directory, &mut self.buffer) {
                Ok(names) => frame.names = names.into_iter(),
                Err(error) => self.failed("list the directory", error),
            }
        }
        self.path.push(b'/');
        self.frames.push(frame);
        if included { self.flush() } else { Ok(()) }
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

    fn entry(&mut self, directory: &OwnedFd, name: &CStr, path: &[u8], seen: &Statx) -> Option<Entry> {
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
        Some(Entry {
            path: path.to_vec(),
            kind,
            mode: u32::from(seen.stx_mode) & 0o7777,
            uid: seen.stx_uid,
            gid: seen.stx_gid,
            mtime_ns: nanoseconds(seen.stx_mtime.tv_sec, seen.stx_mtime.tv_nsec),
            size,
            link,
            rdev: matches!(kind, Kind::CharDevice | Kind::BlockDevice)
                .then(|| fs::makedev(seen.stx_rdev_major, seen.stx_rdev_minor)),
            xattrs: self.xattrs(directory, name, device(seen)),
            sparse: (kind == Kind::File && seen.stx_blocks.saturating_mul(512) < size).then_some(true),
        })
    }

    /// The extended attributes, by name. There is no `llistxattrat` before Linux 6.13; a path through the directory's
    /// own descriptor is as safe and costs no open.
    fn xattrs(&mut self, directory: &OwnedFd, name: &CStr, device: (u32, u32)) -> Option<Vec<Xattr>> {
        if self.plain_device == Some(device) {
            return None;
        }
        self.proc_path.clear();
        let _ = write!(self.proc_path, "/proc/self/fd/{}/", directory.as_raw_fd()); // a Vec takes everything
        self.proc_path.extend_from_slice(if name.is_empty() { b"." } else { name.to_bytes() });
        let path = self.proc_path.as_slice();
        self.buffer.clear();
        let listed = match fs::llistxattr(path, rustix::buffer::spare_capacity(&mut self.buffer)) {
            Ok(0) => return None,
            Ok(_) => self.buffer.clone(),
            Err(Errno::OPNOTSUPP) => {
                self.plain_device = Some(device);
                return None;
            }
            Err(Errno::NOENT) if Path::new("/proc/self/fd").exists() => return None, // the read of its content reports it
            Err(error) => {
                self.failed("list the extended attributes", error);
                return None;
            }
        };
        let mut xattrs = Vec::new();
        for attribute in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.buffer.clear();
            match fs::lgetxattr(self.proc_path.as_slice(), attribute, rustix::buffer::spare_capacity(&mut self.buffer))
            {
                Ok(_) => xattrs.push(Xattr { name: attribute.to_vec(), value: self.buffer.clone() }),
                Err(Errno::NODATA) => {}
                Err(error) => self.failed("read an extended attribute", error),
            }
        }
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        (!xattrs.is_empty()).then_some(xattrs)
    }

    fn failed(&mut self, action: &str, error: Errno) {
        self.problem(&format!("{action}: {}", std::io::Error::from(error)));
    }

    fn problem(&mut self, text: &str) {
        self.sink.problem(Problem { path: self.path.clone(), text: text.to_owned() });
    }
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

fn stat(directory: &OwnedFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    fs::statx(directory, name, flags | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
}

fn list(directory: &OwnedFd, buffer: &mut Vec<u8>) -> rustix::io::Result<Vec<CString>> {
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

fn device(seen: &Statx) -> (u32, u32) {
    (seen.stx_dev_major, seen.stx_dev_minor)
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
