//! The snapshot stream, checked while it is read.
//!
//! etcd sends the bbolt file and behind it the SHA-256 of the file. The first message tells the file's size; what comes
//! after that many bytes must be exactly the digest.

use super::member::Member;
use super::{REQUEST, TICK, told};
use crate::entry::{Content, Open, Verdict};
use crate::source::{Cancel, Context, SourceError};
use aws_lc_rs::digest;
use crossbeam_channel::{Receiver, Sender, bounded};
use etcd_client::SnapshotStreaming;
use std::io::{self, Write};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The stream is given up when nothing comes for so long.
const STALL: Duration = Duration::from_mins(1);
/// Bytes that the reading thread gets at a time.
const PIECE: usize = 512 << 10;
const DIGEST: usize = digest::SHA256_OUTPUT_LEN;
/// Of bbolt's meta page: 16 bytes of page header, then magic, version and page size as little-endian u32.
const META: usize = 28;
const MAGIC: u32 = 0xED0C_DAED;

pub type Digest = [u8; DIGEST];
type Piece = Result<Vec<u8>, io::Error>;

/// A stream whose first bytes are here.
pub struct Started {
    pub size: u64,
    pub page_size: u32,
    digest: Receiver<Digest>,
    content: SnapshotContent,
}

struct SnapshotContent {
    pieces: mpsc::Receiver<Piece>,
    runtime: Handle,
    cancel: Cancel,
    deadline: Instant,
    piece: Vec<u8>,
    taken: usize,
    /// Bytes of the file to come.
    left: u64,
    hash: digest::Context,
    agreed: Sender<Digest>,
}

/// Asks for the snapshot and waits for its first message.
pub async fn start(member: &mut Member, context: &Context) -> Result<Started, SourceError> {
    let endpoint = member.endpoint.clone();
    let fail = |text: String| SourceError::Start { endpoint: endpoint.clone(), text };
    let mut maintenance = member.client.maintenance_client();
    let asked = timeout(REQUEST.max(STALL), async {
        let mut stream = maintenance.snapshot().await?;
        let first = stream.message().await?;
        Ok::<_, etcd_client::Error>((stream, first))
    });
    let (stream, first) = match asked.await {
        Ok(Ok((stream, Some(first)))) => (stream, first),
        Ok(Ok((_, None))) => return Err(fail("the stream was empty".to_owned())),
        Ok(Err(error)) if is_denied(&error) => {
            return Err(SourceError::Denied { endpoint: endpoint.clone(), text: told(&error) });
        }
        Ok(Err(error)) => return Err(fail(told(&error))),
        Err(_) => return Err(fail(format!("nothing came within {} s", STALL.as_secs()))),
    };
    let size = first.remaining_bytes() + first.blob().len() as u64;
    let page_size = page_size(first.blob()).map_err(fail)?;
    let (send, pieces) = mpsc::channel(4);
    let client = member.client.clone(); // the connection lives as long as it
    context.runtime.spawn(async move {
        pump(stream, send).await;
        drop(client);
    });
    let (agreed, digest) = bounded(1);
    let rest = SnapshotContent {
        pieces,
        runtime: context.runtime.clone(),
        cancel: context.cancel.clone(),
        deadline: context.deadline,
        piece: first.blob().to_vec(),
        taken: 0,
        left: size,
        hash: digest::Context::new(&digest::SHA256),
        agreed,
    };
    Ok(Started { size, page_size, digest, content: rest })
}

impl Started {
    /// And whence the SHA-256 comes once all was read and agrees with it.
    pub fn into_open(self) -> (Open, Receiver<Digest>) {
        let content = self.content;
        (Box::new(move || Ok(Box::new(content))), self.digest)
    }
}

