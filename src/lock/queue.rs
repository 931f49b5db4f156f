//! Queue of waiters for locks of one file.
//!
//! A released lock is offered to the waiters in the order of arrival, and each takes the locks that are
//! free for it. A waiter is never blocked by an earlier one that cannot have its lock yet: that could
//! create a deadlock between waiters that do not conflict.

use std::collections::VecDeque;

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// Waiters by ticket `T`, each with its wanted lock.
#[derive(Debug, Clone)]
pub struct Queue<T, W> {
    waiting: VecDeque<(T, W)>,
}

impl<T, W> Default for Queue<T, W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T: Copy + Eq, W> Queue<T, W> {
    /// Appends a waiter, or replaces the wanted lock of a known one in its place. At most `most` may wait.
    pub fn join(&mut self, ticket: T, wanted: W, most: usize) -> Result<(), QueueFull> {
        if let Some((_, place)) = self.waiting.iter_mut().find(|(known, _)| *known == ticket) {
            *place = wanted;
            return Ok(());
        }
        if self.waiting.len() >= most {
            return Err(QueueFull);
        }
        self.waiting.push_back((ticket, wanted));
        Ok(())
    }

    /// Removes a waiter and returns its wanted lock.
    pub fn leave(&mut self, ticket: T) -> Option<W> {
        let at = self.waiting.iter().position(|(known, _)| *known == ticket)?;
        self.waiting.remove(at).map(|(_, wanted)| wanted)
    }

    /// Returns the wanted lock of a waiter.
    pub fn get_mut(&mut self, ticket: T) -> Option<&mut W> {
        self.waiting.iter_mut().find(|(known, _)| *known == ticket).map(|(_, wanted)| wanted)
    }

    /// Offers the free locks to each waiter in turn. Those for which `take` returns `true` are served and
    /// leave. Returns `true` if there were any: an upgrade may have released other bytes, so another round
    /// can succeed.
    pub fn offer(&mut self, mut take: impl FnMut(T, &mut W) -> bool) -> bool {
        let before = self.waiting.len();
        self.waiting.retain_mut(|(ticket, wanted)| !take(*ticket, wanted));
        self.waiting.len() < before
    }

    /// Returns the wanted locks in the order of arrival.
    pub fn waiting(&self) -> impl Iterator<Item = &W> {
        self.waiting.iter().map(|(_, wanted)| wanted)
    }

    /// Returns the number of waiters.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns `true` if the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lock::FileLocks;
    use crate::proto::{LockKind, LockRange};

    #[test]
    fn a_repeated_request_keeps_its_place_and_the_queue_is_bounded() {
        let mut queue = Queue::default();
        queue.join(1, "first", 2).unwrap();
        queue.join(2, "second", 2).unwrap();
        queue.join(1, "first again", 2).unwrap();
        assert_eq!(queue.join(3, "third", 2), Err(QueueFull));
        let mut seen = Vec::new();
        let taken = queue.offer(|ticket, wanted| {
            seen.push((ticket, *wanted));
            ticket == 1
        });
        assert!(taken && !queue.offer(|_, _| false));
        assert_eq!(seen, [(1, "first again"), (2, "second")]);
        assert_eq!((queue.leave(1), queue.leave(2), queue.len()), (None, Some("second"), 0));
    }

    proptest! {
        /// Random locks, waits and releases: no two owners hold conflicting locks, no waiter wants a lock
        /// that is free after an offer, and of two waiters for one byte the first gets it.
        #[test]
        fn free_locks_are_given_in_the_order_of_arrival(
            steps in proptest::collection::vec((0u64..5, 0u64..4, 1u64..3, 0usize..4), 1..80),
        ) {
            let (mut locks, mut queue) = (FileLocks::default(), Queue::default());
            let mut arrivals: Vec<(u64, LockRange, LockKind)> = Vec::new();
            for (owner, start, len, what) in steps {
                let range = LockRange::new(start, start + len - 1).unwrap();
                let kind = if what == 0 { LockKind::Shared } else { LockKind::Exclusive };
                let waits = arrivals.iter().any(|(waiting, ..)| *waiting == owner);
                match what {
                    3 => locks.set(owner, range, None),
                    _ if waits => {}
                    _ if locks.conflict(owner, range, kind).is_none() => locks.set(owner, range, Some(kind)),
                    _ => {
                        queue.join(owner, (range, kind), 100).unwrap();
                        arrivals.push((owner, range, kind));
                    }
                }
                loop {
                    let mut given = Vec::new();
                    let some = queue.offer(|owner, (range, kind)| {
                        let is_free = locks.conflict(owner, *range, *kind).is_none();
                        if is_free {
                            locks.set(owner, *range, Some(*kind));
                            given.push(owner);
                        }
                        is_free
                    });
                    // In the order of arrival, each waiter whose lock was free in its turn.
                    let arrived = arrivals.iter().map(|(owner, ..)| *owner);
                    let order: Vec<u64> = arrived.filter(|owner| given.contains(owner)).collect();
                    prop_assert_eq!(&given, &order);
                    arrivals.retain(|(owner, ..)| !given.contains(owner));
                    prop_assert_eq!(some, !given.is_empty());
                    if !some {
                        break;
                    }
                }
                prop_assert_eq!(queue.len(), arrivals.len());
                for (owner, range, kind) in &arrivals {
                    prop_assert!(locks.conflict(*owner, *range, *kind).is_some(), "{} waits for a free lock", owner);
                }
                for owner in 0..5 {
                    for held in locks.of(owner) {
                        prop_assert!(locks.conflict(owner, held.range, held.kind).is_none());
                    }
                }
            }
        }
    }
}
