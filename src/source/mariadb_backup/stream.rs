//! What `mariadb-backup --stream=mbstream` writes: the files of a backup in chunks (`extra/mariabackup/xbstream.h` in
//! MariaDB's source).
//!
//! Files come one after the other, but for the logs, which are written while all others are read: those are kept in
//! temporary files. Invariants: a file is whole only with the chunk that ends it; each chunk's checksum is verified, and each
//! begins where the one before ended; no path leaves the directory.

use flate2::Crc;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};

const MAGIC: &[u8; 8] = b"XBSTCK01";
/// Bytes of a path.
const LONGEST: usize = 4096;
const PIECE: usize = 256 << 10;

/// Path, content and size of each.
pub type Logs = Vec<(String, File, u64)>;

/// Reads the files that come one after the other: [`Stream::file`] goes on to the next, [`Read`] gives its content.
pub struct Stream<R> {
    input: R,
    chunk: Chunk,
    /// The file that is being read, and how much of it has come.
    current: Option<(String, u64)>,
    logs: BTreeMap<String, Log>,
    ended: bool,
}

/// What is left of a chunk's payload.
#[derive(Default)]
struct Chunk {
    left: u64,
    offset: u64,
    expected: u32,
    sum: Crc,
}

struct Log {
    file: File,
    size: u64,
    whole: bool,
}

enum Begins {
    Payload(String),
    End(String),
}

impl<R: Read> Stream<R> {
    pub fn new(input: R) -> Self {
        Self { input, chunk: Chunk::default(), current: None, logs: BTreeMap::new(), ended: false }
    }

    /// The next file's path; none at the end of the stream. The one before must have been read to its end.
    pub fn file(&mut self) -> io::Result<Option<String>> {
        debug_assert!(self.current.is_none(), "a file is read to its end");
        loop {
            match self.chunk()? {
                None => return Ok(None),
                Some(Begins::Payload(path)) if is_log(&path) => self.log(&path)?,
                Some(Begins::End(path)) if is_log(&path) => self.log_ends(&path)?,
                Some(Begins::Payload(path)) => {
                    self.begins_at(&path, 0)?;
                    self.current = Some((path.clone(), 0));
                    return Ok(Some(path));
                }
                // It is empty.
                Some(Begins::End(path)) => return Ok(Some(path)),
            }
        }
    }

    /// Whether the stream came to an end, well or not.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What fed the stream, and the logs, in the order of their names, with their sizes.
    pub fn finish(self) -> (R, io::Result<Logs>) {
        let logs = self.logs.into_iter().map(|(path, Log { mut file, size, whole })| {
            file.rewind()?;
            if whole { Ok((path, file, size)) } else { Err(broken(&format!("{path} is not whole"))) }
        });
        (self.input, logs.collect())
    }

    fn fill<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill_all(&mut bytes)?;
        Ok(bytes)
    }

    fn fill_all(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let filled = self.input.read_exact(bytes);
        self.ended |= filled.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
        filled
    }

    /// The head of the next chunk: eight bytes of magic, flags, a letter, the length of the path, and the path.
    fn chunk(&mut self) -> io::Result<Option<Begins>> {
        let mut head = [0; 14];
        if self.input.read(&mut head[..1])? == 0 {
            self.ended = true;
            return Ok(None);
        }
        self.fill_all(&mut head[1..])?;
        let [magic @ .., _flags, kind, l0, l1, l2, l3] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if magic != *MAGIC || length == 0 || length > LONGEST {
            return Err(broken("it is not one of mbstream"));
        }
        let mut path = vec![0; length];
        self.fill_all(&mut path)?;
        let path = clean(path)?;
        match kind {
            b'E' => Ok(Some(Begins::End(path))),
            b'P' => {
                let [left, offset] = [u64::from_le_bytes(self.fill()?), u64::from_le_bytes(self.fill()?)];
                let expected = u32::from_le_bytes(self.fill()?);
                self.chunk = Chunk { left, offset, expected, sum: Crc::new() };
                Ok(Some(Begins::Payload(path)))
            }
            other => Err(broken(&format!("it holds a chunk of the unknown kind {other} for {path}"))),
        }
    }

    /// Some of the chunk's payload; 0 at its end.
    fn payload(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.chunk.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        self.fill_all(&mut buffer[..wanted])?;
        let Chunk { left, sum, expected, .. } = &mut self.chunk;
        sum.update(&buffer[..wanted]);
        *left -= wanted as u64;
        if *left == 0 && sum.sum() != *expected {
            return Err(broken("a checksum does not match"));
        }
        Ok(wanted)
    }

    fn begins_at(&self, path: &str, offset: u64) -> io::Result<()> {
        if self.chunk.offset == offset {
            return Ok(());
        }
        Err(broken(&format!("{path} goes on at {} and not at {offset}", self.chunk.offset)))
    }

    fn log(&mut self, path: &str) -> io::Result<()> {
        let size = self.logs.get(path).map_or(0, |log| log.size);
        self.begins_at(path, size)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let length = self.payload(&mut buffer)?;
            let log = self.entry(path)?;
            if length == 0 {
                return Ok(());
            }
            log.file.write_all(&buffer[..length])?;
            log.size += length as u64;
        }
    }

    fn log_ends(&mut self, path: &str) -> io::Result<()> {
        self.entry(path)?.whole = true;
        Ok(())
    }

    fn entry(&mut self, path: &str) -> io::Result<&mut Log> {
        if !self.logs.contains_key(path) {
            let log = Log { file: tempfile::tempfile()?, size: 0, whole: false };
            self.logs.insert(path.to_owned(), log);
        }
        self.logs.get_mut(path).ok_or_else(|| broken(&format!("{path} was not kept")))
    }
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((path, size)) = self.current.take() else { return Ok(0) };
        loop {
            let length = self.payload(buffer)?;
            if length > 0 || buffer.is_empty() {
                self.current = Some((path, size + length as u64));
                return Ok(length);
            }
            match self.chunk()? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Begins::Payload(other)) if other == path => self.begins_at(&path, size)?,
                Some(Begins::End(other)) if other == path => return Ok(0),
                Some(Begins::Payload(log)) if is_log(&log) => self.log(&log)?,
                Some(Begins::End(log)) if is_log(&log) => self.log_ends(&log)?,
                Some(Begins::Payload(other) | Begins::End(other)) => {
                    return Err(broken(&format!("{other} comes in the midst of {path}")));
                }
            }
        }
    }
}

