//! Shares of a pool: whoever takes much leaves something for those who have little.
//!
//! Pure: what is shared is up to the caller.
//!
//! Nobody takes another part where he would have more than is then left. So one alone gets half, two get a third each, and
//! however many take what they can, a newcomer finds something.

use std::collections::HashMap;
use std::hash::Hash;

/// A pool of equal parts, and who has how many.
#[derive(Debug)]
pub(super) struct Shares<K> {
    free: u64,
    taken: HashMap<K, u64>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    /// A pool of `parts`, of which nobody has any.
    pub(super) fn new(parts: u64) -> Self {
        Self { free: parts, taken: HashMap::new() }
    }

    /// One part for `key`, which may have `own_max`. `false`: it has its share.
    pub(super) fn take(&mut self, key: K, own_max: u64) -> bool {
        let own = self.of(key);
        if own >= own_max || own >= self.free {
            return false;
        }
        self.free -= 1;
        self.taken.insert(key, own + 1);
        true
    }

    /// `key` gives one part back.
    pub(super) fn give_back(&mut self, key: K) {
        if let Some(own) = self.taken.get_mut(&key) {
            self.free += 1;
            *own -= 1;
            if *own == 0 {
                self.taken.remove(&key);
            }
        }
    }

    /// How many parts `key` has.
    pub(super) fn of(&self, key: K) -> u64 {
        self.taken.get(&key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn however_many_take_all_they_can_the_next_one_finds_something() {
        let mut shares = Shares::new(1_000);
        for (key, expected) in [(0u64, 500), (1, 250), (2, 125)] {
            let taken = (0..2_000).filter(|_| shares.take(key, u64::MAX)).count();
            assert_eq!(taken, expected);
        }
        assert!(shares.take(99, u64::MAX));
        assert!(!shares.take(98, 0), "nor is it more than it may have itself");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nobody_keeps_others_out(
            steps in proptest::collection::vec((any::<bool>(), 0u8..5), 0..300),
        ) {
            const PARTS: u64 = 64;
            let mut shares = Shares::new(PARTS);
            let mut slow = [0u64; 5];
            for (takes, key) in steps {
                if takes {
                    let left = PARTS - slow.iter().sum::<u64>();
                    let fits = slow[usize::from(key)] < left.min(20);
                    prop_assert_eq!(shares.take(key, 20), fits);
                    slow[usize::from(key)] += u64::from(fits);
                } else {
                    shares.give_back(key);
                    slow[usize::from(key)] = slow[usize::from(key)].saturating_sub(1);
                }
                for key in 0..5u8 {
                    prop_assert_eq!(shares.of(key), slow[usize::from(key)]);
                }
                prop_assert_eq!(shares.free, PARTS - slow.iter().sum::<u64>());
                prop_assert!(shares.free > 0, "five together leave a sixth");
            }
        }
    }
}
