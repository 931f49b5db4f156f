//! Names of the inodes in the table, and the way up from one to the root.
//!
//! Pure: no I/O, no clock.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

use super::record::OlderName;
use super::{DEPTH_MAX, Inode, InodeTable, NAMES_MAX, Name, Record, Step, at};
use crate::fs::leases::LeaseId;
use crate::proto::NodeId;

impl InodeTable {
    /// The kernel is told a name of the file, which holds until then.
    pub(in crate::fs) fn name_told(
        &mut self,
        inode: Inode,
        parent: Inode,
        name: &Name,
        until: Option<Instant>,
    ) {
        let parent = self.get(parent).map(|record| record.node());
        let (Some(slot), base) = (self.slot_of(inode), self.base) else { return };
        let is_newest = parent.is_some() && self.newest(slot) == parent.map(|parent| (parent, name));
        let record = self.at_mut(slot);
        record.believe(until, base);
        record.newest_is_told = is_newest;
        if !is_newest {
            record.more_mut().told = parent.map(|parent| (parent, Name::clone(name)));
        }
    }

    /// This mount has taken a name of the file away, and the kernel knows it. The kernel may still believe another name.
    pub(in crate::fs) fn name_taken(&mut self, inode: Inode, parent: Inode, name: &Name) {
        let Some(parent) = self.get(parent).map(|record| record.node()) else { return };
        let (Some(slot), base) = (self.slot_of(inode), self.base) else { return };
        if self.told(slot) != Some((parent, name)) {
            return;
        }
        let newest_is_other = self.newest(slot).is_some_and(|newest| newest != (parent, name));
        let is_other = |older: &&OlderName| older.parent != parent || older.name != *name;
        let older = self.at(slot).more().older.iter().rev().find(is_other);
        let other = older.map(|older| (older.parent, Name::clone(&older.name))).filter(|_| !newest_is_other);
        let record = self.at_mut(slot);
        record.newest_is_told = newest_is_other;
        if !newest_is_other && other.is_none() {
            record.believe(None, base);
        }
        if record.more().told != other {
            record.more_mut().told = other;
            record.tidy_up();
        }
    }

    /// The directory and name of what is in a slot that the kernel was told last.
    fn told(&self, slot: u32) -> Option<(NodeId, &Name)> {
        let record = self.at(slot);
        if record.newest_is_told {
            return self.newest(slot);
        }
        record.more().told.as_ref().map(|(parent, name)| (*parent, name))
    }

    /// The directory and name by which a program has reached a file: the newest, or what the kernel was told last.
    pub(in crate::fs) fn reached_by(&self, inode: Inode) -> Option<(Inode, Name)> {
        let told = || {
            let record = self.get(inode)?.record;
            let (parent, name) = record.more().told.as_ref()?;
            Some((self.inode_of(*parent)?, Name::clone(name)))
        };
        self.newest_name(inode).or_else(told)
    }

    /// `name` in `parent` names the inode from now on, and that was not told to the kernel by a lookup.
    pub(in crate::fs) fn rename(&mut self, inode: Inode, parent: Inode, name: &Name) {
        if let Some(slot) = self.slot_of(inode) {
            self.set_name(parent, name, slot);
        }
    }

    /// The inode that `name` in `parent` was last known to name.
    pub(in crate::fs) fn child(&self, parent: Inode, name: &Name) -> Option<Inode> {
        let slot = self.slot_of_name(self.get(parent)?.node(), name)?;
        Some(self.at(slot).number())
    }

    /// The lease that covered a name when it was learned.
    pub(in crate::fs) fn lease_of_name(&self, parent: Inode, name: &Name) -> Option<LeaseId> {
        let parent = self.get(parent)?.node();
        if let Some(slot) = self.slot_of_newest(parent, name) {
            return self.at(slot).name_lease;
        }
        let slot = self.by_older_name.get(&(parent, Arc::clone(name)))?;
        self.at(*slot).more().older.iter().find(|older| older.parent == parent && older.name == *name)?.lease
    }

    /// A name that was just learned is covered by a lease, or not.
    pub(in crate::fs) fn set_lease_of_name(&mut self, parent: Inode, name: &Name, lease: Option<LeaseId>) {
        let Some(parent) = self.get(parent).map(|record| record.node()) else { return };
        if let Some(slot) = self.slot_of_newest(parent, name) {
            self.at_mut(slot).name_lease = lease;
            return;
        }
        let Some(slot) = self.by_older_name.get(&(parent, Arc::clone(name))).copied() else { return };
        let older = &mut self.at_mut(slot).more_mut().older;
        if let Some(found) = older.iter_mut().find(|older| older.parent == parent && older.name == *name) {
            found.lease = lease;
        }
    }

    /// `name` in `parent` names nothing.
    pub(in crate::fs) fn remove_name(&mut self, parent: Inode, name: &Name) {
        if let Some(parent) = self.get(parent).map(|record| record.node()) {
            self.remove_key(parent, name);
        }
    }

    /// The directory and name under which the inode was last seen.
    pub(in crate::fs) fn newest_name(&self, inode: Inode) -> Option<(Inode, Name)> {
        let (parent, name) = self.newest(self.slot_of(inode)?)?;
        Some((self.inode_of(parent)?, Arc::clone(name)))
    }

    /// The directory that holds the newest name of an inode, also where it is not known itself.
    pub(in crate::fs) fn parent_of(&self, inode: Inode) -> Option<NodeId> {
        self.newest(self.slot_of(inode)?).map(|(parent, _)| parent)
    }

