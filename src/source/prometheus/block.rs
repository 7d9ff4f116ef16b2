//! A block (tsdb/docs/format in Prometheus' sources): `meta.json`, `index`, `tombstones` and `chunks/000001…`.

use super::disk::Snapshot;
use super::segment::{Counted, Reading, Segment};
use crate::entry::{Entry, Fingerprint, Input, Kind, Layout, OnError, Sink};
use crate::source::SourceError;
use crc_fast::{CrcAlgorithm, checksum};
use serde::Deserialize;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const META: &str = "meta.json";
const INDEX: &str = "index";
const TOMBSTONES: &str = "tombstones";
const CHUNKS: &str = "chunks";
/// Bytes of a `meta.json`, which lists the blocks that it was made of.
const LARGEST_META: u64 = 16 << 20;
const INDEX_MAGIC: [u8; 4] = [0xba, 0xaa, 0xd7, 0x00];
/// Six offsets and a checksum at the index's end.
const CONTENTS: usize = 6 * 8 + 4;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    pub ulid: String,
    /// Milliseconds since the Unix epoch, as all times here; the last one is not part of the block.
    pub min_time: i64,
    pub max_time: i64,
    #[serde(default)]
    pub stats: Stats,
    version: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    #[serde(rename = "numSamples")]
    pub samples: u64,
    #[serde(rename = "numSeries")]
    pub series: u64,
    #[serde(rename = "numChunks")]
    pub chunks: u64,
}

pub(super) struct Block {
    pub ulid: String,
    pub meta: Meta,
    path: PathBuf,
    /// `000001`, `000002`, …
    segments: Vec<String>,
}

fn unreadable(path: &Path, text: &str) -> SourceError {
    SourceError::System {
        attempt: format!("read the snapshot's {}", path.display()),
        text: text.to_owned(),
        need: "is the data directory that of this server?".into(),
    }
}

