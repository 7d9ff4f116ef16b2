//! In the pod that a claim is restored by: what arrives ([`crate::source::volume::stream`]), onto the volume.
//!
//! The volume is mounted as the directory `files` below a root that is not part of it, so that the snapshot's own paths
//! lead there. What arrives is trusted no more than a snapshot is: see [`super::tree`].

use super::snapshot::write_block;
use super::tree::{Options, Tree, TreeError};
use crate::entry::{Entry, Kind, Problem};
use crate::source::volume::FILES;
use crate::source::volume::stream::{self, Report, Standing};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of a content that are held in memory.
const PIECE: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{action} {}", path.display())]
    Volume { action: &'static str, path: PathBuf, source: io::Error },
    #[error("receive the volume's files")]
    Stream(#[from] io::Error),
}

/// Only says what the volume `files` below `root` holds.
///
/// # Errors
/// It cannot be read.
pub fn look(root: &Path) -> Result<Report, ReceiveError> {
    let path = root.join(FILES);
    let there = content(&path).map_err(|source| ReceiveError::Volume { action: "look into", path, source })?;
    Ok(Report { occupied: there.first().map(|first| first.display().to_string()), ..Report::default() })
}

/// Receives into the volume `files` below `root`.
///
/// # Errors
/// What arrives is not whole, or cannot be written. The volume may be half filled then.
pub fn receive(root: &Path, standing: Standing, input: &mut dyn Read) -> Result<Report, ReceiveError> {
    let volume = root.join(FILES);
    let failed = |action| {
        let path = volume.clone();
        move |source| ReceiveError::Volume { action, path, source }
    };
    let there = content(&volume).map_err(failed("look into"))?;
    match (standing, there.first()) {
        (Standing::Refuse, Some(first)) => {
            let occupied = Some(first.display().to_string());
            return Ok(Report { occupied, ..Report::default() });
        }
        (Standing::Clear, _) => there.iter().try_for_each(|path| remove(path)).map_err(failed("clear"))?,
        (Standing::Refuse | Standing::Beside, _) => {}
    }
    let tree = Tree::create(root, Options { into_existing: true })?;
    let (mut received, mut buffer) = (Report::default(), vec![0; PIECE]);
    stream::receive::<ReceiveError>(input, |entry, content| {
        received.entries += 1;
        if entry.kind != Kind::File {
            return Ok(tree.make(entry)?);
        }
        received.bytes += entry.size;
        let file = tree.file(entry)?;
        fill(entry, &file, content, &mut buffer)?;
        Ok(tree.finish_file(entry, file)?)
    })?;
    let told = |problem: Problem| (String::from_utf8_lossy(&problem.path).into_owned(), problem.text);
    received.problems = tree.finish()?.into_iter().map(told).collect();
    let sync = File::open(&volume).and_then(|volume| rustix::fs::syncfs(&volume).map_err(io::Error::from));
    sync.map_err(failed("make durable what was written to"))?;
    Ok(received)
}

/// All but what a file system itself puts there.
fn content(volume: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(volume)? {
        let entry = entry?;
        if entry.file_name() != "lost+found" {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

fn fill(entry: &Entry, file: &File, content: &mut dyn Read, buffer: &mut [u8]) -> Result<(), ReceiveError> {
    let sparse = entry.sparse == Some(true);
    let failed = |source| {
        let path = PathBuf::from(String::from_utf8_lossy(&entry.path).into_owned());
        ReceiveError::Volume { action: "write", path, source }
    };
    if sparse {
        file.set_len(entry.size).map_err(failed)?;
    }
    let mut at = 0;
    loop {
        let mut length = 0;
        while length < buffer.len() {
            match content.read(&mut buffer[length..])? {
                0 => break,
                more => length += more,
            }
        }
        if length == 0 {
            return Ok(());
        }
        write_block(file, sparse, at, &buffer[..length]).map_err(failed)?;
        at += length as u64;
    }
}
