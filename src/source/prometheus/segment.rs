//! Contents of a block's files, and the check of a chunk segment while it is read.
//!
//! A segment is a header of 8 bytes and chunks: length (uvarint), encoding, data, CRC-32C of the latter two.

use super::disk::Snapshot;
use crate::entry::{Content, Verdict};
use crc_fast::{CrcAlgorithm, Digest};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: [u8; 5] = [0x85, 0xbd, 0x40, 0xdd, 1];
const HEADER: usize = 8;

/// The chunks that a block's segments turn out to hold.
pub(super) struct Counted {
    expected: u64,
    found: AtomicU64,
    segments_left: AtomicU64,
}

impl Counted {
    pub fn new(expected: u64, segments: usize) -> Self {
        Self { expected, found: AtomicU64::new(0), segments_left: AtomicU64::new(segments as u64) }
    }

    /// Adds a segment's. Once all have been: what is wrong.
    fn add(&self, chunks: u64) -> Option<String> {
        let found = self.found.fetch_add(chunks, Ordering::AcqRel) + chunks;
        let last = self.segments_left.fetch_sub(1, Ordering::AcqRel) == 1;
        (last && found != self.expected)
            .then(|| format!("the block has {found} chunks, and {} by its meta.json", self.expected))
    }
}

/// Where the next byte belongs.
enum At {
    Header(usize),
    Length {
        value: u64,
        shift: u32,
    },
    /// So many bytes of the encoding and the data are still to come.
    Data(u64),
    Sum {
        taken: usize,
        sum: [u8; 4],
    },
}

pub(super) struct Segment {
    at: At,
    digest: Digest,
    /// Bytes so far.
    position: u64,
    chunks: u64,
    fault: Option<String>,
    counted: Arc<Counted>,
}

impl Segment {
    pub fn new(counted: &Arc<Counted>) -> Self {
        let digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        Self { at: At::Header(0), digest, position: 0, chunks: 0, fault: None, counted: Arc::clone(counted) }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while let (Some(&byte), None) = (bytes.first(), &self.fault) {
            let mut taken = 1;
            self.at = match &mut self.at {
                At::Header(index) => {
                    if MAGIC.get(*index).is_some_and(|right| *right != byte) {
                        self.fault = Some("it does not begin like a segment of chunks".into());
                    }
                    if *index + 1 == HEADER { At::Length { value: 0, shift: 0 } } else { At::Header(*index + 1) }
                }
                At::Length { value, shift } => {
                    let value = *value | u64::from(byte & 0x7f) << *shift;
                    if byte < 0x80 {
                        At::Data(value + 1)
                    } else if *shift < 28 {
                        At::Length { value, shift: *shift + 7 }
                    } else {
                        self.fault = Some(format!("at byte {} is no length of a chunk", self.position));
                        At::Header(0)
                    }
                }
                At::Data(left) => {
                    taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.digest.update(&bytes[..taken]);
                    match *left - taken as u64 {
                        0 => At::Sum { taken: 0, sum: [0; 4] },
                        left => At::Data(left),
                    }
                }
                At::Sum { taken, sum } => {
                    sum[*taken] = byte;
                    if *taken == 3 {
                        let right = self.digest.finalize_reset() == u64::from(u32::from_be_bytes(*sum));
                        if !right {
                            let text = "the chunk that ends at byte";
                            self.fault = Some(format!("{text} {} does not match its checksum", self.position + 1));
                        }
                        self.chunks += 1;
                        At::Length { value: 0, shift: 0 }
                    } else {
                        At::Sum { taken: *taken + 1, sum: *sum }
                    }
                }
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    fn finish(self) -> Option<String> {
        let ended = matches!(self.at, At::Length { shift: 0, .. });
        let cut = (!ended).then(|| "it ends in the middle of a chunk".to_owned());
        self.fault.or(cut).or_else(|| self.counted.add(self.chunks))
    }
}

/// A file of the snapshot.
pub(super) struct Reading {
    file: File,
    left: u64,
    segment: Option<Segment>,
    /// Not removed before this is read.
    _snapshot: Arc<Snapshot>,
}

impl Reading {
    pub fn open(
        path: &Path,
        size: u64,
        segment: Option<Segment>,
        snapshot: Arc<Snapshot>,
    ) -> io::Result<Box<dyn Content>> {
        Ok(Box::new(Self { file: File::open(path)?, left: size, segment, _snapshot: snapshot }))
    }
}

impl Content for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read(&mut buffer[..want])?;
        if length == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.left -= length as u64;
        if let Some(segment) = &mut self.segment {
            segment.take(&buffer[..length]);
        }
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        let fault = self.segment.and_then(Segment::finish);
        Ok(fault.map_or(Verdict::Consistent, |fault| {
            Verdict::Changed(format!("{fault}: the block is damaged on Prometheus' own disk"))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Vec<u8> {
        let mut bytes = vec![0x85, 0xbd, 0x40, 0xdd, 1, 0, 0, 0];
        for length in [1_usize, 127, 300] {
            let data: Vec<u8> = (0..=length).map(|n| n as u8).collect();
            if length < 128 {
                bytes.push(length as u8);
            } else {
                bytes.extend([length as u8 | 0x80, (length >> 7) as u8]);
            }
            bytes.extend(&data);
            bytes.extend(&crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &data).to_be_bytes()[4..]);
        }
        bytes
    }

    fn fault(bytes: &[u8], expected: u64, piece: usize) -> Option<String> {
        let mut segment = Segment::new(&Arc::new(Counted::new(expected, 1)));
        bytes.chunks(piece).for_each(|piece| segment.take(piece));
        segment.finish()
    }

    #[test]
    fn segments_are_checked_as_they_come() {
        let bytes = segment();
        for piece in [1, 2, 7, 1000] {
            assert_eq!(fault(&bytes, 3, piece), None);
            assert_eq!(fault(&bytes, 4, piece).unwrap(), "the block has 3 chunks, and 4 by its meta.json");
            assert!(fault(&bytes[..bytes.len() - 1], 3, piece).unwrap().contains("in the middle"));
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 4;
                // Three bytes of padding mean nothing.
                assert_eq!(fault(&bytes, 3, piece).is_none(), (5..8).contains(&at), "byte {at}");
            }
        }
    }
}
