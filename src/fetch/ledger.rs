//! What is in memory, what is under way and what waits, under one budget. Pure: no clock, no task; says what to start.
//!
//! The budget covers chunks in memory and chunks under way. A demand always starts, and memory makes room for it; what is
//! read ahead starts only where it does not push out what others have read ahead and not used yet.

use std::collections::HashSet;

use bytes::Bytes;

use super::content::{ChunkKey, FileContent, OwnerId, cut, runs};
use super::inflight::{Delivery, Failure, Inflight, RequestId, WaiterId};
use super::memory::{ENTRY_BYTES, Memory};
use super::queue::Queue;
use crate::chunk::{ChunkIndex, ChunkRange};

/// Most runs that wait to be read ahead: 4 GiB of them, and less than a megabyte of memory.
const QUEUE_RUNS_MAX: usize = 4096;

/// What the ledger may spend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Chunks in memory and under way, in bytes.
    pub(super) memory_bytes: u64,
    /// Chunks under way ahead and chunks read ahead that nobody has read yet, in bytes.
    pub(super) ahead_bytes_max: u64,
    /// Requests under way ahead.
    pub(super) ahead_requests_max: usize,
    /// Chunks in a request.
    pub(super) request_chunks: u64,
}

/// A request to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) request: RequestId,
    pub(super) content: FileContent,
    pub(super) chunks: ChunkRange,
    pub(super) is_ahead: bool,
}

/// One chunk of a demand.
#[derive(Debug)]
pub(super) enum Part {
    /// It is in memory.
    Here(Bytes),
    /// It is under way; the waiter made for it will be told.
    Waits(ChunkKey, WaiterId),
}

#[derive(Debug, Clone, Copy)]
struct AheadRun {
    content: FileContent,
    chunks: ChunkRange,
}

/// The ledger; `W` is told when a chunk comes.
#[derive(Debug)]
pub(super) struct Ledger<W> {
    budget: Budget,
    memory: Memory,
    inflight: Inflight<W>,
    queue: Queue<AheadRun>,
    evicted: Vec<Bytes>,
}

