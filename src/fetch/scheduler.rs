//! Scheduler of all fetches under one memory budget: chunks in memory, in flight and queued. Pure: no
//! clock, no task; it returns the requests to start.
//!
//! The budget covers chunks in memory and in flight. A demand always starts, and memory is evicted for it.
//! Read-ahead starts only if it does not evict unread chunks of other streams.

use super::content::{ChunkKey, FileContent, StreamId, cut, runs};
use super::inflight::{Delivery, Failure, Inflight, RequestId, WaiterId};
use super::memory_cache::{ENTRY_BYTES, MemoryCache};
use super::queue::Queue;
use crate::chunk::{CHUNK_BYTES, ChunkIndex, ChunkRange, RunSlice};

/// Most queued runs of read-ahead: 4 GiB of content, in less than a megabyte of memory.
const QUEUE_RUNS_MAX: usize = 4096;

/// Complete requests that wait for the disk cache, beside those in flight. Each holds its chunks. With 64,
/// a mount that read from the disk of its cache took 385 MiB. With 8 of 1 MiB and a wait of 20 ms, a slower
/// disk still lets 600 MB/s pass.
const COMPLETE_REQUESTS_MAX: usize = 8;

/// Limits of the scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Most bytes of chunks in memory and in flight.
    pub(super) memory_bytes: u64,
    /// Most bytes of read-ahead in flight and unread in memory.
    pub(super) ahead_bytes_max: u64,
    /// Most bytes of consumed chunks of files larger than the budget.
    pub(super) consumed_bytes_max: u64,
    /// Most read-ahead requests in flight.
    pub(super) ahead_requests_max: usize,
    /// Most chunks in a request.
    pub(super) request_chunks: u64,
}

/// Request to start.
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
    /// In memory.
    Here(RunSlice),
    /// In flight. The waiter is notified on delivery.
    Waits(ChunkKey, WaiterId),
}

#[derive(Debug, Clone, Copy)]
struct AheadRun {
    content: FileContent,
    chunks: ChunkRange,
}

/// The scheduler. A waiter `W` is notified when its chunk arrives.
#[derive(Debug)]
pub(super) struct FetchScheduler<W> {
    budget: Budget,
    /// Most read-ahead requests within the budget, complete ones that wait for the disk cache included.
    ahead_requests_max: usize,
    /// Most bytes of read-ahead in flight.
    in_flight_bytes_max: u64,
    memory: MemoryCache,
    inflight: Inflight<W>,
    queue: Queue<AheadRun>,
    evicted: Vec<RunSlice>,
}

