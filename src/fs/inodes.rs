//! The inodes that the kernel knows: their numbers, names, attributes, and how often they were told to it.
//!
//! Pure: no I/O, no clock.
//!
//! An inode is one file of the host under all its names. It is kept while the kernel refers to it (lookups not yet
//! forgotten) or a handle is open on it, and nothing else makes the table grow.
//!
//! # Numbers
//!
//! An inode has two numbers: the one by which the kernel names it in requests ([`Inode`]), and the one that users see (`st_ino`,
//! [`InodeTable::shown_number`]). Users see the host's where the file lies on the root's device. Elsewhere numbers may meet, and
//! programs that see one `st_ino` twice take two files for hard links of each other and copy one of them; there it is a hash with
//! the top bit set, which stays the same from mount to mount.
//!
//! The kernel's number is the same wherever it can be. It is another one for the root, whose number is fixed, and while a number is
//! still that of an earlier file, which the kernel has not forgotten. A number goes with a generation, which follows from the node: so
//! a file handle (`open_by_handle_at`) that names the earlier file is not taken for one of the later.
//!
//! # Memory
//!
//! The kernel refers to a million inodes after one `find`, so the table counts bytes. Records lie in [`slots`], which gives memory
//! back as inodes are forgotten; what finds them is numbers of slots alone ([`index`]); attributes are [`packed`], directories of names
//! numbered ([`directories`]), and what few inodes have lies in a box of its own ([`record`]).

mod directories;
mod forgotten;
mod index;
mod naming;
mod packed;
mod record;
mod slots;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attributes::Learned;
use crate::proto::{Attributes, NodeId, OpenAccess, OpenId, Timestamp};
use directories::Directories;
use forgotten::Forgotten;
pub(super) use forgotten::Gone;
use index::Index;
use record::Numbering;
pub(super) use record::{Known, Record};
use slots::Slots;

/// Most names of one inode that are kept. More are needed only to find a file again when the newest eight are gone.
const NAMES_MAX: usize = 8;

/// Longest way from an inode up to the root, in names: the longest path that Linux takes, of one-letter names.
pub(super) const DEPTH_MAX: usize = 2048;

/// Memory that an inode takes that is not in use, with a name of 24 bytes: a million of them take a million times this.
pub(super) const INODE_BYTES: usize = 256;

/// The bit that marks numbers that are not the host's.
const MADE_UP: u64 = 1 << 63;

/// The kernel's number of a file: what FUSE calls a node id.
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
    records: Slots<Record>,
    by_number: Index,
    /// Records whose number is not that of the host, by node.
    by_node: Index,
    /// By the newest name.
    by_name: Index,
    by_older_name: HashMap<(NodeId, Name), u32>,
    directories: Directories,
    forgotten: Forgotten,
    root_device: u64,
    /// To which moments in the records refer.
    base: Instant,
    hasher: RandomState,
}

impl InodeTable {
    /// A table that knows the root only, which it never forgets.
    pub(super) fn new(root: Attributes, now: Instant) -> Self {
        let mut table = Self {
            records: Slots::new(),
            by_number: Index::default(),
            by_node: Index::default(),
            by_name: Index::default(),
            by_older_name: HashMap::new(),
            directories: Directories::default(),
            forgotten: Forgotten::default(),
            root_device: root.node.device,
            base: now,
            hasher: RandomState::new(),
        };
        table.insert_as(Numbering::ROOT, &root, Learned::by_asking(now));
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
        let known = self.slot_of_node(attributes.node);
        let same_kind = known.filter(|slot| self.at(*slot).kind() == attributes.kind);
        let slot = match same_kind {
            Some(slot) => {
                self.learn(attributes, learned);
                slot
            }
            // A file system without times of birth has given the number to a file of another kind.
            None => self.insert(&attributes, learned),
        };
        let inode = self.at(slot).number();
        if inode != Inode::ROOT {
            self.set_name(parent, name, slot);
            self.at_mut(slot).looked_up();
        }
        inode
    }

