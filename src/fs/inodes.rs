//! The inodes that the kernel knows: their numbers, names, attributes, and how often they were told to it.
//!
//! Pure: no I/O, no clock.
//!
//! An inode is one file of the host under all its names. It is kept while the kernel refers to it (lookups not yet
//! forgotten) or a handle is open on it, and nothing else makes the table grow.
//!
//! # Numbers
//!
//! FUSE's messages have two numbers, one for the kernel and one for users (`st_ino`); the FUSE library used here sets
//! both to the same. So an inode is numbered as on its host where it lies on the root's device. Elsewhere numbers may
//! meet, and programs that see one `st_ino` twice take two files for hard links of each other and copy one of them;
//! there the number is a hash with the top bit set, which stays the same from mount to mount.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::attributes::Learned;
use super::leases::LeaseId;
use super::unsynced::Writes;
use crate::proto::{Attributes, NodeId, OpenAccess, OpenId, Timestamp, Version};

/// Most names of one inode that are kept. More are needed only to find a file again when the newest eight are gone.
const NAMES_MAX: usize = 8;

/// Longest way from an inode up to the root, in names: the longest path that Linux takes, of one-letter names.
pub(super) const DEPTH_MAX: usize = 2048;

/// The bit that marks numbers that are not the host's.
const MADE_UP: u64 = 1 << 63;

/// Of a file that nobody has open.
const NO_ACCESS: OpenAccess = OpenAccess { reads: false, writes: false, appends: false };

/// The kernel's number of a file; also its `st_ino`, but for the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(pub u64);

impl Inode {
    /// The root of the mount.
    pub const ROOT: Self = Self(1);
}

/// A name in a directory.
pub type Name = Arc<[u8]>;

/// A symbolic link's target as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub bytes: Arc<[u8]>,
    /// Change time of the link then: a number that was given to another link has another.
    pub ctime: Timestamp,
}

/// All that is known of one inode.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub attributes: Attributes,
    pub learned: Learned,
    /// Handles open on it here.
    pub opens: u32,
    /// For what they are open, all together.
    pub access: OpenAccess,
    /// When the last change of this mount's own, of a name in this directory, was answered.
    pub names_changed: Option<Instant>,
    /// What was written to it and may not be on the host's disk.
    pub writes: Writes,
    /// Opens that the host knows of this mount.
    pub host_opens: Vec<OpenId>,
    /// Whether the attributes that the kernel was told last, if it still has them, are those of this record.
    pub kernel_is_current: bool,
    /// To which version the kernel's pages belong, where they can be told by it.
    pub pages: Option<Version>,
    /// Handle of the last open. Where the version proves nothing, what was read before is not used any more.
    pub epoch: u64,
    /// How often it had to be looked up again because the host did not know it.
    pub recoveries: u64,
    pub target: Option<Target>,
    /// Until when the kernel may take a name for this file without looking it up; `None`: it was told to look each time.
    pub believed_until: Option<Instant>,
    /// The directory and name that the kernel was told last, unless this mount took that name away itself.
    told: Option<(NodeId, Name)>,
    /// Set while its attributes are being asked for behind a reader's back.
    pub refreshing: Arc<AtomicBool>,
    lookups: u64,
    /// With the directory they are in, newest last. Directories by node: a number may by now be another directory's.
    names: Vec<(NodeId, Name)>,
}

impl Record {
    pub(super) const fn node(&self) -> NodeId {
        self.attributes.node
    }
}

/// An inode by one of its names, and the lease that covered the name when it was learned.
#[derive(Debug, Clone, Copy)]
struct Named {
    inode: Inode,
    lease: Option<LeaseId>,
}

/// One step of the way down to an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub parent: NodeId,
    pub name: Name,
    pub inode: Inode,
    pub node: NodeId,
}

/// The table.
#[derive(Debug)]
pub(super) struct InodeTable {
    records: HashMap<Inode, Record>,
    by_node: HashMap<NodeId, Inode>,
    by_name: HashMap<(NodeId, Name), Named>,
    root_device: u64,
}

impl InodeTable {
    /// A table that knows the root only, which it never forgets.
    pub(super) fn new(root: Attributes, now: Instant) -> Self {
        let mut table = Self {
            records: HashMap::new(),
            by_node: HashMap::from([(root.node, Inode::ROOT)]),
            by_name: HashMap::new(),
            root_device: root.node.device,
        };
        table.records.insert(Inode::ROOT, new_record(root, Learned::by_asking(now)));
        table
    }

