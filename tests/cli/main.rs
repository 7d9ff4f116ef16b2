//! The real program, in directories of its own: what a newcomer does, what goes wrong, and what it says then.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod interrupt;
mod keys;
mod locked;
mod output;
mod restore;
mod status;
mod world;
