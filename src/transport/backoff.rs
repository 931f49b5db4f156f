//! //! Waits between attempts to reach a host. Pure: a seed comes in, waits go out.

use std::time::Duration;

/// First wait. A short interruption of the link is over sooner.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait. A link that comes back is noticed within this time.
const LONGEST: Duration = Duration::from_secs(1);

/// Waits that double from 100 ms to 1 s. Each is shortened at random to between half and all of itself. So a
/// hundred clients of a restarted host do not reconnect at the same moment. The same seed gives the same
/// waits.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    state: u64,
}

impl Backoff {
    /// Returns a sequence of waits. Give each client its own seed.
    pub fn new(seed: u64) -> Self {
        Self { next: FIRST, state: seed }
    }

    /// Returns the wait before the next attempt, between 50 ms and 1 s.
    pub fn next_wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        let half = whole / 2;
        half + half.mul_f64(self.random_fraction())
    }

    /// Starts again with the shortest wait, after a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Returns the next number of `SplitMix64`, mapped to 0..1.
    fn random_fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_to_a_second_and_stay_within_their_bounds(seed: u64) {
            let mut backoff = Backoff::new(seed);
            for attempt in 0..20_u32 {
                let whole = (FIRST * 2_u32.pow(attempt.min(10))).min(LONGEST);
                let wait = backoff.next_wait();
                prop_assert!(wait >= whole / 2 && wait <= whole, "attempt {attempt}: {wait:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next_wait() <= FIRST);
        }
    }

    #[test]
    fn seeds_part_and_repeat() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            [backoff.next_wait(), backoff.next_wait(), backoff.next_wait()]
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
