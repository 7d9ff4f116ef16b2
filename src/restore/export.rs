//! Data in its system's own format, for tools that know nothing of Lifeboat.

use crate::entry::Kind;
use crate::repo::{Item, Reader, RepoError};
use crate::restore::supply::Supplied;
use crate::restore::{RestoreError, Selection, stream, tar};
use crate::source::{Native, native};
use crossbeam_channel::{Sender, bounded};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

/// How an export is to be written.
pub enum Format {
    Tar(Selection),
    Raw(Box<Item>),
    Native(&'static dyn Native),
}

/// The format that fits a snapshot and what is wanted of it.
///
/// # Errors
/// `NotThere`; the repository's.
pub async fn format(reader: &Arc<Reader>, selection: Selection) -> Result<Format, RestoreError> {
    let kind = reader.catalogue().kind.as_str();
    match native(kind) {
        Some(native) if selection.is_all() => return Ok(Format::Native(native)),
        None if selection.is_all() && kind == "files" => return Ok(Format::Tar(selection)),
        _ => {}
    }
    let mut found = first_two(reader, &selection).await?;
    let file = found.first().filter(|item| item.entry.kind == Kind::Hardlink).and_then(|item| item.entry.link.clone());
    if let (1, Some(file)) = (found.len(), file) {
        found = first_two(reader, &Selection::new([file])).await?;
    }
    match (found.len(), found.pop()) {
        (1, Some(item)) if item.entry.kind == Kind::File => Ok(Format::Raw(Box::new(item))),
        (0, _) => {
            let path = selection.paths().first().map_or(&b"any entry"[..], Vec::as_slice);
            Err(RestoreError::NotThere(String::from_utf8_lossy(path).into_owned()))
        }
        _ => Ok(Format::Tar(selection)),
    }
}

/// One entry is a file to be written as it is; of more, the number does not matter.
async fn first_two(reader: &Reader, selection: &Selection) -> Result<Vec<Item>, RepoError> {
    let mut found = Vec::new();
    reader
        .segments::<RepoError>(|items| {
            let wanted = items.into_iter().filter(|item| selection.contains(&item.entry.path));
            found.extend(wanted.take(2_usize.saturating_sub(found.len())));
            Ok(())
        })
        .await?;
    Ok(found)
}

/// Returns what the format is called, and how many bytes were written. Blocks.
pub fn write(reader: &Reader, format: Format, out: impl Write + Send) -> Result<(&'static str, u64), RestoreError> {
    let mut out = Counting { inner: BufWriter::with_capacity(256 << 10, out), count: 0 };
    let label = match format {
        Format::Tar(selection) => {
            tar::write(reader, &selection, &mut out)?;
            "tar"
        }
        Format::Raw(item) => {
            stream::copy(reader, &item, &mut out)?;
            "the content itself"
        }
        Format::Native(native) => {
            native.write(&Supplied::new(reader, Selection::default()), &mut out).map_err(RestoreError::of_export)?;
            native.label()
        }
    };
    out.flush().map_err(RestoreError::Export)?;
    Ok((label, out.count))
}

/// A file whose bytes go to the disk while more are written: the sync at its end has little left to do.
pub struct Flowing {
    file: File,
    behind: u64,
    kick: Sender<()>,
}

impl Flowing {
    const SYNC_EVERY: u64 = 32 << 20;

    /// `file` was opened at `path`.
    pub fn new(file: &File, path: &Path) -> io::Result<Self> {
        // Opened anew: an error is told once to every description, and that of `file` must hear of it.
        let other = File::open(path)?;
        let (kick, kicked) = bounded(1);
        let sync = move || kicked.into_iter().for_each(|()| _ = other.sync_data());
        std::thread::Builder::new().name("sync".into()).spawn(sync)?;
        Ok(Self { file: file.try_clone()?, behind: 0, kick })
    }
}

impl Write for Flowing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.behind += written as u64;
        if self.behind >= Self::SYNC_EVERY {
            self.behind = 0;
            let _ = self.kick.try_send(()); // full: it is at it
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Counting<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
