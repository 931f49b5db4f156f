//! Which writes may make their file longer.
//!
//! Pure: no I/O, no clock.
//!
//! A client sends many parts of a file at once, and they arrive in any order. A part that makes the file longer waits until
//! the parts written before it have made it that long. So whatever is killed, and whenever, what is left is a beginning of
//! the file, as after a copy on one machine. A part that lies within the file is written at once.

use std::collections::HashMap;

use crate::proto::{Growth, NodeId};

/// Whether a write that has arrived may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes.
    Now,
    /// Not yet: it would make the file longer too early.
    Later,
    /// A write has failed since it came, maybe one that it waits for.
    Never,
}

/// One file, as long as writes to it are under way.
#[derive(Debug, Default)]
struct Growing {
    under_way: usize,
    /// How long the file is at least, or was when a write was done.
    reached: u64,
    failures: u64,
}

/// The files of a session that are being written.
#[derive(Debug, Default)]
pub(super) struct Growths {
    files: HashMap<NodeId, Growing>,
}

impl Growths {
    /// A write comes. Returns the failures before it, for [`Self::turn`].
    pub(super) fn begin(&mut self, node: NodeId) -> u64 {
        let file = self.files.entry(node).or_default();
        file.under_way += 1;
        file.failures
    }

    /// A write that [`Self::begin`] has counted is over.
    pub(super) fn end(&mut self, node: NodeId) {
        if let Some(file) = self.files.get_mut(&node) {
            file.under_way -= 1;
            if file.under_way == 0 {
                self.files.remove(&node);
            }
        }
    }

    /// The file was seen to be so long.
    pub(super) fn reached(&mut self, node: NodeId, size: u64) {
        if let Some(file) = self.files.get_mut(&node) {
            file.reached = file.reached.max(size);
        }
    }

    /// A write has failed.
    pub(super) fn failed(&mut self, node: NodeId) {
        if let Some(file) = self.files.get_mut(&node) {
            file.failures += 1;
        }
    }

    /// Whether what is written up to `end` may be done now; `failures` is what [`Self::begin`] has returned.
    pub(super) fn turn(&self, node: NodeId, end: u64, growth: Growth, failures: u64) -> Turn {
        let Some(file) = self.files.get(&node) else { return Turn::Now };
        if file.reached >= growth.from.min(end) {
            Turn::Now
        } else if file.failures > failures {
            Turn::Never
        } else {
            Turn::Later
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    const fn from(from: u64) -> Growth {
        Growth { from }
    }

    #[test]
    fn what_makes_the_file_longer_waits_and_what_lies_within_does_not() {
        let mut growths = Growths::default();
        let before = growths.begin(NODE);
        assert_eq!(growths.turn(NODE, 10, Growth::default(), before), Turn::Now);
        assert_eq!(growths.turn(NODE, 20, from(10), before), Turn::Later);
        growths.reached(NODE, 10);
        assert_eq!(growths.turn(NODE, 20, from(10), before), Turn::Now);
        assert_eq!(growths.turn(NODE, 30, from(20), before), Turn::Later);
        assert_eq!(growths.turn(NODE, 8, from(20), before), Turn::Now);
        growths.reached(NODE, 5);
        assert_eq!(growths.turn(NODE, 20, from(10), before), Turn::Now, "it was so long once");
        growths.end(NODE);
        assert!(growths.files.is_empty());
    }

    #[test]
    fn a_failure_ends_the_wait_of_those_that_were_there() {
        let mut growths = Growths::default();
        let (first, second) = (growths.begin(NODE), growths.begin(NODE));
        growths.failed(NODE);
        growths.end(NODE);
        assert_eq!(growths.turn(NODE, 20, from(10), second), Turn::Never);
        assert_eq!(growths.turn(NODE, 20, from(0), first), Turn::Now);
        let third = growths.begin(NODE);
        assert_eq!(growths.turn(NODE, 20, from(10), third), Turn::Later);
    }
}
