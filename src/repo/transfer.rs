//! Packs and objects on their way from one copy of a repository to another, checked as they pass.
//!
//! No key is needed: a manifest names the digest of a pack's tail, the tail those of its frames. What is unsound where it
//! is read from is told apart from a store that fails ([`Sound`]); nothing unsound becomes visible where it is written to.

use crate::repo::error::{RepoError, Result};
use crate::repo::lineage::Lineage;
use crate::repo::manifest::PackRef;
use crate::repo::pack::{self, FrameInfo, PlainTail};
use crate::repo::writer::lock_until;
use crate::store::{PutOptions, Store, StoreErrorKind, Upload};
use bytes::Bytes;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// `Err` says what is wrong with the object itself.
pub(crate) type Sound<T> = std::result::Result<T, RepoError>;

/// So many bytes are asked for at once, unless a single frame is larger.
const PIECE: u64 = 8 << 20;

/// What is wrong with an object is told; a store that does not answer, or a missing key, is an error.
pub(crate) fn sound<T>(read: Result<T>) -> Result<Sound<T>> {
    match read {
        Ok(value) => Ok(Ok(value)),
        Err(error @ (RepoError::Damaged { .. } | RepoError::Foreign { .. })) => Ok(Err(error)),
        Err(RepoError::Store(error)) if error.kind.blames_object() => Ok(Err(error.into())),
        Err(error) => Err(error),
    }
}

/// How long what is put must stay, under Object Lock.
#[derive(Debug)]
pub struct Locking {
    /// From now on; `None` leaves locks alone.
    keep: Option<Duration>,
    now: Timestamp,
    clock: Instant,
}

impl Locking {
    #[must_use]
    pub fn new(keep: Option<Duration>, now: Timestamp) -> Self {
        Self { keep, now, clock: Instant::now() }
    }

    pub(crate) fn options(&self, store: &dyn Store) -> PutOptions {
        let now = self.now.as_second() + self.clock.elapsed().as_secs().cast_signed();
        let keep = self.keep.filter(|_| store.features().lock);
        PutOptions { retain_until: keep.map(|keep| lock_until(now, keep).1) }
    }
}

/// What became of an object that was to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Written,
    /// It was there, byte for byte.
    Same,
    /// Something else is there.
    Differs,
}

/// Puts a small object, create-only.
pub(crate) async fn put(store: &dyn Store, key: &str, bytes: &Bytes, options: PutOptions) -> Result<Put> {
    match store.put(key, bytes.clone(), options).await {
        Ok(()) => Ok(Put::Written),
        Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
            let there = sound(store.get(key).await.map_err(RepoError::from))?;
            Ok(if there.is_ok_and(|there| there == *bytes) { Put::Same } else { Put::Differs })
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies a pack to the store of another copy of its lineage.
pub(crate) async fn copy_pack(
    from: &Lineage,
    reference: &PackRef,
    to: &Lineage,
    options: PutOptions,
) -> Result<Sound<Put>> {
    let (tail, plain) = match checked_tail(from, reference).await? {
        Ok(tail) => tail,
        Err(error) => return Ok(Err(error)),
    };
    let mut upload = to.store.upload(&pack::object(&from.source, reference.pack), options).await?;
    match send(from, reference, &plain, tail, Some(&mut upload)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            upload.abort().await;
            return Ok(Err(error));
        }
        Err(error) => {
            upload.abort().await;
            return Err(error);
        }
    }
    match upload.finish().await {
        Ok(()) => Ok(Ok(Put::Written)),
        Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
            Ok(Ok(if check_pack(to, reference).await?.is_ok() { Put::Same } else { Put::Differs }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads a whole pack and checks it.
pub(crate) async fn check_pack(lineage: &Lineage, reference: &PackRef) -> Result<Sound<()>> {
    match checked_tail(lineage, reference).await? {
        Ok((tail, plain)) => send(lineage, reference, &plain, tail, None).await,
        Err(error) => Ok(Err(error)),
    }
}

/// A pack's tail as its manifest names it.
pub(crate) async fn checked_tail(lineage: &Lineage, reference: &PackRef) -> Result<Sound<(Bytes, PlainTail)>> {
    let object = pack::object(&lineage.source, reference.pack);
    let read = async {
        let tail = lineage.tail(reference).await?;
        let plain = PlainTail::parse(&object, &tail, reference.size)?;
        if plain.pack != reference.pack {
            return Err(RepoError::damaged(&object, "it is another pack than its name says"));
        }
        Ok((tail, plain))
    };
    sound(read.await)
}

async fn send(
    from: &Lineage,
    reference: &PackRef,
    plain: &PlainTail,
    tail: Bytes,
    mut to: Option<&mut Box<dyn Upload>>,
) -> Result<Sound<()>> {
    let object = pack::object(&from.source, reference.pack);
    let mut offset = 0;
    for frames in pieces(&plain.frames) {
        let end = frames.last().map_or(pack::HEADER, |frame| frame.offset + u64::from(frame.sealed));
        let piece = match sound(from.store.get_range(&object, offset, end - offset).await.map_err(RepoError::from))? {
            Ok(piece) => piece,
            Err(error) => return Ok(Err(error)),
        };
        if offset == 0 && !piece.starts_with(&pack::head(reference.pack)) {
            return Ok(Err(RepoError::damaged(object, "it does not begin as a pack of its name does")));
        }
        for frame in frames {
            let at = (frame.offset - offset) as usize;
            if !pack::frame_is_sound(frame, &piece[at..at + frame.sealed as usize]) {
                return Ok(Err(RepoError::damaged(object, "its bytes do not have the digest they should")));
            }
        }
        if let Some(to) = &mut to {
            to.write(piece).await?;
        }
        offset = end;
    }
    if let Some(to) = to {
        to.write(tail).await?;
    }
    Ok(Ok(()))
}

/// Frames that are read together. There is always a first piece, since something precedes the frames.
fn pieces(frames: &[FrameInfo]) -> Vec<&[FrameInfo]> {
    let (mut pieces, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, frame) in frames.iter().enumerate() {
        if at > begin && bytes + u64::from(frame.sealed) > PIECE {
            pieces.push(&frames[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += u64::from(frame.sealed);
    }
    pieces.push(&frames[begin..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::seal::Class;

    #[test]
    fn pieces_hold_every_frame_once_and_are_bounded() {
        let mut offset = pack::HEADER;
        let frames: Vec<FrameInfo> = [1 << 20, 8 << 20, 16 << 20, 3 << 20, 5 << 20, 1, 7]
            .into_iter()
            .map(|sealed: u32| {
                let frame = FrameInfo { class: Class::Data, offset, sealed, digest: [0; 16] };
                offset += u64::from(sealed);
                frame
            })
            .collect();
        let lengths: Vec<usize> = pieces(&frames).iter().map(|piece| piece.len()).collect();
        assert_eq!(lengths, [1, 1, 1, 2, 2]);
        assert_eq!(pieces(&[]).len(), 1, "what precedes the frames");
    }
}
