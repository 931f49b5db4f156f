//! What the daemon counts about itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that goes up and down with what is under way, and the most it has been.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    now: AtomicU64,
    max: AtomicU64,
}

impl Gauge {
    /// Counts one more until the guard is dropped.
    pub(super) fn enter(&self) -> GaugeGuard<'_> {
        self.raise();
        GaugeGuard(self)
    }

    fn raise(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(now, Ordering::Relaxed);
    }

    fn lower(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are under way.
    pub(super) fn get(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The most that were under way at once since the start.
    pub(super) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.lower();
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
    /// Changes that were asked for again, and answered without being done again.
    pub(super) changes_repeated: Counter,
    /// Bytes of content that clients wrote.
    pub(super) content_bytes_written: Counter,
    /// Clients that were refused at the door.
    pub(super) refused: Counter,
    /// Bytes of content handed to streams.
    pub(super) content_bytes_sent: Counter,
    /// Bytes of content that compression kept off the streams.
    pub(super) content_bytes_saved: Counter,
    /// Chunks saved because the client held them.
    pub(super) chunks_same: Counter,
    /// Hashes that were known when a client asked for them, or for a sum of them all.
    pub(super) index_hits: Counter,
    /// Hashes for which a file had to be read then.
    pub(super) index_misses: Counter,
    /// Reads at the disk engine.
    pub(super) disk_inflight: Gauge,
    /// Answers whose content is on its way: some of it was handed to the stream, and not all of it has arrived.
    send_inflight: Gauge,
}

impl Counters {
    /// Answers whose content is on its way.
    pub(super) fn sends(&self) -> &Gauge {
        &self.send_inflight
    }
}

/// An answer whose content is on its way, until this is dropped.
#[derive(Debug)]
pub(super) struct Sending(Arc<Counters>);

impl Sending {
    /// From now on.
    pub(super) fn begin(counters: &Arc<Counters>) -> Self {
        counters.send_inflight.raise();
        Self(Arc::clone(counters))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.send_inflight.lower();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_comes_back_to_zero_and_remembers_its_height() {
        let gauge = Gauge::default();
        {
            let _one = gauge.enter();
            let _two = gauge.enter();
            assert_eq!(gauge.get(), 2);
        }
        let _three = gauge.enter();
        assert_eq!((gauge.get(), gauge.max()), (1, 2));
    }
}
