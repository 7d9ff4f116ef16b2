//! The archive that Vault calls a snapshot (`hashicorp/raft-snapshot`): a gzipped tar of four files.

use crate::entry::{Entry, Layout, Sink, Supply};
use crate::source::command::plain_file;
use crate::source::{Context, Native, SourceError, unpack};
use aws_lc_rs::digest;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
const SEALED_SUMS: &str = "SHA256SUMS.sealed";
/// Everything but the state is small.
const MAX_SMALL: u64 = 1 << 20;

/// What raft knows of a snapshot.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Meta {
    pub index: u64,
    pub term: u64,
}

/// Hands the files of an archive over, and checks them by their sums.
pub(super) fn unpack(
    context: &Context,
    sink: &mut dyn Sink,
    stream: impl Read,
    address: &str,
) -> Result<Meta, SourceError> {
    let attempt = || format!("take a snapshot of the Vault at {address}");
    let broke = |source| SourceError::of_stream(&format!("the snapshot of the Vault at {address}"), source);
    let bad = |text: String| SourceError::System { attempt: attempt(), text, need: "nothing was committed".into() };
    let mut archive = tar::Archive::new(MultiGzDecoder::new(stream));
    let mut found = BTreeMap::new();
    let (mut meta, mut sums) = (None, None);
    for member in archive.entries().map_err(broke)? {
        let mut member = member.map_err(broke)?;
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let size = member.size();
        match name.as_str() {
            STATE if size == 0 => return Err(bad("its state is empty".into())),
            STATE => {
                let mut hashing = Hashing { inner: &mut member, hash: digest::Context::new(&digest::SHA256) };
                let entry = file(context, STATE, size);
                unpack::hand_over(context, sink, entry, Layout::Records, &mut hashing)?;
                found.insert(name, hex(hashing.hash.finish().as_ref()));
            }
            META | SUMS | SEALED_SUMS if size <= MAX_SMALL => {
                let mut bytes = Vec::new();
                member.read_to_end(&mut bytes).map_err(broke)?;
                match name.as_str() {
                    META => meta = serde_json::from_slice::<Meta>(&bytes).ok(),
                    SUMS => sums = Some(String::from_utf8_lossy(&bytes).into_owned()),
                    _ => {}
                }
                unpack::hand_over(context, sink, file(context, &name, size), Layout::Content, &mut &bytes[..])?;
                found.insert(name, hex(digest::digest(&digest::SHA256, &bytes).as_ref()));
            }
            _ => return Err(bad(format!("the archive holds {name:?} of {size} bytes, which no snapshot has"))),
        }
    }
    // Vault has sent an error in the middle if anything is missing.
    let sums = sums.ok_or_else(|| bad("the archive ends before its sums".into()))?;
    check(&found, &sums).map_err(bad)?;
    meta.ok_or_else(|| bad(format!("{META} does not say which raft index it is of")))
}

fn file(context: &Context, name: &str, size: u64) -> Entry {
    plain_file(name.as_bytes().to_vec(), size, context.started)
}

/// Every file that must be there is, and is what the sums say.
fn check(found: &BTreeMap<String, String>, sums: &str) -> Result<(), String> {
    let expected: BTreeMap<_, _> = sums
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(sum, name)| (name.trim(), sum.to_ascii_lowercase()))
        .collect();
    for name in [META, STATE] {
        match (found.get(name), expected.get(name)) {
            (Some(found), Some(expected)) if found == expected => {}
            (Some(_), Some(_)) => return Err(format!("{name} does not match its sum")),
            (None, _) => return Err(format!("the archive lacks {name}")),
            (_, None) => return Err(format!("there is no sum of {name}")),
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    hash: digest::Context,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// The archive again, as `vault operator raft snapshot restore` takes it.
pub struct Snapshot;

impl Native for Snapshot {
    fn label(&self) -> &'static str {
        "Vault raft snapshot"
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn Write) -> io::Result<()> {
        // The state is sealed: trying to compress it is for nothing.
        let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::none()));
        let mut names = Vec::new();
        supply.entries(&mut |entry, body| {
            let mut header = tar::Header::new_ustar();
            header.set_size(entry.size);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(entry.mtime_ns / 1_000_000_000).unwrap_or(0));
            header.set_entry_type(tar::EntryType::Regular);
            header.set_path(String::from_utf8_lossy(&entry.path).as_ref())?;
            header.set_cksum();
            archive.get_mut().write_all(header.as_bytes())?;
            body.copy(archive.get_mut())?;
            let padding = entry.size.next_multiple_of(512) - entry.size;
            archive.get_mut().write_all(&[0; 512][..padding as usize])?;
            names.push(entry.path.clone());
            Ok(())
        })?;
        for name in [META, STATE, SUMS] {
            if !names.iter().any(|found| found == name.as_bytes()) {
                let text = format!("the snapshot lacks {name}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        archive.into_inner()?.finish()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_decide() {
        let found = |state: &str| BTreeMap::from([(META.into(), "aa".into()), (STATE.into(), state.into())]);
        let sums = "AA  meta.json\nbb  state.bin\n";
        assert_eq!(check(&found("bb"), sums), Ok(()));
        assert_eq!(check(&found("bc"), sums), Err("state.bin does not match its sum".into()));
        assert_eq!(check(&found("bb"), "aa  meta.json\n"), Err("there is no sum of state.bin".into()));
        assert_eq!(check(&BTreeMap::new(), sums), Err("the archive lacks meta.json".into()));
    }
}
