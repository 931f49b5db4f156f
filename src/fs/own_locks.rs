//! The locks that programs on this mount hold on the host.
//!
//! Pure: no I/O, no clock.
//!
//! All belong to one life of the session. When another begins they are lost, whatever the host has done with them since.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::inodes::Inode;
use crate::lock::{FileLocks, HeldLock};
use crate::proto::{LockKind, LockOwner, LockRange, SessionRun, WholeFile};

/// Names something that is still being put right about an owner's locks on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Debt {
    inode: Inode,
    owner: LockOwner,
    number: u64,
}

/// Who takes a lock: an owner, in a process, through a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taker {
    pub(super) inode: Inode,
    pub(super) handle: u64,
    pub(super) owner: LockOwner,
    pub(super) process: u32,
}

/// What is known of an owner that holds something.
#[derive(Debug)]
struct Holder {
    /// Through which handles he has taken locks.
    handles: BTreeSet<u64>,
    process: u32,
    /// What his locks of the whole file are.
    whole: WholeFile,
}

#[derive(Debug, Default)]
struct File {
    locks: FileLocks<LockOwner>,
    holders: HashMap<LockOwner, Holder>,
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
        let holders = files.into_values().flat_map(|file| file.holders.into_values());
        let handles = holders.flat_map(|holder| holder.handles).collect();
        self.lost += count as u64;
        (count, handles)
    }

    /// The host has given a lock, in this life of the session; `false` if that is over by now.
    pub(super) fn taken(&mut self, run: SessionRun, taker: Taker, lock: HeldLock, whole: WholeFile) -> bool {
        if self.run != Some(run) {
            return false;
        }
        let Taker { inode, handle, owner, process } = taker;
        let file = self.files.entry(inode).or_default();
        file.locks.set(owner, lock.range, Some(lock.kind));
        let fresh = || Holder { handles: BTreeSet::new(), process, whole };
        let holder = file.holders.entry(owner).or_insert_with(fresh);
        holder.handles.insert(handle);
        (holder.process, holder.whole) = (process, whole);
        true
    }

    /// What a lock of the whole file is, for `taker`: `usual`, unless it is known better. And what must turn out to be one of `flock`
    /// before, with the kind in which it is held.
    ///
    /// The kernel names by one number who locks by `flock` through a handle, and by another the process that locks by `fcntl`, but
    /// does not say which is which. Where a process uses both numbers with one handle it uses both ways, which know nothing of each
    /// other: then one of its locks is of one kind and the other of the other.
    pub(super) fn whole_for(
        &self,
        taker: Taker,
        usual: WholeFile,
    ) -> (WholeFile, Option<(LockOwner, LockKind)>) {
        let Some(file) = self.files.get(&taker.inode).filter(|_| usual == WholeFile::Both) else {
            return (usual, None);
        };
        if let Some(known) = file.holders.get(&taker.owner).filter(|known| known.whole != WholeFile::Both) {
            return (known.whole, None);
        }
        let is_twin = |(owner, holder): &(&LockOwner, &Holder)| {
            **owner != taker.owner
                && holder.process == taker.process
                && holder.handles.contains(&taker.handle)
        };
        let Some((twin, holder)) = file.holders.iter().find(is_twin) else { return (usual, None) };
        match (holder.whole, file.locks.whole(*twin)) {
            (WholeFile::Flock, _) => (WholeFile::Fcntl, None),
            // Ranges are of `fcntl`.
            (WholeFile::Fcntl, _) | (WholeFile::Both, None) => (WholeFile::Flock, None),
            (WholeFile::Both, Some(kind)) => (WholeFile::Fcntl, Some((*twin, kind))),
        }
    }

    /// An owner's lock of the whole file turned out to be this.
    pub(super) fn turned_out(&mut self, inode: Inode, owner: LockOwner, whole: WholeFile) {
        let holder = self.files.get_mut(&inode).and_then(|file| file.holders.get_mut(&owner));
        if let Some(holder) = holder {
            holder.whole = whole;
        }
    }

    /// What an owner's lock of the whole file is, if he holds anything.
    pub(super) fn whole_of(&self, inode: Inode, owner: LockOwner) -> Option<WholeFile> {
        self.files.get(&inode)?.holders.get(&owner).map(|holder| holder.whole)
    }

    /// Given back.
    pub(super) fn released(&mut self, inode: Inode, owner: LockOwner, range: LockRange) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.locks.set(owner, range, None);
        if file.locks.of(owner).is_empty() {
            file.holders.remove(&owner);
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
        let theirs = file.holders.iter().filter(|(_, holder)| holder.handles.contains(&handle));
        theirs.map(|(owner, _)| *owner).collect()
    }

    /// In which life of the session locks are held that were taken through a handle, if there are any.
    pub(super) fn held_in(&self, inode: Inode, handle: u64) -> Option<SessionRun> {
        let holders = &self.files.get(&inode)?.holders;
        self.run.filter(|_| holders.values().any(|holder| holder.handles.contains(&handle)))
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

    fn taker(handle: u64, owner: u64) -> Taker {
        Taker { inode: FILE, handle, owner: LockOwner(owner), process: 100 }
    }

    fn take(locks: &mut OwnLocks, number: u64, taker: Taker, lock: HeldLock) -> bool {
        locks.taken(run(number), taker, lock, WholeFile::Both)
    }

    #[test]
    fn who_uses_two_numbers_with_one_handle_uses_both_kinds() {
        use WholeFile::{Both, Fcntl, Flock};
        let mut locks = OwnLocks::default();
        locks.live_in(Some(run(1)));
        assert_eq!(locks.whole_for(taker(3, 1), Both), (Both, None));
        take(&mut locks, 1, taker(3, 1), whole());
        assert_eq!(locks.whole_for(taker(3, 1), Both), (Both, None));
        // Another handle, another process, and a mount that knows.
        assert_eq!(locks.whole_for(taker(4, 2), Both), (Both, None));
        assert_eq!(locks.whole_for(Taker { process: 101, ..taker(3, 2) }, Both), (Both, None));
        assert_eq!(locks.whole_for(taker(3, 2), Fcntl), (Fcntl, None));
        assert_eq!(locks.whole_for(taker(3, 2), Both), (Fcntl, Some((ONE, LockKind::Exclusive))));
        locks.turned_out(FILE, ONE, Flock);
        assert!(locks.taken(run(1), taker(3, 2), whole(), Fcntl));
        // It stays so.
        assert_eq!(locks.whole_for(taker(3, 1), Both), (Flock, None));
        assert_eq!(locks.whole_for(taker(3, 2), Both), (Fcntl, None));
        assert_eq!(locks.whole_of(FILE, ONE), Some(Flock));
        locks.released(FILE, ONE, LockRange::WHOLE);
        assert_eq!(locks.whole_for(taker(3, 1), Both), (Flock, None), "the other is still there");
        locks.released(FILE, LockOwner(2), LockRange::WHOLE);
        let part = HeldLock { range: LockRange::new(1, 2).unwrap(), ..whole() };
        take(&mut locks, 1, taker(3, 2), part);
        assert_eq!(locks.whole_for(taker(3, 1), Both), (Flock, None), "a range is of fcntl");
    }

    #[test]
    fn what_is_lost_is_lost_once_and_named_by_its_handles() {
        let mut locks = OwnLocks::default();
        assert_eq!(locks.live_in(Some(run(1))), (0, HashSet::new()));
        assert!(take(&mut locks, 1, taker(3, 1), whole()));
        assert!(take(&mut locks, 1, taker(4, 2), whole()));
        assert_eq!(locks.live_in(Some(run(1))), (0, HashSet::new()));
        assert_eq!(locks.live_in(Some(run(2))), (2, HashSet::from([3, 4])));
        assert_eq!((locks.count(), locks.lost()), (0, 2));
        assert!(!take(&mut locks, 1, taker(3, 1), whole()), "given in a life that is over");
        assert_eq!(locks.live_in(Some(run(3))), (0, HashSet::new()));
    }

    #[test]
    fn an_owner_is_known_by_his_handles_until_he_holds_nothing() {
        let mut locks = OwnLocks::default();
        locks.live_in(Some(run(1)));
        take(&mut locks, 1, taker(3, 1), whole());
        assert_eq!(locks.owners_through(FILE, 3), [ONE]);
        assert_eq!((locks.held_in(FILE, 3), locks.held_in(FILE, 4)), (Some(run(1)), None));
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
