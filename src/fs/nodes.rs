//! Names and attributes: `lookup`, `forget`, `getattr`, `readlink`, `access`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attributes::Learned;
use super::directory::Listing;
use super::inodes::{Inode, Name, Target, generation};
use super::recent::Known;
use super::snapshot::{Listed, Search};
use super::{FileSystem, FsError, lock};
use crate::proto::{Attributes, FileKind, LOOKUP_NAME_BYTES_MAX, NAME_BYTES_MAX, NodeId, Trust};

/// What a name names, and for how long the kernel may believe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The kernel's number of it.
    pub inode: Inode,
    /// The number that users see (`st_ino`): the same, but where the kernel's is still an earlier file's.
    pub number: u64,
    /// What tells it from other files that have had the kernel's number.
    pub generation: u32,
    /// As users see them.
    pub attributes: Attributes,
    /// How long the attributes hold.
    pub attributes_ttl: Duration,
    /// How long the name holds.
    pub entry_ttl: Duration,
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// There is such a name; the kernel now refers to the inode once more.
    Found(Entry),
    /// There is none.
    Absent {
        /// How long that holds.
        ttl: Duration,
    },
}

/// Which copies will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Those whose time is not over.
    Fresh,
    /// All.
    Any,
}

impl FileSystem {
    /// What `name` in directory `parent` names.
    pub async fn lookup(self: &Arc<Self>, parent: Inode, name: &[u8]) -> Result<Lookup, FsError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong(name.len()));
        }
        let name = Name::from(name);
        let is_steady = !self.is_unsteady(parent, &name);
        if is_steady && let Some(known) = self.lookup_copy(parent, &name, Age::Fresh) {
            return Ok(known);
        }
        let answer = async {
            if is_steady && let Some(known) = self.lookup_with_next(parent, &name).await? {
                return Ok(known);
            }
            self.watch_walk(parent);
            self.lookup_on_host(parent, &name).await
        };
        self.or_copy(answer, || self.lookup_copy(parent, &name, Age::Any)).await
    }

    /// The kernel gives back `count` references to an inode.
    pub fn forget(&self, inode: Inode, count: u64) {
        lock(&self.inodes).forget(inode, count);
    }

    /// The number of a file that users see (`st_ino`).
    pub fn shown_number(&self, node: NodeId) -> u64 {
        lock(&self.inodes).shown_number(node)
    }

    /// The attributes of an inode as users see them, and how long they hold.
    pub async fn getattr(&self, inode: Inode) -> Result<(Attributes, Duration), FsError> {
        self.attributes_of(inode, Age::Fresh).await?;
        self.to_kernel(inode)
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, inode: Inode) -> Result<Arc<[u8]>, FsError> {
        let (attributes, _) = self.attributes_of(inode, Age::Fresh).await?;
        let known = || lock(&self.inodes).get(inode).and_then(|record| record.more().target.clone());
        // Where numbers prove nothing, the same ones may be another link's.
        let is_proof = |target: &Target| attributes.trust == Trust::Full && target.ctime == attributes.ctime;
        if let Some(target) = known().filter(is_proof) {
            return Ok(target.bytes);
        }
        let answer = self.ask(inode, |client, node| async move { client.read_link(node).await });
        let bytes: Arc<[u8]> =
            self.or_copy(async { Ok(answer.await?.into()) }, || known().map(|t| t.bytes)).await?;
        if let Some(record) = lock(&self.inodes).get_mut(inode) {
            record.more_mut().target = Some(Target { bytes: Arc::clone(&bytes), ctime: attributes.ctime });
        }
        Ok(bytes)
    }

    /// Whether the host may access the inode so (`R_OK` 4, `W_OK` 2, `X_OK` 1). The kernel asks only where it does not
    /// check permissions itself.
    pub async fn access(&self, inode: Inode, mask: u8) -> Result<(), FsError> {
        const WRITE: u8 = 2;
        if mask & WRITE != 0 && self.config.read_only {
            return Err(FsError::ReadOnly);
        }
        self.ask(inode, |client, node| async move { client.access(node, mask).await }).await
    }

    /// The host's attributes, from a copy that is fresh, else from the host; `Age::Any` takes what is there.
    pub(super) async fn attributes_of(
        &self,
        inode: Inode,
        age: Age,
    ) -> Result<(Attributes, Learned), FsError> {
        if let Some(known) = self.attributes_copy(inode, age)? {
            return Ok(known);
        }
        let answer = self.attributes_from_host(inode);
        self.or_copy(answer, || self.attributes_copy(inode, Age::Any).ok().flatten()).await
    }

    /// What is known of an inode's attributes.
    pub(super) fn attributes_copy(
        &self,
        inode: Inode,
        age: Age,
    ) -> Result<Option<(Attributes, Learned)>, FsError> {
        let inodes = lock(&self.inodes);
        let record = inodes.get(inode).ok_or(FsError::UnknownInode(inode.0))?;
        let (attributes, learned) = (record.attributes(), record.learned());
        let left = self.attributes_left(&attributes, learned, Instant::now());
        Ok((age == Age::Any || !left.is_zero()).then_some((attributes, learned)))
    }

    /// The attributes as the host has them now.
    pub(super) async fn attributes_from_host(&self, inode: Inode) -> Result<(Attributes, Learned), FsError> {
        let learned = Learned::by_asking(Instant::now());
        let attributes = self.ask(inode, |client, node| async move { client.attributes(node).await }).await?;
        {
            let _steady = self.steady();
            self.learn(attributes, self.with_lease_of(learned, inode, &attributes));
        }
        // If an answer to a later question was here first, it is the one to go by.
        Ok(self.attributes_copy(inode, Age::Any)?.unwrap_or((attributes, learned)))
    }

    /// Takes note of attributes; the inode need not be known.
    pub(super) fn learn(&self, attributes: Attributes, learned: Learned) {
        if let Some(inode) = lock(&self.inodes).learn(attributes, learned) {
            tracing::debug!(inode = inode.0, "the file has changed on the host");
        }
    }

    /// The same as [`Self::enter`], if its owner can be shown.
    pub(super) fn enter_shown(
        &self,
        parent: Inode,
        name: &Name,
        attributes: Attributes,
        learned: Learned,
    ) -> Result<Entry, FsError> {
        self.config.ownership.present(attributes)?;
        Ok(self.enter(parent, name, attributes, learned))
    }

    /// Takes note of an entry that the kernel is about to be told of. One whose owner cannot be shown holds for no time, so that the
    /// kernel asks before it lets anybody have it.
    pub(super) fn enter(
        &self,
        parent: Inode,
        name: &Name,
        attributes: Attributes,
        learned: Learned,
    ) -> Entry {
        let mut inodes = lock(&self.inodes);
        // A directory's own attributes are covered by the lease on it, its name by the one on its parent.
        let own = match attributes.kind {
            FileKind::Directory => {
                let known = inodes.learned_of(attributes.node).filter(|known| known.asked == learned.asked);
                let covering = || lock(&self.leases).covering(attributes.node, learned.asked);
                known.map_or_else(covering, |known| known.lease)
            }
            _ => learned.lease,
        };
        let inode = inodes.remember(parent, name, attributes, Learned { lease: own, ..learned });
        inodes.set_lease_of_name(parent, name, learned.lease);
        let (mut attributes, mut attributes_ttl) =
            self.told(&mut inodes, inode).expect("it was just remembered");
        if attributes.links == 0 {
            // It was replaced since. The kernel is told a name of it, so it has one for the kernel.
            (attributes.links, attributes_ttl) = (1, Duration::ZERO);
        }
        let now = Instant::now();
        let is_unsteady = inodes
            .get(parent)
            .is_some_and(|directory| lock(&self.lookups).is_unsteady(directory.node(), name, now));
        let entry_ttl = if is_unsteady || inodes.is_before_own_change(parent, learned.asked) {
            Duration::ZERO
        } else {
            self.entry_left(learned, now)
        };
        inodes.name_told(inode, parent, name, (!entry_ttl.is_zero()).then(|| now + entry_ttl));
        let (attributes, is_shown) = self.config.ownership.present_listed(attributes);
        let for_shown = |ttl| if is_shown { ttl } else { Duration::ZERO };
        Entry {
            inode,
            number: inodes.shown_number(attributes.node),
            generation: generation(attributes.node),
            attributes,
            attributes_ttl: for_shown(attributes_ttl),
            entry_ttl: for_shown(entry_ttl),
        }
    }

    /// What is asked for besides a name can answer for others; not where names do not hold.
    fn may_ask_besides(&self) -> bool {
        !self.config.freshness.entries.is_zero() && self.is_connected()
    }

    /// A name of a listing that has aged, asked for with those behind it where a program goes through them in order.
    async fn lookup_with_next(
        self: &Arc<Self>,
        parent: Inode,
        name: &Name,
    ) -> Result<Option<Lookup>, FsError> {
        let (directory, _) = self.node_of(parent)?;
        let listing = lock(&self.recent).get(directory).filter(|_| self.may_ask_besides());
        let Some(listing) = listing else { return Ok(None) };
        let Search::At(position) = lock(&listing.snapshot).find(name) else { return Ok(None) };
        let count = lock(&self.strides).on_miss(directory, position);
        if count > 1 {
            self.renew(parent, &listing, position, count).await?;
        }
        Ok(self.lookup_copy(parent, name, Age::Fresh))
    }

    /// Looks at some entries of a listing again. What cannot be looked at stays as old as it is.
    async fn renew(
        &self,
        parent: Inode,
        listing: &Listing,
        from: usize,
        count: usize,
    ) -> Result<(), FsError> {
        let mut bytes_left = LOOKUP_NAME_BYTES_MAX;
        let names: Vec<Vec<u8>> = {
            let snapshot = lock(&listing.snapshot);
            let names = (from..from + count).map_while(|at| Some(snapshot.get(at)?.name.to_vec()));
            let fits = |name: &Vec<u8>| {
                let left = bytes_left.checked_sub(name.len());
                bytes_left = left.unwrap_or(0);
                left.is_some()
            };
            names.take_while(fits).collect()
        };
        let learned = Learned::by_asking(Instant::now());
        let call = |client: Arc<dyn crate::client::Client>, node| {
            let names = names.clone();
            async move { client.lookup_many(node, names).await }
        };
        let found = self.ask(parent, call).await?;
        let _steady = self.steady();
        let learned = self.with_lease(learned, self.node_of(parent)?.0, None);
        let mut snapshot = lock(&listing.snapshot);
        for (position, attributes) in (from..).zip(found) {
            if let Some(attributes) = attributes {
                snapshot.renew(position, attributes, learned);
            }
        }
        Ok(())
    }

    /// One more name of a directory is asked for alone.
    fn watch_walk(self: &Arc<Self>, parent: Inode) {
        let Ok((directory, _)) = self.node_of(parent) else { return };
        if self.may_ask_besides() && lock(&self.walks).on_miss(directory, Instant::now()) {
            self.list_ahead(parent, directory);
        }
    }

    async fn lookup_on_host(&self, parent: Inode, name: &Name) -> Result<Lookup, FsError> {
        let learned = Learned::by_asking(Instant::now());
        let call = |client: Arc<dyn crate::client::Client>, node| {
            let name = Arc::clone(name);
            async move { client.lookup_leased(node, &name).await }
        };
        match self.ask(parent, call).await {
            Ok((attributes, lease)) => {
                let _steady = self.steady();
                let learned = self.with_lease(learned, self.node_of(parent)?.0, lease);
                self.enter_shown(parent, name, attributes, learned).map(Lookup::Found)
            }
            Err(error) if error.is_not_found() => {
                let _steady = self.steady();
                let directory = self.node_of(parent)?.0;
                let learned = self.with_lease(learned, directory, None);
                lock(&self.absences).insert(directory, name, learned);
                let mut inodes = lock(&self.inodes);
                if inodes.is_before_own_change(parent, learned.asked) {
                    return Ok(Lookup::Absent { ttl: Duration::ZERO });
                }
                inodes.remove_name(parent, name);
                if let Some(directory) = inodes.get(parent) {
                    lock(&self.lookups).note_absent(directory.node(), name, learned);
                }
                Ok(Lookup::Absent { ttl: self.absence_left(learned, Instant::now()) })
            }
            Err(error) => Err(error),
        }
    }

    /// What is known of a name without asking: from a listing of its directory, or, if age is no matter, from what the
    /// kernel refers to.
    fn lookup_copy(&self, parent: Inode, name: &Name, age: Age) -> Option<Lookup> {
        let _steady = self.steady();
        let now = Instant::now();
        if (age == Age::Any || self.is_leased(parent, name, now))
            && let Some(known) = self.lookup_among_inodes(parent, name)
        {
            return Some(known);
        }
        let (directory, _) = self.node_of(parent).ok()?;
        let listed = lock(&self.recent).find(directory, name);
        let known = match listed.or_else(|| self.known_absent(parent, name).map(Known::Absent)) {
            Some(Known::Absent(learned))
                if age == Age::Fresh && self.absence_left(learned, now).is_zero() =>
            {
                return self.leased_absence(parent, directory, name, now);
            }
            Some(known) => known,
            None => return self.leased_absence(parent, directory, name, now),
        };
        let answer = match known {
            Known::Entry(listed) => {
                let is_fresh = !self.entry_left(listed.learned, now).is_zero()
                    && self.has_fresh_attributes(&listed, now);
                let enter = || self.enter_shown(parent, name, listed.attributes, listed.learned).ok();
                (age == Age::Any || is_fresh).then(enter).flatten().map(Lookup::Found)
            }
            Known::Absent(learned) => {
                let ttl = self.absence_left(learned, now);
                (age == Age::Any || !ttl.is_zero()).then_some(Lookup::Absent { ttl })
            }
        };
        if answer.is_some() {
            lock(&self.walks).on_answer(directory);
        }
        answer
    }

    /// Whether the attributes of a listed entry hold: those of the listing, or newer ones of the inode.
    fn has_fresh_attributes(&self, listed: &Listed, now: Instant) -> bool {
        if !self.attributes_left(&listed.attributes, listed.learned, now).is_zero() {
            return true;
        }
        let inodes = lock(&self.inodes);
        let record = inodes.inode_of(listed.attributes.node).and_then(|inode| inodes.get(inode));
        record.is_some_and(|record| {
            !self.attributes_left(&record.attributes(), record.learned(), now).is_zero()
        })
    }

    /// The absence of a name that no listing knows of, while a lease covers it.
    fn leased_absence(&self, parent: Inode, directory: NodeId, name: &Name, now: Instant) -> Option<Lookup> {
        let learned = lock(&self.absences).get(directory, name)?;
        if lock(&self.inodes).is_before_own_change(parent, learned.asked) {
            return None;
        }
        let is_covered = lock(&self.leases).covers_entry(learned.lease, now);
        is_covered.then_some(Lookup::Absent { ttl: self.config.freshness.absence })
    }

    /// Whether leases cover a name that the kernel refers to, and the attributes that it leads to.
    fn is_leased(&self, parent: Inode, name: &Name, now: Instant) -> bool {
        let inodes = lock(&self.inodes);
        let Some(record) = inodes.child(parent, name).and_then(|child| inodes.get(child)) else {
            return false;
        };
        let leases = lock(&self.leases);
        leases.covers_entry(inodes.lease_of_name(parent, name), now)
            && leases.covers_attributes(record.learned().lease, &record.attributes(), now)
    }

    /// When the host said that there is no such name, if nothing was changed here since.
    fn known_absent(&self, parent: Inode, name: &Name) -> Option<Learned> {
        let inodes = lock(&self.inodes);
        let learned = lock(&self.lookups).absent(inodes.get(parent)?.node(), name)?;
        (!inodes.is_before_own_change(parent, learned.asked)).then_some(learned)
    }

    /// Whether a name was found in other hands lately.
    fn is_unsteady(&self, parent: Inode, name: &Name) -> bool {
        let Ok((directory, _)) = self.node_of(parent) else { return false };
        lock(&self.lookups).is_unsteady(directory, name, Instant::now())
    }

    fn lookup_among_inodes(&self, parent: Inode, name: &Name) -> Option<Lookup> {
        let (attributes, learned) = {
            let inodes = lock(&self.inodes);
            let record = inodes.get(inodes.child(parent, name)?)?;
            let lease = inodes.lease_of_name(parent, name);
            (record.attributes(), Learned { lease, ..record.learned() })
        };
        self.enter_shown(parent, name, attributes, learned).ok().map(Lookup::Found)
    }
}
