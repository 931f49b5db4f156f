//! Recognises programs that go through a directory in the order of its listing, and for longer than the listing holds: `ls -l` of
//! a hundred thousand files takes seconds. What has aged is then renewed many entries at a time.
//!
//! Pure: no I/O, no clock.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::proto::{LOOKUPS_MAX, NodeId};

/// Entries that a program may leave out and still go on: those it knows something of.
const LEFT_OUT_MAX: usize = 8;

/// Factor on the entries renewed at once, each time the program has gone on.
const GROWTH: usize = 8;

/// Directories that are watched.
const DIRECTORIES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

#[derive(Debug, Clone, Copy)]
struct Stride {
    /// The position that was asked for last.
    last: usize,
    /// The first one behind those that were renewed.
    next: usize,
    /// How many entries were renewed at once last.
    width: usize,
}

/// What is known of how directories are gone through.
#[derive(Debug)]
pub(super) struct Strides(LruCache<NodeId, Stride>);

impl Default for Strides {
    fn default() -> Self {
        Self(LruCache::new(DIRECTORIES_MAX))
    }
}

impl Strides {
    /// The entry at `position` of a listing is asked for, and has aged. How many to renew, from it on; 1 where nothing says
    /// that the program goes on.
    pub(super) fn on_miss(&mut self, directory: NodeId, position: usize) -> usize {
        let Some(stride) = self.0.get_mut(&directory) else {
            self.0.put(directory, Stride { last: position, next: position + 1, width: 1 });
            return 1;
        };
        if (stride.last + 1..stride.next).contains(&position) {
            // A slow program, for which they aged again: as many as it used before. Or another thread, for which they are on
            // their way: few.
            stride.width = (position - stride.last).max(GROWTH);
            stride.next = stride.next.max(position + stride.width);
        } else {
            let goes_on = position.wrapping_sub(stride.next) < LEFT_OUT_MAX;
            stride.width = if goes_on { (stride.width * GROWTH).min(LOOKUPS_MAX) } else { 1 };
            stride.next = position + stride.width;
        }
        stride.last = position;
        stride.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    #[test]
    fn who_goes_on_gets_more_each_time_and_who_jumps_begins_anew() {
        let mut strides = Strides::default();
        let mut miss = |position| strides.on_miss(DIRECTORY, position);
        assert_eq!(miss(100), 1);
        assert_eq!(miss(101), 8);
        assert_eq!(miss(111), 64, "two were left out");
        assert_eq!(miss(175), 512);
        assert_eq!(miss(175 + 512), 512);
        assert_eq!(miss(7), 1);
        assert_eq!(miss(8), 8);
        assert_eq!(miss(6), 1);
    }

    #[test]
    fn a_slow_program_gets_as_many_as_it_uses() {
        let mut strides = Strides::default();
        let mut miss = |position| strides.on_miss(DIRECTORY, position);
        assert_eq!([0, 1, 9, 73].map(&mut miss), [1, 8, 64, 512]);
        // It came 200 further before they had aged again, and so on.
        assert_eq!([273, 473].map(&mut miss), [200, 200]);
        // A second thread right behind the first.
        assert_eq!(miss(474), 8);
        assert_eq!(miss(673), 64);
    }

    #[test]
    fn directories_are_told_apart() {
        let mut strides = Strides::default();
        let other = NodeId { inode: 9, ..DIRECTORY };
        assert_eq!(strides.on_miss(DIRECTORY, 0), 1);
        assert_eq!(strides.on_miss(other, 1), 1);
        assert_eq!(strides.on_miss(DIRECTORY, 1), 8);
    }
}
