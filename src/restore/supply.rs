//! A snapshot as its system's own code sees it, which knows nothing of repositories.

use crate::entry::{Body, Facts, Supply, Visit};
use crate::repo::{Item, Reader, RepoError};
use crate::restore::snapshot::concerns_one_file;
use crate::restore::{RestoreError, Selection, stream};
use std::io::{self, Write};

/// The selected entries of a snapshot.
pub struct Supplied<'a> {
    reader: &'a Reader,
    selection: Selection,
}

impl<'a> Supplied<'a> {
    #[must_use]
    pub fn new(reader: &'a Reader, selection: Selection) -> Self {
        Self { reader, selection }
    }
}

impl Supply for Supplied<'_> {
    fn facts(&self) -> &Facts {
        &self.reader.catalogue().facts
    }

    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        let reader = self.reader;
        let mut found = vec![false; self.selection.paths().len()];
        let walked = walk::<RestoreError>(reader, |item| {
            if self.selection.contains(&item.entry.path) {
                if let Some(at) = self.selection.position(&item.entry.path) {
                    found[at] = true;
                }
                visit(&item.entry, &Content { reader, item: &item }).map_err(RestoreError::of_export)?;
            }
            Ok(())
        });
        walked.map_err(RestoreError::into_io)?;
        match found.iter().position(|found| !found) {
            Some(at) => {
                let path = String::from_utf8_lossy(&self.selection.paths()[at]).into_owned();
                Err(RestoreError::NotThere(path).into_io())
            }
            None => Ok(()),
        }
    }
}

struct Content<'a> {
    reader: &'a Reader,
    item: &'a Item,
}

impl Body for Content<'_> {
    fn copy(&self, out: &mut dyn Write) -> io::Result<()> {
        stream::copy(self.reader, self.item, out).map_err(RestoreError::into_io)
    }

    fn is_lost(&self, error: &io::Error) -> bool {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<RestoreError>());
        matches!(inner, Some(RestoreError::Repo(error)) if concerns_one_file(error))
    }
}

/// Gives every entry to `each`, which may block: reading a content must not be done where the list is read, so that goes
/// through a short queue.
pub(super) fn walk<E: From<RepoError>>(reader: &Reader, mut each: impl FnMut(Item) -> Result<(), E>) -> Result<(), E> {
    let (items, queue) = crossbeam_channel::bounded::<Result<Vec<Item>, RepoError>>(2);
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let listed =
                runtime.block_on(reader.segments::<Ended>(|list| items.send(Ok(list)).map_err(|_| Ended(None))));
            if let Err(Ended(Some(error))) = listed {
                // Nobody listens any more only when writing has failed, which says more.
                let _ = items.send(Err(error));
            }
        });
        for list in queue {
            list?.into_iter().try_for_each(&mut each)?;
        }
        Ok(())
    })
}

/// `None`: the archive could not be written.
struct Ended(Option<RepoError>);

impl From<RepoError> for Ended {
    fn from(error: RepoError) -> Self {
        Self(Some(error))
    }
}
