//! The words that sources and the repository share: what one captured thing is ([`Entry`]), how its bytes are read
//! ([`Open`], [`Content`]) and how they should be cut ([`Layout`]). No I/O happens here.

use std::io;

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
