//! The RDB file as a primary sends it to a replica, checked while it is read.
//!
//! A length or, without a file on the server's disk, a mark of 40 random bytes says where it ends. Whatever has come must
//! begin as an RDB file does, and end with its end opcode and its CRC-64 (Jones, as Redis computes it). Source: `rdb.c` and
//! `replication.c` of Redis.

use crc_fast::{CrcAlgorithm, Digest};
use std::io::{self, Read};

const MARK: usize = 40;
/// The end opcode and the little-endian CRC-64 of all before it, the opcode included.
const TRAILER: usize = 9;
const END: u8 = 0xFF;
/// The first version that has a CRC.
const OLDEST: u32 = 5;

/// How the end is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    After(u64),
    At([u8; MARK]),
}

impl End {
    /// From the line before the file: `$LENGTH` or `$EOF:MARK`.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line.strip_prefix('$')?;
        match text.strip_prefix("EOF:") {
            Some(mark) => Some(Self::At(mark.as_bytes().try_into().ok()?)),
            None => text.parse().ok().map(Self::After),
        }
    }
}

/// Gives the file and nothing behind it; reads well to its end only if it is whole.
pub struct Rdb<R> {
    wire: R,
    end: End,
    /// Came, not given yet: what may be the mark.
    held: Vec<u8>,
    ended: bool,
    check: Check,
}

impl<R: Read> Rdb<R> {
    pub fn new(wire: R, end: End) -> Self {
        Self { wire, end, held: Vec::new(), ended: false, check: Check::default() }
    }

    fn come(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let early = || io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection");
        match &mut self.end {
            End::After(0) => Ok(0),
            End::After(left) => {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let length = self.wire.read(&mut buffer[..wanted])?;
                *left -= length as u64;
                if length == 0 { Err(early()) } else { Ok(length) }
            }
            End::At(mark) => {
                while !self.ended && self.held.len() <= MARK {
                    let mut piece = [0; 16 << 10];
                    let length = self.wire.read(&mut piece)?;
                    if length == 0 {
                        return Err(early());
                    }
                    self.held.extend_from_slice(&piece[..length]);
                    // A primary sends nothing more before it is answered.
                    if self.held.ends_with(mark) {
                        self.held.truncate(self.held.len() - MARK);
                        self.ended = true;
                    }
                }
                let keep = if self.ended { 0 } else { MARK };
                let length = buffer.len().min(self.held.len() - keep);
                buffer[..length].copy_from_slice(&self.held[..length]);
                self.held.drain(..length);
                Ok(length)
            }
        }
    }
}

impl<R: Read> Read for Rdb<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = self.come(buffer)?;
        if length == 0 {
            // Asked again, the end is the same.
            self.check.end().map_err(|text| io::Error::new(io::ErrorKind::InvalidData, text))?;
        }
        self.check.take(&buffer[..length]);
        Ok(length)
    }
}

struct Check {
    head: Vec<u8>,
    /// Not in the digest yet.
    tail: Vec<u8>,
    digest: Digest,
}

impl Default for Check {
    fn default() -> Self {
        Self { head: Vec::new(), tail: Vec::new(), digest: Digest::new(CrcAlgorithm::Crc64Redis) }
    }
}

impl Check {
    fn take(&mut self, bytes: &[u8]) {
        let wanted = TRAILER.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..wanted]);
        // The last bytes stay behind; most go straight into the digest.
        let straight = bytes.len().saturating_sub(TRAILER);
        if straight > 0 {
            self.digest.update(&self.tail);
            self.digest.update(&bytes[..straight]);
            self.tail.clear();
        }
        self.tail.extend_from_slice(&bytes[straight..]);
        let excess = self.tail.len().saturating_sub(TRAILER);
        self.digest.update(&self.tail[..excess]);
        self.tail.drain(..excess);
    }

    fn end(&self) -> Result<(), String> {
        let version =
            self.head.strip_prefix(b"REDIS").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let version: u32 = version.ok_or("what came is no RDB file: it does not begin with REDIS and a version")?;
        if version < OLDEST {
            return Err(format!("its format is version {version}, which has no checksum"));
        }
        match self.tail.split_first() {
            Some((&END, crc)) if crc.len() == TRAILER - 1 => {
                let mut digest = self.digest;
                digest.update(&[END]);
                let said = crc.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
                let is = digest.finalize();
                // 0: the server was told to compute none (rdbchecksum no).
                if said == 0 || said == is {
                    return Ok(());
                }
                Err(format!("it is damaged: its checksum is {is:016x}, it should be {said:016x}"))
            }
            _ => Err("it does not end as an RDB file does".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty data set, as Redis 7.0.15 saves it (`redis-cli --rdb`), without its auxiliary fields.
    fn file() -> Vec<u8> {
        let mut file = b"REDIS0010\xFF".to_vec();
        let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
        digest.update(&file);
        file.extend_from_slice(&digest.finalize().to_le_bytes());
        file
    }

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(buffer.len());
            (&mut self.0).take(length as u64).read(buffer)
        }
    }

    fn read(wire: &[u8], step: usize, end: &End) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        let mut rdb = Rdb::new(Slow(wire, step), end.clone());
        rdb.read_to_end(&mut all).map_err(|error| error.to_string())?;
        assert_eq!(rdb.read(&mut [0; 10]).unwrap(), 0, "the end stays the end");
        Ok(all)
    }

    #[test]
    fn the_checksum_is_that_of_redis() {
        // The test vector in crc64.c of Redis.
        let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
        digest.update(b"123456789");
        assert_eq!(digest.finalize(), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn both_ways_to_end_give_the_file_alone() {
        let (file, mark) = (file(), [b'm'; MARK]);
        let known = End::After(file.len() as u64);
        let followed = [&file[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        let marked = [&file[..], &mark].concat();
        for step in [1, 3, 9, 100] {
            assert_eq!(read(&followed, step, &known).unwrap(), file, "{step}");
            assert_eq!(read(&marked, step, &End::At(mark)).unwrap(), file, "{step}");
        }
        assert_eq!(End::parse("$18"), Some(known));
        assert_eq!(End::parse(&format!("$EOF:{}", "m".repeat(MARK))), Some(End::At(mark)));
        for odd in ["$EOF:short", "$", "$-1", "18", "+OK"] {
            assert_eq!(End::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let (file, mark) = (file(), [b'm'; MARK]);
        let failure = |wire: &[u8], end: End| read(wire, 5, &end).unwrap_err();
        assert!(failure(&file[..10], End::After(18)).contains("closed the connection"));
        assert!(failure(&file, End::At(mark)).contains("closed the connection"));
        assert!(failure(&[], End::After(0)).contains("no RDB file"));
        assert!(failure(&file, End::After(17)).contains("does not end"));
        for byte in [5, 12] {
            let mut damaged = file.clone();
            damaged[byte] ^= 1;
            let text = failure(&damaged, End::After(18));
            assert!(text.contains("it is damaged") || text.contains("no RDB file"), "{text}");
        }
        let mut old = file.clone();
        old[5..9].copy_from_slice(b"0004");
        assert!(failure(&old, End::After(18)).contains("no checksum"));
        let unchecked = [&file[..10], &[0; 8]].concat();
        assert_eq!(read(&unchecked, 5, &End::After(18)).unwrap(), unchecked);
    }
}
