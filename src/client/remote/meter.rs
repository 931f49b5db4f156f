//! (P) Rate at which content arrives. For writes it counts the bytes that the host accepts.
//!
//! It counts the time between arrivals while at least one read is under way, and the bytes at the end of each
//! such time. So neither idle times nor the first round trip of a read make the link look slow.

use std::collections::VecDeque;
use std::time::Duration;

/// Counted time of one bucket.
const BUCKET: Duration = Duration::from_millis(100);
/// Number of buckets kept, about a second.
const BUCKETS_MAX: usize = 10;
/// Shortest counted time for a rate. A burst out of a buffer measures nothing.
const COUNTED_MIN: Duration = Duration::from_millis(10);
/// Longest time between arrivals that counts. After a longer one the link was interrupted or the host's disk
/// was asleep.
const GAP_MAX: Duration = Duration::from_secs(1);

/// Measures the rate at which content arrives.
#[derive(Debug, Default)]
pub(super) struct Meter {
    reads: usize,
    last_arrival: Option<Duration>,
    current: Bucket,
    past: VecDeque<Bucket>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    counted: Duration,
    bytes: u64,
}

impl Meter {
    /// Starts a read.
    pub(super) const fn begin(&mut self) {
        self.reads += 1;
    }

    /// Ends a read, or pauses it while it waits for its reader.
    pub(super) const fn end(&mut self) {
        self.reads = self.reads.saturating_sub(1);
        if self.reads == 0 {
            self.last_arrival = None;
        }
    }

    /// Counts `bytes` bytes of content.
    pub(super) fn arrived(&mut self, now: Duration, bytes: u64) {
        let since = self.last_arrival.map(|last| now.saturating_sub(last)).filter(|gap| *gap <= GAP_MAX);
        self.last_arrival = Some(now);
        let Some(since) = since else { return };
        self.current.counted += since;
        self.current.bytes += bytes;
        if self.current.counted >= BUCKET {
            self.past.push_back(std::mem::take(&mut self.current));
            if self.past.len() > BUCKETS_MAX {
                self.past.pop_front();
            }
        }
    }

    /// Returns the bytes per second over the last second of counted time, 0 while unknown.
    pub(super) fn bytes_per_second(&self) -> u64 {
        let all = || self.past.iter().chain([&self.current]);
        let counted: Duration = all().map(|bucket| bucket.counted).sum();
        let bytes: u64 = all().map(|bucket| bucket.bytes).sum();
        if counted < COUNTED_MIN {
            return 0;
        }
        u64::try_from(u128::from(bytes) * 1_000_000_000 / counted.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Begin,
        End,
        Arrive { after_ms: u64, bytes: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Begin),
            Just(Op::End),
            (0u64..1_500, 0u64..100_000).prop_map(|(after_ms, bytes)| Op::Arrive { after_ms, bytes }),
            (0u64..20, 0u64..100_000).prop_map(|(after_ms, bytes)| Op::Arrive { after_ms, bytes }),
        ]
    }

    /// Returns the same from the whole history: counted arrivals, cut into buckets, the last ones summed.
    fn slowly(counted: &[(u64, u64)]) -> u64 {
        let mut buckets = vec![(0, 0)];
        for (time, bytes) in counted {
            let last = buckets.last_mut().unwrap();
            *last = (last.0 + time, last.1 + bytes);
            if last.0 >= 100 {
                buckets.push((0, 0));
            }
        }
        let kept = &buckets[buckets.len().saturating_sub(BUCKETS_MAX + 1)..];
        let (time, bytes) = kept.iter().fold((0, 0), |sum, bucket| (sum.0 + bucket.0, sum.1 + bucket.1));
        if time < 10 { 0 } else { bytes * 1_000 / time }
    }

    proptest! {
        #[test]
        fn the_rate_is_that_of_the_whole_history(ops in proptest::collection::vec(op(), 0..200)) {
            let mut meter = Meter::default();
            let (mut now_ms, mut reads, mut last, mut counted) = (0, 0u32, None, Vec::new());
            for op in ops {
                match op {
                    Op::Begin => {
                        meter.begin();
                        reads += 1;
                    }
                    Op::End => {
                        meter.end();
                        reads = reads.saturating_sub(1);
                        if reads == 0 {
                            last = None;
                        }
                    }
                    Op::Arrive { after_ms, bytes } => {
                        now_ms += after_ms;
                        meter.arrived(Duration::from_millis(now_ms), bytes);
                        if let Some(gap) = last.map(|last| now_ms - last).filter(|gap| *gap <= 1_000) {
                            counted.push((gap, bytes));
                        }
                        last = Some(now_ms);
                    }
                }
                prop_assert_eq!(meter.bytes_per_second(), slowly(&counted));
            }
        }
    }

    #[test]
    fn round_trips_and_idleness_do_not_slow_the_rate() {
        let mut meter = Meter::default();
        let mut now = Duration::ZERO;
        for _ in 0..5 {
            now += Duration::from_secs(60);
            meter.begin();
            for _ in 0..20 {
                now += Duration::from_millis(10);
                meter.arrived(now, 10_000);
            }
            meter.end();
        }
        assert_eq!(meter.bytes_per_second(), 1_000_000);
    }

    #[test]
    fn the_rate_follows_a_change_within_a_second() {
        let mut meter = Meter::default();
        meter.begin();
        for ms in 0..4_000 {
            meter.arrived(Duration::from_millis(ms), if ms < 2_500 { 1_000 } else { 100 });
        }
        assert_eq!(meter.bytes_per_second(), 100_000);
    }
}