/// Written while other files are read.
fn is_log(path: &str) -> bool {
    path == "ib_logfile0" || path.strip_prefix("aria_log.").is_some_and(|number| number.parse::<u32>().is_ok())
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stream is broken: {text}"))
}

/// A path as entries have it.
fn clean(path: Vec<u8>) -> io::Result<String> {
    let path = String::from_utf8(path).map_err(io::Error::other)?;
    let path = path.strip_prefix("./").unwrap_or(&path);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(broken(&format!("it holds the path {path:?}")));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(path: &str, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let mut sum = Crc::new();
        sum.update(bytes);
        let head = [&MAGIC[..], &[0, b'P'], &(path.len() as u32).to_le_bytes(), path.as_bytes()].concat();
        let length = (bytes.len() as u64).to_le_bytes();
        [&head[..], &length, &offset.to_le_bytes(), &sum.sum().to_le_bytes(), bytes].concat()
    }

    fn end(path: &str) -> Vec<u8> {
        [&MAGIC[..], &[0, b'E'], &(path.len() as u32).to_le_bytes(), path.as_bytes()].concat()
    }

    /// Names and contents, the logs last.
    fn take(bytes: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let (mut stream, mut files) = (Stream::new(bytes), Vec::new());
        while let Some(path) = stream.file()? {
            let mut content = Vec::new();
            stream.read_to_end(&mut content)?;
            files.push((path, content));
        }
        for (path, mut file, size) in stream.finish().1? {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            assert_eq!(content.len() as u64, size);
            files.push((path, content));
        }
        Ok(files)
    }

    #[test]
    fn files_come_one_after_the_other_and_logs_meanwhile() {
        let stream = [
            payload("ib_logfile0", 0, b"one "),
            payload("./shop/goods.ibd", 0, b"page"),
            payload("ib_logfile0", 4, b"two "),
            payload("./shop/goods.ibd", 4, b" and page"),
            end("./shop/goods.ibd"),
            end("shop/empty.MYD"),
            payload("ib_logfile0", 8, b"three"),
            end("ib_logfile0"),
        ]
        .concat();
        let expected = [("shop/goods.ibd", "page and page"), ("shop/empty.MYD", ""), ("ib_logfile0", "one two three")];
        assert_eq!(take(&stream).unwrap(), expected.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())));
        for length in 1..stream.len() {
            // Between two files it looks like an end: the program's own end tells.
            assert!(take(&stream[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_no_whole_backup_is_refused() {
        let told = |parts: &[Vec<u8>]| take(&parts.concat()).unwrap_err().to_string();
        let mut damaged = payload("a", 0, b"page");
        *damaged.last_mut().unwrap() ^= 1;
        assert!(told(&[damaged]).contains("checksum"));
        assert!(told(&[b"PK\x03\x04 something else".to_vec()]).contains("mbstream"));
        assert!(told(&[payload("a", 0, b"x"), payload("b", 0, b"x")]).contains("b comes in the midst of a"));
        assert!(told(&[payload("a", 0, b"x"), payload("a", 2, b"x")]).contains("goes on at 2 and not at 1"));
        for path in ["../etc/passwd", "/etc/passwd", "a/../../b"] {
            assert!(told(&[payload(path, 0, b"x")]).contains("it holds the path"), "{path}");
        }
    }
}
