//! Counters of a disk engine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::registered_pool::RegisteredPool;

/// Counters of an engine since its start. They only grow, except those that say "now".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Operations queued or running now.
    pub in_flight: u64,
    /// Most operations that were in flight at once.
    pub in_flight_max: u64,
    /// Answered reads, failed ones included.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads answered from the page cache alone, without the queue.
    pub resident_reads: u64,
    /// Answered writes, failed ones included.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Submissions that read into registered buffers; 0 without registered buffers.
    pub fixed_reads: u64,
    /// Calls of `io_uring_enter`; 0 for threads. Compare it with `reads` to see how well submissions are
    /// batched.
    pub submissions: u64,
    /// Reads that returned less than requested and were continued, also to confirm the end of a file.
    pub short_reads: u64,
    /// Operations abandoned by their caller before they began.
    pub cancelled: u64,
    /// Buffers of the pool, small ones included.
    pub pool_buffers: u64,
    /// Free buffers now.
    pub pool_free: u64,
}

/// Live counters of [`EngineStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) in_flight: AtomicU64,
    pub(super) in_flight_max: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) resident_reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) fixed_reads: AtomicU64,
    pub(super) submissions: AtomicU64,
    pub(super) short_reads: AtomicU64,
    pub(super) cancelled: AtomicU64,
}

impl Counters {
    /// Returns the current values, which are not read at one instant.
    pub(super) fn snapshot(&self, pool: &RegisteredPool) -> EngineStats {
        EngineStats {
            in_flight: self.in_flight.load(Relaxed),
            in_flight_max: self.in_flight_max.load(Relaxed),
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            resident_reads: self.resident_reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            fixed_reads: self.fixed_reads.load(Relaxed),
            submissions: self.submissions.load(Relaxed),
            short_reads: self.short_reads.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            pool_buffers: pool.buffers() as u64,
            pool_free: pool.free() as u64,
        }
    }
}

/// Adds `amount` to a counter.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}