    /// The newest path of an inode below the root, for people.
    pub(in crate::fs) fn path(&self, inode: Inode) -> Vec<u8> {
        let Some(way) = self.way_up(inode) else { return format!("(inode {})", inode.0).into_bytes() };
        let names: Vec<&[u8]> = way.iter().rev().map(|step| &*step.name).collect();
        names.join(&b'/')
    }

    /// The way from the inode up to the root, the inode's own step first; empty for the root. `None` if it is not known.
    pub(in crate::fs) fn way_up(&self, inode: Inode) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let mut at = inode;
        while at != Inode::ROOT {
            let slot = self.slot_of(at)?;
            let (parent, name) = self.newest(slot)?;
            steps.push(Step { parent, name: Arc::clone(name), inode: at, node: self.at(slot).node() });
            // A directory that was moved below its own child leaves a loop behind until it is looked up anew.
            if steps.len() > DEPTH_MAX {
                return None;
            }
            at = self.inode_of(parent)?;
        }
        Some(steps)
    }

    /// The name of what is in a slot that was learned last.
    fn newest(&self, slot: u32) -> Option<(NodeId, &Name)> {
        let record = self.at(slot);
        record.name.as_ref().map(|name| (self.directories.node(record.parent), name))
    }

    fn slot_of_name(&self, parent: NodeId, name: &Name) -> Option<u32> {
        let older = || self.by_older_name.get(&(parent, Arc::clone(name))).copied();
        self.slot_of_newest(parent, name).or_else(older)
    }

    fn slot_of_newest(&self, parent: NodeId, name: &Name) -> Option<u32> {
        let directory = self.directories.number(parent)?;
        let is_it = |slot| {
            let record = self.at(slot);
            record.parent == directory && record.name.as_ref() == Some(name)
        };
        self.by_name.find(hash_of(&self.hasher, directory, name), is_it)
    }

    pub(super) fn set_name(&mut self, parent: Inode, name: &Name, slot: u32) {
        if let Some(parent) = self.get(parent).map(|record| record.node()) {
            self.set_name_in(parent, name, slot);
        }
    }

    pub(super) fn set_name_in(&mut self, parent: NodeId, name: &Name, slot: u32) {
        if self.slot_of_newest(parent, name) == Some(slot) {
            self.at_mut(slot).name_lease = None;
            return;
        }
        self.remove_key(parent, name);
        if let Some(older) = self.take_newest(slot) {
            self.by_older_name.insert((older.parent, Name::clone(&older.name)), slot);
            self.at_mut(slot).more_mut().older.push(older);
        }
        self.put_newest(slot, OlderName { parent, name: Name::clone(name), lease: None });
        let record = self.at_mut(slot);
        if record.more().older.len() >= NAMES_MAX {
            let oldest = record.more_mut().older.remove(0);
            self.by_older_name.remove(&(oldest.parent, oldest.name));
        }
    }

    fn put_newest(&mut self, slot: u32, OlderName { parent, name, lease }: OlderName) {
        let directory = self.directories.hold(parent);
        let record = self.at_mut(slot);
        (record.parent, record.name, record.name_lease) = (directory, Some(name), lease);
        let Self { records, hasher, by_name, .. } = self;
        let name_at = |slot| name_hash(hasher, at(records, slot));
        by_name.insert(name_at(slot), slot, name_at);
    }

    /// Takes the newest name off what is in a slot.
    fn take_newest(&mut self, slot: u32) -> Option<OlderName> {
        let hash = name_hash(&self.hasher, self.at(slot));
        let record = self.at_mut(slot);
        let (name, directory, lease) = (record.name.take()?, record.parent, record.name_lease.take());
        let was_told = std::mem::take(&mut record.newest_is_told);
        let parent = self.directories.node(directory);
        if was_told {
            self.at_mut(slot).more_mut().told = Some((parent, Name::clone(&name)));
        }
        self.by_name.remove(hash, |found| found == slot);
        self.directories.release(directory);
        Some(OlderName { parent, name, lease })
    }

    fn remove_key(&mut self, parent: NodeId, name: &Name) {
        if let Some(slot) = self.slot_of_newest(parent, name) {
            self.take_newest(slot);
            let has_older = !self.at(slot).more().older.is_empty();
            if has_older && let Some(older) = self.at_mut(slot).more_mut().older.pop() {
                self.by_older_name.remove(&(older.parent, Name::clone(&older.name)));
                self.put_newest(slot, older);
            }
        } else if let Some(slot) = self.by_older_name.remove(&(parent, Name::clone(name))) {
            let older = &mut self.at_mut(slot).more_mut().older;
            older.retain(|older| older.parent != parent || older.name != *name);
        }
    }

    /// Takes all names off what is in a slot. Returns the newest.
    pub(super) fn remove_names(&mut self, slot: u32) -> Option<(NodeId, Name)> {
        let newest = self.take_newest(slot);
        if !self.at(slot).more().older.is_empty() {
            for older in std::mem::take(&mut self.at_mut(slot).more_mut().older) {
                self.by_older_name.remove(&(older.parent, older.name));
            }
        }
        let Self { records, hasher, by_name, .. } = self;
        by_name.shrink(|slot| name_hash(hasher, at(records, slot)));
        newest.map(|newest| (newest.parent, newest.name))
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.by_name.len() + self.by_older_name.len()
    }
}

fn name_hash(hasher: &impl BuildHasher, record: &Record) -> u64 {
    hash_of(hasher, record.parent, record.name.as_deref().unwrap_or_default())
}

fn hash_of(hasher: &impl BuildHasher, directory: u32, name: &[u8]) -> u64 {
    hasher.hash_one((directory, name))
}
