//! Takes compressed frames from many threads, puts them in the order in which they were closed, seals them into packs
//! and keeps the packs' uploads going. Blocks its callers while the store is behind.
//!
//! Order matters: a large file's frames stay neighbours, so that its list of chunks is a few runs.

use crate::id::PackId;
use crate::repo::chunking::MAX_CHUNK;
use crate::repo::codec::room;
use crate::repo::epoch::Epoch;
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{MAX_FRAME, Place, Stretch};
use crate::repo::lineage::Lineage;
use crate::repo::manifest::PackRef;
use crate::repo::pack::{self, Finished, Frame, PackWriter, ZeroPages};
use crate::store::pool::{Pool, Pooled};
use crate::store::{PutOptions, Store, Upload};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A pack is finished at this many sealed bytes …
const MAX_SEALED: u64 = 32 << 20;
/// … plaintext bytes …
const MAX_RAW: u64 = 128 << 20;
/// … or items, which bounds its directory.
const MAX_ITEMS: u32 = 65_536;
/// Uploads under way at once.
const UPLOADS: usize = 2;
/// Bytes handed to an upload at a time, and how many such pieces may wait.
const PIECE: usize = 1 << 20;
const PIECES: usize = 2;
/// So long it may take to give an upload up.
const GIVING_UP: Duration = Duration::from_secs(3);

enum Piece {
    Bytes(Bytes),
    End,
}

struct OpenPack {
    writer: PackWriter,
    index: u32,
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
}

/// What became of a pack of this run.
struct Made {
    pack: PackId,
    finished: Option<Finished>,
    raw: u64,
}

struct Inner {
    open: Option<OpenPack>,
    next_ticket: u64,
    parked: BTreeMap<u64, (u32, Frame)>,
    /// By frame number: (pack, ordinal of its first item).
    placed: Vec<Option<(u32, u32)>>,
    made: Vec<Made>,
    uploads: VecDeque<JoinHandle<Result<()>>>,
    sealed_bytes: u64,
}

pub(crate) struct Packer {
    runtime: Handle,
    lineage: Arc<Lineage>,
    epoch: Arc<Epoch>,
    options: PutOptions,
    /// Packs of the base snapshot come before those of this run.
    base: u32,
    pool: Arc<Pool>,
    stopped: watch::Sender<bool>,
    inner: Mutex<Inner>,
}

impl Packer {
    pub fn new(lineage: Arc<Lineage>, epoch: Arc<Epoch>, options: PutOptions, base: u32) -> Self {
        let inner = Inner {
            open: None,
            next_ticket: 0,
            parked: BTreeMap::new(),
            placed: Vec::new(),
            made: Vec::new(),
            uploads: VecDeque::new(),
            sealed_bytes: 0,
        };
        Self {
            runtime: Handle::current(),
            lineage,
            epoch,
            options,
            base,
            pool: Arc::new(Pool::new(room(MAX_CHUNK.max(MAX_FRAME)))),
            stopped: watch::Sender::new(false),
            inner: Mutex::new(inner),
        }
    }

    /// Where the buffers of frames come from and go back to.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes frame `number` as the `ticket`-th of all. Early ones wait for their turn.
    pub fn submit(&self, ticket: u64, number: u32, frame: Frame) -> Result<()> {
        let mut inner = self.lock();
        inner.parked.insert(ticket, (number, frame));
        while let Some((number, frame)) = {
            let turn = inner.next_ticket;
            inner.parked.remove(&turn)
        } {
            inner.next_ticket += 1;
            self.append(&mut inner, number, frame)?;
        }
        Ok(())
    }

    fn append(&self, inner: &mut Inner, number: u32, frame: Frame) -> Result<()> {
        let mut open = match inner.open.take() {
            Some(open) => open,
            None => self.begin(inner)?,
        };
        let slot = number as usize;
        if inner.placed.len() <= slot {
            inner.placed.resize(slot + 1, None);
        }
        inner.placed[slot] = Some((open.index, open.writer.items()));
        let bytes = open.writer.append(frame);
        inner.sealed_bytes += bytes.len() as u64;
        self.push(&mut open, bytes)?;
        if open.writer.size() >= MAX_SEALED || open.writer.raw() >= MAX_RAW || open.writer.items() >= MAX_ITEMS {
            self.end(inner, open)
        } else {
            inner.open = Some(open);
            Ok(())
        }
    }

