//! Values that several threads need at about the same time: made once, kept while there is room.

use crate::repo::error::Result;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

type Slot<V> = Arc<OnceCell<(Arc<V>, usize)>>;

struct Inner<K, V> {
    slots: HashMap<K, Slot<V>>,
    /// Oldest first.
    order: VecDeque<K>,
    held: usize,
}

/// Oldest out first: readers go forward, so what was needed long ago is not needed again.
pub(crate) struct Cache<K, V> {
    limit: usize,
    inner: Mutex<Inner<K, V>>,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    /// Keeps values of `limit` bytes in all.
    pub fn new(limit: usize) -> Self {
        let inner = Inner { slots: HashMap::new(), order: VecDeque::new(), held: 0 };
        Self { limit, inner: Mutex::new(inner) }
    }

    /// The value of `key`, made by `make` (value, bytes) if nobody has it. A failure is not kept.
    pub async fn get<M, F>(&self, key: K, make: M) -> Result<Arc<V>>
    where
        M: FnOnce() -> F,
        F: Future<Output = Result<(V, usize)>>,
    {
        let slot = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.slots.entry(key).or_default().clone()
        };
        let mut fresh = None;
        let (value, _) = slot
            .get_or_try_init(|| async {
                let (value, bytes) = make().await?;
                fresh = Some(bytes);
                Ok::<_, crate::repo::error::RepoError>((Arc::new(value), bytes))
            })
            .await?;
        if let Some(bytes) = fresh {
            self.keep(key, bytes);
        }
        Ok(value.clone())
    }

    /// Whether somebody has it, or is at it.
    pub fn holds(&self, key: K) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).slots.contains_key(&key)
    }

    /// Drops a value that nobody will ask for again.
    pub fn forget(&self, key: K) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is in line it is not counted either.
        if let Some(at) = inner.order.iter().position(|held| *held == key) {
            inner.order.remove(at);
            let gone = inner.slots.remove(&key);
            inner.held -= gone.and_then(|slot| slot.get().map(|(_, bytes)| *bytes)).unwrap_or(0);
        }
    }

    fn keep(&self, key: K, bytes: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.held += bytes;
        inner.order.push_back(key);
        while inner.held > self.limit && inner.order.len() > 1 {
            let Some(oldest) = inner.order.pop_front() else { break };
            let gone = inner.slots.remove(&oldest);
            inner.held -= gone.and_then(|slot| slot.get().map(|(_, bytes)| *bytes)).unwrap_or(0);
        }
    }
}
