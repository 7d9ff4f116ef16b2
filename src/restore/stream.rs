//! An entry's content from start to end, for whoever cannot seek.

use crate::repo::{Item, ReadError, Reader};
use crate::restore::RestoreError;
use std::io::{self, Write};

/// Copies the content of `item` to `out`. Blocks. What is laid out in pages comes in any order, so a part of it (tens of
/// MiB) is put in order in memory.
///
/// # Errors
/// The repository's, or `Export`.
pub fn copy(reader: &Reader, item: &Item, out: &mut dyn Write) -> Result<(), RestoreError> {
    for (from, to) in reader.parts(item) {
        if item.is_stream() {
            reader.read(item, (from, to), &mut |_, bytes| out.write_all(bytes)).map_err(edge)?;
            continue;
        }
        let mut part = vec![0; (to - from) as usize];
        let place = &mut |offset: u64, bytes: &[u8]| {
            let at = (offset - from) as usize;
            let room = part.get_mut(at..at + bytes.len()).ok_or(io::ErrorKind::InvalidData)?;
            room.copy_from_slice(bytes);
            Ok(())
        };
        reader.read(item, (from, to), place).map_err(edge)?;
        out.write_all(&part).map_err(RestoreError::Export)?;
    }
    Ok(())
}

fn edge(error: ReadError) -> RestoreError {
    match error {
        ReadError::Repo(error) => error.into(),
        ReadError::Emit(source) => RestoreError::Export(source),
    }
}
