//! The locks that programs on this mount hold on the host.
//!
//! Pure: no I/O, no clock.
//!
//! All belong to one life of the session. When another begins they are lost, whatever the host has done with them since.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::inodes::Inode;
use crate::lock::{FileLocks, HeldLock};
use crate::proto::{LockKind, LockOwner, LockRange, SessionRun};

/// Names something that is still being put right about an owner's locks on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Debt {
    inode: Inode,
    owner: LockOwner,
    number: u64,
}

#[derive(Debug, Default)]
struct File {
    locks: FileLocks<LockOwner>,
    /// Through which handles each owner has taken locks.
    handles: HashMap<LockOwner, BTreeSet<u64>>,
}

/// All of them, and what is to be put right.
#[derive(Debug, Default)]
pub(super) struct OwnLocks {
    run: Option<SessionRun>,
    files: HashMap<Inode, File>,
    /// Numbers of debts, oldest first.
    debts: BTreeMap<(Inode, LockOwner), BTreeSet<u64>>,
    debts_made: u64,
    lost: u64,
}

impl OwnLocks {
    /// The session is in this life. The handles whose locks are lost with the one before, each once, and how many locks that were.
    pub(super) fn live_in(&mut self, run: Option<SessionRun>) -> (usize, HashSet<u64>) {
        if self.run == run {
            return (0, HashSet::new());
        }
        self.run = run;
        let count = self.count();
        let files = std::mem::take(&mut self.files);
        let handles = files.into_values().flat_map(|file| file.handles.into_values().flatten()).collect();
        self.lost += count as u64;
        (count, handles)
    }

    /// The host has given a lock, in this life of the session; `false` if that is over by now.
    pub(super) fn taken(
        &mut self,
        run: SessionRun,
        (inode, handle): (Inode, u64),
        owner: LockOwner,
        lock: HeldLock,
    ) -> bool {
        if self.run != Some(run) {
            return false;
        }
        let file = self.files.entry(inode).or_default();
        file.locks.set(owner, lock.range, Some(lock.kind));
        file.handles.entry(owner).or_default().insert(handle);
        true
    }

    /// Given back.
    pub(super) fn released(&mut self, inode: Inode, owner: LockOwner, range: LockRange) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.locks.set(owner, range, None);
        if file.locks.of(owner).is_empty() {
            file.handles.remove(&owner);
        }
        if file.locks.is_empty() {
            self.files.remove(&inode);
        }
    }

    /// What an owner holds of a range.
    pub(super) fn within(&self, inode: Inode, owner: LockOwner, range: LockRange) -> Vec<HeldLock> {
        self.files.get(&inode).map_or_else(Vec::new, |file| file.locks.within(owner, range))
    }

    /// Owners that hold locks which were taken through a handle.
    pub(super) fn owners_through(&self, inode: Inode, handle: u64) -> Vec<LockOwner> {
        let Some(file) = self.files.get(&inode) else { return Vec::new() };
        let theirs = file.handles.iter().filter(|(_, handles)| handles.contains(&handle));
        theirs.map(|(owner, _)| *owner).collect()
    }

    /// How many are held.
    pub(super) fn count(&self) -> usize {
        self.files.values().map(|file| file.locks.count()).sum()
    }

    /// How many were lost so far.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Something is to be put right; what the same owner asks later waits for it.
    pub(super) fn owe(&mut self, inode: Inode, owner: LockOwner) -> Debt {
        self.debts_made += 1;
        let number = self.debts_made;
        self.debts.entry((inode, owner)).or_default().insert(number);
        Debt { inode, owner, number }
    }

    /// It is put right.
    pub(super) fn settle(&mut self, debt: Debt) {
        let name = (debt.inode, debt.owner);
        if let Some(numbers) = self.debts.get_mut(&name) {
            numbers.remove(&debt.number);
            if numbers.is_empty() {
                self.debts.remove(&name);
            }
        }
    }

    /// Whether something is to be put right for an owner that came before `debt`, or at all.
    pub(super) fn owes(&self, inode: Inode, owner: LockOwner, before: Option<Debt>) -> bool {
        let oldest = self.debts.get(&(inode, owner)).and_then(|numbers| numbers.first());
        oldest.is_some_and(|oldest| before.is_none_or(|debt| *oldest < debt.number))
    }
}

