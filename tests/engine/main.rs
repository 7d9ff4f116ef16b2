//! The repository engine against stores in memory: what goes in comes out, whatever happens in between.

mod crash;
mod model;
mod roundtrip;
mod trust;
mod world;
