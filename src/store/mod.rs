//! Objects: the narrow interface between the repository and wherever it is kept.
//!
//! Invariants every store keeps, and [`conformance`] checks: an object is created once and never overwritten
//! (`AlreadyExists`), appears whole or not at all, and is durable when the call that wrote it returns; a listing is
//! ordered by key and sees every object whose write has returned; a ranged read returns exactly what was asked or fails.
//! Deliberately absent: rename, append, overwrite.

pub mod conformance;
mod error;
mod faulty;
mod key;
mod limit;
mod local;
mod location;
mod memory;
pub(crate) mod pool;
mod read_only;
mod retry;
pub mod s3;

pub use error::{StoreError, StoreErrorKind};
pub use faulty::{Corruption, Fault, Faults, Faulty};
pub use limit::{Limited, Rates};
pub use local::Local;
pub use location::{Location, LocationError};
pub use memory::Memory;
pub use read_only::ReadOnly;
pub use retry::{RetryPolicy, Retrying};
pub use s3::S3;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a store says of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    pub key: String,
    pub size: u64,
    /// When the store took the object, by the store's own clock.
    pub modified: Timestamp,
}

/// How an object is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Refuse deletion before this moment (Object Lock); ignored by stores whose [`Features::lock`] is false.
    pub retain_until: Option<Timestamp>,
}

/// What a store can do beyond the contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `retain_until` is honoured.
    pub lock: bool,
    /// Older versions survive deletes and overwrites, and reads return the first version of a name.
    pub versions: bool,
}

/// No object that is read as a whole is larger (`docs/format.md`, "Limits"); what is larger is read by ranges.
pub const MAX_WHOLE: u64 = 128 << 20;

/// A place for objects. Keys are `/`-separated ASCII paths relative to the store's own prefix.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Where this is, for messages; never holds a secret.
    fn url(&self) -> String;

    fn features(&self) -> Features;

    /// Creates `key` with `body`.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is taken, whatever it holds.
    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<()>;

    /// Begins an object that is written piece by piece, so that a pack is never whole in memory.
    async fn upload(&self, key: &str, options: PutOptions) -> Result<Box<dyn Upload>>;

    /// Reads a whole object.
    ///
    /// # Errors
    /// `NotFound`; `TooLarge` above [`MAX_WHOLE`], before anything is allocated.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// Reads exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound`; `Truncated` if the object ends earlier.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// # Errors
    /// `NotFound`.
    async fn head(&self, key: &str) -> Result<ObjectMeta>;

    /// Objects whose key begins with `prefix` and sorts after `after`, in key order, at most `limit`.
    /// Fewer than `limit` means there are no more.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>>;

    /// The distinct first path parts at the top of the store that hold further objects, in order.
    async fn list_roots(&self) -> Result<Vec<String>>;

    /// Removes an object for good, all its versions; removing what is not there is fine.
    ///
    /// # Errors
    /// `Locked` while a retention date stands.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Moves an object's retention date to `until`, never backwards. Without lock support this does nothing.
    async fn retain(&self, key: &str, until: Timestamp) -> Result<()>;
}

/// An object being written. Dropping it without [`Upload::finish`] leaves nothing visible under its key.
#[async_trait]
pub trait Upload: Send {
    async fn write(&mut self, piece: Bytes) -> Result<()>;

    /// Makes the object visible, create-only.
    async fn finish(self: Box<Self>) -> Result<()>;

    /// Gives the object up and removes what was sent of it.
    async fn abort(self: Box<Self>);
}

/// Every object below `prefix`, page by page.
///
/// # Errors
/// The first listing that fails.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<ObjectMeta>> {
    // A directory is read anew for each page.
    const PAGE: usize = 10_000;
    let mut all: Vec<ObjectMeta> = Vec::new();
    loop {
        let page = store.list(prefix, all.last().map(|o| o.key.as_str()), PAGE).await?;
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}
