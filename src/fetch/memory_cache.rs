//! Cache of chunks in memory within a budget. Pure: no clock, no task.
//!
//! A chunk counts its own bytes. A chunk that shares the buffer of a run keeps the whole buffer alive, but
//! the chunks of a run are read and evicted one after another.
//!
//! Unread read-ahead is worth more than chunks that were read: it was paid for and is about to be used. So
//! read chunks are evicted first, least recently used first, then unread ones, oldest first. Chunks that a
//! reader has consumed in a file larger than the budget go before all others, and their number is bounded.
//! A second pass through such a file would find none of them anyway.

use std::collections::HashMap;

use lru::LruCache;

use super::content::{ChunkKey, StreamId};
use crate::chunk::RunSlice;

/// Overhead of a chunk in bytes: key, links, and the header of its buffer.
///
/// It also bounds the number of chunks of tiny files.
pub(super) const ENTRY_BYTES: u64 = 256;

/// The cache.
#[derive(Debug)]
pub(super) struct MemoryCache {
    read: LruCache<ChunkKey, RunSlice>,
    unread: LruCache<ChunkKey, (RunSlice, StreamId)>,
    consumed: LruCache<ChunkKey, RunSlice>,
    consumed_bytes: u64,
    bytes: u64,
    unread_bytes: HashMap<StreamId, u64>,
    unread_bytes_total: u64,
    wasted_chunks: u64,
}

/// Returns the cost of a chunk in bytes.
const fn cost(chunk: &RunSlice) -> u64 {
    chunk.bytes().len() as u64 + ENTRY_BYTES
}

impl MemoryCache {
    pub(super) fn new() -> Self {
        Self {
            read: LruCache::unbounded(),
            unread: LruCache::unbounded(),
            consumed: LruCache::unbounded(),
            consumed_bytes: 0,
            bytes: 0,
            unread_bytes: HashMap::new(),
            unread_bytes_total: 0,
            wasted_chunks: 0,
        }
    }

