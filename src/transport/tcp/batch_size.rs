//! (P) Number of bytes encrypted at once. A large batch costs less, but urgent data waits behind it.

use std::time::Duration;

/// Bytes encrypted at once: a full record on a slow link, sixteen on a fast one.
const BATCH_BYTES_MIN: usize = 16 << 10;
const BATCH_BYTES_MAX: usize = 256 << 10;
/// A batch that takes the socket at least this long is too large. One that takes less than `FAST_WITHIN` may
/// be larger.
const SLOW_AFTER: Duration = Duration::from_millis(4);
const FAST_WITHIN: Duration = Duration::from_millis(1);

/// Size of batches, derived from the time that the last ones took.
#[derive(Debug)]
pub(super) struct BatchSize {
    batch_bytes: usize,
    begun_at: Duration,
}

impl BatchSize {
    pub(super) const fn new() -> Self {
        Self { batch_bytes: BATCH_BYTES_MAX / 4, begun_at: Duration::ZERO }
    }

    /// Returns the number of bytes to encrypt now.
    pub(super) const fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// Records that a batch is encrypted.
    pub(super) const fn begin(&mut self, now: Duration) {
        self.begun_at = now;
    }

    /// Records that the socket has taken all of it.
    pub(super) fn drained(&mut self, now: Duration) {
        let took = now.saturating_sub(self.begun_at);
        if took >= SLOW_AFTER {
            self.batch_bytes = (self.batch_bytes / 2).max(BATCH_BYTES_MIN);
        } else if took < FAST_WITHIN {
            self.batch_bytes = (self.batch_bytes * 2).min(BATCH_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_follow_the_link() {
        let mut pace = BatchSize::new();
        let mut now = Duration::ZERO;
        let mut take = |pace: &mut BatchSize, took| {
            pace.begin(now);
            now += took;
            pace.drained(now);
        };
        (0..9).for_each(|_| take(&mut pace, Duration::from_micros(100)));
        assert_eq!(pace.batch_bytes(), BATCH_BYTES_MAX);
        take(&mut pace, Duration::from_millis(2));
        assert_eq!(pace.batch_bytes(), BATCH_BYTES_MAX);
        (0..9).for_each(|_| take(&mut pace, Duration::from_millis(20)));
        assert_eq!(pace.batch_bytes(), BATCH_BYTES_MIN);
    }
}
