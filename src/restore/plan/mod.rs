//! Restore plans: what to bring back, in which order, and how to see that it is back.
//!
//! ```text
//!  documents ─► lint ─► resolve (pure: documents + snapshots + now) ─► Resolved | findings
//!                                                                         │
//!                                        journal ◄── execute ◄────────────┘   hands do one step at a time
//! ```
//! Invariants: every choice (which snapshot, which order) is made by [`resolve`] and is in the [`Resolved`] value, which
//! the journal keeps: an execution that goes on after it was killed, or on another machine, carries out the same value.
//! What a step is about to do that must be undone (a fence) is in the journal before it is done. Every step ends in the
//! same state when it is done again. A step that failed stops what depends on it, and fences stay closed: nothing that is
//! half restored is let go as if it were whole. Deliberately absent: continuous logs (a [`Point`] will be a moment inside
//! one), drills (the same plans with sandboxed targets).

pub mod document;
pub mod execute;
mod graph;
pub mod hands;
pub mod journal;
pub mod lint;
pub mod place;
pub mod report;
pub mod resolve;

pub use document::{Doing, Level, Plan, Step};
pub use resolve::{Point, Resolved, Task, World, resolve};

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Something that is wrong, or that somebody should know, about a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub file: PathBuf,
    /// Where the step begins that caused it.
    pub line: u64,
    /// The plan and the step, `PLAN/STEP`.
    pub what: String,
    pub text: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.file.display(), self.line)?;
        }
        write!(f, "{}: {}", self.what, self.text)
    }
}

/// From one moment to a later one; zero if a clock was set back in between.
#[must_use]
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
