//! The bytes of one file, read straight into the caller's buffer.

use crate::entry::{Content, Fingerprint, Verdict};
use rustix::fs::{self, Advice, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

const BIG: u64 = 1 << 20;

struct FileContent {
    file: OwnedFd,
    seen: Fingerprint,
    /// Not read yet, of the size that the walk saw: a file that grows without end is read to there only.
    left: u64,
}

/// Opens the file that the walk saw. Never blocks on what has become a fifo, and never follows a link.
pub fn open(directory: &OwnedFd, name: &CStr, seen: Fingerprint) -> io::Result<Box<dyn Content>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match fs::openat(directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => fs::openat(directory, name, flags, Mode::empty()),
        other => other,
    };
    let file = file.map_err(|error| match error {
        Errno::NOENT => io::Error::new(io::ErrorKind::NotFound, "it vanished before it was read"),
        Errno::LOOP => io::Error::other("it became a symbolic link before it was read"),
        error => error.into(),
    })?;
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it was no longer a regular file when it was read"));
    }
    if seen.size >= BIG {
        let _ = fs::fadvise(&file, 0, None, Advice::Sequential); // advice only
    }
    Ok(Box::new(FileContent { file, seen, left: seen.size }))
}

impl Content for FileContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = loop {
            match rustix::io::read(&self.file, &mut buffer[..want]) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        self.left = if got == 0 { 0 } else { self.left - got as u64 };
        Ok(got)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        let stat = fs::fstat(&self.file)?;
        let now = Fingerprint {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec as u32),
            inode: stat.st_ino,
        };
        Ok(if now == self.seen {
            Verdict::Consistent
        } else if now.inode != self.seen.inode {
            Verdict::Changed("it was replaced by another file before it was read".to_owned())
        } else if now.size != self.seen.size {
            Verdict::Changed(format!("its size changed from {} to {} while it was read", self.seen.size, now.size))
        } else if now.mtime_ns != self.seen.mtime_ns {
            Verdict::Changed("it was written to while it was read".to_owned())
        } else {
            Verdict::Changed("its metadata changed while it was read".to_owned())
        })
    }
}

pub fn nanoseconds(seconds: i64, nanoseconds: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds))
}