    /// Returns the bytes of all chunks.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn chunks(&self) -> usize {
        self.read.len() + self.unread.len() + self.consumed.len()
    }

    /// Returns the bytes of unread chunks.
    pub(super) const fn unread_bytes(&self) -> u64 {
        self.unread_bytes_total
    }

    /// Returns the bytes of unread chunks of one stream.
    pub(super) fn unread_bytes_of(&self, stream: StreamId) -> u64 {
        self.unread_bytes.get(&stream).copied().unwrap_or(0)
    }

    /// Returns the streams with unread chunks.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.unread_bytes.keys().copied()
    }

    /// Returns the number of chunks that were read ahead and evicted unread.
    pub(super) const fn wasted_chunks(&self) -> u64 {
        self.wasted_chunks
    }

    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.read.contains(key) || self.unread.contains(key) || self.consumed.contains(key)
    }

    /// Returns a chunk for a reader and marks it as read.
    pub(super) fn get(&mut self, key: &ChunkKey) -> Option<RunSlice> {
        if let Some(chunk) = self.read.get(key) {
            return Some(chunk.clone());
        }
        let chunk = self.take_unread(key).or_else(|| self.take_consumed(key))?;
        self.read.put(*key, chunk.clone());
        Some(chunk)
    }

    /// Moves a read chunk to the front of the eviction order, because its reader has consumed it.
    pub(super) fn mark_consumed(&mut self, key: &ChunkKey) {
        if let Some(chunk) = self.read.pop(key) {
            self.consumed_bytes += cost(&chunk);
            self.consumed.put(*key, chunk);
        }
    }

    /// Evicts consumed chunks down to `bytes` and appends them to `evicted`.
    pub(super) fn evict_consumed_to(&mut self, bytes: u64, evicted: &mut Vec<RunSlice>) {
        while self.consumed_bytes > bytes
            && let Some(gone) = self.pop_consumed()
        {
            self.bytes -= cost(&gone);
            evicted.push(gone);
        }
    }

    /// Adds a chunk: read, or unread for the stream that requested it ahead.
    pub(super) fn insert(&mut self, key: ChunkKey, chunk: RunSlice, unread_for: Option<StreamId>) {
        self.remove(&key);
        self.bytes += cost(&chunk);
        match unread_for {
            Some(stream) => {
                *self.unread_bytes.entry(stream).or_default() += cost(&chunk);
                self.unread_bytes_total += cost(&chunk);
                self.unread.put(key, (chunk, stream));
            }
            None => drop(self.read.put(key, chunk)),
        }
    }

    /// Moves the unread chunks of cancelled streams to the front of the eviction order.
    pub(super) fn demote(&mut self, wanted: impl Fn(StreamId) -> bool) {
        let keys: Vec<ChunkKey> =
            self.unread.iter().filter(|(_, (_, o))| wanted(*o)).map(|(k, _)| *k).collect();
        for key in keys {
            if let Some(chunk) = self.take_unread(&key) {
                self.wasted_chunks += 1;
                self.read.put(key, chunk);
                self.read.demote(&key);
            }
        }
    }

    /// Evicts chunks down to `bytes` and appends them to `evicted`.
    pub(super) fn evict_to(&mut self, bytes: u64, evicted: &mut Vec<RunSlice>) {
        while self.bytes > bytes {
            let read = self.pop_consumed().or_else(|| self.read.pop_lru().map(|(_, gone)| gone));
            let gone = match read {
                Some(gone) => gone,
                None => match self.unread.peek_lru().map(|(key, _)| *key) {
                    Some(key) => {
                        self.wasted_chunks += 1;
                        self.take_unread(&key).expect("the chunk was just found")
                    }
                    None => break,
                },
            };
            self.bytes -= cost(&gone);
            evicted.push(gone);
        }
    }

    fn remove(&mut self, key: &ChunkKey) {
        let read = self.read.pop(key).or_else(|| self.take_consumed(key));
        if let Some(chunk) = read.or_else(|| self.take_unread(key)) {
            self.bytes -= cost(&chunk);
        }
    }

    fn take_consumed(&mut self, key: &ChunkKey) -> Option<RunSlice> {
        let chunk = self.consumed.pop(key)?;
        self.consumed_bytes -= cost(&chunk);
        Some(chunk)
    }

    fn pop_consumed(&mut self) -> Option<RunSlice> {
        let (_, chunk) = self.consumed.pop_lru()?;
        self.consumed_bytes -= cost(&chunk);
        Some(chunk)
    }

    fn take_unread(&mut self, key: &ChunkKey) -> Option<RunSlice> {
        let (chunk, stream) = self.unread.pop(key)?;
        self.unread_bytes_total -= cost(&chunk);
        let left = self.unread_bytes.get_mut(&stream).expect("every unread chunk is counted for its stream");
        *left -= cost(&chunk);
        if *left == 0 {
            self.unread_bytes.remove(&stream);
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::FileKey;
    use crate::chunk::ChunkIndex;

    fn key(index: u64) -> ChunkKey {
        ChunkKey { file: FileKey::from_bytes([0; 32]), settled: true, epoch: 0, index: ChunkIndex(index) }
    }

    const fn stream(handle: u64) -> StreamId {
        StreamId { handle, cursor: 0 }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert { index: u64, len: usize, unread_for: Option<u64> },
        Get(u64),
        GiveUp(u64),
        Pass(u64),
        EvictPassedTo(u64),
        EvictTo(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..30u64, 0..2000usize, prop::option::of(0..3u64))
                .prop_map(|(index, len, unread_for)| Op::Insert { index, len, unread_for }),
            4 => (0..30u64).prop_map(Op::Get),
            1 => (0..3u64).prop_map(Op::GiveUp),
            2 => (0..30u64).prop_map(Op::Pass),
            1 => (0..5_000u64).prop_map(Op::EvictPassedTo),
            2 => (0..20_000u64).prop_map(Op::EvictTo),
        ]
    }

    /// Naive model: entries in the order of eviction, consumed ones first, unread ones last.
    #[derive(Default)]
    struct Model {
        consumed: Vec<(u64, u64)>,
        read: Vec<(u64, u64)>,
        unread: Vec<(u64, u64, u64)>,
    }

    impl Model {
        fn remove(&mut self, index: u64) -> Option<u64> {
            if let Some(at) = self.read.iter().position(|(other, _)| *other == index) {
                return Some(self.read.remove(at).1);
            }
            if let Some(at) = self.consumed.iter().position(|(other, _)| *other == index) {
                return Some(self.consumed.remove(at).1);
            }
            let at = self.unread.iter().position(|(other, ..)| *other == index)?;
            Some(self.unread.remove(at).1)
        }

        fn bytes(&self) -> u64 {
            let read = self.read.iter().chain(&self.consumed).map(|(_, cost)| cost).sum::<u64>();
            read + self.unread_bytes(|_| true)
        }

        fn unread_bytes(&self, of: impl Fn(u64) -> bool) -> u64 {
            self.unread.iter().filter(|(.., stream)| of(*stream)).map(|(_, cost, _)| cost).sum()
        }

        fn apply(&mut self, op: &Op) {
            match *op {
                Op::Insert { index, len, unread_for } => {
                    self.remove(index);
                    let cost = len as u64 + ENTRY_BYTES;
                    match unread_for {
                        Some(stream) => self.unread.push((index, cost, stream)),
                        None => self.read.push((index, cost)),
                    }
                }
                Op::Get(index) => {
                    if let Some(cost) = self.remove(index) {
                        self.read.push((index, cost));
                    }
                }
                Op::GiveUp(stream) => {
                    let (gone, kept): (Vec<_>, Vec<_>) =
                        self.unread.drain(..).partition(|(.., other)| *other == stream);
                    self.unread = kept;
                    let gone = gone.into_iter().map(|(index, cost, _)| (index, cost));
                    self.read.splice(0..0, gone);
                }
                Op::Pass(index) => {
                    if let Some(at) = self.read.iter().position(|(other, _)| *other == index) {
                        self.consumed.push(self.read.remove(at));
                    }
                }
                Op::EvictPassedTo(bytes) => {
                    while self.consumed.iter().map(|(_, cost)| cost).sum::<u64>() > bytes {
                        self.consumed.remove(0);
                    }
                }
                Op::EvictTo(bytes) => {
                    while self.bytes() > bytes {
                        if !self.consumed.is_empty() {
                            self.consumed.remove(0);
                        } else if self.read.is_empty() {
                            self.unread.remove(0);
                        } else {
                            self.read.remove(0);
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_cache_agrees_with_the_model(ops in prop::collection::vec(op(), 0..200)) {
            let (mut memory, mut model) = (MemoryCache::new(), Model::default());
            for op in ops {
                match &op {
                    Op::Insert { index, len, unread_for } => {
                        memory.insert(key(*index), Bytes::from(vec![0; *len]).into(), unread_for.map(stream));
                    }
                    Op::Get(index) => {
                        let there = memory.contains(&key(*index));
                        prop_assert_eq!(memory.get(&key(*index)).is_some(), there);
                    }
                    Op::GiveUp(handle) => memory.demote(|other| other == stream(*handle)),
                    Op::Pass(index) => memory.mark_consumed(&key(*index)),
                    Op::EvictPassedTo(bytes) => memory.evict_consumed_to(*bytes, &mut Vec::new()),
                    Op::EvictTo(bytes) => {
                        let (before, mut evicted) = (memory.chunks(), Vec::new());
                        memory.evict_to(*bytes, &mut evicted);
                        prop_assert!(memory.bytes() <= *bytes);
                        prop_assert_eq!(before - memory.chunks(), evicted.len());
                    }
                }
                model.apply(&op);
                prop_assert_eq!(memory.bytes(), model.bytes());
                prop_assert_eq!(memory.unread_bytes(), model.unread_bytes(|_| true));
                for handle in 0..3 {
                    let of_owner = model.unread_bytes(|other| other == handle);
                    prop_assert_eq!(memory.unread_bytes_of(stream(handle)), of_owner);
                    prop_assert_eq!(memory.streams().any(|other| other == stream(handle)), of_owner > 0);
                }
                for index in 0..30 {
                    let there = model.read.iter().chain(&model.consumed).any(|(other, _)| *other == index)
                        || model.unread.iter().any(|(other, ..)| *other == index);
                    prop_assert_eq!(memory.contains(&key(index)), there, "chunk {}", index);
                }
            }
        }
    }

    #[test]
    fn read_chunks_are_evicted_before_unread_ones() {
        let mut memory = MemoryCache::new();
        let chunk = RunSlice::from(Bytes::from(vec![0; 1000]));
        memory.insert(key(0), chunk.clone(), Some(stream(0)));
        memory.insert(key(1), chunk.clone(), None);
        let mut evicted = Vec::new();
        memory.evict_to(1000 + ENTRY_BYTES, &mut evicted);
        assert!(memory.contains(&key(0)) && !memory.contains(&key(1)));
        assert_eq!(memory.wasted_chunks(), 0);
        memory.evict_to(0, &mut evicted);
        assert_eq!((memory.wasted_chunks(), evicted.len()), (1, 2));
    }
}