impl<W> Ledger<W> {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            memory: Memory::new(),
            inflight: Inflight::new(),
            queue: Queue::new(QUEUE_RUNS_MAX),
            evicted: Vec::new(),
        }
    }

    pub(super) const fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) const fn inflight(&self) -> &Inflight<W> {
        &self.inflight
    }

    /// Runs that wait to be read ahead.
    pub(super) const fn queued_runs(&self) -> usize {
        self.queue.len()
    }

    /// Buffers that were evicted since the last call, to be freed outside of any lock.
    pub(super) fn take_evicted(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.evicted)
    }

    /// A chunk in memory, for a reader.
    pub(super) fn get(&mut self, key: &ChunkKey) -> Option<Bytes> {
        self.memory.get(key)
    }

    /// Whether a chunk is in memory or under way.
    pub(super) fn has(&self, key: &ChunkKey) -> bool {
        self.memory.contains(key) || self.inflight.contains(key)
    }

    /// Chunks that a reader waits for, in their order, and the requests this takes.
    pub(super) fn demand(
        &mut self,
        content: &FileContent,
        chunks: ChunkRange,
        mut waiter: impl FnMut() -> W,
    ) -> (Vec<Part>, Vec<Start>) {
        let chunks = content.clamp(chunks);
        let missing = chunks.iter().filter(|index| !self.has(&content.chunk(*index)));
        let missing = runs(missing, self.budget.request_chunks);
        let starts = missing.into_iter().map(|run| self.begin(content, run, None)).collect();
        let mut parts = Vec::with_capacity(chunks.count as usize);
        for index in chunks.iter() {
            let key = content.chunk(index);
            parts.push(match self.memory.get(&key) {
                Some(bytes) => Part::Here(bytes),
                None => {
                    let joined = self.inflight.join(&key, &mut waiter);
                    Part::Waits(key, joined.expect("what was missing has just begun"))
                }
            });
        }
        self.make_room();
        (parts, starts)
    }

    /// Chunks that an owner will probably read. What does not fit the queue is forgotten.
    pub(super) fn ahead(&mut self, content: &FileContent, chunks: ChunkRange, owner: OwnerId) {
        for chunks in cut(content.clamp(chunks), self.budget.request_chunks) {
            if !self.queue.push(owner, AheadRun { content: *content, chunks }) {
                break;
            }
        }
    }

    /// The requests that may start now, out of what waits.
    pub(super) fn admit(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        while self.inflight.ahead_requests() < self.budget.ahead_requests_max {
            let Some((owner, run)) = self.queue.peek() else { break };
            let AheadRun { content, chunks } = *run;
            let missing: Vec<ChunkIndex> =
                chunks.iter().filter(|index| !self.has(&content.chunk(*index))).collect();
            let bytes = missing.iter().map(|index| content.chunk_bytes(*index) + ENTRY_BYTES).sum();
            if bytes <= self.budget.ahead_bytes_max && !self.fits(owner, bytes) {
                break;
            }
            self.queue.pop();
            if bytes > self.budget.ahead_bytes_max {
                continue;
            }
            chunks.iter().for_each(|index| self.inflight.adopt(&content.chunk(index), owner));
            let missing = runs(missing, self.budget.request_chunks);
            starts.extend(missing.into_iter().map(|run| self.begin(&content, run, Some(owner))));
        }
        self.make_room();
        starts
    }

    /// A chunk has come. Says who waits for it; `None` where nobody wants it any more.
    pub(super) fn deliver(
        &mut self,
        request: RequestId,
        key: ChunkKey,
        bytes: &Bytes,
    ) -> Option<Delivery<W>> {
        let delivery = self.inflight.deliver(request, &key)?;
        let unread_for = delivery.owner.filter(|_| delivery.waiters.is_empty());
        self.memory.insert(key, bytes.clone(), unread_for);
        self.make_room();
        Some(delivery)
    }

    /// A request has ended. Says who waits in vain.
    pub(super) fn end(&mut self, request: RequestId) -> Option<Failure<W>> {
        self.inflight.fail(request)
    }

    /// A reader no longer waits. Says which request nobody wants any more.
    pub(super) fn leave(&mut self, key: &ChunkKey, waiter: WaiterId) -> Option<RequestId> {
        self.inflight.leave(key, waiter)
    }

    /// Owners give up what was asked for them. Says which requests nobody wants any more.
    pub(super) fn cancel(&mut self, gives_up: impl Fn(OwnerId) -> bool) -> Vec<RequestId> {
        self.queue.cancel(&gives_up);
        self.memory.give_up(&gives_up);
        self.inflight.cancel(&gives_up)
    }

    /// What each of those who read ahead now may have ahead of it, in bytes.
    pub(super) fn share_bytes(&self) -> u64 {
        let owners: HashSet<OwnerId> =
            self.queue.owners().chain(self.inflight.owners()).chain(self.memory.owners()).collect();
        self.budget.ahead_bytes_max / owners.len().max(1) as u64
    }

    fn begin(&mut self, content: &FileContent, chunks: ChunkRange, owner: Option<OwnerId>) -> Start {
        let keys: Vec<(ChunkKey, u64)> = chunks
            .iter()
            .map(|index| (content.chunk(index), content.chunk_bytes(index) + ENTRY_BYTES))
            .collect();
        let request = self.inflight.begin(owner, &keys);
        Start { request, content: *content, chunks, is_ahead: owner.is_some() }
    }

    /// Whether an owner may have `bytes` more on their way: while there is room for all, or it has less than its share.
    /// In the second case the oldest of what others left unread makes room.
    fn fits(&self, owner: OwnerId, bytes: u64) -> bool {
        let most = self.budget.ahead_bytes_max;
        if self.inflight.bytes() + bytes > most {
            return false;
        }
        if self.inflight.ahead_bytes() + self.memory.unread_bytes() + bytes <= most {
            return true;
        }
        let used = self.inflight.ahead_bytes_of(owner) + self.memory.unread_bytes_of(owner);
        used + bytes <= self.share_bytes()
    }

    fn make_room(&mut self) {
        let room = self.budget.memory_bytes.saturating_sub(self.inflight.bytes());
        self.memory.evict_to(room, &mut self.evicted);
    }
}
