//! Locks of one file.

use std::collections::BTreeMap;

use crate::proto::{LockKind, LockRange};

/// A lock that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLock {
    /// Its bytes.
    pub range: LockRange,
    /// Shared or exclusive.
    pub kind: LockKind,
}

/// Owners of locks on one file.
#[derive(Debug, Clone)]
pub struct FileLocks<O> {
    /// By owner: in order, disjoint, and neighbours of one kind joined.
    owners: BTreeMap<O, Vec<HeldLock>>,
}

impl<O> Default for FileLocks<O> {
    fn default() -> Self {
        Self { owners: BTreeMap::new() }
    }
}

impl<O: Copy + Ord> FileLocks<O> {
    /// Sets the lock of `owner` on `range`, or removes it (`None`). The caller checks for conflicts.
    pub fn set(&mut self, owner: O, range: LockRange, kind: Option<LockKind>) {
        let before = self.owners.remove(&owner).unwrap_or_default();
        let mut after: Vec<HeldLock> = before.iter().flat_map(|held| outside(*held, range)).collect();
        if let Some(kind) = kind {
            after.push(HeldLock { range, kind });
        }
        after.sort_by_key(|held| held.range);
        after.dedup_by(|next, last| {
            let joins = last.kind == next.kind && last.range.end + 1 == next.range.start;
            if joins {
                last.range.end = next.range.end;
            }
            joins
        });
        if !after.is_empty() {
            self.owners.insert(owner, after);
        }
    }

    /// Returns a lock of another owner that conflicts with this one, and its owner.
    pub fn conflict(&self, owner: O, range: LockRange, kind: LockKind) -> Option<(O, HeldLock)> {
        let others = self.owners.iter().filter(|(other, _)| **other != owner);
        let mut locks = others.flat_map(|(other, locks)| locks.iter().map(|held| (*other, *held)));
        locks.find(|(_, held)| {
            held.range.overlaps(range) && (held.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
        })
    }

    /// Returns the locks of `owner` in `range`, cut to it, in order.
    pub fn within(&self, owner: O, range: LockRange) -> Vec<HeldLock> {
        let cut = |held: &HeldLock| {
            let (start, end) = (held.range.start.max(range.start), held.range.end.min(range.end));
            Some(HeldLock { range: LockRange::new(start, end)?, kind: held.kind })
        };
        self.of(owner).iter().filter_map(cut).collect()
    }

    /// Returns all locks of `owner` in order.
    pub fn of(&self, owner: O) -> &[HeldLock] {
        self.owners.get(&owner).map_or(&[], Vec::as_slice)
    }

    /// Returns the kind of a lock of `owner` on the whole file, if there is one.
    pub fn whole(&self, owner: O) -> Option<LockKind> {
        match self.of(owner) {
            [one] if one.range == LockRange::WHOLE => Some(one.kind),
            _ => None,
        }
    }

    /// Returns the owners of locks.
    pub fn owners(&self) -> impl Iterator<Item = O> {
        self.owners.keys().copied()
    }

    /// Returns the number of locks.
    pub fn count(&self) -> usize {
        self.owners.values().map(Vec::len).sum()
    }

    /// Returns `true` if there are no locks.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

/// Returns the rest of a lock outside of `range`.
fn outside(held: HeldLock, range: LockRange) -> impl Iterator<Item = HeldLock> {
    let left = range.start.checked_sub(1).and_then(|end| {
        let end = end.min(held.range.end);
        LockRange::new(held.range.start, end)
    });
    let right = LockRange::new(held.range.start.max(range.end + 1), held.range.end);
    [left, right].into_iter().flatten().map(move |range| HeldLock { range, kind: held.kind })
}

#[cfg(test)]
mod tests {
    use std::array;

    use proptest::prelude::*;

    use super::*;

    const OWNERS: usize = 3;
    /// The last one stands for all bytes behind it.
    const BYTES: usize = 17;

    /// Naive model: the lock of each owner on each byte.
    type Bytes = [[Option<LockKind>; BYTES]; OWNERS];

    fn kind() -> impl Strategy<Value = Option<LockKind>> {
        prop_oneof![Just(None), Just(Some(LockKind::Shared)), Just(Some(LockKind::Exclusive))]
    }

    fn range(start: usize, len: usize) -> LockRange {
        // Some ranges reach the end of all files, where adding one could overflow.
        let end = if start + len >= BYTES { LockRange::LAST } else { (start + len - 1) as u64 };
        LockRange::new(start as u64, end).unwrap()
    }

    fn covers(range: LockRange, byte: usize) -> bool {
        range.overlaps(LockRange::new(byte as u64, byte as u64).unwrap())
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map_of_bytes(
            steps in proptest::collection::vec((0..OWNERS, 0..BYTES, 1..BYTES, kind()), 1..80),
        ) {
            let (mut table, mut slow): (FileLocks<usize>, Bytes) = (FileLocks::default(), [[None; BYTES]; OWNERS]);
            for (owner, start, len, kind) in steps {
                let range = range(start, len);
                if let Some(kind) = kind {
                    let stands_against = |other: usize| (0..BYTES).any(|byte| {
                        let theirs = if other == owner { None } else { slow[other][byte] };
                        covers(range, byte)
                            && theirs.is_some_and(|theirs| theirs.max(kind) == LockKind::Exclusive)
                    });
                    let expected = (0..OWNERS).any(stands_against);
                    let found = table.conflict(owner, range, kind);
                    prop_assert_eq!(found.is_some(), expected);
                    if let Some((other, held)) = found {
                        prop_assert!(stands_against(other) && held.range.overlaps(range));
                        continue;
                    }
                }
                table.set(owner, range, kind);
                for byte in (0..BYTES).filter(|byte| covers(range, *byte)) {
                    slow[owner][byte] = kind;
                }
                for (owner, slow) in slow.iter().enumerate() {
                    let held: [Option<LockKind>; BYTES] = array::from_fn(|byte| {
                        table.of(owner).iter().find(|held| covers(held.range, byte)).map(|held| held.kind)
                    });
                    prop_assert_eq!(&held, slow);
                    // The locks are as few as possible, in order and apart.
                    let are_apart = table.of(owner).windows(2).all(|pair| {
                        let [one, two] = [pair[0], pair[1]];
                        one.range.end < two.range.start
                            && (one.kind != two.kind || one.range.end + 1 < two.range.start)
                    });
                    prop_assert!(are_apart);
                    let cut = table.within(owner, range);
                    prop_assert!(cut.iter().all(|held| held.range.start >= range.start && held.range.end <= range.end));
                    for byte in (0..BYTES).filter(|byte| covers(range, *byte)) {
                        let cut = cut.iter().find(|held| covers(held.range, byte)).map(|held| held.kind);
                        prop_assert_eq!(cut, slow[byte]);
                    }
                }
                prop_assert_eq!(table.owners().count(), slow.iter().filter(|held| held.iter().any(Option::is_some)).count());
                prop_assert_eq!(table.is_empty(), table.count() == 0);
            }
        }
    }

    #[test]
    fn a_lock_on_the_whole_file_ends_with_one_released_byte() {
        let mut locks = FileLocks::default();
        locks.set(1, LockRange::WHOLE, Some(LockKind::Shared));
        assert_eq!(locks.whole(1), Some(LockKind::Shared));
        locks.set(1, LockRange::new(5, 5).unwrap(), None);
        assert_eq!((locks.whole(1), locks.count()), (None, 2));
        locks.set(1, LockRange::new(5, 5).unwrap(), Some(LockKind::Shared));
        assert_eq!(locks.whole(1), Some(LockKind::Shared));
    }
}
