//! A snapshot as a tar archive (POSIX pax format): what any tar reads, with extended attributes and exact times.
//!
//! Deliberately absent: sockets, which no archive has; holes, which become zeros.

use crate::entry::{Entry, Kind};
use crate::repo::{Item, Reader};
use crate::restore::supply::walk;
use crate::restore::{RestoreError, Selection, Strays, stream, tree};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tar::{Builder, EntryType, Header};

const BLOCK: u64 = 512;

/// Writes the selected entries of a snapshot. Blocks, inside the runtime. Gives the number of entries written.
///
/// # Errors
/// The repository's, or `Export`.
pub fn write(reader: &Reader, selection: &Selection, out: impl Write) -> Result<u64, RestoreError> {
    let mut archive = Builder::new(out);
    let mut strays = Strays::default();
    let mut count = 0;
    walk::<RestoreError>(reader, |item| {
        let wanted = selection.contains(&item.entry.path);
        let item = match item.entry.kind {
            _ if !wanted => return Ok(()),
            Kind::Hardlink if strays.sift(selection, item.entry.clone()).is_none() => return Ok(()),
            _ => item,
        };
        count += u64::from(entry(&mut archive, reader, &item)?);
        Ok(())
    })?;
    if !strays.is_empty() {
        walk::<RestoreError>(reader, |item| {
            let Some((item, links)) = strays.claim(item) else { return Ok(()) };
            count += u64::from(entry(&mut archive, reader, &item)?);
            for link in links {
                head(&mut archive, &link, EntryType::Link).map_err(RestoreError::Export)?;
                count += 1;
            }
            Ok(())
        })?;
    }
    archive.into_inner().and_then(|mut out| out.flush()).map_err(RestoreError::Export)?;
    Ok(count)
}

fn entry(archive: &mut Builder<impl Write>, reader: &Reader, item: &Item) -> Result<bool, RestoreError> {
    let entry = &item.entry;
    let kind = match entry.kind {
        Kind::File => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink => EntryType::Symlink,
        Kind::Hardlink => EntryType::Link,
        Kind::Fifo => EntryType::Fifo,
        Kind::CharDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
        Kind::Socket => return Ok(false),
    };
    head(archive, entry, kind).map_err(RestoreError::Export)?;
    if entry.kind == Kind::File {
        stream::copy(reader, item, archive.get_mut())?;
        let padding = (BLOCK - entry.size % BLOCK) % BLOCK;
        archive.get_mut().write_all(&[0; BLOCK as usize][..padding as usize]).map_err(RestoreError::Export)?;
    }
    Ok(true)
}

fn header(entry: &Entry, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(entry.mtime_ns.div_euclid(1_000_000_000)).unwrap_or(0));
    header.set_size(if kind == EntryType::Regular { entry.size } else { 0 });
    header
}

/// Writes everything of an entry but its content.
#[doc(hidden)]
pub fn head(archive: &mut Builder<impl Write>, entry: &Entry, kind: EntryType) -> io::Result<()> {
    // Not every program that unpacks it would refuse to leave its directory.
    if entry.path != b"." {
        tree::check(&entry.path).map_err(io::Error::other)?;
    }
    let mut records = Vec::new();
    let mut header = header(entry, kind);
    let path = if entry.path == b"." { b"./".as_slice() } else { &entry.path };
    if header.set_path(Path::new(OsStr::from_bytes(path))).is_err() {
        record(&mut records, b"path", path);
    }
    if let Some(link) = &entry.link
        && header.set_link_name_literal(link).is_err()
    {
        record(&mut records, b"linkpath", link);
    }
    if let (EntryType::Char | EntryType::Block, Some(device)) = (kind, entry.rdev) {
        header.set_device_major(rustix::fs::major(device))?;
        header.set_device_minor(rustix::fs::minor(device))?;
    }
    let (seconds, nanoseconds) = (entry.mtime_ns.div_euclid(1_000_000_000), entry.mtime_ns.rem_euclid(1_000_000_000));
    if nanoseconds != 0 || seconds < 0 {
        record(&mut records, b"mtime", decimal(entry.mtime_ns).as_bytes());
    }
    for xattr in entry.xattrs.iter().flatten() {
        record(&mut records, &[b"SCHILY.xattr.", &xattr.name[..]].concat(), &xattr.value);
    }
    if !records.is_empty() {
        let mut extended = Header::new_ustar();
        extended.set_entry_type(EntryType::XHeader);
        extended.set_path("pax")?;
        extended.set_mode(0o600);
        extended.set_size(records.len() as u64);
        extended.set_cksum();
        archive.append(&extended, &records[..])?;
    }
    header.set_cksum();
    // The content follows from elsewhere: this writes the header alone.
    archive.append(&header, io::empty())
}

/// "-1.5" for -1,500,000,000.
fn decimal(ns: i64) -> String {
    let (sign, ns) = (if ns < 0 { "-" } else { "" }, ns.unsigned_abs());
    format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Appends `"<length> <key>=<value>\n"`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, text) in [(3, "12 path=aaa"), (90, "99 path="), (91, "101 path="), (92, "102 path=")] {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'a'; value]);
            let shown = String::from_utf8(records.clone()).unwrap();
            assert!(shown.starts_with(text), "{shown}");
            let length: usize = shown.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, records.len());
        }
    }

    #[test]
    fn times_before_the_epoch_are_negative() {
        assert_eq!(decimal(-1_500_000_000), "-1.500000000");
        assert_eq!(decimal(1), "0.000000001");
    }
}