    /// Takes note of newer attributes of a file that is known. Returns it if its content has changed since.
    pub(super) fn learn(&mut self, attributes: Attributes, learned: Learned) -> Option<Inode> {
        let (slot, base) = (self.slot_of_node(attributes.node)?, self.base);
        let record = self.at_mut(slot);
        if record.is_asked_after(learned.asked, base) || attributes.kind != record.kind() {
            return None;
        }
        let before = record.attributes();
        let changed = before.version() != attributes.version();
        record.kernel_is_current &= looks_like(&before, &attributes);
        record.set(&attributes, learned, base);
        changed.then(|| record.number())
    }

    /// The kernel gives `count` lookups back.
    pub(super) fn forget(&mut self, inode: Inode, count: u64) {
        if let Some(slot) = self.slot_of(inode) {
            self.at_mut(slot).given_back(count);
            self.remove_if_unused(slot);
        }
    }

    /// Takes note of what a change of this mount's own has made of a file that is known. The change was asked for at
    /// `begun` and answered at `completed`; whatever was asked before that says nothing any more.
    pub(super) fn learn_own(&mut self, attributes: Attributes, begun: Instant, completed: Instant) {
        let Some(slot) = self.slot_of_node(attributes.node) else { return };
        let base = self.base;
        let record = self.at_mut(slot);
        let before = record.attributes();
        let age = |attributes: &Attributes| (attributes.ctime, attributes.observed);
        if attributes.kind == before.kind && age(&attributes) >= age(&before) {
            // What a change concerns the kernel drops by itself; the rest may have been changed by somebody else.
            let Attributes { size, blocks, mtime, ctime, .. } = attributes;
            let touched = Attributes { size, blocks, mtime, ctime, ..before };
            record.kernel_is_current &= looks_like(&touched, &attributes);
            record.set(&attributes, Learned { seen: begun, ..Learned::by_asking(completed) }, base);
        } else {
            // Two changes at once, of which the earlier is heard of later: the host is to be asked.
            record.set_learned(Learned::outdated(completed), base);
        }
    }

    /// Takes note of attributes that the host told unasked. Returns the inode if users see a difference. Attributes from
    /// before the state that is known are those of a change that was overtaken; another event tells what came after.
    pub(super) fn learn_told(&mut self, attributes: Attributes, learned: Learned) -> Option<Inode> {
        let (slot, base) = (self.slot_of_node(attributes.node)?, self.base);
        let record = self.at_mut(slot);
        let before = record.attributes();
        let age = |attributes: &Attributes| (attributes.ctime, attributes.observed);
        if attributes.kind != before.kind
            || record.is_asked_after(learned.asked, base)
            || age(&attributes) < age(&before)
        {
            // The clock of the host may have been set back, too: what is known is no longer taken on trust.
            record.drop_lease();
            return None;
        }
        let differs = !looks_like(&before, &attributes);
        record.kernel_is_current &= !differs;
        record.set(&attributes, learned, base);
        differs.then(|| record.number())
    }

    /// Whether whoever came with this inode at `now` must have looked its name up in the same walk, or came by no name.
    /// A walk under way is not older than `walk`.
    pub(super) fn was_just_looked_up(&self, inode: Inode, now: Instant, walk: Duration) -> bool {
        let believed_until = self.get(inode).and_then(|record| record.believed_until(self.base));
        believed_until.is_none_or(|until| until + walk < now)
    }

    /// What is known of an inode's attributes holds no longer.
    pub(super) fn outdate(&mut self, inode: Inode, now: Instant) {
        let base = self.base;
        if let Some(record) = self.get_mut(inode) {
            record.set_learned(Learned::outdated(now), base);
        }
    }

    /// A name in this directory was changed, by a change that was answered at `completed`.
    pub(super) fn names_changed(&mut self, directory: Inode, completed: Instant) {
        if let Some(record) = self.get_mut(directory) {
            let more = record.more_mut();
            more.names_changed = more.names_changed.max(Some(completed));
        }
    }

    /// Whether what was asked at `asked` about a name in this directory was asked before the last change here.
    pub(super) fn is_before_own_change(&self, directory: Inode, asked: Instant) -> bool {
        let changed = self.get(directory).and_then(|record| record.more().names_changed);
        changed.is_some_and(|changed| asked < changed)
    }

