//! Listing a directory tree in key order.
//!
//! A directory sorts by its name with the `/` that follows in its keys, so `a-b` comes before `a/x`.

use super::{ObjectMeta, modified};
use crate::store::key::is_part;
use std::fs;
use std::io;
use std::path::Path;

pub(super) fn list(root: &Path, prefix: &str, after: &str, limit: usize) -> io::Result<Vec<ObjectMeta>> {
    // A root that is not there (an unmounted file system) is an error, a prefix without objects is none.
    fs::metadata(root)?;
    let parent = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let mut walk = Walk { root, prefix, after: after.to_owned(), limit, found: Vec::new() };
    walk.directory(parent)?;
    Ok(walk.found)
}

pub(super) fn roots(root: &Path) -> io::Result<Vec<String>> {
    let mut roots = Vec::new();
    for name in entries(root, "")? {
        if let Some(name) = name.strip_suffix('/')
            && !list(root, &format!("{name}/"), "", 1)?.is_empty()
        {
            roots.push(name.to_owned());
        }
    }
    roots.sort();
    Ok(roots)
}

/// The names in a directory that can be parts of keys, those of directories with a `/` behind them.
fn entries(root: &Path, directory: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if !is_part(&name) || !(kind.is_dir() || kind.is_file()) {
            continue;
        }
        if kind.is_dir() {
            name.push('/');
        }
        names.push(name);
    }
    Ok(names)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: String,
    limit: usize,
    found: Vec<ObjectMeta>,
}

impl Walk<'_> {
    /// `directory` is empty or ends in `/`.
    fn directory(&mut self, directory: &str) -> io::Result<()> {
        let names = match entries(self.root, directory) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            other => other?,
        };
        let mut keys: Vec<String> =
            names.into_iter().map(|name| format!("{directory}{name}")).filter(|key| self.wants(key)).collect();
        let room = self.limit - self.found.len();
        // Of a large flat directory only the first few are sorted.
        let cut = room > 0 && keys.len() > room && keys.iter().all(|key| !key.ends_with('/'));
        if cut {
            keys.select_nth_unstable(room - 1);
            keys.truncate(room);
        }
        keys.sort_unstable();
        for key in &keys {
            if self.found.len() == self.limit {
                return Ok(());
            }
            if key.ends_with('/') { self.directory(key)? } else { self.file(key)? }
        }
        if cut && self.found.len() < self.limit {
            // Some were deleted since the directory was read; a short page would mean that there are no more.
            self.after = keys.pop().unwrap_or_default();
            return self.directory(directory);
        }
        Ok(())
    }

    /// Whether `key`, or something below it, may belong to the listing.
    fn wants(&self, key: &str) -> bool {
        if key.ends_with('/') {
            (key.starts_with(self.prefix) || self.prefix.starts_with(key))
                && (key > self.after.as_str() || self.after.starts_with(key))
        } else {
            key.starts_with(self.prefix) && key > self.after.as_str()
        }
    }

    fn file(&mut self, key: &str) -> io::Result<()> {
        match fs::symlink_metadata(self.root.join(key)) {
            Ok(found) => {
                self.found.push(ObjectMeta { size: found.len(), modified: modified(&found)?, key: key.to_owned() });
            }
            // Deleted since the directory was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
