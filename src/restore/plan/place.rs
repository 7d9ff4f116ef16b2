//! A directory, or a file, that is replaced by what a snapshot holds.
//!
//! What comes back is written beside what is there, in a directory of our own inside the target, so that it lies on the
//! same file system, be the target a mount point or not; only when it is whole, the two change places. Nothing is deleted:
//! what was there is moved aside and its new place told. Every step may be interrupted and done again. What was staged stays
//! recognisable until it was written down that it is in its place: on another machine, where nothing was staged, nobody
//! takes an empty directory for a restored one.

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Made by the file system, not by anybody's data.
const LOST: &str = "lost+found";
const NEW: &str = "new";
const BEFORE: &str = "before";
const CLEARED: &str = "cleared";
const MOUNTS: &str = "/proc/self/mountinfo";
/// As much as the kernel gives for a list of attributes, or one.
const XATTRS: usize = 64 << 10;
/// Kinds of attributes that belong to a directory's content.
const GIVEN: [&[u8]; 3] = [b"user.", b"system.posix_acl_", b"trusted."];

/// A target directory of one step of one execution.
#[derive(Clone, Debug)]
pub struct Place {
    directory: PathBuf,
    stage: PathBuf,
    /// Where the former content goes in the end, if it can be renamed there.
    beside: PathBuf,
    inside: PathBuf,
}

impl Place {
    /// `id` names the step of the execution.
    #[must_use]
    pub fn new(directory: &Path, id: &str) -> Self {
        // Without a slash at its end.
        let directory: PathBuf = directory.components().collect();
        let mut beside = directory.as_os_str().to_owned();
        beside.push(format!(".before-{id}"));
        Self {
            stage: directory.join(format!(".lifeboat-{id}")),
            inside: directory.join(format!(".lifeboat-before-{id}")),
            beside: beside.into(),
            directory,
        }
    }