    /// A handle is opened for `access`; `on_host` if the host knows it too.
    pub(super) fn opened(&mut self, inode: Inode, access: OpenAccess, on_host: Option<OpenId>) {
        if let Some(record) = self.get_mut(inode) {
            let more = record.more_mut();
            more.access = if more.opens == 0 { access } else { more.access.and(access) };
            more.opens += 1;
            more.host_opens.extend(on_host);
        }
    }

    /// A handle is closed. Returns what the host should be told to take back, if anything: which of several opens does not matter.
    pub(super) fn closed(&mut self, inode: Inode) -> Option<(NodeId, OpenId)> {
        let slot = self.slot_of(inode)?;
        let record = self.at_mut(slot);
        let more = record.more_mut();
        more.opens = more.opens.saturating_sub(1);
        let is_surplus = more.host_opens.len() > more.opens as usize;
        let surplus = if is_surplus { more.host_opens.pop() } else { None };
        record.tidy_up();
        let node = record.node();
        self.remove_if_unused(slot);
        surplus.map(|open| (node, open))
    }

    /// The host knows the inode again, with one open if it was `opened`.
    pub(super) fn recovered(&mut self, inode: Inode, opened: Option<OpenId>) {
        if let Some(record) = self.get_mut(inode) {
            let more = record.more_mut();
            more.recoveries += 1;
            more.host_opens = Vec::from_iter(opened);
        }
    }