    /// Small frames are gathered; a large one goes as it is.
    fn push(&self, open: &mut OpenPack, bytes: Vec<u8>) -> Result<()> {
        if bytes.len() < PIECE / 2 {
            open.buffer.extend_from_slice(&bytes);
            self.pool.give(bytes);
            return if open.buffer.len() >= PIECE { self.flush(open) } else { Ok(()) };
        }
        self.flush(open)?;
        self.send(open, bytes)
    }

    fn flush(&self, open: &mut OpenPack) -> Result<()> {
        if open.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut open.buffer, self.pool.take_empty());
        self.send(open, piece)
    }

    fn send(&self, open: &OpenPack, piece: Vec<u8>) -> Result<()> {
        let piece = Bytes::from_owner(Pooled::new(piece, &self.pool));
        // A closed channel: the upload has failed, and says why when it is awaited.
        open.pieces.blocking_send(Piece::Bytes(piece)).map_err(|_| self.upload_failed(open.index))
    }

    fn upload_failed(&self, index: u32) -> RepoError {
        RepoError::UploadFailed { source_name: self.lineage.source.clone(), pack: index }
    }

    fn begin(&self, inner: &mut Inner) -> Result<OpenPack> {
        while inner.uploads.len() >= UPLOADS {
            if let Some(oldest) = inner.uploads.pop_front() {
                self.runtime.block_on(join(oldest))?;
            }
        }
        let keys = self.epoch.writer_keys()?;
        let (writer, header) =
            PackWriter::new(self.lineage.root.id, &self.lineage.source, self.epoch.number, &self.epoch.public, keys)
                .ok_or_else(|| RepoError::damaged("the epoch's record", "its public key is not one"))?;
        let key = pack::object(&self.lineage.source, writer.id());
        let (pieces, received) = mpsc::channel(PIECES);
        let (store, options) = (self.lineage.store.clone(), self.options);
        inner.uploads.push_back(self.runtime.spawn(upload(store, key, options, received, self.stopped.subscribe())));
        let index = self.base + inner.made.len() as u32;
        inner.made.push(Made { pack: writer.id(), finished: None, raw: 0 });
        Ok(OpenPack { writer, index, pieces, buffer: header })
    }

    fn end(&self, inner: &mut Inner, mut open: OpenPack) -> Result<()> {
        let raw = open.writer.raw();
        let broken = |why| RepoError::damaged("a pack's directory", why);
        let (tail, finished) = open.writer.finish(self.epoch.writer_keys()?).map_err(broken)?;
        open.buffer.extend_from_slice(&tail);
        inner.sealed_bytes += tail.len() as u64;
        let slot = (open.index - self.base) as usize;
        (inner.made[slot].finished, inner.made[slot].raw) = (Some(finished), raw);
        let sent = open.pieces.blocking_send(Piece::Bytes(open.buffer.into()));
        sent.and_then(|()| open.pieces.blocking_send(Piece::End)).map_err(|_| self.upload_failed(open.index))
    }

    /// Writes down that pages are zeros, in the pack that is open.
    pub fn zeros(&self, zeros: ZeroPages) -> Result<u32> {
        let mut inner = self.lock();
        let mut open = match inner.open.take() {
            Some(open) => open,
            None => self.begin(&mut inner)?,
        };
        open.writer.zeros(zeros);
        let index = open.index;
        inner.open = Some(open);
        Ok(index)
    }

    /// Where a stretch came to be: (pack, first ordinal); `None` while its frame is open or under way. A stretch never
    /// spans frames, except in the base.
    pub fn resolve(&self, stretch: &Stretch) -> Option<(u32, u32)> {
        resolve(&self.lock().placed, stretch.first)
    }

    /// Whether all of `stretches` have their places.
    pub fn all_placed<'a>(&self, mut stretches: impl Iterator<Item = &'a Stretch>) -> bool {
        let inner = self.lock();
        stretches.all(|s| resolve(&inner.placed, s.first).is_some())
    }

    /// The name of a pack of this run.
    pub fn pack_id(&self, index: u32) -> Option<PackId> {
        Some(self.lock().made.get(index.checked_sub(self.base)? as usize)?.pack)
    }

    pub fn sealed_bytes(&self) -> u64 {
        self.lock().sealed_bytes
    }

    /// Finishes the last pack and waits for the uploads. Gives the packs of this run, `live` not filled in.
    pub fn finish(&self) -> Result<Vec<PackRef>> {
        let mut inner = self.lock();
        let ended = match inner.open.take() {
            Some(open) => self.end(&mut inner, open),
            None => Ok(()),
        };
        // The uploads' own errors say more than that a channel was closed.
        self.join_all(&mut inner).map_or(Ok(()), Err)?;
        ended?;
        let refs = inner.made.iter().filter_map(|made| {
            let f = made.finished.as_ref()?;
            let (pack, size, tail_len, tail_digest) = (f.pack, f.size, f.tail_len, f.tail_digest);
            Some(PackRef { pack, size, tail_len, tail_digest, live: 0, raw: made.raw, lock_day: None })
        });
        Ok(refs.collect())
    }

    /// Ends the uploads, whatever they wait for.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Gives up: nothing of an unfinished pack becomes visible. Says why an upload failed, if one did.
    pub fn abandon(&self) -> Option<RepoError> {
        let mut inner = self.lock();
        inner.open = None;
        inner.parked.clear();
        self.join_all(&mut inner)
    }

    /// Waits until every upload has ended: what one leaves behind is not left to chance because another failed.
    fn join_all(&self, inner: &mut Inner) -> Option<RepoError> {
        let ended = inner.uploads.drain(..).map(|upload| self.runtime.block_on(join(upload)));
        ended.fold(None, |first, ended| first.or(ended.err()))
    }
}

