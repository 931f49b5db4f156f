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
const SEGMENTS_AROUND: u32 = 8;

/// Fewest bytes from which the cost is judged.
const JUDGED_BYTES_MIN: u64 = 1024 * 1024;

/// Rate of arriving data, in bytes per second, above which segments are written directly: 2 Gbit/s, half
/// the read rate of a flash disk.
const BYTES_PER_SECOND_THROUGH_MAX: u64 = 250_000_000;

const GIB: u128 = 1 << 30;

/// Write mode of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache.
    Through,
    /// With direct I/O.
    Around,
}

/// Policy that chooses the write mode of each segment from the cost of the segments before.
#[derive(Debug, Default)]
pub(super) struct WayChoice {
    segments_around: u32,
    through_bytes: u64,
    through_cost: Duration,
    /// Start of the segment, and the bytes written to it.
    began: Option<Instant>,
    bytes: u64,
}

impl WayChoice {
    /// Returns the mode of a segment that begins now.
    pub(super) fn next_segment(&mut self, now: Instant) -> Way {
        if self.is_dear() {
            self.segments_around = SEGMENTS_AROUND;
        }
        let comes_fast = self.comes_fast(now);
        (self.through_bytes, self.through_cost) = (0, Duration::ZERO);
        (self.began, self.bytes) = (Some(now), 0);
        if self.segments_around > 0 {
            self.segments_around -= 1;
            return Way::Around;
        }
        if comes_fast { Way::Around } else { Way::Through }
    }

    /// Records a write of `bytes` in this mode and the processor time that it took.
    pub(super) fn wrote(&mut self, way: Way, bytes: u64, cost: Duration) {
        self.bytes += bytes;
        if way == Way::Through {
            self.through_bytes += bytes;
            self.through_cost += cost;
        }
    }

    fn comes_fast(&self, now: Instant) -> bool {
        let taken_ns = self.began.map_or(u128::MAX, |began| now.saturating_duration_since(began).as_nanos());
        let allowed = u128::from(BYTES_PER_SECOND_THROUGH_MAX).saturating_mul(taken_ns) / 1_000_000_000;
        self.bytes >= JUDGED_BYTES_MIN && u128::from(self.bytes) > allowed
    }

    fn is_dear(&self) -> bool {
        let allowed_ns = COST_PER_GIB_MAX.as_nanos() * u128::from(self.through_bytes) / GIB;
        self.through_bytes >= JUDGED_BYTES_MIN && self.through_cost.as_nanos() > allowed_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

    /// Simulates slowly written segments with these costs of a buffered GiB in milliseconds; returns their
    /// modes.
    fn ways(cost_ms: &[u64]) -> Vec<Way> {
        let (mut choice, mut now) = (WayChoice::default(), Instant::now());
        let write = |&cost_ms| {
            let way = choice.next_segment(now);
            for _ in 0..16 {
                choice.wrote(way, SEGMENT_BYTES / 16, Duration::from_millis(cost_ms) / 256);
            }
            now += Duration::from_secs(1);
            way
        };
        cost_ms.iter().map(write).collect()
    }

    #[test]
    fn what_comes_fast_goes_around_the_page_cache_from_the_second_segment_to_the_first_that_is_slow() {
        let (mut choice, mut now) = (WayChoice::default(), Instant::now());
        let ways = [100, 100, 100, 300, 300].map(|took_ms| {
            let way = choice.next_segment(now);
            choice.wrote(way, SEGMENT_BYTES, Duration::ZERO);
            now += Duration::from_millis(took_ms);
            way
        });
        let [through, around] = [Way::Through, Way::Around];
        assert_eq!(ways, [through, around, around, around, through]);
    }

    #[test]
    fn what_costs_little_goes_through_the_page_cache() {
        assert_eq!(ways(&[100, 499, 250, 500]), [Way::Through; 4]);
    }

    #[test]
    fn what_is_dear_is_tried_again_after_some_segments() {
        let tries = |ways: Vec<Way>| -> Vec<usize> {
            ways.iter().enumerate().filter(|(_, way)| **way == Way::Through).map(|(at, _)| at).collect()
        };
        assert_eq!(tries(ways(&[2000; 20])), [0, 9, 18]);
        let from_then_on_cheap = [[2000; 5], [200; 5], [200; 5]].concat();
        assert_eq!(tries(ways(&from_then_on_cheap)), [0, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_few_bytes_say_nothing() {
        for (bytes, second) in [(JUDGED_BYTES_MIN - 1, Way::Through), (JUDGED_BYTES_MIN, Way::Around)] {
            for (cost, took) in [(Duration::from_secs(1), Duration::from_secs(1)), Default::default()] {
                let (mut choice, now) = (WayChoice::default(), Instant::now());
                choice.next_segment(now);
                choice.wrote(Way::Through, bytes, cost);
                assert_eq!(choice.next_segment(now + took), second);
            }
        }
    }

    #[test]
    fn what_went_around_is_no_reason_to_go_on_around() {
        let mut choice = WayChoice::default();
        let now = Instant::now();
        choice.next_segment(now);
        choice.wrote(Way::Around, SEGMENT_BYTES, Duration::from_secs(9));
        assert_eq!(choice.next_segment(now + Duration::from_secs(1)), Way::Through);
    }
}
