//! An entry's content from start to end, for whoever cannot seek.

use crate::repo::{Item, Part, ReadError, Reader};
use crate::restore::RestoreError;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{self, Write};
use std::thread::{Builder, Scope};

/// Threads that read ahead of the writing one. It hashes, for a database, and that is a third of the work.
const LANES: u64 = 3;
/// Bytes that a lane reads at a time, about.
const PIECE: u64 = 1 << 20;

type Read = Result<Vec<u8>, ReadError>;

/// Copies the content of `item` to `out`. Blocks.
///
/// # Errors
/// The repository's, or `Export`.
pub fn copy(reader: &Reader, item: &Item, out: &mut dyn Write) -> Result<(), RestoreError> {
    if let Some(page) = item.page_size() {
        return pages(reader, item, page, out);
    }
    let parts = reader.parts(item)?;
    for (at, part) in parts.iter().enumerate() {
        if let Some(next) = parts.get(at + 1) {
            reader.ahead(item, next)?;
        }
        reader.read(item, part, &mut |_, bytes| out.write_all(bytes)).map_err(edge)?;
    }
    Ok(())
}

/// What is laid out in pages comes in any order, so a piece is put in order in memory. The pieces go round the lanes.
fn pages(reader: &Reader, item: &Item, page: u64, out: &mut dyn Write) -> Result<(), RestoreError> {
    let length = (PIECE / page).max(1) * page;
    std::thread::scope(|scope| {
        let lanes = (0..LANES).map(|number| lane(scope, reader, item, length, number));
        let lanes = lanes.collect::<io::Result<Vec<_>>>().map_err(RestoreError::Thread)?;
        for (pieces, spare) in lanes.iter().cycle() {
            // A lane that has nothing more to give is the one whose turn comes after the last piece.
            let Ok(piece) = pieces.recv() else { break };
            let piece = piece.map_err(edge)?;
            out.write_all(&piece).map_err(RestoreError::Export)?;
            let _ = spare.send(piece); // it may have ended
        }
        Ok(())
    })
}

/// Reads every [`LANES`]th piece of `length` bytes, from `number` on. It is given the buffers back.
fn lane<'scope>(
    scope: &'scope Scope<'scope, '_>,
    reader: &'scope Reader,
    item: &'scope Item,
    length: u64,
    number: u64,
) -> io::Result<(Receiver<Read>, Sender<Vec<u8>>)> {
    let (send, pieces) = bounded(1);
    let (give, spare) = bounded::<Vec<u8>>(2);
    let size = item.entry.size;
    let work = move || {
        for piece in (number..size.div_ceil(length)).step_by(LANES as usize) {
            let (from, to) = (piece * length, size.min((piece + 1) * length));
            let read = self::piece(reader, item, (from, to), spare.try_recv().unwrap_or_default());
            let end = read.is_err();
            if send.send(read).is_err() || end {
                return;
            }
        }
    };
    Builder::new().name(format!("lane-{number}")).spawn_scoped(scope, work)?;
    Ok((pieces, give))
}

fn piece(reader: &Reader, item: &Item, (from, to): (u64, u64), mut bytes: Vec<u8>) -> Read {
    bytes.clear();
    bytes.resize((to - from) as usize, 0);
    let place = &mut |offset: u64, page: &[u8]| {
        let at = (offset - from) as usize;
        let room = bytes.get_mut(at..at + page.len()).ok_or(io::ErrorKind::InvalidData)?;
        room.copy_from_slice(page);
        Ok(())
    };
    reader.read(item, &Part::Pages(from, to), place)?;
    Ok(bytes)
}

fn edge(error: ReadError) -> RestoreError {
    match error {
        ReadError::Repo(error) => error.into(),
        ReadError::Emit(source) => RestoreError::Export(source),
    }
}
