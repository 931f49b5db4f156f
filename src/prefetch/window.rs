//! How far ahead a run may read.

use std::time::Duration;

use crate::chunk::CHUNK_BYTES;

const MIB: u64 = 1024 * 1024;

/// First window of a run that has proved itself by small reads, in bytes.
///
/// Two chunks: what a program that only looked at a header wastes is 4 ms of a 1 Gbit/s link.
pub(super) const PROVED_WINDOW_BYTES: u64 = 2 * CHUNK_BYTES;

/// Window of a run that begins with a large read, in bytes.
///
/// 2 MiB is what a viewer reads after a seek; they are 17 ms of a 1 Gbit/s link, a third of a long round trip.
pub(super) const LARGE_WINDOW_BYTES: u64 = 2 * MIB;

/// What a viewer reads after a seek, with the chunks that it begins and ends in the middle of, in bytes.
const SEEK_BYTES: u64 = LARGE_WINDOW_BYTES + 2 * CHUNK_BYTES;

/// Read-ahead is asked for in multiples of this, in chunks: 1 MiB, of which one stream carries one.
pub(super) const STEP_CHUNKS: u64 = 4;

/// What keeps a disk, two processors and a link busy however short that is, in bytes: a request each.
const BUSY_BYTES: u64 = 4 * MIB;

/// What a request takes besides the link: the host's disk, hashing, and both sides' schedulers.
///
/// 5 ms is half of a seek of a spinning disk and a hundred of an SSD's.
const BEYOND_LINK: Duration = Duration::from_millis(5);

/// What a plan may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes in front of a reader that may be asked for. [`window_limit`] computes it.
    pub window_bytes_max: u64,
}

/// The window that fills a link, in bytes: twice what is in flight at `bytes_per_second` (0 where unknown) over a
/// round trip of `rtt`, and what a seek needs (2.5 MiB); never more than the share of the memory budget.
///
/// The link may have been measured while nobody was in a hurry, as while a film played: a seek needs its bytes at once.
/// Twice, because the rate is what was measured with the window there was: the window must be able to find a faster link.
pub fn window_limit(budget_share_bytes: u64, rtt: Duration, bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 {
        return budget_share_bytes;
    }
    let in_flight_us = rtt.saturating_add(BEYOND_LINK).as_micros();
    let in_flight = u128::from(bytes_per_second).saturating_mul(in_flight_us) / 1_000_000;
    let wanted = in_flight.saturating_mul(2).saturating_add(u128::from(SEEK_BYTES));
    u64::try_from(wanted).unwrap_or(u64::MAX).min(budget_share_bytes)
}

/// What may be on its way ahead of all readers together, in bytes: twice what the link holds at `bytes_per_second` (0 where
/// unknown) over a round trip of `rtt`, and what keeps both ends busy meanwhile.
///
/// More only waits in memory at either end: over Ethernet between two network namespaces, where the whole window was on its
/// way before (16 MiB), a GiB took 5 to 10 % more processor time, as little of it was still in the processor's cache when it was used.
pub fn in_flight_limit(rtt: Duration, bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 {
        return u64::MAX;
    }
    let held = u128::from(bytes_per_second).saturating_mul(rtt.as_micros()) / 1_000_000;
    u64::try_from(held.saturating_mul(2)).unwrap_or(u64::MAX).saturating_add(BUSY_BYTES)
}

/// The window of one run: how wide it is, and when it last grew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// 0 while closed.
    bytes: u64,
    /// How far the run had come when the window last grew, in bytes read.
    grown_at_bytes: u64,
}

impl Window {
    /// A window that is open from the start, or closed with 0.
    pub(super) const fn opened(bytes: u64, progress_bytes: u64) -> Self {
        Self { bytes, grown_at_bytes: progress_bytes }
    }

    pub(super) const fn is_open(self) -> bool {
        self.bytes > 0
    }

    /// The width under `limits`.
    pub(super) fn bytes(self, limits: Limits) -> u64 {
        self.bytes.min(limits.window_bytes_max)
    }

    /// Whether so little is left in front of the reader that more should be asked for.
    pub(super) fn is_due(self, left_bytes: u64, limits: Limits) -> bool {
        left_bytes <= self.bytes(limits) / 2
    }

    /// Doubles once half of it was read since it last grew.
    pub(super) fn grow(&mut self, progress_bytes: u64, limits: Limits) {
        let bytes = self.bytes(limits);
        if progress_bytes.saturating_sub(self.grown_at_bytes) >= bytes / 2 {
            // Never below the first window: a limit that was low for a moment must not hold it down.
            self.bytes = bytes.saturating_mul(2).min(limits.window_bytes_max).max(PROVED_WINDOW_BYTES);
            self.grown_at_bytes = progress_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_twice_what_the_link_holds_within_the_share() {
        let gigabit = 125_000_000;
        let limit = window_limit(96 * MIB, Duration::from_millis(50), gigabit);
        assert!((2 * 6_250_000..=3 * 6_250_000).contains(&limit), "{limit}");
        assert_eq!(window_limit(MIB, Duration::from_millis(50), gigabit), MIB);
        assert!(window_limit(96 * MIB, Duration::ZERO, 1) >= LARGE_WINDOW_BYTES);
        assert_eq!(window_limit(7 * MIB, Duration::from_secs(1), 0), 7 * MIB);
        assert_eq!(window_limit(u64::MAX, Duration::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_short_link_has_little_in_flight_and_a_long_one_more_than_a_window() {
        assert_eq!(in_flight_limit(Duration::ZERO, 1 << 40), BUSY_BYTES);
        let (rtt, gigabit) = (Duration::from_millis(50), 125_000_000);
        assert_eq!(in_flight_limit(rtt, gigabit), 12_500_000 + BUSY_BYTES);
        assert_eq!(in_flight_limit(rtt, 0), u64::MAX);
        assert_eq!(in_flight_limit(Duration::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_window_doubles_on_proof_and_no_sooner() {
        let limits = Limits { window_bytes_max: 3 * MIB };
        let mut window = Window::opened(MIB, 0);
        window.grow(MIB / 2 - 1, limits);
        assert_eq!(window.bytes(limits), MIB);
        window.grow(MIB / 2, limits);
        assert_eq!(window.bytes(limits), 2 * MIB);
        window.grow(4 * MIB, limits);
        assert_eq!(window.bytes(limits), 3 * MIB);
    }
}
