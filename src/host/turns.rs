//! Turns at the processor, given to the one who had least of it.
//!
//! Pure: time comes in as an argument, and who waits is up to the caller.
//!
//! A few at a time have a turn. While all turns are taken others wait, each in the queue of its key, and a turn that ends goes to
//! the key that has used the least time so far. A key that was idle starts level with the others: it has saved nothing up.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// What a turn costs at least: also one that is over at once kept others waiting.
const TURN_MIN: Duration = Duration::from_micros(10);

#[derive(Debug)]
struct Account<T> {
    /// Time used, counted from where the key began to be busy.
    used: Duration,
    running: usize,
    waiting: VecDeque<T>,
}

/// Who has a turn, and who waits.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    running: usize,
    running_max: usize,
    /// Time used by the key that had the last turn: where an idle one begins.
    level: Duration,
    accounts: HashMap<K, Account<T>>,
}

impl<K: Copy + Eq + Hash, T> FairQueue<K, T> {
    /// At most `running_max` have a turn at a time.
    pub(super) fn new(running_max: usize) -> Self {
        Self { running: 0, running_max, level: Duration::ZERO, accounts: HashMap::new() }
    }

    /// `key` asks for a turn and gets one, or `waiting` is put into its queue.
    pub(super) fn ask(&mut self, key: K, waiting: impl FnOnce() -> T) -> bool {
        let level = self.level;
        let account = self.accounts.entry(key).or_insert_with(|| Account {
            used: level,
            running: 0,
            waiting: VecDeque::new(),
        });
        if account.running == 0 && account.waiting.is_empty() {
            account.used = account.used.max(level);
        }
        if self.running < self.running_max {
            self.running += 1;
            account.running += 1;
            return true;
        }
        account.waiting.push_back(waiting());
        false
    }

    /// A turn of `key` is over after `spent`. Returns who has it now.
    pub(super) fn end(&mut self, key: K, spent: Duration) -> Option<T> {
        self.running = self.running.saturating_sub(1);
        if let Some(account) = self.accounts.get_mut(&key) {
            account.used += spent.max(TURN_MIN);
            account.running = account.running.saturating_sub(1);
        }
        let next = self.next();
        let level = self.level;
        self.accounts
            .retain(|_, account| account.running > 0 || !account.waiting.is_empty() || account.used > level);
        next
    }

    /// Gives a turn to one who waits.
    fn next(&mut self) -> Option<T> {
        let waiting = self.accounts.values_mut().filter(|account| !account.waiting.is_empty());
        let Some(account) = waiting.min_by_key(|account| account.used) else {
            // Nobody waits, so nobody is behind.
            self.level = self.accounts.values().map(|account| account.used).max().unwrap_or(self.level);
            return None;
        };
        let next = account.waiting.pop_front()?;
        account.running += 1;
        self.level = self.level.max(account.used);
        self.running += 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_newcomer_waits_for_one_turn_and_not_for_the_queue_of_another() {
        let mut queue = FairQueue::new(1);
        assert!(queue.ask('b', || 0));
        for number in 1..1_000 {
            assert!(!queue.ask('b', || number));
        }
        assert_eq!(queue.end('b', MS), Some(1));
        assert!(!queue.ask('a', || 5_000));
        assert_eq!(queue.end('b', MS), Some(5_000));
        assert_eq!(queue.end('a', MS), Some(2));
    }

    #[test]
    fn who_takes_longer_turns_gets_fewer() {
        let mut queue = FairQueue::new(1);
        assert!(queue.ask('x', || 'x'));
        for _ in 0..500 {
            queue.ask('a', || 'a');
            queue.ask('b', || 'b');
        }
        let (mut now, mut turns) = ('x', [0u32; 2]);
        for _ in 0..200 {
            let spent = if now == 'b' { 9 * MS } else { MS };
            now = queue.end(now, spent).unwrap();
            turns[usize::from(now == 'b')] += 1;
        }
        assert!(turns[0] > 8 * turns[1] && turns[1] > 10, "{turns:?}");
    }

    proptest! {
        /// Whatever is asked: turns are bounded, none is lost, nobody waits while one is free, and the queue of a key keeps its order.
        #[test]
        fn every_turn_is_given_in_the_end(
            steps in proptest::collection::vec((0u8..3, 0u8..4, 0u64..20), 0..200),
        ) {
            const MAX: usize = 3;
            let mut queue = FairQueue::new(MAX);
            let (mut running, mut asked, mut given) = (Vec::new(), 0u64, [0u64; 4]);
            let mut waiting = 0;
            let mut end = |queue: &mut FairQueue<u8, (u8, u64)>, running: &mut Vec<u8>, waiting: &mut u64, at: usize, ms| {
                let key = running.remove(at % running.len());
                if let Some((key, number)) = queue.end(key, Duration::from_millis(ms)) {
                    assert!(given[usize::from(key)] < number, "out of order");
                    given[usize::from(key)] = number;
                    running.push(key);
                    *waiting -= 1;
                }
            };
            for (what, key, ms) in steps {
                if what > 0 {
                    asked += 1;
                    if queue.ask(key, || (key, asked)) {
                        running.push(key);
                    } else {
                        waiting += 1;
                    }
                } else if !running.is_empty() {
                    end(&mut queue, &mut running, &mut waiting, usize::from(key), ms);
                }
                prop_assert!(running.len() <= MAX);
                prop_assert!(waiting == 0 || running.len() == MAX);
            }
            while !running.is_empty() {
                end(&mut queue, &mut running, &mut waiting, 0, 1);
            }
            prop_assert_eq!(waiting, 0);
        }
    }
}
