//! A git bundle (gitformat-bundle(5)): a list of refs and a pack.
//!
//! The pack is written afresh, without deltas and without compression, commit after commit from the oldest on: so the
//! same repository gives the same bytes wherever it is fetched from, and a new commit adds bytes at the end and leaves the
//! others as they are. A server's own packs have other deltas with every clone. Of 180 commits of Lifeboat's own history
//! (11 MB so written, 1.9 MB as git packs it) the first snapshot stores 3.1 MB, and one more commit, 20 to 170 kB, which is
//! the files that it changed; in git's own order, newest first, a commit costs three times that.

use super::program::Program;
use super::refs::{Refs, is_id};
use crate::entry::{Content, Open, Verdict};
use crate::exec::Running;
use crate::source::Context;
use crate::source::command::into_io;
use std::io::{self, Write};

/// As `git clone` takes it.
pub const BUNDLE: &str = "repository.bundle";
pub(super) const HEAD: &str = "HEAD";

/// Every object, the oldest commit's first.
const LIST: [&str; 6] = ["rev-list", "--all", "--objects", "--reverse", "--in-commit-order", "--no-object-names"];
const PACK: [&str; 10] = [
    "pack-objects",
    "--stdout",
    "--quiet",
    "--window=0",
    "--depth=0",
    "--compression=0",
    "--no-reuse-delta",
    "--no-reuse-object",
    "--no-use-bitmap-index",
    "--threads=1",
];
/// Bytes of refs.
const LARGEST: usize = 32 << 20;

fn header(head: Option<&str>, refs: &Refs) -> String {
    let sha256 = refs.values().any(|id| id.len() == 64);
    let mut text = if sha256 { "# v3 git bundle\n@object-format=sha256\n" } else { "# v2 git bundle\n" }.to_owned();
    for (name, id) in refs {
        text += &format!("{id} {name}\n");
    }
    // A clone takes the branch of the same id for its own.
    if let Some(id) = head.and_then(|head| refs.get(head)) {
        text += &format!("{id} {HEAD}\n");
    }
    text + "\n"
}

fn parse(header: &str) -> Option<Refs> {
    let (first, rest) = header.split_once('\n')?;
    matches!(first, "# v2 git bundle" | "# v3 git bundle").then_some(())?;
    let lines = rest.lines().filter(|line| !line.is_empty() && !line.starts_with('@') && !line.ends_with(" HEAD"));
    let refs = lines.map(|line| {
        let (id, name) = line.split_once(' ')?;
        (is_id(id) && name.starts_with("refs/")).then(|| (name.to_owned(), id.to_owned()))
    });
    refs.collect()
}

/// The bundle of all that the program's own repository holds.
pub(super) fn open(context: &Context, git: &Program, head: Option<&str>, refs: &Refs) -> Open {
    // Where there are tags, git would write what they name out of its place.
    let (list, pack) = (git.command(context, &LIST), git.command_in(context, &git.packer(), &PACK));
    let (git, header) = (git.clone(), header(head, refs).into_bytes());
    Box::new(move || {
        let mut running = pack.start_fed().map_err(into_io)?;
        let mut listed = list.start().map_err(into_io)?;
        let mut buffer = vec![0; 64 << 10];
        // Git writes nothing before it has the whole list.
        loop {
            match listed.read(&mut buffer).map_err(into_io)? {
                0 => break,
                length => running.write_all(&buffer[..length])?,
            }
        }
        listed.wait().map_err(into_io)?;
        running.close();
        Ok(Box::new(Stream { header, taken: 0, running, _git: git }))
    })
}

struct Stream {
    header: Vec<u8>,
    taken: usize,
    running: Running,
    /// Keeps the repository until its pack is written.
    _git: Program,
}

impl Content for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.header[self.taken..];
        if left.is_empty() {
            return self.running.read(buffer).map_err(into_io);
        }
        let length = buffer.len().min(left.len());
        buffer[..length].copy_from_slice(&left[..length]);
        self.taken += length;
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        self.running.wait().map_err(into_io)?;
        Ok(Verdict::Consistent)
    }
}

/// Takes a bundle apart as it comes: its refs are kept, its pack goes on.
pub(super) struct Parts<W> {
    header: Vec<u8>,
    whole: bool,
    pack: W,
}

impl<W: Write> Parts<W> {
    pub fn new(pack: W) -> Self {
        Self { header: Vec::new(), whole: false, pack }
    }

    /// `None`: it was no bundle.
    pub fn finish(self) -> (Option<Refs>, W) {
        let refs = std::str::from_utf8(&self.header).ok().filter(|_| self.whole).and_then(parse);
        (refs, self.pack)
    }
}

impl<W: Write> Write for Parts<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.whole {
            return self.pack.write(bytes);
        }
        // The header ends with an empty line; look a byte back, it may lie between two pieces.
        let from = self.header.len().saturating_sub(1);
        self.header.extend_from_slice(bytes);
        if let Some(at) = self.header[from..].windows(2).position(|two| two == b"\n\n") {
            let pack = self.header.split_off(from + at + 2);
            self.whole = true;
            self.pack.write_all(&pack)?;
        } else if self.header.len() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a git bundle"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pack.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_taken_apart_however_it_comes() {
        for length in [40, 64] {
            let id = |digit: &str| digit.repeat(length);
            let refs = Refs::from([("refs/heads/main".into(), id("a")), ("refs/tags/v1".into(), id("b"))]);
            let bundle = [header(Some("refs/heads/main"), &refs).as_bytes(), b"PACK\n\nand so on"].concat();
            for piece in 1..bundle.len() {
                let mut parts = Parts::new(Vec::new());
                bundle.chunks(piece).for_each(|bytes| parts.write_all(bytes).unwrap());
                let (found, pack) = parts.finish();
                assert_eq!((found.as_ref(), &pack[..]), (Some(&refs), &b"PACK\n\nand so on"[..]));
            }
        }
        let mut parts = Parts::new(Vec::new());
        parts.write_all(b"something else\n\nPACK").unwrap();
        assert_eq!(parts.finish().0, None);
        let mut parts = Parts::new(Vec::new());
        parts.write_all(b"# v2 git bundle\n").unwrap();
        assert_eq!(parts.finish().0, None);
    }
}