    /// Takes note that `name` in `parent` is this file, and that the kernel will be told so once.
    pub(super) fn remember(
        &mut self,
        parent: Inode,
        name: &Name,
        attributes: Attributes,
        learned: Learned,
    ) -> Inode {
        let inode = match self.by_node.get(&attributes.node).copied() {
            Some(inode) if self.records[&inode].attributes.kind == attributes.kind => {
                self.learn(attributes, learned);
                inode
            }
            // A file system without times of birth has given the number to a file of another kind.
            Some(_) | None => self.insert(attributes, learned),
        };
        if inode != Inode::ROOT {
            self.set_name(parent, name, inode);
            self.record_of(inode).lookups += 1;
        }
        inode
    }

    /// Takes note of newer attributes of a file that is known. Returns it if its content has changed since.
    pub(super) fn learn(&mut self, attributes: Attributes, learned: Learned) -> Option<Inode> {
        let inode = *self.by_node.get(&attributes.node)?;
        let record = self.records.get_mut(&inode)?;
        if learned.asked < record.learned.asked || attributes.kind != record.attributes.kind {
            return None;
        }
        let changed = record.attributes.version() != attributes.version();
        record.kernel_is_current &= looks_like(&record.attributes, &attributes);
        record.attributes = attributes;
        record.learned = learned;
        changed.then_some(inode)
    }

    /// The kernel gives `count` lookups back.
    pub(super) fn forget(&mut self, inode: Inode, count: u64) {
        if let Some(record) = self.records.get_mut(&inode) {
            record.lookups = record.lookups.saturating_sub(count);
            self.remove_if_unused(inode);
        }
    }

    /// Takes note of what a change of this mount's own has made of a file that is known. The change was asked for at
    /// `begun` and answered at `completed`; whatever was asked before that says nothing any more.
    pub(super) fn learn_own(&mut self, attributes: Attributes, begun: Instant, completed: Instant) {
        let Some(record) = self.by_node.get(&attributes.node).and_then(|inode| self.records.get_mut(inode))
        else {
            return;
        };
        let age = |attributes: &Attributes| (attributes.ctime, attributes.observed);
        if attributes.kind == record.attributes.kind && age(&attributes) >= age(&record.attributes) {
            // What a change concerns the kernel drops by itself; the rest may have been changed by somebody else.
            let Attributes { size, blocks, mtime, ctime, .. } = attributes;
            let touched = Attributes { size, blocks, mtime, ctime, ..record.attributes };
            record.kernel_is_current &= looks_like(&touched, &attributes);
            record.attributes = attributes;
            record.learned = Learned { seen: begun, ..Learned::by_asking(completed) };
        } else {
            // Two changes at once, of which the earlier is heard of later: the host is to be asked.
            record.learned = Learned::outdated(completed);
        }
    }

    /// Takes note of attributes that the host told unasked. Returns the inode if users see a difference. Attributes from
    /// before the state that is known are those of a change that was overtaken; another event tells what came after.
    pub(super) fn learn_told(&mut self, attributes: Attributes, learned: Learned) -> Option<Inode> {
        let inode = *self.by_node.get(&attributes.node)?;
        let record = self.records.get_mut(&inode)?;
        let age = |attributes: &Attributes| (attributes.ctime, attributes.observed);
        if attributes.kind != record.attributes.kind
            || learned.asked < record.learned.asked
            || age(&attributes) < age(&record.attributes)
        {
            // The clock of the host may have been set back, too: what is known is no longer taken on trust.
            record.learned.lease = None;
            return None;
        }
        let differs = !looks_like(&record.attributes, &attributes);
        record.kernel_is_current &= !differs;
        record.attributes = attributes;
        record.learned = learned;
        differs.then_some(inode)
    }

    /// The kernel is told a name of the file, which holds until then.
    pub(super) fn name_told(&mut self, inode: Inode, parent: Inode, name: &Name, until: Option<Instant>) {
        let parent = self.records.get(&parent).map(Record::node);
        if let Some(record) = self.records.get_mut(&inode) {
            record.believed_until = until;
            record.told = parent.map(|parent| (parent, Name::clone(name)));
        }
    }

    /// This mount has taken a name of the file away, and the kernel knows it. The kernel may still believe another name.
    pub(super) fn name_taken(&mut self, inode: Inode, parent: Inode, name: &Name) {
        let Some(parent) = self.records.get(&parent).map(Record::node) else { return };
        let Some(record) = self.records.get_mut(&inode) else { return };
        if record.told.as_ref().is_some_and(|told| told.0 == parent && told.1 == *name) {
            let is_other = |known: &&(NodeId, Name)| known.0 != parent || known.1 != *name;
            record.told = record.names.iter().rev().find(is_other).cloned();
            if record.told.is_none() {
                record.believed_until = None;
            }
        }
    }

    /// The directory and name by which a program has reached a file: the newest, or what the kernel was told last.
    pub(super) fn reached_by(&self, inode: Inode) -> Option<(Inode, Name)> {
        let told = || {
            let (parent, name) = self.records.get(&inode)?.told.as_ref()?;
            Some((*self.by_node.get(parent)?, Name::clone(name)))
        };
        self.newest_name(inode).or_else(told)
    }

