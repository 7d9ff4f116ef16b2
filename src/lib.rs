//! Lifeboat: backup and disaster recovery for Kubernetes platforms.
//!
//! ```text
//!  main → cli ───────────────┐
//!           └→ config    agent          one file per command; composition happens here
//!                 │        │
//!      drill → restore   backup         restore never meets the agent; backup never meets restore
//!                 └───┬────┘
//!             repo      source  policy  repo and source do not know each other; policy is pure
//!               │          │
//!             store      exec, secret
//!               └── id ────┘             entry: the words that sources and the repository share
//! ```
//! An import points downwards only; `tests/layers.rs` parses the sources and keeps it so.

pub mod backup;
pub mod cli;
pub mod config;
pub mod entry;
pub mod exec;
pub mod id;
pub mod policy;
pub mod repo;
pub mod restore;
pub mod secret;
pub mod source;
pub mod store;
