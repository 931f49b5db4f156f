//! Chunks in memory, within a budget. Pure: no clock, no task.
//!
//! What was read ahead and not read yet is worth more than what was read: it was paid for and is about to be used. So
//! chunks that were read go first, least recently used first, and only then unread ones, oldest first.

use std::collections::HashMap;

use bytes::Bytes;
use lru::LruCache;

use super::content::{ChunkKey, OwnerId};

/// What a chunk costs beside its bytes, in bytes: key, links, and the header of its buffer.
///
/// It also bounds how many chunks of tiny files are kept.
pub(super) const ENTRY_BYTES: u64 = 256;

/// Chunks in memory.
#[derive(Debug)]
pub(super) struct Memory {
    read: LruCache<ChunkKey, Bytes>,
    unread: LruCache<ChunkKey, (Bytes, OwnerId)>,
    bytes: u64,
    unread_bytes: HashMap<OwnerId, u64>,
    unread_bytes_total: u64,
    wasted_chunks: u64,
}

/// What a chunk counts for, in bytes.
const fn cost(bytes: &Bytes) -> u64 {
    bytes.len() as u64 + ENTRY_BYTES
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            read: LruCache::unbounded(),
            unread: LruCache::unbounded(),
            bytes: 0,
            unread_bytes: HashMap::new(),
            unread_bytes_total: 0,
            wasted_chunks: 0,
        }
    }

    /// Everything held, in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn chunks(&self) -> usize {
        self.read.len() + self.unread.len()
    }

    /// What was read ahead and not read yet, in bytes.
    pub(super) const fn unread_bytes(&self) -> u64 {
        self.unread_bytes_total
    }

    /// The same for one owner.
    pub(super) fn unread_bytes_of(&self, owner: OwnerId) -> u64 {
        self.unread_bytes.get(&owner).copied().unwrap_or(0)
    }

    /// Those who have unread chunks here.
    pub(super) fn owners(&self) -> impl Iterator<Item = OwnerId> {
        self.unread_bytes.keys().copied()
    }

    /// Chunks that were read ahead and left before anybody read them.
    pub(super) const fn wasted_chunks(&self) -> u64 {
        self.wasted_chunks
    }

    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.read.contains(key) || self.unread.contains(key)
    }

    /// A chunk for a reader; it counts as read from now on.
    pub(super) fn get(&mut self, key: &ChunkKey) -> Option<Bytes> {
        if let Some(bytes) = self.read.get(key) {
            return Some(bytes.clone());
        }
        let bytes = self.take_unread(key)?;
        self.read.put(*key, bytes.clone());
        Some(bytes)
    }

    /// Keeps a chunk: for the reader who has it, or unread for the owner who asked for it ahead.
    pub(super) fn insert(&mut self, key: ChunkKey, bytes: Bytes, unread_for: Option<OwnerId>) {
        self.remove(&key);
        self.bytes += cost(&bytes);
        match unread_for {
            Some(owner) => {
                *self.unread_bytes.entry(owner).or_default() += cost(&bytes);
                self.unread_bytes_total += cost(&bytes);
                self.unread.put(key, (bytes, owner));
            }
            None => drop(self.read.put(key, bytes)),
        }
    }

    /// Lets the unread chunks of an owner go first from now on: nobody will come for them.
    pub(super) fn give_up(&mut self, wanted: impl Fn(OwnerId) -> bool) {
        let keys: Vec<ChunkKey> =
            self.unread.iter().filter(|(_, (_, o))| wanted(*o)).map(|(k, _)| *k).collect();
        for key in keys {
            if let Some(bytes) = self.take_unread(&key) {
                self.wasted_chunks += 1;
                self.read.put(key, bytes);
                self.read.demote(&key);
            }
        }
    }

    /// Makes room until at most `bytes` are held; what went is added to `evicted`.
    pub(super) fn evict_to(&mut self, bytes: u64, evicted: &mut Vec<Bytes>) {
        while self.bytes > bytes {
            let gone = match self.read.pop_lru() {
                Some((_, gone)) => gone,
                None => match self.unread.peek_lru().map(|(key, _)| *key) {
                    Some(key) => {
                        self.wasted_chunks += 1;
                        self.take_unread(&key).expect("it was there a moment ago")
                    }
                    None => break,
                },
            };
            self.bytes -= cost(&gone);
            evicted.push(gone);
        }
    }

    fn remove(&mut self, key: &ChunkKey) {
        if let Some(bytes) = self.read.pop(key).or_else(|| self.take_unread(key)) {
            self.bytes -= cost(&bytes);
        }
    }

    fn take_unread(&mut self, key: &ChunkKey) -> Option<Bytes> {
        let (bytes, owner) = self.unread.pop(key)?;
        self.unread_bytes_total -= cost(&bytes);
        let left = self.unread_bytes.get_mut(&owner).expect("every unread chunk is counted for its owner");
        *left -= cost(&bytes);
        if *left == 0 {
            self.unread_bytes.remove(&owner);
        }
        Some(bytes)
    }
}
