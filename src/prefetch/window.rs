//! Width of the read-ahead window of a run.

use std::time::Duration;

use crate::chunk::CHUNK_BYTES;

const MIB: u64 = 1024 * 1024;

/// First window of a run that small reads have proved, in bytes.
///
/// Two chunks: a program that only reads a header wastes 4 ms of a 1 Gbit/s link.
pub(super) const PROVED_WINDOW_BYTES: u64 = 2 * CHUNK_BYTES;

/// Window of a run that begins with a large read, in bytes.
///
/// A viewer reads 2 MiB after a seek. They take 17 ms of a 1 Gbit/s link, a third of a long round trip.
pub(super) const LARGE_WINDOW_BYTES: u64 = 2 * MIB;

/// Bytes that a viewer reads after a seek, with the partial chunks at both ends.
const SEEK_BYTES: u64 = LARGE_WINDOW_BYTES + 2 * CHUNK_BYTES;

/// Unit of read-ahead in chunks: 1 MiB, which one stream carries.
pub(super) const STEP_CHUNKS: u64 = 4;

/// Bytes that keep a disk, two processors and the shortest link busy: a request each.
const BUSY_BYTES: u64 = 4 * MIB;

/// Time of a request beside the link: the host's disk, hashing, and the schedulers of both sides.
///
/// 5 ms is half a seek of a spinning disk and a hundred seeks of an SSD.
const BEYOND_LINK: Duration = Duration::from_millis(5);

/// Limits of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most requested bytes ahead of a reader, computed by [`window_limit`].
    pub window_bytes_max: u64,
}

/// Returns the window that fills a link, in bytes: twice the bytes in flight at `bytes_per_second` (0 if
/// unknown) over a round trip of `rtt`, plus the bytes of a seek (2.5 MiB); at most the share of the memory
/// budget.
///
/// The seek is added because the rate may have been measured during slow reads, such as a film: a seek
/// needs its bytes at once. The bytes in flight are doubled because the rate was measured with the current
/// window, which must be able to detect a faster link.
pub fn window_limit(budget_share_bytes: u64, rtt: Duration, bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 {
        return budget_share_bytes;
    }
    let in_flight_us = rtt.saturating_add(BEYOND_LINK).as_micros();
    let in_flight = u128::from(bytes_per_second).saturating_mul(in_flight_us) / 1_000_000;
    let wanted = in_flight.saturating_mul(2).saturating_add(u128::from(SEEK_BYTES));
    u64::try_from(wanted).unwrap_or(u64::MAX).min(budget_share_bytes)
}

/// Returns the most bytes in flight ahead of all readers, in bytes: twice the capacity of the link at
/// `bytes_per_second` (0 if unknown) over a round trip of `rtt`, plus the bytes that keep both ends busy.
///
/// More bytes would only wait in memory at either end. Over Ethernet between two network namespaces, a
/// whole window in flight (16 MiB) cost 5 to 10 % more processor time for a GiB, because little of it was
/// still in the processor's cache when it was used.
pub fn in_flight_limit(rtt: Duration, bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 {
        return u64::MAX;
    }
    let held = u128::from(bytes_per_second).saturating_mul(rtt.as_micros()) / 1_000_000;
    u64::try_from(held.saturating_mul(2)).unwrap_or(u64::MAX).saturating_add(BUSY_BYTES)
}

/// Window of one run: its width, and the time of its last growth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// 0 while closed.
    bytes: u64,
    /// Progress of the run at the last growth, in bytes read.
    grown_at_bytes: u64,
}

impl Window {
    /// Creates a window that is open from the start, or closed with 0.
    pub(super) const fn opened(bytes: u64, progress_bytes: u64) -> Self {
        Self { bytes, grown_at_bytes: progress_bytes }
    }

    pub(super) const fn is_open(self) -> bool {
        self.bytes > 0
    }

    /// Returns the width under `limits`.
    pub(super) fn bytes(self, limits: Limits) -> u64 {
        self.bytes.min(limits.window_bytes_max)
    }

    /// Returns `true` if so few bytes are left ahead of the reader that more should be requested.
    pub(super) fn is_due(self, left_bytes: u64, limits: Limits) -> bool {
        left_bytes <= self.bytes(limits) / 2
    }

    /// Doubles the window once half of it was read since it last grew.
    pub(super) fn grow(&mut self, progress_bytes: u64, limits: Limits) {
        let bytes = self.bytes(limits);
        if progress_bytes.saturating_sub(self.grown_at_bytes) >= bytes / 2 {
            // Never below the first window: a limit that was low for a moment must not keep it small.
            self.bytes = bytes.saturating_mul(2).min(limits.window_bytes_max).max(PROVED_WINDOW_BYTES);
            self.grown_at_bytes = progress_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_twice_the_capacity_of_the_link_within_the_share() {
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
    fn a_window_doubles_only_on_proof() {
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
