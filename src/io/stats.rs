//! Counters of a disk engine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::pool::Pool;

/// What an engine did since its start. Counters only grow, except where a unit of "now" is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Operations queued or running now.
    pub in_flight: u64,
    /// Most operations that were in flight at once.
    pub in_flight_max: u64,
    /// Reads answered, failed ones included.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads that found everything in the page cache and took no turn.
    pub resident_reads: u64,
    /// Writes answered, failed ones included.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Submissions that read into registered buffers; 0 where buffers could not be registered.
    pub fixed_reads: u64,
    /// Calls of `io_uring_enter`; 0 for threads. Divided by `reads` it shows how well submissions are batched.
    pub submissions: u64,
    /// Reads that gave less than was asked for and were continued (also at the end of a file, to make sure).
    pub short_reads: u64,
    /// Operations given up by their caller before they had begun.
    pub cancelled: u64,
    /// Buffers of the pool, small ones included.
    pub pool_buffers: u64,
    /// Buffers that nobody holds now.
    pub pool_free: u64,
}

/// The live form of [`EngineStats`].
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
    /// The values of now; not one instant for all of them.
    pub(super) fn snapshot(&self, pool: &Pool) -> EngineStats {
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

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}
