//! Entries and their contents on their way into a pod: whoever holds the recovery key writes them, Lifeboat in the pod reads
//! them and needs no key.
//!
//! The greeting, then for each entry its length (four bytes, the highest first), itself in CBOR as the repository has it,
//! and, if it is a file, its content of exactly the size that the entry names: pieces, each after its length, and the length 0;
//! or the length ffffffff, if the repository has lost a part of it. The length 0 in the place of an entry's ends it all:
//! without that, it is not whole. Both ends are of one version of Lifeboat, or the greeting differs.

use crate::entry::{Body, Entry, Kind};
use crate::source::{Preparation, preparation};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

const GREETING: &[u8] = b"lifeboat volume 3\n";
/// Longer entries there are not: a path, a link, extended attributes.
const LONGEST: u32 = 4 << 20;
/// In the place of a piece's length.
const LOST: u32 = u32::MAX;

/// The directories of a volume that hold what it held before a restore of that name begin so. Nothing but that restore's own
/// end touches them, and no capture takes them for the volume's.
pub const BEFORE: &str = ".lifeboat-before-";

/// What becomes of what the volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is done if there is anything.
    Refuse,
    /// It is removed.
    Clear,
    /// It stays. A name that is there already is an error.
    Beside,
    /// It is moved into a directory of the volume, after the step of this name. Done again, what has come since is removed.
    Aside(String),
}

/// What the receiving end is told before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub standing: Standing,
    /// Bytes that will come. It is not begun without room for them.
    pub needs: u64,
    /// The kind of snapshot, and the version of its system, if its files must be prepared once they are there.
    pub prepare: Option<(String, String)>,
}

impl Terms {
    /// What prepares the files, and the version that it must fit.
    #[must_use]
    pub fn preparation(&self) -> Option<(&'static dyn Preparation, &str)> {
        let (kind, version) = self.prepare.as_ref()?;
        Some((preparation(kind)?, version))
    }

    /// The options of `lifeboat receive`.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let standing = match &self.standing {
            Standing::Refuse => "--existing=refuse".into(),
            Standing::Clear => "--existing=clear".into(),
            Standing::Beside => "--existing=beside".into(),
            Standing::Aside(step) => format!("--aside={step}"),
        };
        let mut arguments = vec![standing, format!("--needs={}", self.needs)];
        if let Some((kind, version)) = &self.prepare {
            arguments.extend([format!("--prepare={kind}"), format!("--version-of={version}")]);
        }
        arguments
    }
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// By this file or directory.
    Occupied(String),
    /// Bytes that there is room for.
    Short(u64),
    /// What comes could not be prepared here.
    Unprepared(String),
}

/// What the receiving end says when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub refused: Option<Refusal>,
    pub entries: u64,
    pub bytes: u64,
    /// Path and text of what could not be set.
    pub problems: Vec<(String, String)>,
    /// The directory of the volume in which what it held is now.
    pub aside: Option<String>,
    /// What made the files fit to be started from.
    #[serde(default)]
    pub prepared: Option<String>,
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

pub struct Sender<W> {
    out: W,
    pub entries: u64,
}

impl<W: Write> Sender<W> {
    /// # Errors
    /// `out`'s.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(GREETING)?;
        Ok(Self { out, entries: 0 })
    }

    /// Gives the body's error if the repository has lost a part of it: the receiving end leaves the file out.
    ///
    /// # Errors
    /// Any other of the body's, or `out`'s. Nothing more may be sent then.
    pub fn send(&mut self, entry: &Entry, body: &dyn Body) -> io::Result<Option<io::Error>> {
        let encoded = minicbor::to_vec(entry).map_err(|error| broken(&format!("the entry cannot be sent: {error}")))?;
        let length = u32::try_from(encoded.len()).ok().filter(|length| *length <= LONGEST);
        self.out.write_all(&length.ok_or_else(|| broken("the entry is too long"))?.to_be_bytes())?;
        self.out.write_all(&encoded)?;
        if entry.kind == Kind::File {
            let mut exactly = Exactly { out: &mut self.out, left: entry.size };
            if let Err(error) = body.copy(&mut exactly) {
                if !body.is_lost(&error) {
                    return Err(error);
                }
                self.out.write_all(&LOST.to_be_bytes())?;
                return Ok(Some(error));
            }
            if exactly.left > 0 {
                return Err(broken("the content is shorter than its entry says"));
            }
            self.out.write_all(&0_u32.to_be_bytes())?;
        }
        self.entries += 1;
        Ok(None)
    }

    /// # Errors
    /// `out`'s.
    pub fn end(mut self) -> io::Result<()> {
        self.out.write_all(&0_u32.to_be_bytes())?;
        self.out.flush()
    }
}

/// Writes pieces.
struct Exactly<'a, W> {
    out: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Exactly<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(LONGEST as usize)];
        if piece.len() as u64 > self.left {
            return Err(broken("the content is longer than its entry says"));
        }
        if piece.is_empty() {
            return Ok(0);
        }
        self.out.write_all(&(piece.len() as u32).to_be_bytes())?;
        self.out.write_all(piece)?;
        self.left -= piece.len() as u64;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Gives `each` every entry, and of a file the content, which it must read to its end.