    /// Whether somebody's data are there.
    pub fn is_occupied(&self) -> io::Result<bool> {
        match self.children() {
            Ok(children) => Ok(!children.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn children(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path != self.stage && path != self.inside && path.file_name().is_some_and(|name| name != LOST) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// What is mounted below it. A mount point cannot be renamed, and one further down would be moved along with what it is
    /// in. The directory itself may be a mount point.
    pub fn mounted(&self) -> io::Result<Vec<PathBuf>> {
        let directory = match fs::canonicalize(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut mounts = mounts(&fs::read(MOUNTS)?);
        mounts.retain(|path| *path != directory && path.starts_with(&directory));
        Ok(mounts)
    }

    /// Whether what was staged is here, or was put in its place without anybody having written that down.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        self.stage.join(NEW).exists() || self.is_cleared()
    }

    /// Whether what was there is aside already: what is there now is ours.
    #[must_use]
    pub fn is_cleared(&self) -> bool {
        self.stage.join(CLEARED).exists()
    }

    /// Where what was there before is now.
    #[must_use]
    pub fn aside(&self) -> Option<PathBuf> {
        [&self.beside, &self.inside].into_iter().find(|path| path.exists()).cloned()
    }

    /// Whether this step has been at work here: the directory is the one that it restored into, and not another machine's.
    #[must_use]
    pub fn has_traces(&self) -> bool {
        self.is_cleared() || self.aside().is_some()
    }

    /// An empty directory to restore into. What an earlier attempt restored there is removed; what it had moved aside is
    /// not.
    pub fn stage(&self) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.directory)?;
        self.put_aside(&self.stage.join(BEFORE))?;
        match fs::remove_dir_all(&self.stage) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&self.stage)?;
        rustix::fs::chmod(&self.stage, Mode::RWXU)?;
        // It has ACLs of the directory that it is in, and would hand them on to all that is restored.
        let stage = File::open(&self.stage)?;
        for (name, _) in xattrs(&stage)? {
            rustix::fs::fremovexattr(&stage, name.as_slice())?;
        }
        Ok(self.stage.join(NEW))
    }

    /// Puts the staged content, which is whole and durable, in the place of what is there.
    pub fn swap(&self) -> io::Result<()> {
        let (new, before, cleared) = (self.stage.join(NEW), self.stage.join(BEFORE), self.stage.join(CLEARED));
        if !cleared.exists() {
            create_if_absent(&before)?;
            for child in self.children()? {
                fs::rename(&child, before.join(child.file_name().unwrap_or_default()))?;
            }
            sync(&before)?;
            sync(&self.directory)?;
            // It keeps what the root should look like, since `new` changes from here on.
            let half = self.stage.join("clearing");
            create_if_absent(&half)?;
            dress(&half, &Look::of(&new)?)?;
            sync(&half)?;
            fs::rename(&half, &cleared)?;
            sync(&self.stage)?;
        }
        if new.exists() {
            for entry in fs::read_dir(&new)? {
                let entry = entry?;
                fs::rename(entry.path(), self.directory.join(entry.file_name()))?;
            }
            sync(&self.directory)?;
            fs::remove_dir(&new)?;
        }
        self.put_aside(&before)
    }

    /// What the directory shall look like in the end; after [`Self::swap`].
    pub fn look(&self) -> io::Result<Look> {
        Look::of(&self.stage.join(CLEARED))
    }

    /// Removes what is left of the stage, once it is written down that the content is in its place, and how the directory
    /// shall `look`. Returns where what was there before is now.
    pub fn finish(&self, look: Option<&Look>) -> io::Result<Option<PathBuf>> {
        if let Some(look) = look {
            let gone = |removed: io::Result<()>| match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
            gone(fs::remove_dir(self.stage.join(CLEARED)))?;
            gone(fs::remove_dir(&self.stage))?;
            // The last change, since each before it counts as one of the directory.
            dress(&self.directory, look)?;
            sync(&self.directory)?;
        }
        Ok(self.aside())
    }

    /// Gives up what did not reach its end: what was moved aside comes back and the stage goes. If all that was there is
    /// aside already, what was restored, which is whole then, takes its place. Says what was done.
    pub fn abandon(&self) -> io::Result<Vec<String>> {
        let shown = self.directory.display();
        if self.is_cleared() {
            self.swap()?;
            let look = self.look()?;
            let mut lines = vec![format!("what was restored is in its place, {shown}")];
            lines.extend(
                self.finish(Some(&look))?.map(|before| format!("what was in {shown} is in {}", before.display())),
            );
            return Ok(lines);
        }
        if !self.stage.exists() {
            return Ok(Vec::new());
        }
        let before = self.stage.join(BEFORE);
        if before.exists() {
            for entry in fs::read_dir(&before)? {
                let entry = entry?;
                let home = self.directory.join(entry.file_name());
                if home.symlink_metadata().is_err() {
                    fs::rename(entry.path(), home)?;
                }
            }
        }
        // What somebody else has taken the name of in the meantime.
        self.put_aside(&before)?;
        fs::remove_dir_all(&self.stage)?;
        sync(&self.directory)?;
        Ok(vec![format!("what was restored in part is removed from {shown}")])
    }

    fn put_aside(&self, before: &Path) -> io::Result<()> {
        if !before.exists() {
            return Ok(());
        }
        if fs::read_dir(before)?.next().is_none() {
            return fs::remove_dir(before);
        }
        // Beside a mount point is another file system.
        fs::rename(before, &self.beside).or_else(|_| fs::rename(before, &self.inside))
    }
}

/// The places of a table of mounts (proc_pid_mountinfo(5)): its fifth column, in which four bytes are written in octal.
fn mounts(table: &[u8]) -> Vec<PathBuf> {
    let place = |line: &[u8]| {
        let (mut rest, mut path) = (line.split(|byte| *byte == b' ').nth(4)?, Vec::new());
        while let [first, after @ ..] = rest {
            let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
            if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                path.push(byte);
                rest = &after[3..];
            } else {
                path.push(*first);
                rest = after;
            }
        }
        Some(PathBuf::from(OsString::from_vec(path)))
    };
    table.split(|byte| *byte == b'\n').filter_map(place).collect()
}

