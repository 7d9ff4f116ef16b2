//! Up to when somebody who sends the files of a backup had certainly not sent them all, and so had not ended the backup:
//! when all but the last bytes had come, more than can be under way. What comes behind the files (a log) does not count.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// More bytes than are ever between the sender and here.
const UNDER_WAY: u64 = 64 << 20;

pub struct Clock {
    started: jiff::Timestamp,
    began: Instant,
    received: AtomicU64,
    sure: AtomicI64,
    newest: AtomicI64,
    stopped: AtomicBool,
}

impl Clock {
    /// `began` is the steady clock's moment of `started`.
    pub fn start(started: jiff::Timestamp, began: Instant) -> Self {
        let clock = Self {
            started,
            began,
            received: AtomicU64::new(0),
            sure: AtomicI64::new(0),
            newest: AtomicI64::new(0),
            stopped: AtomicBool::new(false),
        };
        clock.sure.store(clock.now(), Ordering::Relaxed);
        clock.newest.store(clock.now(), Ordering::Relaxed);
        clock
    }

    fn now(&self) -> i64 {
        let passed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.started.as_millisecond().saturating_add(passed)
    }

    /// So many bytes more have come.
    pub fn received(&self, bytes: usize) {
        let before = self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        if (before + bytes as u64) / UNDER_WAY > before / UNDER_WAY && !self.stopped.load(Ordering::Relaxed) {
            self.sure.store(self.newest.swap(self.now(), Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// What comes from here on does not count.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// In Unix milliseconds.
    pub fn sure(&self) -> i64 {
        self.sure.load(Ordering::Relaxed)
    }
}
