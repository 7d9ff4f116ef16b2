//! Everything that can be seen of a directory tree, to compare with.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

pub type Picture = BTreeMap<PathBuf, Seen>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: Option<u64>,
    content: Option<(u64, blake3::Hash)>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first name of the same file, for a further name.
    same_as: Option<PathBuf>,
}

pub fn picture(root: &Path) -> Picture {
    let (mut picture, mut names) = (Picture::new(), HashMap::new());
    look(root, Path::new(""), &mut picture, &mut names);
    picture
}

fn look(root: &Path, name: &Path, picture: &mut Picture, names: &mut HashMap<(u64, u64), PathBuf>) {
    let path = root.join(name);
    let found = fs::symlink_metadata(&path).unwrap();
    let kind = found.file_type();
    let same_as = (found.nlink() > 1 && !kind.is_dir())
        .then(|| names.entry((found.dev(), found.ino())).or_insert_with(|| name.to_owned()).clone())
        .filter(|first| first != name);
    let content = kind.is_file().then(|| fs::read(&path).unwrap());
    let xattrs = xattr::list(&path).unwrap().map(|name| {
        let value = xattr::get(&path, &name).unwrap().unwrap();
        (name, value)
    });
    let seen = Seen {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        mtime: (found.mtime(), found.mtime_nsec()),
        device: (kind.is_char_device() || kind.is_block_device()).then(|| found.rdev()),
        content: content.map(|content| (content.len() as u64, blake3::hash(&content))),
        target: kind.is_symlink().then(|| fs::read_link(&path).unwrap()),
        xattrs: xattrs.collect(),
        same_as,
    };
    picture.insert(name.to_owned(), seen);
    if kind.is_dir() {
        let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        below.sort();
        for entry in below {
            look(root, &name.join(entry), picture, names);
        }
    }
}

/// Says where two trees differ, instead of printing both.
#[track_caller]
pub fn assert_same(found: &Picture, expected: &Picture, what: &str) {
    for (path, seen) in expected {
        assert_eq!(found.get(path), Some(seen), "{what}: {}", path.display());
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{what}: {more:?} should not be there");
}
