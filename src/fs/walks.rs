//! Recognises programs that go through a directory name by name without listing it, as `git status`, `make` and path
//! searches do: from the third name on, one listing is cheaper than a round trip a name.
//!
//! Pure: no I/O, no clock.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::proto::NodeId;

/// So many names asked for one by one make a walk.
const MISSES_MIN: u32 = 3;

/// Within this time. As long as names hold: after that all of them are asked for again.
const WITHIN: Duration = Duration::from_secs(1);

/// One answer must have come from a listing for each so many of its entries, else listing this directory does not pay: an
/// entry is some 100 bytes, a round trip over a long link some 100 kB.
const ENTRIES_PER_ANSWER_MAX: usize = 256;

/// For how long a directory whose listing did not pay is left alone.
const PAUSE: Duration = Duration::from_secs(60);

/// Directories that are watched.
const DIRECTORIES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Longest listing that is made for a walk, in entries: 10 MB, a tenth of a second of a 1 Gbit/s link.
pub(super) const WALK_ENTRIES_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy)]
struct Walk {
    misses: u32,
    since: Instant,
    /// Entries of the listing that was made last, until it is judged.
    listed: Option<usize>,
    answers: usize,
    paused_until: Option<Instant>,
}

/// What is known of how directories are gone through.
#[derive(Debug)]
pub(super) struct Walks(LruCache<NodeId, Walk>);

impl Default for Walks {
    fn default() -> Self {
        Self(LruCache::new(DIRECTORIES_MAX))
    }
}

impl Walks {
    /// The host is about to be asked for one name in `directory`. Whether it should be asked for all of them besides.
    pub(super) fn on_miss(&mut self, directory: NodeId, now: Instant) -> bool {
        let fresh = Walk { misses: 0, since: now, listed: None, answers: 0, paused_until: None };
        let walk = self.0.get_or_insert_mut(directory, || fresh);
        if now.saturating_duration_since(walk.since) > WITHIN {
            (walk.misses, walk.since) = (0, now);
        }
        walk.misses += 1;
        if walk.misses < MISSES_MIN || walk.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        let paid = walk.listed.is_none_or(|entries| walk.answers * ENTRIES_PER_ANSWER_MAX >= entries);
        (walk.misses, walk.listed, walk.answers) = (0, None, 0);
        walk.paused_until = (!paid).then_some(now + PAUSE);
        paid
    }

    /// A listing that was made for a walk is complete, or too long to be kept.
    pub(super) fn on_listed(&mut self, directory: NodeId, entries: usize) {
        if let Some(walk) = self.0.get_mut(&directory) {
            walk.listed = Some(entries);
        }
    }

    /// A listing has answered for a name.
    pub(super) fn on_answer(&mut self, directory: NodeId) {
        if let Some(walk) = self.0.get_mut(&directory) {
            walk.answers += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    #[test]
    fn the_third_name_in_a_row_makes_a_walk() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        assert_eq!([0; 4].map(|_| walks.on_miss(DIRECTORY, now)), [false, false, true, false]);
        let other = NodeId { inode: 9, ..DIRECTORY };
        assert!(!walks.on_miss(other, now));
    }

    #[test]
    fn names_now_and_then_do_not() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        for second in 0..20 {
            assert!(!walks.on_miss(DIRECTORY, now + Duration::from_secs(2 * second)));
        }
    }

    #[test]
    fn a_listing_that_answered_too_little_is_not_made_again_for_a_while() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        let burst = |walks: &mut Walks, at| (0..3).any(|_| walks.on_miss(DIRECTORY, at));
        assert!(burst(&mut walks, now));
        walks.on_listed(DIRECTORY, 10 * ENTRIES_PER_ANSWER_MAX);
        (0..9).for_each(|_| walks.on_answer(DIRECTORY));
        assert!(!burst(&mut walks, now + Duration::from_secs(5)));
        assert!(!burst(&mut walks, now + Duration::from_secs(10)));
        assert!(burst(&mut walks, now + Duration::from_secs(6) + PAUSE));
        walks.on_listed(DIRECTORY, 10 * ENTRIES_PER_ANSWER_MAX);
        (0..10).for_each(|_| walks.on_answer(DIRECTORY));
        assert!(burst(&mut walks, now + Duration::from_secs(90)));
    }
}
