//! Queue between inserting threads and the writer thread. It is bounded in bytes, and queued records can be
//! read.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::manifest::ManifestPage;
use super::record::{Key, Kind};
use crate::chunk::VerifiedChunk;

/// Most bytes of queued chunks. The readers' memory is larger and mostly holds the same chunks. Beyond the
/// bound inserts are dropped: the cache may lose a chunk, but a reader must not wait.
pub(super) const QUEUE_BYTES_MAX: usize = 72 * 1024 * 1024;

/// Bytes of queued records from which the writer counts as behind. At 1 GB/s the room above it covers a
/// disk pause of 58 ms. With a bound of 24 MiB, a cold read of a GiB with a disk of 1 GB/s took 4 to 6 %
/// longer.
const BEHIND_BYTES: usize = 56 * 1024 * 1024;

/// Bytes by which manifest pages may exceed the bound. A page of 8 KiB saves the transfer of 64 MiB.
const MANIFEST_EXTRA_BYTES: usize = 4 * 1024 * 1024;

/// Cost of an item beside its payload, in bytes. It bounds the number of empty items.
const ITEM_BYTES: usize = 256;

/// Most bytes that the writer takes at once: few enough to free room soon, enough for large writes.
pub(super) const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that the writer waits for before it begins, unless a caller waits for it. Large writes take half
/// the processor time of small ones, and the writer wakes up less often.
const GATHER_BYTES: usize = 1024 * 1024;

/// Longest wait for [`GATHER_BYTES`]. At 200 MB/s, 1 MiB arrives in 5 ms. Queued records can be read
/// meanwhile.
const GATHER_TIME: Duration = Duration::from_millis(5);

/// Duration of a write that marks the disk as slow now, whatever its rate was before. A fast disk makes up
/// for shorter pauses. When those counted, 100 to 700 queued chunks of a GiB were dropped in one cold read
/// of four.
const STALL_TIME: Duration = Duration::from_millis(200);

/// Number of last bytes over which the write rate is measured: enough to see a disk fill its own cache.
const RATE_BYTES: u64 = 64 * 1024 * 1024;

/// Content of a record.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    /// A chunk.
    Chunk(VerifiedChunk),
    /// A page. It is merged with the page on disk before it is written.
    Manifest(Arc<ManifestPage>),
}

/// Record to write.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its key.
    pub(super) key: Key,
    /// Its content.
    pub(super) payload: Payload,
}

impl Item {
    fn cost_bytes(&self) -> usize {
        ITEM_BYTES
            + match &self.payload {
                Payload::Chunk(chunk) => chunk.bytes().len(),
                Payload::Manifest(page) => page.encoded_bytes(),
            }
    }

    fn limit_bytes(&self) -> usize {
        match self.payload {
            Payload::Chunk(_) => QUEUE_BYTES_MAX,
            Payload::Manifest(_) => QUEUE_BYTES_MAX + MANIFEST_EXTRA_BYTES,
        }
    }

