//! What is decided, without deciding it twice: tiers, timetables, retention, the regression guard, objectives.
//!
//! Invariants: everything here is a pure function of its arguments; no clock, no I/O, no store.
//! Deliberately absent: how documents spell these values (`config`), and carrying any of it out.

pub mod duration;
pub mod guard;
mod moment;
pub mod objective;
pub mod retention;
pub mod schedule;
mod tier;

pub use tier::Tier;
