//! The archives of a base backup, unpacked into entries.
//!
//! Invariants: a directory comes before its content (the server sends other tablespaces before the data directory that
//! they belong to); no path leaves the data directory; a backup without its label, control file or manifest is none.

use super::backup::{Settings, Stream};
use super::layout::{Holds, holds};
use crate::entry::{Entry, Kind, Layout, Sink};
use crate::source::unpack::hand_over;
use crate::source::{Context, SourceError};
use std::collections::BTreeSet;
use std::io::{self, Read};

const MUST: [&str; 4] = ["PG_VERSION", "backup_label", "global/pg_control", "backup_manifest"];

pub struct Tree<'a> {
    context: &'a Context,
    sink: &'a mut dyn Sink,
    settings: Settings,
    /// Whom the data directory belongs to, and since when.
    owner: (u32, u32, i64),
    directories: BTreeSet<String>,
    missing: Vec<&'static str>,
    relations: u64,
}

impl<'a> Tree<'a> {
    pub fn new(context: &'a Context, sink: &'a mut dyn Sink, settings: &Settings) -> Self {
        let (directories, missing) = (BTreeSet::new(), MUST.to_vec());
        Self { context, sink, settings: settings.clone(), owner: (0, 0, 0), directories, missing, relations: 0 }
    }

    pub fn sink(&mut self) -> &mut dyn Sink {
        self.sink
    }

    /// Takes what `stream` gives as the archive of the tablespace `oid`, or of the data directory.
    pub fn archive(&mut self, oid: Option<&str>, stream: &mut Stream) -> Result<(), SourceError> {
        let what = oid.map_or_else(|| "the data directory".to_owned(), |oid| format!("the tablespace {oid}"));
        let broke = |source| SourceError::Stream { what: what.clone(), source };
        let below = oid.map(|oid| format!("pg_tblspc/{oid}"));
        let (sure, mut control) = (stream.clock(), false);
        let mut archive = tar::Archive::new(&mut *stream);
        for member in archive.entries().map_err(broke)? {
            let mut member = match member {
                Ok(member) => member,
                Err(error) => return Err(self.context.go_on().err().unwrap_or_else(|| broke(error))),
            };
            let path = clean(&member.path_bytes(), below.as_deref()).map_err(broke)?;
            // The server sends it last, before it ends the backup and adds the log.
            control |= path == "global/pg_control";
            if control {
                sure.stop();
            }
            let entry = describe(&path, &member).map_err(broke)?;
            self.member(entry, path, below.as_deref(), &mut member)?;
        }
        // Behind the archive's last block.
        io::copy(stream, &mut io::sink()).map_err(broke)?;
        Ok(())
    }

    fn member(
        &mut self,
        entry: Entry,
        path: String,
        below: Option<&str>,
        content: &mut dyn Read,
    ) -> Result<(), SourceError> {
        if self.directories.is_empty() {
            self.owner = (entry.uid, entry.gid, entry.mtime_ns);
            self.directory(".")?;
        }
        if let Some(below) = below {
            self.directory("pg_tblspc")?;
            self.directory(below)?;
        }
        match entry.kind {
            Kind::Directory => {
                if self.directories.insert(path) {
                    self.sink.add(entry, None)?;
                }
                Ok(())
            }
            Kind::File => {
                self.missing.retain(|must| *must != path);
                let holds = holds(&path);
                self.relations += u64::from(holds == Holds::UserRelation);
                let layout = match holds {
                    Holds::UserRelation | Holds::Pages => Layout::Pages(self.settings.block_size),
                    Holds::Content => Layout::Content,
                };
                let given = hand_over(self.context, self.sink, entry, layout, content);
                given.map_err(|error| self.context.go_on().err().unwrap_or(error))
            }
            _ => Ok(self.sink.add(entry, None)?),
        }
    }

    /// A directory that no archive has named yet.
    fn directory(&mut self, path: &str) -> Result<(), SourceError> {
        if self.directories.insert(path.to_owned()) {
            let entry = Entry { mode: self.settings.directory_mode, ..self.own(path, Kind::Directory) };
            self.sink.add(entry, None)?;
        }
        Ok(())
    }

    fn own(&self, path: &str, kind: Kind) -> Entry {
        let (uid, gid, mtime_ns) = self.owner;
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o600,
            uid,
            gid,
            mtime_ns,
            size: 0,
            link: None,
            rdev: None,
            xattrs: None,
            sparse: None,
        }
    }

    /// The entry of the list of all files, which comes last.
    pub fn manifest(&mut self) -> Entry {
        self.missing.retain(|must| *must != "backup_manifest");
        self.own("backup_manifest", Kind::File)
    }

    /// The number of relations that users created, if all is there.
    pub fn finish(self) -> Result<u64, String> {
        match self.missing.first() {
            None => Ok(self.relations),
            Some(missing) => Err(format!("the server sent a backup without {missing}; nothing is kept of it")),
        }
    }
}

/// A path as entries have it: without `./` and slashes at its end, below `below`.
fn clean(path: &[u8], below: Option<&str>) -> io::Result<String> {
    let text = std::str::from_utf8(path).map_err(io::Error::other)?;
    let text = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it holds the path {text:?}")));
    }
    Ok(below.map_or_else(|| text.to_owned(), |below| format!("{below}/{text}")))
}

