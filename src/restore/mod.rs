//! Bringing things back.

pub mod tree;
