//! The repository: independent lineages of immutable objects, one per source (`docs/format.md`).
//!
//! Invariants: an object is written once; a snapshot exists when its manifest exists, and that is written last; nothing a
//! snapshot names is removed while the snapshot stands. What a store says is not believed: manifests are signed, packs
//! are digested, contents are checked against their ids.
//! Deliberately absent: a global index, locks, any state outside the store.

mod assemble;
mod cache;
mod chunking;
mod codec;
mod epoch;
mod error;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod keys;
mod known;
mod lineage;
mod live;
mod manifest;
mod pack;
mod packer;
mod pipeline;
mod prune;
mod reader;
mod repair;
mod replicate;
mod root;
mod seal;
mod segment;
pub mod shares;
mod transfer;
mod verify;
mod writer;

pub use epoch::Access;
pub use error::{RepoError, Result};
pub use journal::{Journals, Written};
pub use keys::{KeeperKey, RootKey, WriterKey};
pub use lineage::{Lineage, Newest, Selector, Shared, Snapshot, SteppedOver};
pub use manifest::{Catalogue, Header, Manifest, PackRef, State};
pub use pipeline::Progress;
pub use prune::{Plan as PrunePlan, Pruned};
pub use reader::{Item, PART, Part, ReadError, Reader};
pub use repair::Mended;
pub use replicate::{Copying, Point, Replicated, Replicating, Replication};
pub use root::{FORMAT, Identity, Recipient, Role, Root, RootKeys};
pub use transfer::Locking;
pub use verify::{Depth, Finding, Verified, Verifying};
pub use writer::{Committed, Finished, Options, SnapshotWriter, Summary};

use crate::id::{Sequence, SourceName};
use crate::store::Store;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// An open repository.
#[derive(Clone, Debug)]
pub struct Repository {
    store: Arc<dyn Store>,
    root: Root,
}

/// A repository that does not exist yet. Its keys do, and can be saved before anything depends on them.
#[derive(Debug)]
pub struct Prepared {
    pub root: Root,
    pub keys: RootKeys,
    bytes: Bytes,
}

impl Prepared {
    /// # Errors
    /// As [`Root::prepare`].
    pub fn new(recipients: Vec<Recipient>, now: Timestamp) -> Result<Self> {
        let (root, keys, bytes) = Root::prepare(recipients, now)?;
        Ok(Self { root, keys, bytes })
    }

    /// # Errors
    /// As [`Root::create`].
    pub async fn create(self, store: Arc<dyn Store>) -> Result<(Repository, RootKeys)> {
        Root::create(store.as_ref(), self.bytes).await?;
        Ok((Repository { store, root: self.root }, self.keys))
    }
}

impl Repository {
    /// Makes a repository in an empty place, for whoever need not save the keys first.
    ///
    /// # Errors
    /// As [`Root::prepare`] and [`Root::create`].
    pub async fn create(store: Arc<dyn Store>, recipients: Vec<Recipient>, now: Timestamp) -> Result<(Self, RootKeys)> {
        Prepared::new(recipients, now)?.create(store).await
    }

    /// # Errors
    /// As [`Root::load`].
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let root = Root::load(store.as_ref()).await?;
        Ok(Self { store, root })
    }

    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The sources that have a lineage here, in order.
    ///
    /// # Errors
    /// The listing failed.
    pub async fn sources(&self) -> Result<Vec<SourceName>> {
        let roots = self.store.list_roots().await?;
        Ok(roots.iter().filter_map(|name| SourceName::from_str(name).ok()).collect())
    }

    /// A lineage, which need not exist yet.
    #[must_use]
    pub fn lineage(&self, source: &SourceName, access: Access) -> Lineage {
        Lineage::new(self.store.clone(), self.root.clone(), source.clone(), access)
    }

    /// The journals of restores.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity.
    pub fn journals(&self, identity: &Identity) -> Result<Journals> {
        let keys = self.root.unlock(identity)?;
        Ok(Journals::new(self.store.clone(), self.root.clone(), &keys.root))
    }

    /// Adds someone who can read everything, past snapshots included.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity; `Refused` for a bad recipient.
    pub async fn add_recipient(&self, identity: &Identity, recipient: Recipient, now: Timestamp) -> Result<Self> {
        let keys = self.root.unlock(identity)?;
        let mut recipients = self.root.recipients().to_vec();
        recipients.push(recipient.clone());
        // The root first: epochs that begin from now on include the recipient, the loop below covers those before.
        let root = self.root.set_recipients(self.store.as_ref(), &keys, recipients, now).await?;
        for source in self.sources().await? {
            epoch::add_recipient(self.store.as_ref(), &root, &source, identity, &recipient).await?;
        }
        Ok(Self { store: self.store.clone(), root })
    }

    /// Takes a recipient off the list: what is written under later epochs is not readable to them any more. What was
    /// written before stays so, since they may have copied the keys.
    ///
    /// # Errors
    /// As [`Repository::add_recipient`].
    pub async fn remove_recipient(&self, identity: &Identity, name: &str, now: Timestamp) -> Result<Self> {
        let keys = self.root.unlock(identity)?;
        let mut recipients = self.root.recipients().to_vec();
        let before = recipients.len();
        recipients.retain(|r| r.name != name);
        if recipients.len() == before {
            let known: Vec<_> = recipients.iter().map(|r| r.name.as_str()).collect();
            return Err(RepoError::Refused(format!("no recipient is named {name} (there are {})", known.join(", "))));
        }
        let root = self.root.set_recipients(self.store.as_ref(), &keys, recipients, now).await?;
        Ok(Self { store: self.store.clone(), root })
    }

    /// Replaces the writer key. Every lineage begins a new epoch, and a full snapshot, with its next backup; snapshots
    /// that the old key signs from now on do not count, nor does one that a run commits at this very moment: let no
    /// backup run meanwhile.
    ///
    /// # Errors
    /// `WrongKey` without a recovery identity.
    pub async fn rotate_writer(&self, identity: &Identity, now: Timestamp) -> Result<(Self, RootKeys)> {
        self.rotate_writer_until(identity, &BTreeMap::new(), now).await
    }

    /// Likewise. `until` gives the last snapshot of a source that still counts, if it is not the newest: those after it are
    /// taken for a thief's.
    ///
    /// # Errors
    /// As [`Repository::rotate_writer`]; `NoSnapshot`.
    pub async fn rotate_writer_until(
        &self,
        identity: &Identity,
        until: &BTreeMap<SourceName, Sequence>,
        now: Timestamp,
    ) -> Result<(Self, RootKeys)> {
        let keys = self.root.unlock(identity)?;
        let mut last = BTreeMap::new();
        for (source, sequence) in until {
            self.lineage(source, Access::None).find(&Selector::Number(*sequence)).await?;
        }
        for source in self.sources().await? {
            let newest = self.lineage(&source, Access::None).newest().await?;
            if let Some(sequence) = until.get(&source).copied().or(newest.highest()) {
                last.insert(source, sequence);
            }
        }
        let (root, keys) = self.root.rotate_writer(self.store.as_ref(), keys, last, now).await?;
        Ok((Self { store: self.store.clone(), root }, keys))
    }
}