fn resolve(placed: &[Option<(u32, u32)>], place: Place) -> Option<(u32, u32)> {
    match place.split() {
        Err(old) => Some(old),
        Ok((frame, item)) => {
            let (pack, first) = (*placed.get(frame as usize)?)?;
            Some((pack, first + item))
        }
    }
}

/// Sends a pack piece by piece. It becomes visible at its end, and not at all if that does not come.
async fn upload(
    store: Arc<dyn Store>,
    key: String,
    options: PutOptions,
    mut pieces: mpsc::Receiver<Piece>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    // The sender outlives every upload of a run that goes on.
    let mut stop =
        std::pin::pin!(async move { stopped.wait_for(|stopped| *stopped).await.map(drop).unwrap_or_default() });
    let mut upload = tokio::select! {
        begun = store.upload(&key, options) => begun?,
        () = &mut stop => return Err(RepoError::Stopped),
    };
    let sent = tokio::select! {
        sent = pass_on(upload.as_mut(), &mut pieces) => sent,
        () = &mut stop => Err(RepoError::Stopped),
    };
    drop(pieces); // whoever waits to hand more over learns that there is no use in it
    if let Ok(true) = sent {
        let mut finish = upload.finish();
        return tokio::select! {
            finished = &mut finish => Ok(finished?),
            () = &mut stop => {
                let _ = tokio::time::timeout(GIVING_UP, finish).await; // nothing names it
                Err(RepoError::Stopped)
            }
        };
    }
    let _ = tokio::time::timeout(GIVING_UP, upload.abort()).await; // what stays is found by whoever cleans up
    sent.map(drop)
}

/// Whether the end has come.
async fn pass_on(upload: &mut dyn Upload, pieces: &mut mpsc::Receiver<Piece>) -> Result<bool> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Bytes(bytes) => upload.write(bytes).await?,
            Piece::End => return Ok(true),
        }
    }
    Ok(false)
}

async fn join(upload: JoinHandle<Result<()>>) -> Result<()> {
    match upload.await {
        Ok(result) => result,
        Err(why) => Err(RepoError::Refused(format!("an upload was cancelled: {why}"))),
    }
}
