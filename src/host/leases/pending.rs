//! Changes that wait to be told to one subscriber: names by directory, each once, within a bound.
//!
//! Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::proto::{EVENT_ENTRIES_MAX, NodeId};

/// Most names that wait for one subscriber. A subscriber with more is too slow, and loses its leases instead.
const NAMES_MAX: usize = 8192;

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum Told {
    /// These names of the directory may lead elsewhere, or to something with other attributes. None: the directory itself.
    Changed(NodeId, Vec<Vec<u8>>),
    /// The directory is watched no longer.
    Revoked(NodeId),
}

/// The changes of one subscriber.
#[derive(Debug, Default)]
pub(super) struct Pending {
    names: BTreeMap<NodeId, BTreeSet<Vec<u8>>>,
    /// Directories in the order of their first change.
    order: VecDeque<NodeId>,
    revoked: Vec<NodeId>,
    count: usize,
    overflowed: bool,
}

impl Pending {
    /// Notes that a name in a directory has changed, or the directory itself.
    pub(super) fn change(&mut self, directory: NodeId, name: Option<&[u8]>) {
        if self.overflowed {
            return;
        }
        let names = self.names.entry(directory).or_insert_with(|| {
            self.order.push_back(directory);
            self.count += 1;
            BTreeSet::new()
        });
        if let Some(name) = name
            && !names.contains(name)
        {
            names.insert(name.to_vec());
            self.count += 1;
        }
        if self.count > NAMES_MAX {
            self.overflow();
        }
    }

    /// Notes that a directory is watched no longer. That says more than any of its changes.
    pub(super) fn revoke(&mut self, directory: NodeId) {
        if self.overflowed {
            return;
        }
        if let Some(names) = self.names.remove(&directory) {
            self.order.retain(|known| *known != directory);
            self.count -= names.len() + 1;
        }
        self.revoked.push(directory);
        if self.revoked.len() > NAMES_MAX {
            self.overflow();
        }
    }

    /// Notes that changes were missed.
    pub(super) fn overflow(&mut self) {
        *self = Self { overflowed: true, ..Self::default() };
    }

    /// Tells whether changes were missed: every lease is over then.
    pub(super) const fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Takes the next thing to tell, at most [`EVENT_ENTRIES_MAX`] names of one directory.
    pub(super) fn take(&mut self) -> Option<Told> {
        if let Some(directory) = self.revoked.pop() {
            return Some(Told::Revoked(directory));
        }
        let directory = self.order.pop_front()?;
        let mut names = self.names.remove(&directory)?;
        self.count -= 1;
        let mut taken = Vec::new();
        while taken.len() < EVENT_ENTRIES_MAX
            && let Some(name) = names.pop_first()
        {
            taken.push(name);
        }
        self.count -= taken.len();
        if !names.is_empty() {
            self.order.push_front(directory);
            self.names.insert(directory, names);
            self.count += 1;
        }
        Some(Told::Changed(directory, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 0 }
    }

    #[test]
    fn a_name_that_changes_often_is_told_once() {
        let mut pending = Pending::default();
        for _ in 0..NAMES_MAX * 2 {
            pending.change(node(1), Some(b"log"));
        }
        pending.change(node(2), None);
        assert_eq!(pending.take(), Some(Told::Changed(node(1), vec![b"log".to_vec()])));
        assert_eq!(pending.take(), Some(Told::Changed(node(2), vec![])));
        assert_eq!(pending.take(), None);
        assert!(!pending.has_overflowed());
    }

    #[test]
    fn long_lists_of_names_are_told_in_parts() {
        let mut pending = Pending::default();
        let names: Vec<Vec<u8>> = (0..=EVENT_ENTRIES_MAX).map(|at| format!("{at:05}").into_bytes()).collect();
        for name in &names {
            pending.change(node(1), Some(name));
        }
        let (first, rest) = names.split_at(EVENT_ENTRIES_MAX);
        assert_eq!(pending.take(), Some(Told::Changed(node(1), first.to_vec())));
        assert_eq!(pending.take(), Some(Told::Changed(node(1), rest.to_vec())));
        assert_eq!(pending.take(), None);
        assert_eq!(pending.count, 0);
    }

    #[test]
    fn a_revocation_replaces_changes_of_its_directory() {
        let mut pending = Pending::default();
        pending.change(node(1), Some(b"a"));
        pending.change(node(2), Some(b"b"));
        pending.revoke(node(1));
        assert_eq!(pending.take(), Some(Told::Revoked(node(1))));
        assert_eq!(pending.take(), Some(Told::Changed(node(2), vec![b"b".to_vec()])));
        assert_eq!(pending.take(), None);
        assert_eq!(pending.count, 0);
    }

    #[test]
    fn too_many_changes_overflow_and_take_no_memory() {
        let mut pending = Pending::default();
        for at in 0..=NAMES_MAX {
            pending.change(node(1), Some(format!("{at}").as_bytes()));
        }
        assert!(pending.has_overflowed());
        pending.change(node(1), Some(b"one more"));
        assert_eq!(pending.take(), None);
    }
}
