//! Chunks in memory, within a budget. Pure: no clock, no task.
//!
//! A chunk counts for its own bytes. One that was laid down in a run with its neighbours keeps the run, and they are read, and go, one after
//! the other.
//!
//! What was read ahead and not read yet is worth more than what was read: it was paid for and is about to be used. So
//! chunks that were read go first, least recently used first, and only then unread ones, oldest first. What a reader has passed in a file that
//! does not fit goes before all others, and there is never much of it: were the file read anew from its beginning, nothing of that would be left.

use std::collections::HashMap;

use lru::LruCache;

use super::content::{ChunkKey, OwnerId};
use crate::chunk::Laid;

/// What a chunk costs beside its bytes, in bytes: key, links, and the header of its buffer.
///
/// It also bounds how many chunks of tiny files are kept.
pub(super) const ENTRY_BYTES: u64 = 256;

/// Chunks in memory.
#[derive(Debug)]
pub(super) struct Memory {
    read: LruCache<ChunkKey, Laid>,
    unread: LruCache<ChunkKey, (Laid, OwnerId)>,
    passed: LruCache<ChunkKey, Laid>,
    passed_bytes: u64,
    bytes: u64,
    unread_bytes: HashMap<OwnerId, u64>,
    unread_bytes_total: u64,
    wasted_chunks: u64,
}

