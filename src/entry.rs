//! The words that sources and the repository share: what one captured thing is ([`Entry`]), how its bytes are read
//! ([`Open`], [`Content`]) and how they should be cut ([`Layout`]). No I/O happens here.

use std::io;

/// The detail that says which version of a system was captured.
pub const VERSION: &str = "version";

/// What an entry is. The numbers are part of the repository format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Kind {
    #[n(0)]
    File,
    #[n(1)]
    Directory,
    #[n(2)]
    Symlink,
    /// A further name of a file that appears earlier in the same snapshot; `link` is that earlier path.
    #[n(3)]
    Hardlink,
    #[n(4)]
    Fifo,
    #[n(5)]
    CharDevice,
    #[n(6)]
    BlockDevice,
    #[n(7)]
    Socket,
}

/// An extended attribute, in the kernel's own bytes (POSIX ACLs are `system.posix_acl_access` and `…_default`).
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Xattr {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
}

/// One captured thing and its metadata, without its content.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Entry {
    /// Path below the source's root, `/`-separated raw bytes, never empty, no leading slash, no `.` or `..` parts.
    /// The root directory itself, where a source has one, is the entry `.`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub path: Vec<u8>,
    #[n(1)]
    pub kind: Kind,
    /// Permission bits including set-uid, set-gid and sticky (`st_mode & 0o7777`).
    #[n(2)]
    pub mode: u32,
    #[n(3)]
    pub uid: u32,
    #[n(4)]
    pub gid: u32,
    /// Modification time, nanoseconds since the Unix epoch.
    #[n(5)]
    pub mtime_ns: i64,
    /// Bytes of content; 0 for everything but files.
    #[n(6)]
    pub size: u64,
    /// Target of a symlink, or earlier path of a hard link.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub link: Option<Vec<u8>>,
    /// Device number of a device node.
    #[n(8)]
    pub rdev: Option<u64>,
    #[n(9)]
    pub xattrs: Option<Vec<Xattr>>,
    /// True when the file had holes: restore leaves runs of zero bytes unallocated.
    #[n(10)]
    pub sparse: Option<bool>,
}

/// What identifies an unchanged file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inode: u64,
}

/// How content is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Content-defined chunks (FastCDC): files and streams.
    Content,
    /// The same, but small: a sequence of records in a stable order, some of which change (Vault's state, a dump).
    Records,
    /// Fixed pages of this many bytes, compared by position: database page files.
    Pages(u32),
}

/// What the reader of an entry's content found out by the time it reached the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was read is one consistent state.
    Consistent,
    /// The content changed while it was read; the text says how.
    Changed(String),
}

/// The bytes of one entry, read once from start to end.
pub trait Content: Send {
    /// As [`io::Read::read`].
    ///
    /// # Errors
    /// Whatever kept the source from giving its next bytes.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Called once, after the end was reached.
    ///
    /// # Errors
    /// The capture is not to be trusted (a child process failed, a digest did not match).
    fn finish(self: Box<Self>) -> io::Result<Verdict>;
}

/// Opens an entry's content, on whichever thread reads it.
pub type Open = Box<dyn FnOnce() -> io::Result<Box<dyn Content>> + Send>;

/// What becomes of the snapshot when an entry's content cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The entry is left out and reported; the snapshot is incomplete (exit code 3).
    Report,
    /// Nothing is committed.
    Fail,
}

/// The content of an entry, not read yet.
pub struct Input {
    pub layout: Layout,
    /// Lets the repository skip an unchanged file; `None` always reads.
    pub fingerprint: Option<Fingerprint>,
    pub on_error: OnError,
    pub open: Open,
}

/// Something that could not be captured, or not consistently.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Problem {
    /// Path below the source's root; empty for the source as a whole.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub path: Vec<u8>,
    #[n(1)]
    pub text: String,
}

impl Problem {
    /// A file of which the repository has lost a part: with holes where its content should be, it would be taken for the file.
    pub fn lost(path: Vec<u8>, error: &dyn std::fmt::Display) -> Self {
        Self { path, text: format!("left out, since the repository has lost a part of it: {error}") }
    }

    /// A further name of such a file.
    #[must_use]
    pub fn link_to_lost(path: Vec<u8>) -> Self {
        Self { path, text: "left out with the file that it is a further name of".into() }
    }
}

/// The run has already failed elsewhere; its own error says why. Stop capturing.
#[derive(Debug, thiserror::Error)]
#[error("the run was stopped")]
pub struct Stopped;

/// Takes what a source captures, in any order that puts a directory before its content and a file before its hard
/// links. Blocks while the repository is behind.
pub trait Sink {
    /// # Errors
    /// [`Stopped`]: give up at once.
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped>;

    fn problem(&mut self, problem: Problem);
}

/// The content of an entry that a snapshot holds.
pub trait Body {
    /// Writes all of it to `out`, checked against the repository's ids. Blocks.
    ///
    /// # Errors
    /// The repository's, wrapped, or `out`'s own.
    fn copy(&self, out: &mut dyn io::Write) -> io::Result<()>;

    /// Whether such an error is of this content alone: the repository has lost a part of it.
    fn is_lost(&self, _error: &io::Error) -> bool {
        false
    }
}

/// What [`Supply::entries`] calls for each entry.
pub type Visit<'a> = dyn FnMut(&Entry, &dyn Body) -> io::Result<()> + 'a;

/// Gives what a snapshot holds to whoever brings it back; the other direction of [`Sink`].
pub trait Supply {
    fn facts(&self) -> &Facts;

    /// Gives every entry that was asked for, in the order of capture. Blocks.
    ///
    /// # Errors
    /// The repository's, wrapped, or the visitor's own.
    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()>;
}

/// What a capture says about itself. The regression guard compares it with the previous snapshot's.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode, serde::Serialize)]
pub struct Facts {
    /// Identity of what was captured (etcd cluster id, PostgreSQL system identifier): it must not change.
    #[n(0)]
    pub system: Option<String>,
    /// A number that only grows (etcd revision, Vault index, Terraform serial).
    #[n(1)]
    pub position: Option<u64>,
    /// How many things the system holds (keys, objects, files).
    #[n(2)]
    pub objects: Option<u64>,
    /// The moment that the data represents, Unix milliseconds, if the source knows better than the start of the run.
    #[n(3)]
    pub recovery_point_ms: Option<i64>,
    /// Anything else worth showing, by name.
    #[n(4)]
    pub details: std::collections::BTreeMap<String, String>,
}

impl Facts {
    /// Of the captured system, where it was told.
    #[must_use]
    pub fn version(&self) -> &str {
        self.details.get(VERSION).map_or("?", String::as_str)
    }
}