///
/// # Errors
/// `each`'s own; `input`'s, wrapped by `E`; `InvalidData` for what is no such stream, `UnexpectedEof` for one that is not whole.
pub fn receive<E: From<io::Error>>(
    input: &mut dyn Read,
    mut each: impl FnMut(&Entry, &mut Content<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut greeting = [0; GREETING.len()];
    input.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(broken("it comes from another version of Lifeboat").into());
    }
    loop {
        let length = length(input)?;
        if length == 0 {
            return Ok(());
        }
        if length > LONGEST {
            return Err(broken("an entry is too long").into());
        }
        let mut encoded = vec![0; length as usize];
        input.read_exact(&mut encoded)?;
        let entry: Entry = minicbor::decode(&encoded).map_err(|_| broken("an entry cannot be read"))?;
        let is_file = entry.kind == Kind::File;
        let left = if is_file { entry.size } else { 0 };
        let mut content = Content { input: &mut *input, left, piece: 0, ended: !is_file, lost: false };
        each(&entry, &mut content)?;
        if !content.ended {
            return Err(broken("a content was not read to its end").into());
        }
    }
}

fn length(input: &mut dyn Read) -> io::Result<u32> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    Ok(u32::from_be_bytes(length))
}

/// Of a file. That it ends early is an error, unless the repository has [`lost`](Self::lost) a part of it.
pub struct Content<'a> {
    input: &'a mut dyn Read,
    left: u64,
    /// What is left of the piece.
    piece: u32,
    ended: bool,
    pub lost: bool,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.piece == 0 {
            self.piece = length(self.input)?;
            self.lost = self.piece == LOST;
            self.ended = self.lost || self.piece == 0;
            if self.ended {
                let whole = self.lost || self.left == 0;
                return if whole { Ok(0) } else { Err(broken("a content is shorter than its entry says")) };
            }
            if u64::from(self.piece) > self.left {
                return Err(broken("a content is longer than its entry says"));
            }
        }
        let want = buffer.len().min(self.piece as usize);
        let read = self.input.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.piece -= read as u32;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl Body for Bytes {
        fn copy(&self, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&self.0)
        }
    }

    /// The repository has no more of it.
    struct Part(Vec<u8>);

    impl Body for Part {
        fn copy(&self, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&self.0)?;
            Err(broken("the rest is gone"))
        }

        fn is_lost(&self, error: &io::Error) -> bool {
            error.to_string() == "the rest is gone"
        }
    }

    fn file(path: &str, size: u64) -> Entry {
        crate::source::command::plain_file(path.into(), size, jiff::Timestamp::UNIX_EPOCH)
    }

    fn sent() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut sender = Sender::new(&mut bytes).unwrap();
        sender.send(&Entry { kind: Kind::Directory, ..file("d", 0) }, &Bytes(b"not sent".into())).unwrap();
        sender.send(&file("d/a", 3), &Bytes(b"abc".into())).unwrap();
        let lost = sender.send(&file("d/lost", 9), &Part(b"ab".into())).unwrap();
        assert_eq!(lost.unwrap().to_string(), "the rest is gone");
        sender.send(&file("d/empty", 0), &Bytes(Vec::new())).unwrap();
        assert_eq!(sender.entries, 3);
        sender.end().unwrap();
        bytes
    }

    fn received(mut bytes: &[u8]) -> io::Result<Vec<(String, Option<String>)>> {
        let mut all = Vec::new();
        receive::<io::Error>(&mut bytes, |entry, content| {
            let mut text = String::new();
            content.read_to_string(&mut text)?;
            let text = (!content.lost).then_some(text);
            all.push((String::from_utf8_lossy(&entry.path).into_owned(), text));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_is_sent_is_received() {
        let all = received(&sent()).unwrap();
        let all: Vec<_> = all.iter().map(|(path, text)| (path.as_str(), text.as_deref())).collect();
        assert_eq!(all, [("d", Some("")), ("d/a", Some("abc")), ("d/lost", None), ("d/empty", Some(""))]);
    }

    #[test]
    fn every_part_of_it_alone_is_an_error() {
        let bytes = sent();
        for length in 0..bytes.len() {
            let error = received(&bytes[..length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}: {error}");
        }
    }

    #[test]
    fn a_content_of_another_size_is_neither_sent_nor_received() {
        for content in ["ab", "abcd"] {
            let mut sender = Sender::new(Vec::new()).unwrap();
            assert!(sender.send(&file("a", 3), &Bytes(content.into())).is_err());
        }
        let bytes = sent();
        let at = bytes.windows(3).position(|part| part == b"abc").unwrap();
        for (length, more) in [(2, &b"ab"[..]), (4, b"abcd")] {
            let other = [&bytes[..at - 4], &u32::to_be_bytes(length), more, &bytes[at + 3..]].concat();
            assert_eq!(received(&other).unwrap_err().kind(), io::ErrorKind::InvalidData, "{length}");
        }
        assert!(received(b"lifeboat volume 2\n\0\0\0\0").is_err());
    }
}
