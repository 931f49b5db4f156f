//! Leases in use: how long things hold under them, and events of the host applied to what is known.

use std::sync::{Arc, PoisonError, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::attributes::Learned;
use super::events::{EventLane, FsEvent};
use super::inodes::{Inode, Name};
use super::leases::LeaseId;
use super::snapshot::Search;
use super::{FileSystem, lock};
use crate::client::ClientEvent;
use crate::proto::{Attributes, DirectoryChange, HostEvent, LeaseEpoch, NodeId};

impl FileSystem {
    /// Takes in what the host tells unasked, until the mount ends.
    pub(super) fn follow_events(self: &Arc<Self>) {
        // Without time-outs nothing is believed without asking, so there is nothing for a lease to extend.
        if !self.config.freshness.allows_leases() {
            return;
        }
        if let Some(events) = self.client.events() {
            self.runtime.spawn(apply_events(Arc::downgrade(self), events));
        }
    }

    /// The time that is left for attributes; all of it under a lease.
    pub(super) fn attributes_left(
        &self,
        attributes: &Attributes,
        learned: Learned,
        now: Instant,
    ) -> Duration {
        let freshness = &self.config.freshness;
        if lock(&self.leases).covers_attributes(learned.lease, attributes, now) {
            return freshness.attributes;
        }
        freshness.attributes_left(learned, now)
    }

    /// The time that is left for a name; all of it under a lease.
    pub(super) fn entry_left(&self, learned: Learned, now: Instant) -> Duration {
        if lock(&self.leases).covers_entry(learned.lease, now) {
            return self.config.freshness.entries;
        }
        self.config.freshness.entry_left(learned, now)
    }

    /// The time that is left for the absence of a name; all of it under a lease.
    pub(super) fn absence_left(&self, learned: Learned, now: Instant) -> Duration {
        if lock(&self.leases).covers_entry(learned.lease, now) {
            return self.config.freshness.absence;
        }
        self.config.freshness.absence_left(learned, now)
    }

    /// Keeps events from being applied until the guard is dropped. Held from where something leased is read, or an answer is
    /// found to be covered, to where it is entered into the table of inodes: an event in between would be lost on it. Not to be
    /// taken twice, and not with any other lock held.
    pub(super) fn steady(&self) -> RwLockReadGuard<'_, ()> {
        self.telling.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a question about an entry of a directory, or about the directory itself, has arrived with or without a
    /// lease.
    pub(super) fn with_lease(
        &self,
        learned: Learned,
        directory: NodeId,
        given: Option<LeaseEpoch>,
    ) -> Learned {
        let mut leases = lock(&self.leases);
        let lease = match given {
            Some(epoch) => leases.grant(directory, epoch, learned.asked),
            None => leases.covering(directory, learned.asked),
        };
        Learned { lease, ..learned }
    }

    /// The answer to a question about an inode has arrived: covered by the lease on it, where it is a directory, else by
    /// the one on the directory that holds its name.
    pub(super) fn with_lease_of(&self, learned: Learned, inode: Inode, attributes: &Attributes) -> Learned {
        let directory = if attributes.kind == crate::proto::FileKind::Directory {
            Some(attributes.node)
        } else {
            let inodes = lock(&self.inodes);
            let parent = inodes.newest_name(inode).map(|(parent, _)| parent);
            parent.and_then(|parent| inodes.get(parent)).map(|record| record.node())
        };
        match directory {
            Some(directory) => self.with_lease(learned, directory, None),
            None => learned,
        }
    }

    fn apply(&self, event: ClientEvent) {
        let _telling = self.telling.write().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match event {
            ClientEvent::Started(epoch) => lock(&self.leases).begin(epoch, now),
            ClientEvent::Ended => lock(&self.leases).end(),
            ClientEvent::Event(told) => {
                lock(&self.leases).heard(now);
                match told {
                    HostEvent::Alive => {}
                    HostEvent::Revoked { directory } => lock(&self.leases).revoke(directory, now),
                    HostEvent::Changed(change) => self.apply_change(change, now),
                }
            }
        }
    }

    fn apply_change(&self, change: DirectoryChange, now: Instant) {
        let lease = lock(&self.leases).changed(change.directory, now);
        let learned = Learned { lease, ..Learned::by_asking(now) };
        if let Some(attributes) = change.attributes {
            self.learn_told(attributes, learned);
        }
        let parent = lock(&self.inodes).inode_of(change.directory);
        for (name, found) in change.entries {
            let name = Name::from(name);
            lock(&self.absences).remove(change.directory, &name);
            lock(&self.lookups).forget_absent(change.directory, &name);
            self.renew_listed(change.directory, &name, found, learned);
            if let Some(parent) = parent {
                self.renew_entry(parent, &name, found, lease);
            }
            if let Some(attributes) = found {
                self.learn_told(attributes, learned);
            }
        }
    }

    /// Brings a kept listing up to date; one that has lost or gained a name goes.
    fn renew_listed(&self, directory: NodeId, name: &Name, found: Option<Attributes>, learned: Learned) {
        let Some(listing) = lock(&self.recent).get(directory) else { return };
        let is_same = {
            let mut snapshot = lock(&listing.snapshot);
            match (snapshot.find(name), found) {
                (Search::At(position), Some(found)) => {
                    let known = snapshot.get(position).map(|listed| listed.attributes.node);
                    snapshot.renew(position, found, learned);
                    known == Some(found.node)
                }
                (Search::Absent, None) => true,
                _ => false,
            }
        };
        if !is_same {
            lock(&self.recent).remove(directory);
        }
    }

    /// A name that the kernel knows leads elsewhere by now, or nowhere: the kernel is told to forget it. One that it does
    /// not know it may hold to be absent; that ends by itself within the time of an absence.
    fn renew_entry(&self, parent: Inode, name: &Name, found: Option<Attributes>, lease: Option<LeaseId>) {
        let is_other = {
            let mut inodes = lock(&self.inodes);
            let Some(child) = inodes.child(parent, name) else { return };
            let known = inodes.get(child).map(|record| record.node());
            let is_other = known != found.map(|found| found.node);
            if is_other {
                inodes.remove_name(parent, name);
            } else {
                inodes.set_lease_of_name(parent, name, lease);
            }
            is_other
        };
        if is_other {
            tracing::debug!(parent = parent.0, ?lease, "a name leads elsewhere on the host");
            self.events.send(FsEvent::InvalidateEntry { parent, name: Arc::clone(name) });
        }
    }

    /// Takes note of attributes that the host told; the kernel asks for those that differ from what it was told last.
    fn learn_told(&self, attributes: Attributes, learned: Learned) {
        let changed = lock(&self.inodes).learn_told(attributes, learned);
        if let Some(inode) = changed {
            self.events.send_in(EventLane::Attributes, FsEvent::InvalidateAttributes { inode });
        }
    }

    /// Number of leases held.
    pub(super) fn leases_held(&self) -> usize {
        lock(&self.leases).len()
    }
}

/// Applies events while there is a file system to apply them to.
async fn apply_events(fs: Weak<FileSystem>, mut events: mpsc::Receiver<ClientEvent>) {
    while let Some(event) = events.recv().await {
        let Some(fs) = fs.upgrade() else { return };
        fs.apply(event);
    }
    if let Some(fs) = fs.upgrade() {
        fs.apply(ClientEvent::Ended);
    }
}