    pub(super) fn get(&self, inode: Inode) -> Option<Known<'_>> {
        let record = self.records.get(self.slot_of(inode)?)?;
        Some(Known { record, base: self.base })
    }

    pub(super) fn get_mut(&mut self, inode: Inode) -> Option<&mut Record> {
        self.records.get_mut(self.slot_of(inode)?)
    }

    pub(super) fn numbered(&self) -> impl Iterator<Item = (Inode, &Record)> {
        self.records.iter().map(|record| (record.number(), record))
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// How the attributes of a node that is known were learned.
    pub(super) fn learned_of(&self, node: NodeId) -> Option<Learned> {
        Some(self.at(self.slot_of_node(node)?).learned(self.base))
    }

    /// The number of a node that is known.
    pub(super) fn inode_of(&self, node: NodeId) -> Option<Inode> {
        Some(self.at(self.slot_of_node(node)?).number())
    }

    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.slot_of_node(node).is_some()
    }

    /// The number under which a file is or would be known.
    pub(super) fn number_of(&self, node: NodeId) -> Inode {
        self.inode_of(node).unwrap_or_else(|| self.preferred(node).number(node))
    }

    /// The number of a file that users see.
    pub(super) const fn shown_number(&self, node: NodeId) -> u64 {
        if node.device == self.root_device { node.inode } else { mix(node) | MADE_UP }
    }

    /// Returns the number of known inodes besides the root.
    pub(super) const fn len(&self) -> usize {
        self.records.len() - 1
    }

    /// Memory that the table takes, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let indices = [&self.by_number, &self.by_node, &self.by_name].map(Index::bytes);
        let older = self.by_older_name.capacity() * size_of::<((NodeId, Name), u32)>();
        let behind: usize = self.records.iter().map(Record::bytes).sum();
        let rest = self.directories.bytes() + self.forgotten.bytes();
        self.records.bytes() + indices.iter().sum::<usize>() + older + behind + rest
    }

    fn insert(&mut self, attributes: &Attributes, learned: Learned) -> u32 {
        let node = attributes.node;
        let is_free = |numbering: &Numbering| self.slot_of(numbering.number(node)).is_none();
        let numbering = std::iter::once(self.preferred(node)).chain(Numbering::made_up()).find(is_free);
        self.insert_as(numbering.expect("no node has 65,000 inodes"), attributes, learned)
    }

    /// What is known of an inode that the kernel forgot.
    pub(super) fn gone(&self, inode: Inode) -> Option<Gone> {
        self.forgotten.get(inode).cloned()
    }

    /// Takes note that the kernel refers once more to an inode of which it had a file handle only, under the number that it had.
    /// `None` if the number is another file's by now.
    pub(super) fn readmit(
        &mut self,
        inode: Inode,
        gone: &Gone,
        attributes: Attributes,
        learned: Learned,
    ) -> Option<()> {
        let slot = if let Some(slot) = self.slot_of_node(attributes.node) {
            self.learn(attributes, learned);
            slot
        } else {
            let slot = self.insert(&attributes, learned);
            self.set_name_in(gone.parent, &gone.name, slot);
            slot
        };
        let is_it = self.at(slot).number() == inode && self.at(slot).kind() == attributes.kind;
        if is_it {
            self.at_mut(slot).looked_up();
        } else {
            self.remove_if_unused(slot);
        }
        is_it.then_some(())
    }

    /// The kernel refers once more to an inode that is known.
    pub(super) fn looked_up_again(&mut self, inode: Inode) -> Option<()> {
        let is_root = inode == Inode::ROOT;
        let record = self.get_mut(inode)?;
        if !is_root {
            record.looked_up();
        }
        Some(())
    }

    fn insert_as(&mut self, numbering: Numbering, attributes: &Attributes, learned: Learned) -> u32 {
        let node = attributes.node;
        let slot = self.records.insert(Record::new(numbering, attributes, learned, self.base));
        self.forgotten.remove(numbering.number(node));
        let Self { records, hasher, by_number, by_node, .. } = self;
        let number_at = |slot| hasher.hash_one(at(records, slot).number());
        by_number.insert(number_at(slot), slot, number_at);
        let (hash, node_at) = (hasher.hash_one(node), |slot| hasher.hash_one(at(records, slot).node()));
        // One that had the node before, and is of another kind, is found by its number alone from now on.
        by_node.remove(hash, |slot| at(records, slot).node() == node);
        if numbering != Numbering::HOST {
            by_node.insert(hash, slot, node_at);
        }
        slot
    }

    /// How a file that is not known is numbered, if its number is free.
    const fn preferred(&self, node: NodeId) -> Numbering {
        let is_free = node.inode > Inode::ROOT.0 && node.inode < MADE_UP;
        if is_free && node.device == self.root_device { Numbering::HOST } else { Numbering::FIRST_MADE_UP }
    }

    fn slot_of(&self, inode: Inode) -> Option<u32> {
        self.by_number.find(self.hasher.hash_one(inode), |slot| self.at(slot).number() == inode)
    }

    fn slot_of_node(&self, node: NodeId) -> Option<u32> {
        let other = self.by_node.find(self.hasher.hash_one(node), |slot| self.at(slot).node() == node);
        other.or_else(|| self.slot_of(Inode(node.inode)).filter(|slot| self.at(*slot).node() == node))
    }

    fn at(&self, slot: u32) -> &Record {
        at(&self.records, slot)
    }

    fn at_mut(&mut self, slot: u32) -> &mut Record {
        self.records.get_mut(slot).expect("the caller has just found or inserted it")
    }

    fn remove_if_unused(&mut self, slot: u32) {
        let record = self.at(slot);
        if record.numbering == Numbering::ROOT || !record.is_unused() {
            return;
        }
        let (inode, node) = (record.number(), record.node());
        let (number, node_hash) = (self.hasher.hash_one(inode), self.hasher.hash_one(node));
        if let Some((parent, name)) = self.remove_names(slot) {
            self.forgotten.insert(inode, Gone { node, parent, name });
        }
        self.by_number.remove(number, |found| found == slot);
        self.by_node.remove(node_hash, |found| found == slot);
        self.records.remove(slot);
        let Self { records, hasher, by_number, by_node, .. } = self;
        by_number.shrink(|slot| hasher.hash_one(at(records, slot).number()));
        by_node.shrink(|slot| hasher.hash_one(at(records, slot).node()));
    }
}

fn at(records: &Slots<Record>, slot: u32) -> &Record {
    records.get(slot).expect("what an index leads to is there")
}

/// Whether users see the same of both.
fn looks_like(one: &Attributes, other: &Attributes) -> bool {
    *one == Attributes { observed: one.observed, ..*other }
}

/// What tells a file from others that have had its number.
pub(super) const fn generation(node: NodeId) -> u32 {
    (mix(node) >> 32) as u32
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
