//! The bytes of one file, read straight into the caller's buffer.

use crate::entry::{Content, Fingerprint, Verdict};
use rustix::fs::{self, Advice, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

const BIG: u64 = 1 << 20;

struct FileContent {
    file: OwnedFd,
    seen: Fingerprint,
    /// Not read yet, of the size that the walk saw: a file that grows without end is read to there only.
    left: u64,
}

/// Opens the files that a walk saw.
#[derive(Default)]
pub struct Opener {
    /// Others' files may not be read without a trace. One refusal speaks for all.
    traceless_refused: AtomicBool,
}

impl Opener {
    /// Never blocks on what has become a fifo, and never follows a link.
    pub fn open(&self, directory: &OwnedFd, name: &CStr, uid: u32, seen: Fingerprint) -> io::Result<Box<dyn Content>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let refused = self.traceless_refused.load(Ordering::Relaxed) && uid != rustix::process::geteuid().as_raw();
        let mut file = Err(Errno::PERM);
        if !refused {
            file = fs::openat(directory, name, flags | OFlags::NOATIME, Mode::empty());
        }
        if matches!(file, Err(Errno::PERM)) {
            self.traceless_refused.store(true, Ordering::Relaxed);
            file = fs::openat(directory, name, flags, Mode::empty());
        }
        let file = file.map_err(|error| match error {
            Errno::NOENT => io::Error::new(io::ErrorKind::NotFound, "it vanished before it was read"),
            Errno::LOOP => io::Error::other("it became a symbolic link before it was read"),
            error => error.into(),
        })?;
        if seen.size >= BIG {
            let _ = fs::fadvise(&file, 0, None, Advice::Sequential); // advice only
        }
        Ok(Box::new(FileContent { file, seen, left: seen.size }))
    }
}

impl Content for FileContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
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
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it was no longer a regular file when it was read"));
        }
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