/// What has to be said to the host so that an owner holds in `range` exactly `held`, whatever more he may hold: first what is kept, as
/// it was, then what is given back.
pub(super) fn put_back(range: LockRange, held: &[HeldLock]) -> Vec<(LockRange, Option<LockKind>)> {
    let kept = held.iter().map(|lock| (lock.range, Some(lock.kind)));
    let mut gaps = Vec::new();
    let mut from = range.start;
    for lock in held {
        if let Some(gap) = lock.range.start.checked_sub(1).and_then(|end| LockRange::new(from, end)) {
            gaps.push((gap, None));
        }
        from = lock.range.end + 1;
    }
    gaps.extend(LockRange::new(from, range.end).map(|gap| (gap, None)));
    kept.chain(gaps).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::InstanceId;

    const FILE: Inode = Inode(7);
    const ONE: LockOwner = LockOwner(1);

    fn run(number: u64) -> SessionRun {
        SessionRun { instance: InstanceId([0; 16]), number }
    }

    fn whole() -> HeldLock {
        HeldLock { range: LockRange::WHOLE, kind: LockKind::Exclusive }
    }

    #[test]
    fn what_is_lost_is_lost_once_and_named_by_its_handles() {
        let mut locks = OwnLocks::default();
        assert_eq!(locks.live_in(Some(run(1))), (0, HashSet::new()));
        assert!(locks.taken(run(1), (FILE, 3), ONE, whole()));
        assert!(locks.taken(run(1), (FILE, 4), LockOwner(2), whole()));
        assert_eq!(locks.live_in(Some(run(1))), (0, HashSet::new()));
        assert_eq!(locks.live_in(Some(run(2))), (2, HashSet::from([3, 4])));
        assert_eq!((locks.count(), locks.lost()), (0, 2));
        assert!(!locks.taken(run(1), (FILE, 3), ONE, whole()), "given in a life that is over");
        assert_eq!(locks.live_in(Some(run(3))), (0, HashSet::new()));
    }

    #[test]
    fn an_owner_is_known_by_his_handles_until_he_holds_nothing() {
        let mut locks = OwnLocks::default();
        locks.live_in(Some(run(1)));
        locks.taken(run(1), (FILE, 3), ONE, whole());
        assert_eq!(locks.owners_through(FILE, 3), [ONE]);
        locks.released(FILE, ONE, LockRange::new(0, 9).unwrap());
        assert_eq!(locks.owners_through(FILE, 3), [ONE]);
        locks.released(FILE, ONE, LockRange::WHOLE);
        assert!(locks.owners_through(FILE, 3).is_empty() && locks.count() == 0);
    }

    #[test]
    fn debts_are_settled_in_any_order_and_wait_for_older_ones_only() {
        let mut locks = OwnLocks::default();
        let (first, second) = (locks.owe(FILE, ONE), locks.owe(FILE, ONE));
        assert!(!locks.owes(FILE, ONE, Some(first)));
        assert!(locks.owes(FILE, ONE, Some(second)) && locks.owes(FILE, ONE, None));
        assert!(!locks.owes(FILE, LockOwner(2), None));
        locks.settle(first);
        assert!(!locks.owes(FILE, ONE, Some(second)) && locks.owes(FILE, ONE, None));
        locks.settle(second);
        assert!(!locks.owes(FILE, ONE, None));
    }

    proptest! {
        /// Whatever an owner held before and whatever was taken on top of it: afterwards he holds what he held before.
        #[test]
        fn putting_back_leaves_what_was_held_before(
            before in proptest::collection::vec((0u64..30, 1u64..9, any::<bool>()), 0..6),
            start in 0u64..30, len in 1u64..20, to_the_end: bool,
        ) {
            let kind = |exclusive| if exclusive { LockKind::Exclusive } else { LockKind::Shared };
            let mut held = FileLocks::default();
            for (start, len, exclusive) in before {
                held.set(1, LockRange::new(start, start + len - 1).unwrap(), Some(kind(exclusive)));
            }
            let end = if to_the_end { LockRange::LAST } else { start + len - 1 };
            let range = LockRange::new(start, end).unwrap();
            let mut host = held.clone();
            host.set(1, range, Some(LockKind::Exclusive));
            for (part, kind) in put_back(range, &held.within(1, range)) {
                prop_assert!(part.start >= range.start && part.end <= range.end);
                host.set(1, part, kind);
            }
            prop_assert_eq!(host.of(1), held.of(1));
        }
    }
}