/// What a chunk counts for, in bytes.
const fn cost(chunk: &Laid) -> u64 {
    chunk.bytes().len() as u64 + ENTRY_BYTES
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            read: LruCache::unbounded(),
            unread: LruCache::unbounded(),
            passed: LruCache::unbounded(),
            passed_bytes: 0,
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
        self.read.len() + self.unread.len() + self.passed.len()
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
        self.read.contains(key) || self.unread.contains(key) || self.passed.contains(key)
    }

    /// A chunk for a reader; it counts as read from now on.
    pub(super) fn get(&mut self, key: &ChunkKey) -> Option<Laid> {
        if let Some(chunk) = self.read.get(key) {
            return Some(chunk.clone());
        }
        let chunk = self.take_unread(key).or_else(|| self.take_passed(key))?;
        self.read.put(*key, chunk.clone());
        Some(chunk)
    }

    /// Lets a chunk that was read go first, and soon: its reader has passed it.
    pub(super) fn pass(&mut self, key: &ChunkKey) {
        if let Some(chunk) = self.read.pop(key) {
            self.passed_bytes += cost(&chunk);
            self.passed.put(*key, chunk);
        }
    }

    /// Makes at most `bytes` of what was passed; what went is added to `evicted`.
    pub(super) fn evict_passed_to(&mut self, bytes: u64, evicted: &mut Vec<Laid>) {
        while self.passed_bytes > bytes
            && let Some(gone) = self.pop_passed()
        {
            self.bytes -= cost(&gone);
            evicted.push(gone);
        }
    }

    /// Keeps a chunk: for the reader who has it, or unread for the owner who asked for it ahead.
    pub(super) fn insert(&mut self, key: ChunkKey, chunk: Laid, unread_for: Option<OwnerId>) {
        self.remove(&key);
        self.bytes += cost(&chunk);
        match unread_for {
            Some(owner) => {
                *self.unread_bytes.entry(owner).or_default() += cost(&chunk);
                self.unread_bytes_total += cost(&chunk);
                self.unread.put(key, (chunk, owner));
            }
            None => drop(self.read.put(key, chunk)),
        }
    }

    /// Lets the unread chunks of an owner go first from now on: nobody will come for them.
    pub(super) fn give_up(&mut self, wanted: impl Fn(OwnerId) -> bool) {
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

    /// Makes room until at most `bytes` are held; what went is added to `evicted`.
    pub(super) fn evict_to(&mut self, bytes: u64, evicted: &mut Vec<Laid>) {
        while self.bytes > bytes {
            let read = self.pop_passed().or_else(|| self.read.pop_lru().map(|(_, gone)| gone));
            let gone = match read {
                Some(gone) => gone,
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
        let read = self.read.pop(key).or_else(|| self.take_passed(key));
        if let Some(chunk) = read.or_else(|| self.take_unread(key)) {
            self.bytes -= cost(&chunk);
        }
    }

    fn take_passed(&mut self, key: &ChunkKey) -> Option<Laid> {
        let chunk = self.passed.pop(key)?;
        self.passed_bytes -= cost(&chunk);
        Some(chunk)
    }

    fn pop_passed(&mut self) -> Option<Laid> {
        let (_, chunk) = self.passed.pop_lru()?;
        self.passed_bytes -= cost(&chunk);
        Some(chunk)
    }

    fn take_unread(&mut self, key: &ChunkKey) -> Option<Laid> {
        let (chunk, owner) = self.unread.pop(key)?;
        self.unread_bytes_total -= cost(&chunk);
        let left = self.unread_bytes.get_mut(&owner).expect("every unread chunk is counted for its owner");
        *left -= cost(&chunk);
        if *left == 0 {
            self.unread_bytes.remove(&owner);
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

    const fn owner(handle: u64) -> OwnerId {
        OwnerId { handle, cursor: 0 }
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

    /// The slow twin: entries in the order in which they go, the next to go first; passed ones before, unread ones behind all others.
    #[derive(Default)]
    struct Twin {
        passed: Vec<(u64, u64)>,
        read: Vec<(u64, u64)>,
        unread: Vec<(u64, u64, u64)>,
    }

    impl Twin {
        fn remove(&mut self, index: u64) -> Option<u64> {
            if let Some(at) = self.read.iter().position(|(other, _)| *other == index) {
                return Some(self.read.remove(at).1);
            }
            if let Some(at) = self.passed.iter().position(|(other, _)| *other == index) {
                return Some(self.passed.remove(at).1);
            }
            let at = self.unread.iter().position(|(other, ..)| *other == index)?;
            Some(self.unread.remove(at).1)
        }

        fn bytes(&self) -> u64 {
            let read = self.read.iter().chain(&self.passed).map(|(_, cost)| cost).sum::<u64>();
            read + self.unread_bytes(|_| true)
        }

        fn unread_bytes(&self, of: impl Fn(u64) -> bool) -> u64 {
            self.unread.iter().filter(|(.., owner)| of(*owner)).map(|(_, cost, _)| cost).sum()
        }

        fn apply(&mut self, op: &Op) {
            match *op {
                Op::Insert { index, len, unread_for } => {
                    self.remove(index);
                    let cost = len as u64 + ENTRY_BYTES;
                    match unread_for {
                        Some(owner) => self.unread.push((index, cost, owner)),
                        None => self.read.push((index, cost)),
                    }
                }
                Op::Get(index) => {
                    if let Some(cost) = self.remove(index) {
                        self.read.push((index, cost));
                    }
                }
                Op::GiveUp(owner) => {
                    let (gone, kept): (Vec<_>, Vec<_>) =
                        self.unread.drain(..).partition(|(.., other)| *other == owner);
                    self.unread = kept;
                    let gone = gone.into_iter().map(|(index, cost, _)| (index, cost));
                    self.read.splice(0..0, gone);
                }
                Op::Pass(index) => {
                    if let Some(at) = self.read.iter().position(|(other, _)| *other == index) {
                        self.passed.push(self.read.remove(at));
                    }
                }
                Op::EvictPassedTo(bytes) => {
                    while self.passed.iter().map(|(_, cost)| cost).sum::<u64>() > bytes {
                        self.passed.remove(0);
                    }
                }
                Op::EvictTo(bytes) => {
                    while self.bytes() > bytes {
                        if !self.passed.is_empty() {
                            self.passed.remove(0);
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
        fn it_keeps_what_its_slow_twin_keeps(ops in prop::collection::vec(op(), 0..200)) {
            let (mut memory, mut twin) = (Memory::new(), Twin::default());
            for op in ops {
                match &op {
                    Op::Insert { index, len, unread_for } => {
                        memory.insert(key(*index), Bytes::from(vec![0; *len]).into(), unread_for.map(owner));
                    }
                    Op::Get(index) => {
                        let there = memory.contains(&key(*index));
                        prop_assert_eq!(memory.get(&key(*index)).is_some(), there);
                    }
                    Op::GiveUp(handle) => memory.give_up(|other| other == owner(*handle)),
                    Op::Pass(index) => memory.pass(&key(*index)),
                    Op::EvictPassedTo(bytes) => memory.evict_passed_to(*bytes, &mut Vec::new()),
                    Op::EvictTo(bytes) => {
                        let (before, mut evicted) = (memory.chunks(), Vec::new());
                        memory.evict_to(*bytes, &mut evicted);
                        prop_assert!(memory.bytes() <= *bytes);
                        prop_assert_eq!(before - memory.chunks(), evicted.len());
                    }
                }
                twin.apply(&op);
                prop_assert_eq!(memory.bytes(), twin.bytes());
                prop_assert_eq!(memory.unread_bytes(), twin.unread_bytes(|_| true));
                for handle in 0..3 {
                    let of_owner = twin.unread_bytes(|other| other == handle);
                    prop_assert_eq!(memory.unread_bytes_of(owner(handle)), of_owner);
                    prop_assert_eq!(memory.owners().any(|other| other == owner(handle)), of_owner > 0);
                }
                for index in 0..30 {
                    let there = twin.read.iter().chain(&twin.passed).any(|(other, _)| *other == index)
                        || twin.unread.iter().any(|(other, ..)| *other == index);
                    prop_assert_eq!(memory.contains(&key(index)), there, "chunk {}", index);
                }
            }
        }
    }

    #[test]
    fn what_was_read_goes_before_what_was_not() {
        let mut memory = Memory::new();
        let chunk = Laid::from(Bytes::from(vec![0; 1000]));
        memory.insert(key(0), chunk.clone(), Some(owner(0)));
        memory.insert(key(1), chunk.clone(), None);
        let mut evicted = Vec::new();
        memory.evict_to(1000 + ENTRY_BYTES, &mut evicted);
        assert!(memory.contains(&key(0)) && !memory.contains(&key(1)));
        assert_eq!(memory.wasted_chunks(), 0);
        memory.evict_to(0, &mut evicted);
        assert_eq!((memory.wasted_chunks(), evicted.len()), (1, 2));
    }
}
