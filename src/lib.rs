//! Lifeboat.

pub mod entry;
pub mod id;
pub mod policy;
pub mod repo;
pub mod secret;
pub mod source;
// store
pub mod config;
pub mod exec;
