//! Choice of the write mode of the next segment: buffered or direct.
//!
//! Buffered data is read again from memory as long as the machine has memory to spare. No other layer of
//! the cache holds as much of large files. Buffered writes take 0.25 s of processor time a GiB if memory is
//! at hand. They take 0.4 to 3 s in a virtual machine that must first ask its host for memory; there the
//! cache would be slower than the network. Direct writes take 0.05 s a GiB. Data that arrives as fast as
//! the disk reads is written directly, too: then the processor is the bottleneck, and reading it from the
//! disk is as fast.
//!
//! Pure: takes the cost and the time of segments, and returns the mode of the next one.

use std::time::{Duration, Instant};

/// Most processor time for a buffered GiB before the mode changes to direct: twice the cost with memory at
/// hand.
const COST_PER_GIB_MAX: Duration = Duration::from_millis(500);

/// Number of direct segments before buffered writes are tried again. A machine that gives memory slowly
/// does so only for memory that it has not given yet.
const DIRECT_SEGMENTS: u32 = 8;

/// Fewest bytes from which the cost is judged.
const JUDGED_BYTES_MIN: u64 = 1024 * 1024;

/// Rate of arriving data, in bytes per second, above which segments are written directly: 2 Gbit/s, half
/// the read rate of a flash disk.
const BUFFERED_BYTES_PER_SECOND_MAX: u64 = 250_000_000;

const GIB: u128 = 1 << 30;

/// Write mode of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Through the page cache.
    Buffered,
    /// With direct I/O.
    Direct,
}

/// Policy that chooses the write mode of each segment from the cost of the segments before.
#[derive(Debug, Default)]
pub(super) struct WriteModePolicy {
    direct_segments_left: u32,
    buffered_bytes: u64,
    buffered_cost: Duration,
    /// Start of the segment, and the bytes written to it.
    began: Option<Instant>,
    bytes: u64,
}

impl WriteModePolicy {
    /// Returns the mode of a segment that begins now.
    pub(super) fn next_segment(&mut self, now: Instant) -> WriteMode {
        if self.is_expensive() {
            self.direct_segments_left = DIRECT_SEGMENTS;
        }
        let arrives_fast = self.arrives_fast(now);
        (self.buffered_bytes, self.buffered_cost) = (0, Duration::ZERO);
        (self.began, self.bytes) = (Some(now), 0);
        if self.direct_segments_left > 0 {
            self.direct_segments_left -= 1;
            return WriteMode::Direct;
        }
        if arrives_fast { WriteMode::Direct } else { WriteMode::Buffered }
    }

    /// Records a write of `bytes` in this mode and the processor time that it took.
    pub(super) fn record_write(&mut self, mode: WriteMode, bytes: u64, cost: Duration) {
        self.bytes += bytes;
        if mode == WriteMode::Buffered {
            self.buffered_bytes += bytes;
            self.buffered_cost += cost;
        }
    }

    fn arrives_fast(&self, now: Instant) -> bool {
        let taken_ns = self.began.map_or(u128::MAX, |began| now.saturating_duration_since(began).as_nanos());
        let allowed = u128::from(BUFFERED_BYTES_PER_SECOND_MAX).saturating_mul(taken_ns) / 1_000_000_000;
        self.bytes >= JUDGED_BYTES_MIN && u128::from(self.bytes) > allowed
    }

    fn is_expensive(&self) -> bool {
        let allowed_ns = COST_PER_GIB_MAX.as_nanos() * u128::from(self.buffered_bytes) / GIB;
        self.buffered_bytes >= JUDGED_BYTES_MIN && self.buffered_cost.as_nanos() > allowed_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

    /// Simulates slowly written segments with these costs of a buffered GiB in milliseconds; returns their
    /// modes.
    fn modes(cost_ms: &[u64]) -> Vec<WriteMode> {
        let (mut policy, mut now) = (WriteModePolicy::default(), Instant::now());
        let write = |&cost_ms| {
            let mode = policy.next_segment(now);
            for _ in 0..16 {
                policy.record_write(mode, SEGMENT_BYTES / 16, Duration::from_millis(cost_ms) / 256);
            }
            now += Duration::from_secs(1);
            mode
        };
        cost_ms.iter().map(write).collect()
    }

    #[test]
    fn fast_data_is_written_directly_until_a_segment_is_slow() {
        let (mut policy, mut now) = (WriteModePolicy::default(), Instant::now());
        let modes = [100, 100, 100, 300, 300].map(|took_ms| {
            let mode = policy.next_segment(now);
            policy.record_write(mode, SEGMENT_BYTES, Duration::ZERO);
            now += Duration::from_millis(took_ms);
            mode
        });
        let [buffered, direct] = [WriteMode::Buffered, WriteMode::Direct];
        assert_eq!(modes, [buffered, direct, direct, direct, buffered]);
    }

    #[test]
    fn cheap_writes_stay_buffered() {
        assert_eq!(modes(&[100, 499, 250, 500]), [WriteMode::Buffered; 4]);
    }

    #[test]
    fn expensive_buffered_writes_are_retried_after_some_segments() {
        let tries = |modes: Vec<WriteMode>| -> Vec<usize> {
            modes
                .iter()
                .enumerate()
                .filter(|(_, mode)| **mode == WriteMode::Buffered)
                .map(|(at, _)| at)
                .collect()
        };
        assert_eq!(tries(modes(&[2000; 20])), [0, 9, 18]);
        let cheap_from_then_on = [[2000; 5], [200; 5], [200; 5]].concat();
        assert_eq!(tries(modes(&cheap_from_then_on)), [0, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_few_bytes_are_not_judged() {
        for (bytes, second) in
            [(JUDGED_BYTES_MIN - 1, WriteMode::Buffered), (JUDGED_BYTES_MIN, WriteMode::Direct)]
        {
            for (cost, took) in [(Duration::from_secs(1), Duration::from_secs(1)), Default::default()] {
                let (mut policy, now) = (WriteModePolicy::default(), Instant::now());
                policy.next_segment(now);
                policy.record_write(WriteMode::Buffered, bytes, cost);
                assert_eq!(policy.next_segment(now + took), second);
            }
        }
    }

    #[test]
    fn the_cost_of_direct_writes_does_not_count() {
        let mut policy = WriteModePolicy::default();
        let now = Instant::now();
        policy.next_segment(now);
        policy.record_write(WriteMode::Direct, SEGMENT_BYTES, Duration::from_secs(9));
        assert_eq!(policy.next_segment(now + Duration::from_secs(1)), WriteMode::Buffered);
    }
}