pub(in crate::restore) fn create_if_absent(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

pub(in crate::restore) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Owner, permissions, times, ACLs and attributes of a restored root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    owner: (u32, u32),
    mode: u32,
    /// Seconds and nanoseconds.
    accessed: (i64, i64),
    modified: (i64, i64),
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Look {
    pub fn of(directory: &Path) -> io::Result<Self> {
        let directory = File::open(directory)?;
        let is = directory.metadata()?;
        Ok(Self {
            owner: (is.uid(), is.gid()),
            mode: is.mode() & 0o7777,
            accessed: (is.atime(), is.atime_nsec()),
            modified: (is.mtime(), is.mtime_nsec()),
            xattrs: xattrs(&directory)?,
        })
    }
}

/// The extended attributes that people and programs give (xattr(7)), the ACLs among them, in the order of their names. Those of
/// `security` belong to the place.
fn xattrs(file: &File) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut buffer = vec![0; XATTRS];
    let names = match rustix::fs::flistxattr(file, &mut buffer[..]) {
        Ok(length) => buffer[..length].to_vec(),
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| GIVEN.iter().any(|kind| name.starts_with(kind))) {
        match rustix::fs::fgetxattr(file, name, &mut buffer[..]) {
            Ok(length) => found.push((name.to_vec(), buffer[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}

/// Gives `path` this look.
pub(in crate::restore) fn dress(path: &Path, should: &Look) -> io::Result<()> {
    let file = File::open(path)?;
    let is = file.metadata()?;
    if (is.uid(), is.gid()) != should.owner {
        let (user, group) = should.owner;
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(should.mode))?;
    let there = xattrs(&file)?;
    for (name, _) in there.iter().filter(|(name, _)| should.xattrs.iter().all(|(other, _)| other != name)) {
        rustix::fs::fremovexattr(&file, name.as_slice())?;
    }
    for (name, value) in should.xattrs.iter().filter(|pair| !there.contains(pair)) {
        rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty())?;
    }
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(should.accessed), last_modification: time(should.modified) };
    Ok(rustix::fs::futimens(&file, &times)?)
}

/// See [`Product::mark`].
pub type Mark = (u64, i64, i64, u64);

fn mark(path: &Path) -> io::Result<Mark> {
    let found = path.symlink_metadata()?;
    Ok((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}

/// A target file of one step of one execution.
#[derive(Clone, Debug)]
pub struct Product {
    file: PathBuf,
    /// Written there first.
    pub partial: PathBuf,
    before: PathBuf,
}

impl Product {
    #[must_use]
    pub fn new(file: &Path, id: &str) -> Self {
        let file: PathBuf = file.components().collect();
        let named = |suffix: &str| {
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".{suffix}-{id}"));
            PathBuf::from(name)
        };
        Self { partial: named("partial"), before: named("before"), file }
    }

    /// Tells the partial file, also under its later name, from every other: inode, seconds and nanoseconds of its last
    /// change, bytes.
    pub fn mark(&self) -> io::Result<Mark> {
        mark(&self.partial)
    }

    /// Whether the file that `mark` is of is here, under its first name or its last.
    #[must_use]
    pub fn is_here(&self, of: Mark) -> bool {
        [&self.partial, &self.file].into_iter().any(|path| mark(path).is_ok_and(|found| found == of))
    }

    #[must_use]
    pub fn is_occupied(&self) -> bool {
        self.file.symlink_metadata().is_ok()
    }

    /// The file, if something is mounted on it: then nothing can take its place.
    pub fn mounted(&self) -> io::Result<Vec<PathBuf>> {
        let file = match fs::canonicalize(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut mounts = mounts(&fs::read(MOUNTS)?);
        mounts.retain(|path| *path == file);
        Ok(mounts)
    }

    /// Gives up what did not reach its end. Says what was done.
    pub fn abandon(&self) -> io::Result<Vec<String>> {
        if !self.partial.exists() {
            return Ok(Vec::new());
        }
        if !self.is_occupied() && self.before.exists() {
            fs::rename(&self.before, &self.file)?;
        }
        fs::remove_file(&self.partial)?;
        Ok(vec![format!("{} is removed", self.partial.display())])
    }

    /// Puts the partial file, which is whole and durable, under its name. Returns where what was there is now.
    pub fn swap(&self) -> io::Result<Option<PathBuf>> {
        if self.partial.exists() {
            if self.is_occupied() && !self.before.exists() {
                fs::rename(&self.file, &self.before)?;
            }
            fs::rename(&self.partial, &self.file)?;
            sync(self.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        }
        Ok(self.before.exists().then(|| self.before.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;

    fn tree(directory: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                let text = if entry.path().is_dir() { "/".into() } else { fs::read_to_string(entry.path()).unwrap() };
                (name, text)
            })
            .collect()
    }

    fn of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect()
    }

    /// A target with something in it, and something else staged.
    fn staged(at: &Path) -> Place {
        staged_over(at, |_| ())
    }

    fn staged_over(at: &Path, prepare: impl FnOnce(&Path)) -> Place {
        let target = at.join("data");
        fs::create_dir(&target).unwrap();
        prepare(&target);
        fs::write(target.join("a"), "old a").unwrap();
        fs::write(target.join("b"), "old b").unwrap();
        let place = Place::new(&target, "x");
        let new = place.stage().unwrap();
        fs::create_dir(&new).unwrap();
        fs::write(new.join("a"), "new a").unwrap();
        fs::write(new.join("c"), "new c").unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o750)).unwrap();
        place
    }

    fn check(at: &Path, place: &Place) {
        assert!(place.is_staged());
        place.swap().unwrap();
        // Killed before it was written down: it is known here what was done.
        assert!(place.is_staged());
        place.swap().unwrap();
        let look = place.look().unwrap();
        // Killed while the stage was being removed: what the directory shall look like was written down.
        fs::remove_dir(place.stage.join(CLEARED)).unwrap();
        let before = place.finish(Some(&look)).unwrap().unwrap();
        assert_eq!(Look::of(&at.join("data")).unwrap().modified, look.modified);
        assert!(!place.stage.exists());
        assert_eq!(before, at.join("data.before-x"));
        assert_eq!(tree(&at.join("data")), of(&[("a", "new a"), ("c", "new c")]));
        assert_eq!(tree(&before), of(&[("a", "old a"), ("b", "old b")]));
        assert_eq!(fs::metadata(at.join("data")).unwrap().mode() & 0o777, 0o750);
        assert!(!place.is_staged());
        assert_eq!(place.finish(Some(&look)).unwrap(), Some(before));
        assert_eq!(tree(&at.join("data")), of(&[("a", "new a"), ("c", "new c")]));
    }

    #[test]
    fn old_and_new_change_places() {
        let at = tempfile::tempdir().unwrap();
        let place = staged(at.path());
        assert!(place.is_occupied().unwrap());
        check(at.path(), &place);
    }

    #[test]
    fn the_directory_gets_the_attributes_of_the_restored_one_and_loses_its_own() {
        // A default ACL of owner, group and others (acl(5), as xattr: version, then tag, permissions, no id).
        let acl = [2u32.to_le_bytes().to_vec()].into_iter().chain(
            [(1u16, 7u16), (4, 5), (32, 0)]
                .map(|(tag, may)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &[0xff; 4]].concat()),
        );
        let acl: Vec<u8> = acl.flatten().collect();
        let set = |path: &Path, name: &str, value: &[u8]| {
            rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
        };
        for with_acl in [true, false] {
            let at = tempfile::tempdir().unwrap();
            let place = staged_over(at.path(), |data| {
                set(data, "user.old", b"1");
                set(data, "system.posix_acl_default", &acl);
            });
            let new = place.stage.join(NEW);
            set(&new, "user.new", b"2");
            if with_acl {
                set(&new, "system.posix_acl_default", &acl);
            }
            check(at.path(), &place);
            let look = Look::of(&at.path().join("data")).unwrap();
            let has = |name: &str| look.xattrs.iter().find(|(other, _)| other == name.as_bytes());
            assert!(has("user.old").is_none() && has("user.new").unwrap().1 == b"2");
            assert_eq!(has("system.posix_acl_default").is_some_and(|(_, is)| *is == acl), with_acl);
            assert_eq!(Look::of(&at.path().join("data/a")).unwrap().xattrs, []);
        }
    }

    #[test]
    fn an_interrupted_swap_goes_on() {
        // Killed after the first old file went aside.
        let at = tempfile::tempdir().unwrap();
        let place = staged(at.path());
        fs::create_dir(place.stage.join(BEFORE)).unwrap();
        fs::rename(at.path().join("data/a"), place.stage.join("before/a")).unwrap();
        check(at.path(), &place);
        // Killed after the first new file came.
        let at = tempfile::tempdir().unwrap();
        let place = staged(at.path());
        fs::create_dir(place.stage.join(BEFORE)).unwrap();
        for name in ["a", "b"] {
            fs::rename(at.path().join("data").join(name), place.stage.join(BEFORE).join(name)).unwrap();
        }
        fs::create_dir(place.stage.join(CLEARED)).unwrap();
        fs::set_permissions(place.stage.join(CLEARED), fs::Permissions::from_mode(0o750)).unwrap();
        fs::rename(place.stage.join("new/a"), at.path().join("data/a")).unwrap();
        check(at.path(), &place);
    }

    #[test]
    fn what_is_given_up_leaves_no_trace() {
        // Killed while it was restored, and after the first old file went aside.
        for moved in [false, true] {
            let at = tempfile::tempdir().unwrap();
            let place = staged(at.path());
            if moved {
                fs::create_dir(place.stage.join(BEFORE)).unwrap();
                fs::rename(at.path().join("data/a"), place.stage.join("before/a")).unwrap();
            }
            assert_eq!(place.abandon().unwrap().len(), 1);
            assert_eq!(tree(&at.path().join("data")), of(&[("a", "old a"), ("b", "old b")]));
            assert_eq!((tree(at.path()), place.abandon().unwrap()), (of(&[("data", "/")]), vec![]));
        }
        // Killed after all that was old went aside: the new is whole.
        let at = tempfile::tempdir().unwrap();
        let place = staged(at.path());
        place.swap().unwrap();
        fs::create_dir(place.stage.join(NEW)).unwrap();
        fs::rename(at.path().join("data/c"), place.stage.join("new/c")).unwrap();
        assert_eq!(place.abandon().unwrap().len(), 2);
        assert_eq!(tree(&at.path().join("data")), of(&[("a", "new a"), ("c", "new c")]));
        assert_eq!(tree(&at.path().join("data.before-x")), of(&[("a", "old a"), ("b", "old b")]));
        // A file whose old content went aside comes back.
        let at = tempfile::tempdir().unwrap();
        let product = Product::new(&at.path().join("out"), "x");
        fs::write(&product.before, "old").unwrap();
        fs::write(&product.partial, "new").unwrap();
        assert_eq!(product.abandon().unwrap().len(), 1);
        assert_eq!(tree(at.path()), of(&[("out", "old")]));
    }

    #[test]
    fn the_table_of_mounts_is_read() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            37 35 0:21 / /a\\040b\\134c rw - tmpfs tmpfs rw\n\nshort line\n";
        assert_eq!(mounts(table), [PathBuf::from("/mnt2"), PathBuf::from("/a b\\c")]);
        assert!(mounts(&fs::read(MOUNTS).unwrap()).contains(&PathBuf::from("/")));
        let root = Place::new(Path::new("/"), "x");
        assert!(!root.mounted().unwrap().is_empty(), "/proc is mounted");
    }

    #[test]
    fn an_empty_target_leaves_nothing_aside() {
        let at = tempfile::tempdir().unwrap();
        let place = Place::new(&at.path().join("deep/data"), "x");
        assert!(!place.is_occupied().unwrap());
        let new = place.stage().unwrap();
        fs::create_dir(&new).unwrap();
        fs::write(new.join("a"), "new").unwrap();
        place.swap().unwrap();
        assert_eq!(place.finish(Some(&place.look().unwrap())).unwrap(), None);
        assert_eq!(tree(&at.path().join("deep/data")), of(&[("a", "new")]));
        assert_eq!(tree(&at.path().join("deep")), of(&[("data", "/")]));
    }

    #[test]
    fn a_file_is_moved_aside_once() {
        let at = tempfile::tempdir().unwrap();
        let product = Product::new(&at.path().join("out"), "x");
        fs::write(at.path().join("out"), "old").unwrap();
        fs::write(&product.partial, "new").unwrap();
        let mark = product.mark().unwrap();
        assert!(product.is_here(mark));
        let before = product.swap().unwrap();
        assert!(product.is_here(mark) && before == product.swap().unwrap());
        assert_eq!(tree(at.path()), of(&[("out", "new"), ("out.before-x", "old")]));
    }

    #[test]
    fn what_was_staged_elsewhere_is_not_here() {
        let at = tempfile::tempdir().unwrap();
        let (target, out) = (at.path().join("data"), at.path().join("out"));
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), "another machine's").unwrap();
        assert!(!Place::new(&target, "x").is_staged());
        fs::write(&out, "new").unwrap();
        let product = Product::new(&out, "x");
        fs::write(&product.partial, "new").unwrap();
        let mark = product.mark().unwrap();
        fs::remove_file(&product.partial).unwrap();
        assert!(!product.is_here(mark));
    }

    #[test]
    fn what_was_moved_aside_outlives_a_new_stage() {
        // The record that the stage was whole did not reach the machine that goes on.
        let at = tempfile::tempdir().unwrap();
        let place = staged(at.path());
        fs::create_dir(place.stage.join(BEFORE)).unwrap();
        fs::rename(at.path().join("data/a"), place.stage.join("before/a")).unwrap();
        place.stage().unwrap();
        assert_eq!(tree(&at.path().join("data.before-x")), of(&[("a", "old a")]));
    }

    #[test]
    fn a_slash_at_the_end_means_nothing() {
        let place = Place::new(Path::new("/restored/data/"), "x");
        assert_eq!(place.beside, Path::new("/restored/data.before-x"));
        assert_eq!(Product::new(Path::new("/restored/out/"), "x").before, Path::new("/restored/out.before-x"));
    }
}