    /// Whether whoever came with this inode at `now` must have looked its name up in the same walk, or came by no name.
    /// A walk under way is not older than `walk`.
    pub(super) fn was_just_looked_up(&self, inode: Inode, now: Instant, walk: Duration) -> bool {
        let believed_until = self.records.get(&inode).and_then(|record| record.believed_until);
        believed_until.is_none_or(|until| until + walk < now)
    }

    /// What is known of an inode's attributes holds no longer.
    pub(super) fn outdate(&mut self, inode: Inode, now: Instant) {
        if let Some(record) = self.records.get_mut(&inode) {
            record.learned = Learned::outdated(now);
        }
    }

    /// A name in this directory was changed, by a change that was answered at `completed`.
    pub(super) fn names_changed(&mut self, directory: Inode, completed: Instant) {
        if let Some(record) = self.records.get_mut(&directory) {
            record.names_changed = record.names_changed.max(Some(completed));
        }
    }

    /// Whether what was asked at `asked` about a name in this directory was asked before the last change here.
    pub(super) fn is_before_own_change(&self, directory: Inode, asked: Instant) -> bool {
        let changed = self.records.get(&directory).and_then(|record| record.names_changed);
        changed.is_some_and(|changed| asked < changed)
    }

    /// `name` in `parent` names the inode from now on, and that was not told to the kernel by a lookup.
    pub(super) fn rename(&mut self, inode: Inode, parent: Inode, name: &Name) {
        if self.records.contains_key(&inode) {
            self.set_name(parent, name, inode);
        }
    }

    /// A handle is opened for `access`; `on_host` if the host knows it too.
    pub(super) fn opened(&mut self, inode: Inode, access: OpenAccess, on_host: Option<OpenId>) {
        if let Some(record) = self.records.get_mut(&inode) {
            record.access = if record.opens == 0 { access } else { record.access.and(access) };
            record.opens += 1;
            record.host_opens.extend(on_host);
        }
    }

    /// A handle is closed. Returns what the host should be told to take back, if anything: which of several opens does not matter.
    pub(super) fn closed(&mut self, inode: Inode) -> Option<(NodeId, OpenId)> {
        let record = self.records.get_mut(&inode)?;
        record.opens = record.opens.saturating_sub(1);
        let is_surplus = record.host_opens.len() > record.opens as usize;
        let surplus = if is_surplus { record.host_opens.pop() } else { None };
        let node = record.node();
        self.remove_if_unused(inode);
        surplus.map(|open| (node, open))
    }

    /// The host knows the inode again, with one open if it was `opened`.
    pub(super) fn recovered(&mut self, inode: Inode, opened: Option<OpenId>) {
        if let Some(record) = self.records.get_mut(&inode) {
            record.recoveries += 1;
            record.host_opens = Vec::from_iter(opened);
        }
    }

    pub(super) fn get(&self, inode: Inode) -> Option<&Record> {
        self.records.get(&inode)
    }

    pub(super) fn get_mut(&mut self, inode: Inode) -> Option<&mut Record> {
        self.records.get_mut(&inode)
    }

    pub(super) fn numbered(&self) -> impl Iterator<Item = (Inode, &Record)> {
        self.records.iter().map(|(inode, record)| (*inode, record))
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// How the attributes of a node that is known were learned.
    pub(super) fn learned_of(&self, node: NodeId) -> Option<Learned> {
        self.by_node.get(&node).and_then(|inode| self.records.get(inode)).map(|record| record.learned)
    }

    /// The number of a node that is known.
    pub(super) fn inode_of(&self, node: NodeId) -> Option<Inode> {
        self.by_node.get(&node).copied()
    }

    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }

    /// The inode that `name` in `parent` was last known to name.
    pub(super) fn child(&self, parent: Inode, name: &Name) -> Option<Inode> {
        let parent = self.records.get(&parent)?.node();
        self.by_name.get(&(parent, Arc::clone(name))).map(|named| named.inode)
    }

    /// The lease that covered a name when it was learned.
    pub(super) fn lease_of_name(&self, parent: Inode, name: &Name) -> Option<LeaseId> {
        let parent = self.records.get(&parent)?.node();
        self.by_name.get(&(parent, Arc::clone(name)))?.lease
    }

    /// A name that was just learned is covered by a lease, or not.
    pub(super) fn set_lease_of_name(&mut self, parent: Inode, name: &Name, lease: Option<LeaseId>) {
        let Some(parent) = self.records.get(&parent).map(Record::node) else { return };
        if let Some(named) = self.by_name.get_mut(&(parent, Arc::clone(name))) {
            named.lease = lease;
        }
    }

    /// The number under which a file is or would be known.
    pub(super) fn number_of(&self, node: NodeId) -> Inode {
        self.by_node.get(&node).copied().unwrap_or_else(|| self.preferred(node))
    }