    /// Returns the kind of its content.
    pub(super) fn kind(&self) -> Kind {
        match self.payload {
            Payload::Chunk(_) => Kind::Chunk,
            Payload::Manifest(_) => Kind::Manifest,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (&self.payload, &other.payload) {
            (Payload::Chunk(_), Payload::Chunk(_)) => true,
            (Payload::Manifest(ours), Payload::Manifest(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

/// Result of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It will be written.
    Accepted,
    /// It is queued already.
    Duplicate,
    /// The queue is full, or the writer is gone.
    Refused,
}

/// Next task of the writer.
#[derive(Debug)]
pub(super) enum Task {
    /// Write these, then call [`Queue::written`].
    Write(Vec<Item>),
    /// Pick up the changes of other processes, then call [`Queue::refreshed`].
    Refresh,
    /// The timeout passed without work.
    Idle,
    /// Stop.
    Stop,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// Items that are queued or being written.
    pending: HashMap<Key, Item>,
    bytes: usize,
    in_flight_bytes: usize,
    /// Arrival of the oldest queued item.
    first_came: Option<Instant>,
    /// Number of callers in [`Queue::drain`].
    drain_waiters: usize,
    /// Time at which the writer took the items in flight.
    taken: Option<Instant>,
    rate: WriteRate,
    stopped: bool,
    writer_gone: bool,
    refresh: Refresh,
}

/// Recent write rate of the disk.
#[derive(Debug, Default)]
struct WriteRate {
    bytes: u64,
    time: Duration,
}

impl WriteRate {
    fn add(&mut self, bytes: usize, time: Duration) {
        self.bytes += bytes as u64;
        self.time += time;
        if self.bytes > RATE_BYTES {
            self.bytes /= 2;
            self.time /= 2;
        }
    }

    /// Returns 0 if nothing was written.
    fn bytes_per_second(&self) -> u64 {
        let micros = u64::try_from(self.time.as_micros()).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1_000_000) / micros
    }
}

/// State of the writer's check for changes of other processes.
#[derive(Debug, Default)]
struct Refresh {
    wanted: bool,
    runs: bool,
    earliest: Option<Instant>,
    done: u64,
}

impl State {
    /// Returns `true` if the writer should begin.
    fn is_due(&self, now: Instant) -> bool {
        let came_long_ago = self.first_came.is_none_or(|came| now >= came + GATHER_TIME);
        self.bytes >= GATHER_BYTES || self.drain_waiters > 0 || self.stopped || came_long_ago
    }

    fn take_batch(&mut self, now: Instant) -> Vec<Item> {
        self.taken = Some(now);
        let mut batch = Vec::new();
        while let Some(item) = self.items.front()
            && (batch.is_empty() || self.in_flight_bytes + item.cost_bytes() <= BATCH_BYTES_MAX)
        {
            self.in_flight_bytes += item.cost_bytes();
            batch.extend(self.items.pop_front());
        }
        self.first_came = if self.items.is_empty() { None } else { Some(now) };
        batch
    }

    fn refresh_due(&self, now: Instant) -> bool {
        self.refresh.wanted && self.refresh.earliest.is_none_or(|earliest| earliest <= now)
    }
}

/// The write queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    for_writer: Condvar,
    for_waiters: Condvar,
}

impl Queue {
    /// Queues `item` if there is room for it. Never waits.
    pub(super) fn push(&self, item: Item) -> Pushed {
        let mut state = self.state();
        if state.pending.get(&item.key).is_some_and(|waiting| waiting.is(&item)) {
            return Pushed::Duplicate;
        }
        let cost = item.cost_bytes();
        if state.stopped || state.bytes + cost > item.limit_bytes() {
            return Pushed::Refused;
        }
        state.bytes += cost;
        state.pending.insert(item.key, item.clone());
        state.items.push_back(item);
        let is_first = state.first_came.is_none();
        if is_first {
            state.first_came = Some(Instant::now());
        }
        // At any other size the writer would wake up only to sleep again.
        if is_first || (state.bytes >= GATHER_BYTES && state.bytes - cost < GATHER_BYTES) {
            self.for_writer.notify_one();
        }
        Pushed::Accepted
    }

    /// Returns `true` if the queue is nearly full.
    pub(super) fn is_behind(&self) -> bool {
        let state = self.state();
        !state.stopped && state.bytes > BEHIND_BYTES
    }

    /// Returns the write rate of the disk in bytes per second, or 0 if it is unknown. The rate falls while
    /// the current write takes longer than [`STALL_TIME`].
    pub(super) fn bytes_per_second(&self) -> u64 {
        let state = self.state();
        let lately = state.rate.bytes_per_second();
        let time = state.taken.map_or(Duration::ZERO, |taken| taken.elapsed());
        let now = WriteRate { bytes: state.in_flight_bytes as u64, time };
        if time > STALL_TIME { lately.min(now.bytes_per_second()) } else { lately }
    }

    /// Returns the queued content under `key`.
    pub(super) fn get(&self, key: &Key, kind: Kind) -> Option<Payload> {
        let state = self.state();
        state.pending.get(key).filter(|item| item.kind() == kind).map(|item| item.payload.clone())
    }

    /// Returns the next task of the writer. Waits at most `timeout` for it.
    pub(super) fn next(&self, timeout: Duration) -> Task {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            let now = Instant::now();
            if state.refresh_due(now) {
                (state.refresh.wanted, state.refresh.runs) = (false, true);
                return Task::Refresh;
            }
            if !state.items.is_empty() && (state.is_due(now) || now >= deadline) {
                return Task::Write(state.take_batch(now));
            }
            if state.stopped {
                return Task::Stop;
            }
            if now >= deadline {
                return Task::Idle;
            }
            let refresh = state.refresh.earliest.filter(|_| state.refresh.wanted);
            let gathered = state.first_came.map(|came| came + GATHER_TIME);
            let until = [refresh, gathered].into_iter().flatten().fold(deadline, Instant::min);
            let wait = until.saturating_duration_since(now);
            state = self.for_writer.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Marks a batch as written or given up.
    pub(super) fn written(&self, batch: &[Item]) {
        let mut state = self.state();
        for item in batch {
            if state.pending.get(&item.key).is_some_and(|waiting| waiting.is(item)) {
                state.pending.remove(&item.key);
            }
        }
        let took = state.taken.take().map_or(Duration::ZERO, |taken| taken.elapsed());
        let bytes = std::mem::take(&mut state.in_flight_bytes);
        state.rate.add(bytes, took);
        state.bytes -= bytes;
        self.for_waiters.notify_all();
    }

    /// Asks the writer to check for changes of other processes when the next check may run.
    pub(super) fn want_refresh(&self) {
        let mut state = self.state();
        if !state.refresh.wanted {
            state.refresh.wanted = true;
            self.for_writer.notify_one();
        }
    }

    /// Marks a refresh as done, and sets the earliest time of the next one.
    pub(super) fn refreshed(&self, earliest_next: Instant) {
        let mut state = self.state();
        (state.refresh.runs, state.refresh.earliest) = (false, Some(earliest_next));
        state.refresh.done += 1;
        self.for_waiters.notify_all();
    }

    /// Makes the writer check for changes of other processes at once. Returns `true` if that was done
    /// before `deadline`.
    pub(super) fn refresh_now(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        // A running check may have looked too early, so only the next one counts.
        let wanted = state.refresh.done + 1 + u64::from(state.refresh.runs);
        while state.refresh.done < wanted && !state.writer_gone {
            (state.refresh.wanted, state.refresh.earliest) = (true, None);
            self.for_writer.notify_one();
            match self.wait(state, deadline) {
                (back, true) => state = back,
                (..) => return false,
            }
        }
        state.refresh.done >= wanted
    }

    /// Waits until everything queued so far is written. Returns `true` if that was done before `deadline`.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        state.drain_waiters += 1;
        self.for_writer.notify_one();
        let mut in_time = true;
        while state.bytes > 0 && !state.writer_gone && in_time {
            (state, in_time) = self.wait(state, deadline);
        }
        state.drain_waiters -= 1;
        state.bytes == 0
    }

    /// Makes the writer write the queue and stop. Returns `true` if it did before `deadline`.
    pub(super) fn stop(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        state.stopped = true;
        self.for_writer.notify_one();
        while !state.writer_gone {
            match self.wait(state, deadline) {
                (back, true) => state = back,
                (..) => return false,
            }
        }
        true
    }

    /// Marks the writer as gone, so that no caller waits for it. Called by the writer.
    pub(super) fn writer_exited(&self) {
        let mut state = self.state();
        (state.stopped, state.writer_gone) = (true, true);
        self.for_waiters.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Instant) -> (MutexGuard<'a, State>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (state, false);
        }
        let (state, _) = self.for_waiters.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        (state, true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::chunk::ChunkHash;

    fn chunk(number: u32, len: usize) -> Item {
        let mut bytes = vec![0; len.max(4)];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let chunk = VerifiedChunk::compute(Bytes::from(bytes));
        Item { key: *chunk.hash().as_bytes(), payload: Payload::Chunk(chunk) }
    }

    fn page(byte: u8) -> Item {
        let mut page = ManifestPage::default();
        page.set(0, ChunkHash::from_bytes([byte; 32]));
        Item { key: [1; 32], payload: Payload::Manifest(Arc::new(page)) }
    }

    fn take(queue: &Queue) -> Vec<Item> {
        match queue.next(Duration::ZERO) {
            Task::Write(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_queue_refuses_chunks_first_and_pages_later() {
        let queue = Queue::default();
        let accepted = (0..10_000).take_while(|&n| queue.push(chunk(n, 65_536)) == Pushed::Accepted).count();
        assert_eq!(accepted, QUEUE_BYTES_MAX / (65_536 + ITEM_BYTES));
        assert_eq!(queue.push(page(1)), Pushed::Accepted);
        let mut batches = 0;
        while queue.state().bytes > 0 {
            let batch = take(&queue);
            assert!(batch.iter().map(Item::cost_bytes).sum::<usize>() <= BATCH_BYTES_MAX);
            queue.written(&batch);
            batches += 1;
        }
        assert!(batches >= 4);
        assert!(queue.state().pending.is_empty());
        assert!(matches!(queue.next(Duration::ZERO), Task::Idle));
    }

    #[test]
    fn queued_records_are_found_and_queued_once() {
        let queue = Queue::default();
        let item = chunk(1, 100);
        assert_eq!(queue.push(item.clone()), Pushed::Accepted);
        assert_eq!(queue.push(item.clone()), Pushed::Duplicate);
        let batch = take(&queue);
        assert_eq!(queue.push(item.clone()), Pushed::Duplicate);
        assert!(queue.get(&item.key, Kind::Chunk).is_some());
        assert!(queue.get(&item.key, Kind::Manifest).is_none());
        queue.written(&batch);
        assert!(queue.get(&item.key, Kind::Chunk).is_none());
        assert!(queue.drain(Instant::now()));
    }

    #[test]
    fn a_grown_page_waits_on_while_the_older_one_is_written() {
        let queue = Queue::default();
        queue.push(page(1));
        let batch = take(&queue);
        assert_eq!(queue.push(page(2)), Pushed::Accepted);
        queue.written(&batch);
        match queue.get(&[1; 32], Kind::Manifest) {
            Some(Payload::Manifest(page)) => {
                assert_eq!(page.get(0), Some(ChunkHash::from_bytes([2; 32])));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refreshes_keep_their_interval_unless_forced() {
        let queue = Queue::default();
        queue.want_refresh();
        assert!(matches!(queue.next(Duration::ZERO), Task::Refresh));
        queue.refreshed(Instant::now() + Duration::from_secs(3600));
        queue.want_refresh();
        assert!(matches!(queue.next(Duration::ZERO), Task::Idle));
        assert!(!queue.refresh_now(Instant::now()));
        assert!(matches!(queue.next(Duration::ZERO), Task::Refresh));
    }

    #[test]
    fn a_small_batch_waits_for_more_unless_a_caller_drains() {
        let queue = Queue::default();
        let come = Instant::now();
        queue.push(chunk(1, 1000));
        queue.push(chunk(2, 1000));
        assert!(matches!(queue.next(Duration::from_secs(3600)), Task::Write(batch) if batch.len() == 2));
        assert!(come.elapsed() >= GATHER_TIME);
        let queue = Queue::default();
        std::thread::scope(|scope| {
            queue.state().first_came = Some(Instant::now() + Duration::from_secs(3600));
            let writer = scope.spawn(|| queue.next(Duration::from_secs(3600)));
            queue.push(chunk(1, GATHER_BYTES));
            assert!(matches!(writer.join().unwrap(), Task::Write(batch) if batch.len() == 1));
            queue.written(&[chunk(1, GATHER_BYTES)]);
            queue.state().first_came = Some(Instant::now() + Duration::from_secs(3600));
            let writer = scope.spawn(|| queue.next(Duration::from_secs(3600)));
            queue.push(chunk(2, 1000));
            assert!(!queue.drain(Instant::now() + Duration::from_millis(50)));
            assert!(matches!(writer.join().unwrap(), Task::Write(batch) if batch.len() == 1));
        });
    }

    #[test]
    fn the_rate_covers_recent_and_current_writes() {
        let mut rate = WriteRate::default();
        assert_eq!(rate.bytes_per_second(), 0);
        (0..100).for_each(|_| rate.add(4 << 20, Duration::from_millis(4)));
        assert_eq!(rate.bytes_per_second() >> 20, 1000);
        (0..100).for_each(|_| rate.add(4 << 20, Duration::from_millis(400)));
        assert!(rate.bytes_per_second() >> 20 <= 11, "{rate:?}");

        let queue = Queue::default();
        queue.state().rate.add(1 << 20, Duration::from_millis(1));
        assert_eq!(queue.bytes_per_second() >> 20, 1000);
        queue.push(chunk(1, 1 << 16));
        let batch = take(&queue);
        queue.state().taken = Some(Instant::now() + Duration::from_secs(3600));
        assert_eq!(queue.bytes_per_second() >> 20, 1000, "it may be about to go on");
        queue.state().taken = Instant::now().checked_sub(STALL_TIME * 2);
        assert!(queue.bytes_per_second() >> 20 < 4, "the disk has stalled");
        queue.written(&batch);
        assert!(queue.bytes_per_second() >> 20 < 60);
    }

    #[test]
    fn a_stopped_queue_is_emptied_and_takes_nothing() {
        let queue = Queue::default();
        queue.push(chunk(1, 10));
        assert!(!queue.stop(Instant::now()));
        assert_eq!(queue.push(chunk(2, 10)), Pushed::Refused);
        assert!(!queue.drain(Instant::now()));
        let batch = take(&queue);
        queue.written(&batch);
        assert!(matches!(queue.next(Duration::from_secs(3600)), Task::Stop));
        queue.writer_exited();
        assert!(queue.stop(Instant::now()));
        assert!(!queue.refresh_now(Instant::now() + Duration::from_secs(3600)));
    }
}