fn describe<R: Read>(path: &str, member: &tar::Entry<'_, R>) -> io::Result<Entry> {
    let header = member.header();
    let kind = match header.entry_type() {
        tar::EntryType::Regular => Kind::File,
        tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink,
        other => {
            return Err(io::Error::other(format!("{path} is of the kind {other:?}, which no data directory holds")));
        }
    };
    let small = |number: u64| u32::try_from(number).map_err(io::Error::other);
    Ok(Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: header.mode()? & 0o7777,
        uid: small(header.uid()?)?,
        gid: small(header.gid()?)?,
        mtime_ns: i64::try_from(header.mtime()?).unwrap_or(0).saturating_mul(1_000_000_000),
        size: if kind == Kind::File { member.size() } else { 0 },
        link: member.link_name_bytes().filter(|_| kind == Kind::Symlink).map(std::borrow::Cow::into_owned),
        rdev: None,
        xattrs: None,
        sparse: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Input, Problem, Stopped};
    use crate::source::Cancel;
    use crate::source::postgresql::backup::Event;
    use std::time::{Duration, Instant};
    use tokio::runtime::Runtime;

    /// Keeps only the names.
    #[derive(Default)]
    struct Names(Vec<String>);

    impl Sink for Names {
        fn add(&mut self, entry: Entry, _: Option<Input>) -> Result<(), Stopped> {
            self.0.push(String::from_utf8(entry.path).unwrap());
            Ok(())
        }

        fn problem(&mut self, _: Problem) {}
    }

    fn tar(files: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for path in files {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let directory = path.ends_with('/');
            header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
            header.set_size(if directory { 0 } else { 512 });
            header.set_mode(0o600);
            header.set_uid(1);
            header.set_gid(1);
            header.set_mtime(1);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(if directory { &[] } else { &[7; 512] });
        }
        out
    }

    /// Takes archives as they come; none for a stream that breaks in the last one.
    fn take(archives: &[(Option<&str>, Vec<u8>)], broken: bool) -> (Vec<String>, Result<u64, String>) {
        let runtime = Runtime::new().unwrap();
        let context = Context {
            runtime: runtime.handle().clone(),
            cancel: Cancel::default(),
            begun: Instant::now(),
            started: jiff::Timestamp::UNIX_EPOCH,
            deadline: Instant::now() + Duration::from_mins(1),
        };
        let (send, events) = tokio::sync::mpsc::channel(64);
        for (oid, bytes) in archives {
            send.try_send(Ok(Event::Archive { oid: oid.map(str::to_owned) })).unwrap();
            bytes.chunks(700).for_each(|piece| send.try_send(Ok(Event::Data(piece.to_vec()))).unwrap());
        }
        send.try_send(if broken { Err("the wire was cut".to_owned()) } else { Ok(Event::Manifest) }).unwrap();
        let mut stream = Stream::of(events, &context, Instant::now());
        let settings = Settings { block_size: 8192, segment_size: String::new(), directory_mode: 0o700, slot: false };
        let mut names = Names::default();
        let mut tree = Tree::new(&context, &mut names, &settings);
        let took = loop {
            let Event::Archive { oid } = stream.part().unwrap() else {
                let _ = tree.manifest();
                break tree.finish();
            };
            if let Err(error) = tree.archive(oid.as_deref(), &mut stream) {
                break Err(crate::exec::causes(error.to_string(), std::error::Error::source(&error)));
            }
        };
        (names.0, took)
    }

    const BASE: [&str; 6] = ["backup_label", "PG_VERSION", "base/", "base/5/16385", "pg_tblspc/", "global/pg_control"];

    #[test]
    fn directories_come_before_what_lies_in_them() {
        let (names, took) = take(&[(Some("16390"), tar(&["PG_15/", "PG_15/5/17000"])), (None, tar(&BASE))], false);
        assert_eq!(took, Ok(2));
        let first = [".", "pg_tblspc", "pg_tblspc/16390", "pg_tblspc/16390/PG_15", "pg_tblspc/16390/PG_15/5/17000"];
        assert_eq!(names[..5], first);
        assert_eq!(names[5..], ["backup_label", "PG_VERSION", "base", "base/5/16385", "global/pg_control"]);
    }

    #[test]
    fn what_is_no_whole_backup_is_refused() {
        assert!(take(&[], false).1.unwrap_err().contains("without PG_VERSION"));
        let without = take(&[(None, tar(&BASE[1..]))], false);
        assert!(without.1.unwrap_err().contains("without backup_label"));
        let broken = take(&[(None, tar(&BASE)[..1800].to_vec())], true).1.unwrap_err();
        assert!(broken.contains("the wire was cut"), "{broken}");
        let early = take(&[(None, tar(&BASE)[..700].to_vec())], false).1;
        assert!(early.is_err(), "{early:?}");
        for path in ["../etc/passwd", "/etc/passwd", "base/../../x"] {
            let escaped = take(&[(None, tar(&[path]))], false).1.unwrap_err();
            assert!(escaped.contains("it holds the path"), "{escaped}");
        }
    }
}