impl<W> FetchScheduler<W> {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            ahead_requests_max: budget.ahead_requests_max,
            in_flight_bytes_max: u64::MAX,
            budget,
            memory: MemoryCache::new(),
            inflight: Inflight::new(),
            queue: Queue::new(QUEUE_RUNS_MAX),
            evicted: Vec::new(),
        }
    }

    pub(super) const fn memory(&self) -> &MemoryCache {
        &self.memory
    }

    pub(super) const fn inflight(&self) -> &Inflight<W> {
        &self.inflight
    }

    /// Returns the number of queued runs.
    pub(super) const fn queued_runs(&self) -> usize {
        self.queue.len()
    }

    /// Returns the buffers evicted since the last call, to be freed outside of any lock.
    pub(super) fn take_evicted(&mut self) -> Vec<RunSlice> {
        std::mem::take(&mut self.evicted)
    }

    /// Returns a chunk in memory for a reader.
    pub(super) fn get(&mut self, key: &ChunkKey) -> Option<RunSlice> {
        self.memory.get(key)
    }

    /// Returns `true` if a chunk is in memory or in flight.
    pub(super) fn has(&self, key: &ChunkKey) -> bool {
        self.memory.contains(key) || self.inflight.contains(key)
    }

    /// Demands chunks for a reader. Returns their states in order, and the requests to start.
    pub(super) fn demand(
        &mut self,
        content: &FileContent,
        chunks: ChunkRange,
        mut waiter: impl FnMut() -> W,
    ) -> (Vec<Part>, Vec<Start>) {
        let chunks = content.clamp(chunks);
        self.drop_reached(content, chunks);
        let missing = chunks.iter().filter(|index| !self.has(&content.chunk(*index)));
        let missing = runs(missing, self.budget.request_chunks);
        let starts = missing.into_iter().map(|run| self.begin(content, run, None)).collect();
        let mut parts = Vec::with_capacity(chunks.count as usize);
        for index in chunks.iter() {
            let key = content.chunk(index);
            parts.push(if let Some(chunk) = self.memory.get(&key) {
                Part::Here(chunk)
            } else {
                let joined = self.inflight.join(&key, &mut waiter);
                Part::Waits(key, joined.expect("the missing chunks were just requested"))
            });
        }
        self.evict_to_budget();
        (parts, starts)
    }

    /// Marks chunks that a reader has consumed. Chunks of a file that fits into memory stay, because it may
    /// be read again.
    pub(super) fn mark_consumed(&mut self, content: &FileContent, chunks: ChunkRange) {
        if content.version.size <= self.budget.memory_bytes {
            return;
        }
        chunks.iter().for_each(|index| self.memory.mark_consumed(&content.chunk(index)));
        self.memory.evict_consumed_to(self.budget.consumed_bytes_max, &mut self.evicted);
    }

    /// Limits the bytes of read-ahead in flight, in whole requests and at least one. The budget stays an
    /// upper bound.
    pub(super) fn limit_in_flight(&mut self, bytes: u64) {
        let request_chunks = self.budget.request_chunks;
        let requests = (bytes / (request_chunks * CHUNK_BYTES)).max(1);
        self.in_flight_bytes_max = requests.saturating_mul(request_chunks * (CHUNK_BYTES + ENTRY_BYTES));
        let requests = usize::try_from(requests).unwrap_or(usize::MAX);
        self.ahead_requests_max =
            requests.saturating_add(COMPLETE_REQUESTS_MAX).min(self.budget.ahead_requests_max);
    }

    /// Queues chunks that a stream will probably read. Chunks beyond the queue's bound are dropped.
    pub(super) fn read_ahead(&mut self, content: &FileContent, chunks: ChunkRange, stream: StreamId) {
        if self.budget.ahead_requests_max == 0 {
            return;
        }
        for chunks in cut(content.clamp(chunks), self.budget.request_chunks) {
            if !self.queue.push(stream, AheadRun { content: *content, chunks }) {
                break;
            }
        }
    }

    /// Returns the queued requests that may start now.
    pub(super) fn admit(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        while let Some((stream, run)) = self.queue.peek() {
            let AheadRun { content, chunks } = *run;
            let missing = chunks.iter().filter(|index| !self.has(&content.chunk(*index)));
            let missing = runs(missing, self.budget.request_chunks);
            let indices = missing.iter().flat_map(|run| run.iter());
            let bytes: u64 = indices.map(|index| content.chunk_bytes(index) + ENTRY_BYTES).sum();
            // Chunks that can never fit are skipped.
            let is_possible = bytes <= self.budget.ahead_bytes_max;
            if is_possible && !self.fits(stream, bytes, missing.len()) {
                break;
            }
            self.queue.pop();
            if !is_possible {
                continue;
            }
            chunks.iter().for_each(|index| self.inflight.adopt(&content.chunk(index), stream));
            starts.extend(missing.into_iter().map(|run| self.begin(&content, run, Some(stream))));
        }
        self.evict_to_budget();
        starts
    }

    /// Delivers a chunk. Returns its waiters; `None` if its request is gone.
    pub(super) fn deliver(
        &mut self,
        request: RequestId,
        key: ChunkKey,
        chunk: &RunSlice,
    ) -> Option<Delivery<W>> {
        let delivery = self.inflight.deliver(request, &key)?;
        let unread_for = delivery.stream.filter(|_| delivery.waiters.is_empty());
        self.memory.insert(key, chunk.clone(), unread_for);
        self.evict_to_budget();
        Some(delivery)
    }

    /// Ends a request. Returns the waiters of its missing chunks; `None` if there are none or the request
    /// is gone.
    pub(super) fn end(&mut self, request: RequestId) -> Option<Failure<W>> {
        self.inflight.end(request)
    }

    /// Removes a waiter. Returns its request if that is unwanted now.
    pub(super) fn leave(&mut self, key: &ChunkKey, waiter: WaiterId) -> Option<RequestId> {
        self.inflight.leave(key, waiter)
    }

    /// Cancels the read-ahead of streams. Returns the requests that are unwanted now.
    pub(super) fn cancel(&mut self, gives_up: impl Fn(StreamId) -> bool) -> Vec<RequestId> {
        self.queue.cancel(&gives_up);
        self.memory.demote(&gives_up);
        self.inflight.cancel(&gives_up)
    }

    /// Returns the bytes that each active stream may read ahead.
    pub(super) fn share_bytes(&self) -> u64 {
        // This runs at every read. Streams are few, so a list beats a set.
        let mut streams: Vec<StreamId> = Vec::with_capacity(16);
        for stream in self.queue.streams().chain(self.inflight.streams()).chain(self.memory.streams()) {
            if !streams.contains(&stream) {
                streams.push(stream);
            }
        }
        self.budget.ahead_bytes_max / streams.len().max(1) as u64
    }

    /// Drops queued read-ahead up to the end of `chunks`, which a reader has reached first. Fetched later,
    /// these chunks would be read and evicted by then, and would take a part of the stream's share for
    /// good.
    fn drop_reached(&mut self, content: &FileContent, chunks: ChunkRange) {
        let reached = chunks.as_range();
        self.queue.retain(|run| {
            let waits = run.chunks.as_range();
            if run.content.key != content.key || waits.start >= reached.end || waits.end <= reached.start {
                return true;
            }
            run.chunks = ChunkRange::new(ChunkIndex(reached.end), waits.end.saturating_sub(reached.end));
            run.chunks.count > 0
        });
    }

    fn begin(&mut self, content: &FileContent, chunks: ChunkRange, stream: Option<StreamId>) -> Start {
        let keys: Vec<(ChunkKey, u64)> = chunks
            .iter()
            .map(|index| (content.chunk(index), content.chunk_bytes(index) + ENTRY_BYTES))
            .collect();
        let request = self.inflight.begin(stream, &keys);
        Start { request, content: *content, chunks, is_ahead: stream.is_some() }
    }

    /// Returns `true` if a stream may have `bytes` more in flight in `requests` requests: there is room for
    /// all, or it has less than its share. In the second case the oldest unread chunks of other streams are
    /// evicted.
    fn fits(&self, stream: StreamId, bytes: u64, requests: usize) -> bool {
        let (running, in_flight) = (self.inflight.ahead_requests(), self.inflight.ahead_bytes());
        let is_too_many = running > 0 && running + requests > self.ahead_requests_max;
        if is_too_many || in_flight > 0 && in_flight + bytes > self.in_flight_bytes_max {
            return false;
        }
        let most = self.budget.ahead_bytes_max;
        if self.inflight.bytes() + bytes > most {
            return false;
        }
        if self.inflight.ahead_bytes() + self.memory.unread_bytes() + bytes <= most {
            return true;
        }
        let used = self.inflight.ahead_bytes_of(stream) + self.memory.unread_bytes_of(stream);
        used + bytes <= self.share_bytes()
    }

    fn evict_to_budget(&mut self) {
        let room = self.budget.memory_bytes.saturating_sub(self.inflight.bytes());
        self.memory.evict_to(room, &mut self.evicted);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::ChunkIndex;

    const CHUNK_COST: u64 = CHUNK_BYTES + ENTRY_BYTES;

    const fn stream(handle: u64) -> StreamId {
        StreamId { handle, cursor: 0 }
    }

    const fn budget(chunks: u64) -> Budget {
        Budget {
            memory_bytes: chunks * CHUNK_COST,
            ahead_bytes_max: chunks * CHUNK_COST / 4 * 3,
            consumed_bytes_max: 2 * CHUNK_COST,
            ahead_requests_max: 8,
            request_chunks: 4,
        }
    }

    fn range(first: u64, count: u64) -> ChunkRange {
        ChunkRange::new(ChunkIndex(first), count)
    }

    fn chunk() -> RunSlice {
        static CHUNK: [u8; CHUNK_BYTES as usize] = [0; CHUNK_BYTES as usize];
        bytes::Bytes::from_static(&CHUNK).into()
    }

    fn deliver_all(scheduler: &mut FetchScheduler<u32>, starts: &[Start]) {
        for start in starts {
            for index in start.chunks.iter() {
                scheduler.deliver(start.request, start.content.chunk(index), &chunk());
            }
            scheduler.end(start.request);
        }
    }

    #[test]
    fn two_readers_of_one_chunk_share_a_request() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(16));
        let file = FileContent::sample(0, 8);
        let (_, starts) = scheduler.demand(&file, range(0, 1), || 1);
        assert_eq!(starts.len(), 1);
        let (parts, more) = scheduler.demand(&file, range(0, 2), || 2);
        assert_eq!((parts.len(), more.len()), (2, 1));
        let delivery = scheduler.deliver(starts[0].request, file.chunk(ChunkIndex(0)), &chunk()).unwrap();
        assert_eq!(delivery.waiters, [1, 2]);
    }

    #[test]
    fn few_consumed_chunks_of_a_large_file_are_kept() {
        for (file_chunks, kept) in [(16, 8), (17, 3)] {
            let mut scheduler: FetchScheduler<u32> =
                FetchScheduler::new(Budget { memory_bytes: 16 * CHUNK_BYTES, ..budget(16) });
            let file = FileContent::sample(0, file_chunks);
            let (_, starts) = scheduler.demand(&file, range(0, 8), || 1);
            deliver_all(&mut scheduler, &starts);
            scheduler.mark_consumed(&file, range(0, 7));
            assert_eq!(scheduler.memory().chunks(), kept, "of {file_chunks}");
            assert!(scheduler.has(&file.chunk(ChunkIndex(7))) && scheduler.has(&file.chunk(ChunkIndex(6))));
            // A reused chunk goes after the consumed ones, although they were consumed later.
            scheduler.demand(&file, range(5, 1), || 2);
            scheduler.mark_consumed(&file, range(7, 1));
            assert!(scheduler.has(&file.chunk(ChunkIndex(5))));
        }
    }

    #[test]
    fn zero_requests_disable_read_ahead() {
        let mut scheduler: FetchScheduler<u32> =
            FetchScheduler::new(Budget { ahead_requests_max: 0, ..budget(16) });
        scheduler.read_ahead(&FileContent::sample(0, 100), range(0, 40), stream(1));
        assert_eq!((scheduler.queued_runs(), scheduler.admit().len()), (0, 0));
    }

    #[test]
    fn a_limit_holds_in_whole_requests_and_within_the_budget() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(64));
        scheduler.limit_in_flight(3 * 4 * CHUNK_BYTES - 1);
        scheduler.read_ahead(&FileContent::sample(0, 100), range(0, 48), stream(1));
        let starts = scheduler.admit();
        assert_eq!((starts.len(), scheduler.queued_runs()), (2, 10));
        deliver_all(&mut scheduler, &starts);
        scheduler.limit_in_flight(0);
        let starts = scheduler.admit();
        assert_eq!(starts.len(), 1);
        scheduler.limit_in_flight(u64::MAX);
        assert_eq!(scheduler.admit().len(), 8 - 1, "the budget allows it");
    }

    #[test]
    fn complete_requests_delay_the_link_only_beyond_their_bound() {
        let mut scheduler: FetchScheduler<u32> =
            FetchScheduler::new(Budget { ahead_requests_max: 64, ..budget(400) });
        scheduler.limit_in_flight(2 * 4 * CHUNK_BYTES);
        scheduler.read_ahead(&FileContent::sample(0, 400), range(0, 200), stream(1));
        let mut running = Vec::new();
        loop {
            let starts = scheduler.admit();
            assert!(starts.len() <= 2, "in flight");
            for start in &starts {
                for index in start.chunks.iter() {
                    scheduler.deliver(start.request, start.content.chunk(index), &chunk());
                }
                running.push(start.request);
            }
            if starts.is_empty() {
                break;
            }
        }
        assert_eq!(running.len(), 2 + COMPLETE_REQUESTS_MAX);
        scheduler.end(running[0]);
        assert_eq!(scheduler.admit().len(), 1);
    }

    #[test]
    fn read_ahead_stops_before_it_evicts_unread_chunks() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(16));
        let file = FileContent::sample(0, 100);
        scheduler.read_ahead(&file, range(0, 40), stream(1));
        let starts = scheduler.admit();
        assert_eq!(starts.iter().map(|start| start.chunks.count).sum::<u64>(), 12, "three quarters of 16");
        deliver_all(&mut scheduler, &starts);
        assert!(scheduler.admit().is_empty(), "nothing was read yet");
        (0..4).for_each(|index| drop(scheduler.get(&file.chunk(ChunkIndex(index)))));
        assert_eq!(scheduler.admit().len(), 1);
    }

    #[test]
    fn a_new_stream_gets_its_share_from_a_stopped_one() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(16));
        scheduler.read_ahead(&FileContent::sample(0, 100), range(0, 12), stream(1));
        let starts = scheduler.admit();
        deliver_all(&mut scheduler, &starts);
        scheduler.read_ahead(&FileContent::sample(1, 100), range(0, 12), stream(2));
        let starts = scheduler.admit();
        let chunks: u64 = starts.iter().map(|start| start.chunks.count).sum();
        assert_eq!(chunks, 4, "half of 12, in whole requests");
        deliver_all(&mut scheduler, &starts);
        assert!(scheduler.memory().bytes() <= 16 * CHUNK_COST);
    }

    #[test]
    fn chunks_that_a_reader_reached_leave_the_queue() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(16));
        let (file, other) = (FileContent::sample(0, 100), FileContent::sample(1, 100));
        scheduler.limit_in_flight(0);
        for content in [&file, &other] {
            scheduler.read_ahead(content, range(0, 20), stream(content.node.inode));
        }
        for first in [0, 4, 8] {
            let (_, starts) = scheduler.demand(&file, range(first, 5), || 1);
            deliver_all(&mut scheduler, &starts);
        }
        // The chunks that the reader had are evicted.
        let (_, starts) = scheduler.demand(&FileContent::sample(2, 100), range(0, 16), || 1);
        deliver_all(&mut scheduler, &starts);
        let mut brought: Vec<(u64, ChunkRange)> = Vec::new();
        while let starts @ [_, ..] = &scheduler.admit()[..] {
            brought.extend(starts.iter().map(|start| (start.content.node.inode, start.chunks)));
            deliver_all(&mut scheduler, starts);
            for (content, start) in starts.iter().map(|start| (start.content, start)) {
                start.chunks.iter().for_each(|index| drop(scheduler.get(&content.chunk(index))));
            }
        }
        brought.sort_by_key(|(file, chunks)| (*file, chunks.first));
        let own = [(0, range(13, 3)), (0, range(16, 4))];
        let others = (0..5).map(|run| (1, range(4 * run, 4)));
        assert_eq!(brought, own.into_iter().chain(others).collect::<Vec<_>>());
    }

    #[test]
    fn cancelled_streams_free_their_share() {
        let mut scheduler: FetchScheduler<u32> = FetchScheduler::new(budget(16));
        scheduler.read_ahead(&FileContent::sample(0, 100), range(0, 40), stream(1));
        let starts = scheduler.admit();
        assert_eq!(scheduler.cancel(|other| other == stream(1)).len(), starts.len());
        assert_eq!((scheduler.queued_runs(), scheduler.inflight().bytes()), (0, 0));
        scheduler.read_ahead(&FileContent::sample(1, 100), range(0, 12), stream(2));
        assert_eq!(scheduler.admit().len(), 3);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Demand {
            file: u8,
            first: u64,
            count: u64,
        },
        Ahead {
            file: u8,
            first: u64,
            count: u64,
            stream: u64,
        },
        Get {
            file: u8,
            index: u64,
        },
        /// The next chunk of one of the requests.
        Deliver(usize),
        Fail(usize),
        Leave(usize),
        Cancel(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (file, first) = (0..3u8, 0..60u64);
        prop_oneof![
            2 => (file.clone(), first.clone(), 0..6u64)
                .prop_map(|(file, first, count)| Op::Demand { file, first, count }),
            2 => (file.clone(), first.clone(), 0..30u64, 0..4u64)
                .prop_map(|(file, first, count, stream)| Op::Ahead { file, first, count, stream }),
            4 => (file, first).prop_map(|(file, index)| Op::Get { file, index }),
            8 => any::<usize>().prop_map(Op::Deliver),
            1 => any::<usize>().prop_map(Op::Fail),
            1 => any::<usize>().prop_map(Op::Leave),
            1 => (0..4u64).prop_map(Op::Cancel),
        ]
    }

    /// A scheduler and the requests that run for it.
    struct Run {
        scheduler: FetchScheduler<u32>,
        running: Vec<(Start, Vec<ChunkIndex>)>,
        waits: Vec<(ChunkKey, WaiterId)>,
        waiting: i64,
    }

    impl Run {
        fn start(&mut self, starts: Vec<Start>) {
            self.running.extend(starts.into_iter().map(|start| (start, start.chunks.iter().rev().collect())));
        }

        fn apply(&mut self, op: &Op) {
            match *op {
                Op::Demand { file, first, count } => {
                    let mut waiters = 0;
                    let (parts, starts) =
                        self.scheduler.demand(&FileContent::sample(file, 60), range(first, count), || {
                            waiters += 1;
                            0
                        });
                    self.waiting += waiters;
                    self.waits.extend(parts.into_iter().filter_map(|part| match part {
                        Part::Waits(key, id) => Some((key, id)),
                        Part::Here(_) => None,
                    }));
                    self.start(starts);
                }
                Op::Ahead { file, first, count, stream: handle } => {
                    self.scheduler.read_ahead(
                        &FileContent::sample(file, 60),
                        range(first, count),
                        stream(handle),
                    );
                }
                Op::Get { file, index } => {
                    drop(self.scheduler.get(&FileContent::sample(file, 60).chunk(ChunkIndex(index))));
                }
                Op::Deliver(pick) if !self.running.is_empty() => {
                    let at = pick % self.running.len();
                    let (start, left) = &mut self.running[at];
                    let key = start.content.chunk(left.pop().unwrap());
                    let delivery = self.scheduler.deliver(start.request, key, &chunk());
                    self.waiting -= delivery.map_or(0, |delivery| delivery.waiters.len() as i64);
                    if left.is_empty() {
                        let (start, _) = self.running.remove(at);
                        assert!(self.scheduler.end(start.request).is_none());
                    }
                }
                Op::Fail(pick) if !self.running.is_empty() => {
                    let (start, _) = self.running.remove(pick % self.running.len());
                    let failure = self.scheduler.end(start.request);
                    self.waiting -= failure.map_or(0, |failure| failure.waiters.len() as i64);
                }
                Op::Leave(pick) if !self.waits.is_empty() => {
                    let (key, id) = self.waits.swap_remove(pick % self.waits.len());
                    let before = self.scheduler.inflight().waiters();
                    let unwanted = self.scheduler.leave(&key, id);
                    self.waiting -= (before - self.scheduler.inflight().waiters()) as i64;
                    self.running.retain(|(start, _)| Some(start.request) != unwanted);
                }
                Op::Cancel(handle) => {
                    let unwanted = self.scheduler.cancel(|other| other == stream(handle));
                    self.running.retain(|(start, _)| !unwanted.contains(&start.request));
                }
                _ => {}
            }
            let starts = self.scheduler.admit();
            self.start(starts);
        }
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_every_waiter_is_notified(ops in prop::collection::vec(op(), 0..150)) {
            let scheduler = FetchScheduler::new(budget(32));
            let mut run = Run { scheduler, running: Vec::new(), waits: Vec::new(), waiting: 0 };
            for op in ops {
                run.apply(&op);
                let (memory, inflight) = (run.scheduler.memory(), run.scheduler.inflight());
                // Only demands may exceed the budget, and then no chunk is kept.
                prop_assert!(
                    memory.bytes() + inflight.bytes() <= 32 * CHUNK_COST || memory.bytes() == 0,
                    "{} in memory, {} under way", memory.bytes(), inflight.bytes()
                );
                prop_assert!(inflight.ahead_bytes() <= 24 * CHUNK_COST);
                prop_assert!(inflight.ahead_requests() <= 8);
                let left: usize = run.running.iter().map(|(_, left)| left.len()).sum();
                prop_assert_eq!(inflight.chunks(), left, "in flight without a request, or twice");
                prop_assert_eq!(inflight.waiters() as i64, run.waiting);
            }
            while !run.running.is_empty() {
                run.apply(&Op::Deliver(0));
            }
            prop_assert_eq!(run.scheduler.inflight().bytes(), 0);
            prop_assert_eq!(run.waiting, 0, "a reader waits for ever");
            (0..4).for_each(|handle| run.apply(&Op::Cancel(handle)));
            prop_assert_eq!(run.scheduler.queued_runs(), 0);
            prop_assert_eq!(run.scheduler.memory().unread_bytes(), 0);
        }
    }
}