/// Hands over what comes. Messages are small: they are gathered, so that the reading thread is not woken for each.
async fn pump(mut stream: SnapshotStreaming, send: mpsc::Sender<Piece>) {
    loop {
        let mut piece = Vec::with_capacity(PIECE + PIECE / 4);
        let ended = loop {
            match timeout(STALL, stream.message()).await {
                Ok(Ok(Some(message))) => piece.extend_from_slice(message.blob()),
                Ok(Ok(None)) => break Some(Ok(())),
                Ok(Err(error)) => {
                    break Some(Err(io::Error::other(format!("the snapshot stream broke: {}", told(&error)))));
                }
                Err(_) => {
                    let text = format!("the snapshot stream stalled for {} s", STALL.as_secs());
                    break Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
            }
            if piece.len() >= PIECE {
                break None;
            }
        };
        if send.send(Ok(piece)).await.is_err() {
            return;
        }
        if let Some(ended) = ended {
            if let Err(error) = ended {
                let _ = send.send(Err(error)).await; // nobody may be waiting
            }
            return;
        }
    }
}

impl SnapshotContent {
    /// More bytes into an emptied `piece`; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("the capture was cancelled"));
            }
            if Instant::now() >= self.deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the snapshot did not end before the run's deadline",
                ));
            }
            let Self { pieces, runtime, .. } = self;
            match runtime.block_on(async { timeout(TICK, pieces.recv()).await }) {
                Err(_) => {}
                Ok(None) => return Ok(false),
                Ok(Some(piece)) => {
                    (self.piece, self.taken) = (piece?, 0);
                    if !self.piece.is_empty() {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

impl Content for SnapshotContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.taken == self.piece.len() && !self.fill()? {
            let text = format!("the snapshot stream ended {} bytes too early", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = wanted.min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.hash.update(&buffer[..length]);
        self.taken += length;
        self.left -= length as u64;
        Ok(length)
    }

    fn finish(mut self: Box<Self>) -> io::Result<Verdict> {
        if self.left > 0 {
            return Err(io::Error::other("the snapshot was not read to its end"));
        }
        let mut trailer = Vec::new();
        loop {
            trailer.extend_from_slice(&self.piece[self.taken..]);
            self.taken = self.piece.len();
            if trailer.len() > DIGEST || !self.fill()? {
                break;
            }
        }
        let Ok(trailer) = Digest::try_from(trailer.as_slice()) else {
            let text = format!("the snapshot ended with {} bytes where its SHA-256 should be", trailer.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        };
        if self.hash.finish().as_ref() != trailer {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot does not match its SHA-256"));
        }
        let _ = self.agreed.send(trailer); // whoever does not want to know it
        Ok(Verdict::Consistent)
    }
}

/// The size of the pages of the bbolt file that begins so.
pub fn page_size(start: &[u8]) -> Result<u32, String> {
    let field = |at: usize| {
        let bytes = start.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    match (field(META - 12), field(META - 4)) {
        (Some(MAGIC), Some(size)) if size.is_power_of_two() && (512..=1 << 16).contains(&size) => Ok(size),
        (Some(MAGIC), Some(size)) => Err(format!("the database claims pages of {size} bytes")),
        _ => Err("what came is not a bbolt database".to_owned()),
    }
}

/// Permission denied, unauthenticated, or no user given to a cluster that wants one.
fn is_denied(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    matches!(status.code() as i32, 7 | 16) || status.message().contains("user name is empty")
}

/// Writes etcd's own snapshot file: what is written is the database, and [`Export::finish`] puts its SHA-256 behind it,
/// as `etcdutl snapshot` wants it.
pub struct Export<W> {
    out: W,
    digest: Trailer,
}

enum Trailer {
    /// etcd's own, from the capture.
    Known(Digest),
    /// Of what is written.
    Computed(digest::Context),
}

impl<W: Write> Export<W> {
    /// `known`: of the database that will be written, in hexadecimal digits. What does not look so is not believed.
    pub fn new(out: W, known: Option<&str>) -> Self {
        let digest = match known.and_then(read_digest) {
            Some(known) => Trailer::Known(known),
            None => Trailer::Computed(digest::Context::new(&digest::SHA256)),
        };
        Self { out, digest }
    }

    /// The file is not one before this.
    pub fn finish(mut self) -> io::Result<()> {
        match self.digest {
            Trailer::Known(digest) => self.out.write_all(&digest)?,
            Trailer::Computed(digest) => self.out.write_all(digest.finish().as_ref())?,
        }
        self.out.flush()
    }
}

impl<W: Write> Write for Export<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        if let Trailer::Computed(digest) = &mut self.digest {
            digest.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Hexadecimal digits.
pub fn show_digest(digest: Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_digest(text: &str) -> Option<Digest> {
    if text.len() != 2 * DIGEST || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let bytes = text.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_size_comes_from_a_genuine_meta_page() {
        let mut page = vec![0; 4096];
        page[16..20].copy_from_slice(&MAGIC.to_le_bytes());
        page[20..24].copy_from_slice(&2_u32.to_le_bytes());
        page[24..28].copy_from_slice(&16384_u32.to_le_bytes());
        assert_eq!(page_size(&page), Ok(16384));
        page[24..28].copy_from_slice(&1000_u32.to_le_bytes());
        assert!(page_size(&page).is_err());
        assert!(page_size(&page[..27]).is_err());
        page[16] = 0;
        assert!(page_size(&page).is_err());
    }

    /// A stream of these pieces, over a file of `size` bytes.
    fn content(runtime: &Handle, size: usize, pieces: &[&[u8]]) -> Box<dyn Content> {
        let (send, receive) = mpsc::channel(16);
        for piece in pieces {
            send.try_send(Ok(piece.to_vec())).unwrap();
        }
        Box::new(SnapshotContent {
            pieces: receive,
            runtime: runtime.clone(),
            cancel: Cancel::default(),
            deadline: Instant::now() + Duration::from_mins(1),
            piece: Vec::new(),
            taken: 0,
            left: size as u64,
            hash: digest::Context::new(&digest::SHA256),
            agreed: bounded(1).0,
        })
    }

    fn drain(mut content: Box<dyn Content>) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), [0; 3]);
        loop {
            let length = content.read(&mut buffer)?;
            if length == 0 {
                content.finish()?;
                return Ok(all);
            }
            all.extend_from_slice(&buffer[..length]);
        }
    }

    #[test]
    fn only_a_complete_stream_with_the_right_digest_is_accepted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let runtime = runtime.handle();
        let digest = digest::digest(&digest::SHA256, b"database");
        let digest = digest.as_ref();
        assert_eq!(drain(content(runtime, 8, &[b"data", b"base", digest])).unwrap(), b"database");
        let glued = [b"base".as_slice(), digest].concat();
        assert_eq!(drain(content(runtime, 8, &[b"data", &glued])).unwrap(), b"database");
        let wrong = |pieces: &[&[u8]]| drain(content(runtime, 8, pieces)).unwrap_err().kind();
        assert_eq!(wrong(&[b"data"]), io::ErrorKind::UnexpectedEof);
        assert_eq!(wrong(&[b"data", b"base"]), io::ErrorKind::UnexpectedEof);
        assert_eq!(wrong(&[b"data", b"base", &digest[..31]]), io::ErrorKind::UnexpectedEof);
        assert_eq!(wrong(&[b"data", b"base", digest, b"more"]), io::ErrorKind::UnexpectedEof);
        assert_eq!(wrong(&[b"data", b"BASE", digest]), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_digest_is_read_as_it_is_shown() {
        let digest = std::array::from_fn(|at| at as u8 * 7);
        let shown = show_digest(digest);
        assert_eq!((shown.len(), read_digest(&shown)), (64, Some(digest)));
        for wrong in ["", &shown[1..], &shown[2..], &shown.replace('e', "x"), &format!("{shown}00")] {
            assert_eq!(read_digest(wrong), None, "{wrong}");
        }
        // What is known is put behind the database as it is, and what is not is computed.
        for (known, expected) in
            [(Some(shown.as_str()), digest), (None, sha256(b"database")), (Some("?"), sha256(b"database"))]
        {
            let mut file = Vec::new();
            let mut export = Export::new(&mut file, known);
            export.write_all(b"database").unwrap();
            export.finish().unwrap();
            assert_eq!(file, [b"database".as_slice(), &expected].concat());
        }
    }

    fn sha256(bytes: &[u8]) -> Digest {
        digest::digest(&digest::SHA256, bytes).as_ref().try_into().unwrap()
    }
}
