//! Contents that arrive one after the other in a stream (an archive, a backup over a connection), given to a sink that
//! reads contents on other threads.
//!
//! Small contents are taken whole; of a large one, a few pieces are under way at a time, and an empty piece marks its end:
//! without it the content fails. The stream is read by the thread that captures: it goes on to the next content when the
//! one before has been handed over.

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
    large(context, sink, entry, layout, &mut stream.take(size), Some(size))
}

/// Hands `entry` over with all that is left of `stream`, however much that is.
///
/// # Errors
/// As [`hand_over`].
pub(super) fn hand_over_rest(
    context: &Context,
    sink: &mut dyn Sink,
    entry: Entry,
    layout: Layout,
    stream: &mut dyn Read,
) -> Result<(), SourceError> {
    large(context, sink, entry, layout, stream, None)
}

fn large(
    context: &Context,
    sink: &mut dyn Sink,
    entry: Entry,
    layout: Layout,
    mut stream: &mut dyn Read,
    size: Option<u64>,
) -> Result<(), SourceError> {
    let name = String::from_utf8_lossy(&entry.path).into_owned();
    let broke = |source| SourceError::of_stream(&name, source);
    let (send, pieces) = bounded(PIECES);
    let open =
        Box::new(
            move || Ok(Box::new(Handed { pieces, piece: Vec::new(), taken: 0, ended: false }) as Box<dyn Content>),
        );
    sink.add(entry, Some(Input { layout, fingerprint: None, on_error: OnError::Fail, open }))?;
    let mut total = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        (&mut stream).take(PIECE as u64).read_to_end(&mut piece).map_err(broke)?;
        total += piece.len() as u64;
        let ended = piece.is_empty();
        if ended && size.is_some_and(|size| size != total) {
            return Err(broke(io::ErrorKind::UnexpectedEof.into()));
        }
        give(context, &send, piece)?;
        if ended {
            return Ok(());
        }
    }
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
    ended: bool,
}

impl Content for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() && !self.ended {
            let early = || io::Error::new(io::ErrorKind::UnexpectedEof, "the stream that it comes from ended early");
            (self.piece, self.taken) = (self.pieces.recv().map_err(|_| early())?, 0);
            self.ended = self.piece.is_empty();
        }
        Ok(take(&self.piece, &mut self.taken, buffer))
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
