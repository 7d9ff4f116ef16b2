//! The real program against real servers. One test program, so that the many tests that wait do so side by side.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod endtoend;
mod support;
mod systems;
