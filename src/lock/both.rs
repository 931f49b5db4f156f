//! Locks of `flock` and of `fcntl` on one file, in two tables, because the two kinds do not conflict.

use std::collections::BTreeSet;

use super::{FileLocks, HeldLock};
use crate::proto::{LockKind, LockKinds, LockRange};

/// Owners of locks on one file, of both kinds.
#[derive(Debug, Clone)]
pub struct BothKinds<O> {
    flock: FileLocks<O>,
    fcntl: FileLocks<O>,
}

impl<O> Default for BothKinds<O> {
    fn default() -> Self {
        Self { flock: FileLocks::default(), fcntl: FileLocks::default() }
    }
}

impl<O: Copy + Ord> BothKinds<O> {
    /// Gives `owner` a lock on `range` in these kinds. It loses its locks of the other kind there.
    pub fn set(&mut self, owner: O, range: LockRange, kinds: LockKinds, kind: Option<LockKind>) {
        // A flock lock always covers the whole file.
        self.flock.set(owner, LockRange::WHOLE, kind.filter(|_| kinds.flock));
        self.fcntl.set(owner, range, kind.filter(|_| kinds.fcntl));
    }

    /// Releases all locks of `owner` in `range`, of both kinds.
    pub fn release(&mut self, owner: O, range: LockRange) {
        self.set(owner, range, LockKinds { flock: false, fcntl: false }, None);
    }

    /// Returns a lock of another owner that conflicts with this one, and its owner.
    pub fn conflict(
        &self,
        owner: O,
        range: LockRange,
        kinds: LockKinds,
        kind: LockKind,
    ) -> Option<(O, HeldLock)> {
        let flock = kinds.flock.then(|| self.flock.conflict(owner, range, kind)).flatten();
        flock.or_else(|| kinds.fcntl.then(|| self.fcntl.conflict(owner, range, kind)).flatten())
    }

    /// Returns `true` if `owner` holds this lock in one of the kinds.
    pub fn holds(&self, owner: O, held: HeldLock) -> bool {
        [&self.flock, &self.fcntl].iter().any(|locks| locks.within(owner, held.range) == [held])
    }

    /// Returns `true` if `owner` holds any lock.
    pub fn has(&self, owner: O) -> bool {
        !self.flock.of(owner).is_empty() || !self.fcntl.of(owner).is_empty()
    }

    /// Returns the owners of locks.
    pub fn owners(&self) -> BTreeSet<O> {
        self.flock.owners().chain(self.fcntl.owners()).collect()
    }

    /// Returns the number of locks. A lock of both kinds counts once.
    pub fn count(&self) -> usize {
        let only_flock = |owner: &O| self.fcntl.of(*owner).is_empty();
        self.fcntl.count() + self.flock.owners().filter(only_flock).count()
    }

    /// Returns `true` if there are no locks.
    pub fn is_empty(&self) -> bool {
        self.flock.is_empty() && self.fcntl.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::WholeFile;

    const EXCLUSIVE: LockKind = LockKind::Exclusive;

    #[test]
    fn a_lock_conflicts_only_within_its_kind() {
        let mut locks = BothKinds::default();
        let whole = LockRange::WHOLE;
        let part = LockRange::new(3, 5).unwrap();
        let [both, flock, fcntl] =
            [WholeFile::Both, WholeFile::Flock, WholeFile::Fcntl].map(|what| what.kinds_of(whole));
        locks.set(1, whole, flock, Some(EXCLUSIVE));
        assert!(locks.conflict(2, whole, flock, EXCLUSIVE).is_some());
        assert!(locks.conflict(2, whole, both, EXCLUSIVE).is_some());
        assert!(locks.conflict(2, whole, fcntl, EXCLUSIVE).is_none());
        assert!(locks.conflict(2, part, fcntl, EXCLUSIVE).is_none());
        locks.set(2, part, fcntl, Some(EXCLUSIVE));
        assert!(locks.conflict(1, whole, both, EXCLUSIVE).is_some());
        assert_eq!((locks.count(), locks.owners()), (2, BTreeSet::from([1, 2])));
        // A lock of both kinds turns out to be of one.
        locks.release(2, whole);
        locks.set(1, whole, both, Some(EXCLUSIVE));
        assert_eq!(locks.count(), 1);
        locks.set(1, whole, flock, Some(EXCLUSIVE));
        assert!(locks.conflict(2, whole, fcntl, EXCLUSIVE).is_none());
        locks.set(1, whole, both, Some(EXCLUSIVE));
        locks.release(1, part);
        assert!(locks.conflict(2, whole, flock, EXCLUSIVE).is_none(), "a part of it is none of flock");
        assert!(locks.has(1) && locks.conflict(2, whole, fcntl, EXCLUSIVE).is_some());
        locks.release(1, whole);
        assert!(locks.is_empty() && !locks.has(1));
    }

    #[test]
    fn a_lock_is_held_in_one_of_the_kinds() {
        let mut locks = BothKinds::default();
        let held = HeldLock { range: LockRange::WHOLE, kind: EXCLUSIVE };
        locks.set(1, LockRange::WHOLE, WholeFile::Flock.kinds_of(LockRange::WHOLE), Some(EXCLUSIVE));
        assert!(locks.holds(1, held) && !locks.holds(2, held));
        assert!(!locks.holds(1, HeldLock { kind: LockKind::Shared, ..held }));
    }
}
