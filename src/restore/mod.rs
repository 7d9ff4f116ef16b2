//! Bringing things back.

pub mod export;
pub mod plan;
pub mod receive;
pub mod snapshot;
pub mod stream;
pub mod supply;
pub mod tar;
pub mod tree;
mod twice;

use crate::entry::Entry;
use crate::repo::{Item, RepoError};
use std::collections::BTreeMap;
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    #[error("write {path}")]
    Write { path: String, source: io::Error },
    #[error("write the export")]
    Export(#[source] io::Error),
    #[error("the restore was interrupted; its target is incomplete")]
    Stopped,
    #[error("start a thread")]
    Thread(#[source] io::Error),
    #[error("{0} is not in the snapshot")]
    NotThere(String),
}

impl RestoreError {
    /// For those who know only of I/O; [`RestoreError::of_export`] takes it out again.
    fn into_io(self) -> io::Error {
        match self {
            Self::Export(error) => error,
            other => io::Error::other(other),
        }
    }

    /// What went wrong while something was written: the repository's error that is inside, or the writing itself.
    #[must_use]
    pub fn of_export(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Export)
    }
}

/// Whether `path` is `below` or lies below it; everything lies below the empty path.
#[must_use]
pub fn is_within(path: &[u8], below: &[u8]) -> bool {
    below.is_empty() || path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The entries that somebody asked for; all, if nobody named any.
#[derive(Clone, Debug, Default)]
pub struct Selection(Vec<Vec<u8>>);

impl Selection {
    /// Takes paths as people write them.
    pub fn new(paths: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let trim = |path: Vec<u8>| {
            let text = path.strip_prefix(b"./").unwrap_or(&path);
            let start = text.iter().take_while(|b| **b == b'/').count();
            let end = text.iter().rev().take_while(|b| **b == b'/').count();
            text.get(start..text.len() - end).unwrap_or_default().to_vec()
        };
        Self(paths.into_iter().map(trim).filter(|path| !path.is_empty() && path != b".").collect())
    }

    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Asked for, or below something that was.
    #[must_use]
    pub fn contains(&self, path: &[u8]) -> bool {
        self.is_all() || self.0.iter().any(|asked| is_within(path, asked))
    }

    /// … or a directory on the way there.
    #[must_use]
    pub fn needs(&self, path: &[u8]) -> bool {
        self.contains(path) || path == b"." || self.0.iter().any(|asked| is_within(asked, path))
    }

    /// Which of the paths asked for `path` lies below.
    #[must_use]
    pub fn position(&self, path: &[u8]) -> Option<usize> {
        self.0.iter().position(|asked| is_within(path, asked))
    }

    #[must_use]
    pub fn paths(&self) -> &[Vec<u8>] {
        &self.0
    }
}

/// Hard links that were asked for without the file that they are a further name of, by that file's path.
#[derive(Debug, Default)]
struct Strays(BTreeMap<Vec<u8>, Vec<Entry>>);

impl Strays {
    /// Keeps a hard link whose file was not asked for; gives others back.
    fn sift(&mut self, selection: &Selection, link: Entry) -> Option<Entry> {
        match &link.link {
            Some(file) if !selection.contains(file) => {
                self.0.entry(file.clone()).or_default().push(link);
                None
            }
            _ => Some(link),
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// If `item` is the file of some: the file under the first one's name, and the others as links to that.
    fn claim(&mut self, mut item: Item) -> Option<(Item, Vec<Entry>)> {
        let mut links = self.0.remove(&item.entry.path)?;
        item.entry.path = links.remove(0).path;
        for link in &mut links {
            link.link = Some(item.entry.path.clone());
        }
        Some((item, links))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_needs_the_way_to_it() {
        let selection = Selection::new([b"/a/b/".to_vec(), b"./c".to_vec()]);
        for (path, contained, needed) in [
            ("a", false, true),
            ("a/b", true, true),
            ("a/b/x", true, true),
            ("a/bc", false, false),
            ("c", true, true),
            (".", false, true),
            ("d", false, false),
        ] {
            assert_eq!(selection.contains(path.as_bytes()), contained, "{path}");
            assert_eq!(selection.needs(path.as_bytes()), needed, "{path}");
        }
        assert!(Selection::new([b"./".to_vec(), b"/".to_vec()]).is_all());
    }
}
