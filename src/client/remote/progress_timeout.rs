//! Deadline of an answer that arrives in parts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::shared::Shared;
use crate::client::away;

/// Bytes that count as progress. A peer that sends one byte a minute makes none.
const PROGRESS_BYTES: u64 = 4096;

/// Timeout that fires when the host made no progress for the time of the deadline, or is away.
///
/// It counts from the last progress and not from the start. 16 MiB over a slow link take longer than any
/// sensible deadline. It pauses while the reader itself is slow.
pub(super) struct ProgressTimeout<'a> {
    shared: &'a Shared,
    /// Time at which it fires, in nanoseconds of the client's clock, the maximum while paused.
    until_ns: AtomicU64,
    unnoticed_bytes: AtomicU64,
}

impl<'a> ProgressTimeout<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        let timeout = Self { shared, until_ns: AtomicU64::new(0), unnoticed_bytes: AtomicU64::new(0) };
        timeout.renew();
        timeout
    }

    /// Restarts the time, after progress or a pause.
    pub(super) fn renew(&self) {
        let until = self.shared.now().saturating_add(self.shared.deadline);
        self.until_ns.store(until.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Pauses while the reader is busy.
    pub(super) fn pause(&self) {
        self.until_ns.store(u64::MAX, Ordering::Relaxed);
    }

    /// Counts bytes of a part.
    pub(super) fn arrived(&self, bytes: u64) {
        let unnoticed = self.unnoticed_bytes.load(Ordering::Relaxed) + bytes;
        let noticed = unnoticed >= PROGRESS_BYTES;
        self.unnoticed_bytes.store(if noticed { 0 } else { unnoticed }, Ordering::Relaxed);
        if noticed {
            self.renew();
        }
    }

    /// Waits until the timeout fires.
    pub(super) async fn exhausted(&self) {
        let (begun, deadline) = (self.shared.now(), self.shared.deadline);
        loop {
            let (now, until_ns) = (self.shared.now(), self.until_ns.load(Ordering::Relaxed));
            let mut left = Duration::from_nanos(until_ns).saturating_sub(now);
            // While it is paused, no call waits for the host.
            if until_ns != u64::MAX {
                left = away::left(left, deadline, now.saturating_sub(begun), self.shared.silent_for());
            }
            if left.is_zero() {
                return;
            }
            // The end of a pause wakes no task, but extends the time by a deadline at least.
            sleep(left.min(deadline)).await;
        }
    }
}
