//! Buffers of about a megabyte, used again: fresh memory costs a page fault for every 4 KiB.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers kept for the next one who needs one.
const SPARE: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Pool {
    spare: Mutex<Vec<Vec<u8>>>,
    /// What a new buffer has room for: buffers of one size leave no holes in the heap.
    capacity: usize,
}

impl Pool {
    pub fn new(capacity: usize) -> Self {
        Self { spare: Mutex::default(), capacity }
    }

    /// A buffer of any capacity, holding what it held before.
    pub fn take(&self) -> Vec<u8> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(self.capacity))
    }

    pub fn take_empty(&self) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.clear();
        buffer
    }

    pub fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE && buffer.capacity() > 0 {
            spare.push(buffer);
        }
    }
}

/// A buffer that goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Pooled {
    pub fn new(bytes: Vec<u8>, pool: &Arc<Pool>) -> Self {
        Self { bytes, pool: Arc::clone(pool) }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.bytes));
    }
}

impl Deref for Pooled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