    /// `name` in `parent` names nothing.
    pub(super) fn remove_name(&mut self, parent: Inode, name: &Name) {
        if let Some(parent) = self.records.get(&parent).map(Record::node) {
            self.remove_key(&(parent, Arc::clone(name)));
        }
    }

    /// The directory and name under which the inode was last seen.
    pub(super) fn newest_name(&self, inode: Inode) -> Option<(Inode, Name)> {
        let (parent, name) = self.records.get(&inode)?.names.last()?;
        Some((*self.by_node.get(parent)?, Arc::clone(name)))
    }

    /// The newest path of an inode below the root, for people.
    pub(super) fn path(&self, inode: Inode) -> Vec<u8> {
        let Some(way) = self.way_up(inode) else { return format!("(inode {})", inode.0).into_bytes() };
        let names: Vec<&[u8]> = way.iter().rev().map(|step| &*step.name).collect();
        names.join(&b'/')
    }

    /// The way from the inode up to the root, the inode's own step first; empty for the root. `None` if it is not known.
    pub(super) fn way_up(&self, inode: Inode) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let mut at = inode;
        while at != Inode::ROOT {
            let record = self.records.get(&at)?;
            let (parent, name) = record.names.last()?;
            steps.push(Step { parent: *parent, name: Arc::clone(name), inode: at, node: record.node() });
            // A directory that was moved below its own child leaves a loop behind until it is looked up anew.
            if steps.len() > DEPTH_MAX {
                return None;
            }
            at = *self.by_node.get(parent)?;
        }
        Some(steps)
    }

    /// How many inodes are known besides the root.
    pub(super) fn len(&self) -> usize {
        self.records.len() - 1
    }

    fn insert(&mut self, attributes: Attributes, learned: Learned) -> Inode {
        let mut number = self.preferred(attributes.node);
        while self.records.contains_key(&number) {
            number = Inode(number.0.wrapping_add(1) | MADE_UP);
        }
        self.records.insert(number, new_record(attributes, learned));
        self.by_node.insert(attributes.node, number);
        number
    }

    const fn preferred(&self, node: NodeId) -> Inode {
        let is_free = node.inode > Inode::ROOT.0 && node.inode < MADE_UP;
        if is_free && node.device == self.root_device {
            Inode(node.inode)
        } else {
            Inode(mix(node) | MADE_UP)
        }
    }

    fn set_name(&mut self, parent: Inode, name: &Name, inode: Inode) {
        let Some(parent) = self.records.get(&parent).map(Record::node) else { return };
        let key = (parent, Arc::clone(name));
        self.remove_key(&key);
        self.by_name.insert(key.clone(), Named { inode, lease: None });
        let names = &mut self.record_of(inode).names;
        names.push(key);
        if names.len() > NAMES_MAX {
            let oldest = names.remove(0);
            self.by_name.remove(&oldest);
        }
    }

    fn remove_key(&mut self, key: &(NodeId, Name)) {
        let Some(Named { inode, .. }) = self.by_name.remove(key) else { return };
        if let Some(record) = self.records.get_mut(&inode) {
            record.names.retain(|known| known != key);
        }
    }

    fn record_of(&mut self, inode: Inode) -> &mut Record {
        self.records.get_mut(&inode).expect("the caller has just found or inserted it")
    }

    fn remove_if_unused(&mut self, inode: Inode) {
        let Entry::Occupied(entry) = self.records.entry(inode) else { return };
        if inode == Inode::ROOT || entry.get().lookups > 0 || entry.get().opens > 0 {
            return;
        }
        let record = entry.remove();
        if self.by_node.get(&record.node()) == Some(&inode) {
            self.by_node.remove(&record.node());
        }
        for name in &record.names {
            self.by_name.remove(name);
        }
    }
}

fn new_record(attributes: Attributes, learned: Learned) -> Record {
    Record {
        attributes,
        learned,
        opens: 0,
        access: NO_ACCESS,
        names_changed: None,
        writes: Writes::default(),
        host_opens: Vec::new(),
        kernel_is_current: true,
        pages: None,
        epoch: 0,
        recoveries: 0,
        target: None,
        believed_until: None,
        told: None,
        refreshing: Arc::default(),
        lookups: 0,
        names: Vec::new(),
    }
}

/// Whether users see the same of both.
fn looks_like(one: &Attributes, other: &Attributes) -> bool {
    *one == Attributes { observed: one.observed, ..*other }
}

/// Spreads a node's numbers over 64 bits (the finishing steps of Murmur's third hash, one word after the other).
const fn mix(node: NodeId) -> u64 {
    let words = [node.device, node.inode, node.birth_ns as u64];
    let mut hash = 0u64;
    let mut at = 0;
    while at < words.len() {
        hash ^= words[at];
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests;
