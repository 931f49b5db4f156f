//! What the daemon counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that goes up and down with what is under way.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    /// Counts one more until the guard is dropped.
    pub(super) fn enter(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self)
    }

    /// How many are under way.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The sum since the start.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Requests taken up.
    pub(super) requests: Counter,
    /// Requests under way.
    pub(super) requests_inflight: Gauge,
    /// Clients that were refused at the door.
    pub(super) refused: Counter,
    /// Bytes of content handed to streams.
    pub(super) content_bytes_sent: Counter,
    /// Chunks saved because the client held them.
    pub(super) chunks_same: Counter,
    /// Reads at the disk engine.
    pub(super) disk_inflight: Gauge,
    /// Chunks that wait for room in their stream.
    pub(super) send_inflight: Gauge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_comes_back_to_zero() {
        let gauge = Gauge::default();
        {
            let _one = gauge.enter();
            let _two = gauge.enter();
            assert_eq!(gauge.get(), 2);
        }
        assert_eq!(gauge.get(), 0);
    }
}
