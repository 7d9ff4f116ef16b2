//! Contents that arrive one after the other in a stream (an archive, a backup over a connection), given to a sink that
//! reads contents on other threads.
//!
//! Small contents are taken whole; of a large one, a few pieces are under way at a time. The stream is read by the thread
//! that captures: it goes on to the next content when the one before has been handed over.

use super::{Context, SourceError};
use crate::entry::{Content, Entry, Input, Layout, OnError, Sink, Verdict};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use std::io::{self, Read};
use std::time::Duration;

/// Contents up to this size are taken whole.
const SMALL: u64 = 256 << 10;
const PIECE: usize = 512 << 10;
const PIECES: usize = 3;
const TICK: Duration = Duration::from_millis(100);

/// Hands `entry` over with the next `entry.size` bytes of `stream`.
///
/// # Errors
/// The run was stopped, or cancelled; `Stream` if the stream broke or ended early (the content fails too, so nothing is
/// committed).
pub(super) fn hand_over(
    context: &Context,
    sink: &mut dyn Sink,
    entry: Entry,
    layout: Layout,
    stream: &mut dyn Read,
) -> Result<(), SourceError> {
    let name = String::from_utf8_lossy(&entry.path).into_owned();
    let broke = |source| SourceError::of_stream(&name, source);
    let size = entry.size;
    if size <= SMALL {
        let mut bytes = vec![0; size as usize];
        stream.read_exact(&mut bytes).map_err(broke)?;
        let open = Box::new(move || Ok(Box::new(Memory { bytes, taken: 0 }) as Box<dyn Content>));
        sink.add(entry, Some(Input { layout, fingerprint: None, on_error: OnError::Fail, open }))?;
        return Ok(());
    }
    let (send, pieces) = bounded(PIECES);
    let open =
        Box::new(move || Ok(Box::new(Handed { pieces, piece: Vec::new(), taken: 0, left: size }) as Box<dyn Content>));
    sink.add(entry, Some(Input { layout, fingerprint: None, on_error: OnError::Fail, open }))?;
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; left.min(PIECE as u64) as usize];
        stream.read_exact(&mut piece).map_err(broke)?;
        left -= piece.len() as u64;
        give(context, &send, piece)?;
    }
    Ok(())
}

fn give(context: &Context, send: &Sender<Vec<u8>>, mut piece: Vec<u8>) -> Result<(), SourceError> {
    loop {
        context.go_on()?;
        match send.send_timeout(piece, TICK) {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::Timeout(back)) => piece = back,
            Err(SendTimeoutError::Disconnected(_)) => return Err(crate::entry::Stopped.into()),
        }
    }
}

struct Memory {
    bytes: Vec<u8>,
    taken: usize,
}

impl Content for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(take(&self.bytes, &mut self.taken, buffer))
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        Ok(Verdict::Consistent)
    }
}

struct Handed {
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    taken: usize,
    left: u64,
}

impl Content for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        while self.taken == self.piece.len() {
            let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the stream that it comes from ended early");
            (self.piece, self.taken) = (self.pieces.recv().map_err(|_| ended())?, 0);
        }
        let length = take(&self.piece, &mut self.taken, buffer);
        self.left -= length as u64;
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        Ok(Verdict::Consistent)
    }
}

fn take(bytes: &[u8], taken: &mut usize, buffer: &mut [u8]) -> usize {
    let length = buffer.len().min(bytes.len() - *taken);
    buffer[..length].copy_from_slice(&bytes[*taken..*taken + length]);
    *taken += length;
    length
}