/// What a directory holds, by name.
fn names(path: &Path) -> Result<Vec<String>, SourceError> {
    let failed = |error: io::Error| unreadable(path, &error.to_string());
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The blocks of a snapshot; one without `meta.json` is none to Prometheus either.
pub(super) fn list(snapshot: &Path) -> Result<Vec<Block>, SourceError> {
    let mut blocks = Vec::new();
    for ulid in names(snapshot)?.into_iter().filter(|name| is_ulid(name)) {
        let path = snapshot.join(&ulid);
        let meta = path.join(META);
        let read = || {
            let mut bytes = Vec::new();
            fs::File::open(&meta)?.take(LARGEST_META).read_to_end(&mut bytes)?;
            Ok::<Meta, io::Error>(serde_json::from_slice(&bytes)?)
        };
        let meta = read().map_err(|error| unreadable(&meta, &error.to_string()))?;
        let segments = names(&path.join(CHUNKS))?;
        blocks.push(Block { ulid, meta, path, segments });
    }
    Ok(blocks)
}

/// 26 of Crockford's digits.
fn is_ulid(name: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase() && !b"ILOU".contains(&b);
    name.len() == 26 && name.bytes().all(digit)
}

impl Block {
    /// What does not fit together in it; it is captured all the same.
    pub fn faults(&self) -> Result<Vec<String>, SourceError> {
        let Meta { ulid, min_time, max_time, version, .. } = &self.meta;
        let mut faults = Vec::new();
        if *ulid != self.ulid {
            faults.push(format!("its {META} is of the block {ulid}"));
        }
        if min_time > max_time {
            faults.push(format!("its {META} ends at {max_time} and begins at {min_time}"));
        }
        if *version != 1 {
            faults.push(format!("its {META} is of version {version}, which is not known"));
        }
        let expected = (1..=self.segments.len()).map(|number| format!("{number:06}"));
        if !self.segments.iter().cloned().eq(expected) {
            faults.push(format!("its segments are {}: one is missing", self.segments.join(", ")));
        }
        let index = self.path.join(INDEX);
        let fault = fault_of_index(&index).map_err(|error| unreadable(&index, &error.to_string()))?;
        faults.extend(fault);
        Ok(faults)
    }

    /// Gives its directories and files to the sink.
    pub fn hand_over(self, snapshot: &Arc<Snapshot>, sink: &mut dyn Sink) -> Result<(), SourceError> {
        let add = |sink: &mut dyn Sink, name: &str, segment: Option<Segment>| -> Result<(), SourceError> {
            let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
            let seen = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == TOMBSTONES => return Ok(()),
                seen => seen.map_err(|error| unreadable(&path, &error.to_string()))?,
            };
            let below = if name.is_empty() { self.ulid.clone() } else { format!("{}/{name}", self.ulid) };
            let entry =
                entry(below.into_bytes(), &seen).ok_or_else(|| unreadable(&path, "it is no file of a block"))?;
            if entry.kind == Kind::Directory {
                return Ok(sink.add(entry, None)?);
            }
            // These two may be written anew in the life of a block, the others never.
            let immutable = ![META, TOMBSTONES].contains(&name);
            // The time of change is that of the hard link.
            let fingerprint =
                Fingerprint { size: seen.size(), mtime_ns: entry.mtime_ns, ctime_ns: 0, inode: seen.ino() };
            let (size, snapshot) = (seen.size(), Arc::clone(snapshot));
            let open = Box::new(move || Reading::open(&path, size, segment, snapshot));
            let fingerprint = immutable.then_some(fingerprint);
            Ok(sink.add(entry, Some(Input { layout: Layout::Content, fingerprint, on_error: OnError::Fail, open }))?)
        };
        let counted = Arc::new(Counted::new(self.meta.stats.chunks, self.segments.len()));
        add(sink, "", None)?;
        add(sink, CHUNKS, None)?;
        for name in &self.segments {
            add(sink, &format!("{CHUNKS}/{name}"), Some(Segment::new(&counted)))?;
        }
        for name in [INDEX, META, TOMBSTONES] {
            add(sink, name, None)?;
        }
        Ok(())
    }
}

fn entry(path: Vec<u8>, seen: &fs::Metadata) -> Option<Entry> {
    let kind = match seen.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        _ => return None,
    };
    Some(Entry {
        path,
        kind,
        mode: seen.mode() & 0o7777,
        uid: seen.uid(),
        gid: seen.gid(),
        mtime_ns: seen.mtime().saturating_mul(1_000_000_000).saturating_add(seen.mtime_nsec()),
        size: if kind == Kind::File { seen.size() } else { 0 },
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    })
}

/// Its beginning, and the table of contents at its end.
fn fault_of_index(path: &Path) -> io::Result<Option<String>> {
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size < 5 + CONTENTS as u64 {
        return Ok(Some("its index is too short".into()));
    }
    let (mut head, mut end) = ([0; 5], [0; CONTENTS]);
    file.read_exact(&mut head)?;
    file.seek(SeekFrom::Start(size - CONTENTS as u64))?;
    file.read_exact(&mut end)?;
    let (contents, sum) = end.split_at(CONTENTS - 4);
    let right = checksum(CrcAlgorithm::Crc32Iscsi, contents).to_be_bytes();
    Ok(if head[..4] != INDEX_MAGIC {
        Some("its index does not begin like one".into())
    } else if right[4..] != *sum {
        Some("its index is damaged: the table at its end does not match its checksum".into())
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::is_ulid;

    #[test]
    fn blocks_are_known_by_their_names() {
        assert!(is_ulid("01M88TC54X5A7RS4GN09FDNJVJ"));
        for other in [
            "wal",
            "chunks_head",
            "01M88TC54X5A7RS4GN09FDNJV",
            "01M88TC54X5A7RS4GN09FDNJV.",
            "IIIIIIIIIIIIIIIIIIIIIIIIII",
        ] {
            assert!(!is_ulid(other), "{other}");
        }
    }
}
