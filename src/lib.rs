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
//! An import points downwards only; `tests/layers.rs` parses the sources and keeps it so. `agent` and `drill` do not exist
//! yet. One backup passes through the layers like this: a command (`cli`) reads documents (`config`), `backup` begins a
//! snapshot (`repo`) and lets a `source` fill it, `policy` judges the capture, the snapshot commits, and all objects go
//! through one narrow interface (`store`). A restore reads a snapshot (`repo`) and puts it on disk (`restore`).
//!
//! What carries the rest:
//! 1. Plans are data: retention, sweeping and restore plans are resolved first, printed by a dry run, then carried out.
//! 2. Order is a property of types: committing consumes the writer, and a snapshot exists when its manifest does.
//! 3. Nothing that is read is believed: signatures, digests and keyed ids are checked, and an error names the object.
//!
//! The repository, byte by byte, and its threat model: `docs/format.md`.

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
