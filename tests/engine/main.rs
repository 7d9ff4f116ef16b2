//! The repository engine against stores in memory: what goes in comes out, whatever happens in between.

#![allow(clippy::unwrap_used, reason = "a test that meets an error is to fail")]

mod crash;
mod model;
mod once;
mod repair;
mod replicate;
mod roundtrip;
mod trust;
mod world;
