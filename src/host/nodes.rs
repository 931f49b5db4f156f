//! Where each node was last seen: its parent and its name there, bounded in number.
//!
//! Pure: what is known goes in, paths come out. Whether a path still leads to the node is for whoever opens it.
//!
//! One table serves all trees, so that one bound holds for the daemon. A node is known per tree only: what was looked
//! up through one export, or below one sub path, says nothing to a client of another. Where there are too many, the tree
//! with most gives up those that it used longest ago; what is known of a tree goes when the tree does.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::proto::NodeId;

/// Most nodes known at a time.
///
/// A client whose node fell out looks it up again by its path, which costs round trips and nothing else.
pub(super) const NODES_MAX: usize = 1_000_000;

/// Memory of a node with a name of 24 bytes.
pub(super) const NODE_BYTES: usize = 128;

/// Deepest node that is found again, in components below the root.
///
/// Twice what fits the longest path Linux takes in one call. Also what ends the walk when directories that were moved
/// into each other left a circle behind.
pub(super) const DEPTH_MAX: usize = 4096;

/// A tree with too many nodes gives up one of so many at a time, so that looking for it costs little.
const GIVEN_UP_SHARE: usize = 256;

/// Which tree: one export, or one directory of it, as clients mount it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TreeId(pub(super) u64);

/// No entry.
const NONE: u32 = u32::MAX;

/// A node, its parent and its name in it, and its neighbours in the order of use.
#[derive(Debug)]
struct Entry {
    node: NodeId,
    parent: NodeId,
    name: Box<[u8]>,
    newer: u32,
    older: u32,
}

/// The nodes of one tree, in the order in which they were used.
#[derive(Debug)]
struct TreeNodes {
    entries: Vec<Entry>,
    index: HashTable<u32>,
    newest: u32,
    oldest: u32,
}

impl TreeNodes {
    const fn new() -> Self {
        Self { entries: Vec::new(), index: HashTable::new(), newest: NONE, oldest: NONE }
    }

    fn find(&self, hasher: &RandomState, node: NodeId) -> Option<u32> {
        self.index.find(hasher.hash_one(node), |at| self.entries[*at as usize].node == node).copied()
    }

    /// Finds a node, which is the one used last from now on.
    fn get(&mut self, hasher: &RandomState, node: NodeId) -> Option<&mut Entry> {
        let at = self.find(hasher, node)?;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        Some(&mut self.entries[at as usize])
    }

    /// Adds a node that is not there.
    fn add(&mut self, hasher: &RandomState, node: NodeId, parent: NodeId, name: &[u8]) {
        let at = self.entries.len() as u32;
        if self.entries.len() == self.entries.capacity() {
            // By a quarter, as the table is large where it matters.
            self.entries.reserve_exact(self.entries.len() / 4 + 16);
        }
        self.entries.push(Entry { node, parent, name: name.into(), newer: NONE, older: NONE });
        self.link_newest(at);
        let Self { entries, index, .. } = self;
        index.insert_unique(hasher.hash_one(node), at, |at| hasher.hash_one(entries[*at as usize].node));
    }

    /// Removes the node that was used longest ago.
    fn remove_oldest(&mut self, hasher: &RandomState) {
        let at = self.oldest;
        if at == NONE {
            return;
        }
        self.unlink(at);
        self.remove_from_index(hasher, at);
        // The last entry takes its place.
        let last = self.entries.len() as u32 - 1;
        if last != at {
            self.remove_from_index(hasher, last);
            let (newer, older) = (self.entries[last as usize].newer, self.entries[last as usize].older);
            self.set_neighbours(at, newer, older);
        }
        self.entries.swap_remove(at as usize);
        if last != at {
            let Self { entries, index, .. } = self;
            let hash = hasher.hash_one(entries[at as usize].node);
            index.insert_unique(hash, at, |at| hasher.hash_one(entries[*at as usize].node));
        }
    }

    fn remove_from_index(&mut self, hasher: &RandomState, at: u32) {
        let hash = hasher.hash_one(self.entries[at as usize].node);
        if let Ok(found) = self.index.find_entry(hash, |found| *found == at) {
            found.remove();
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = self.newest;
        (self.entries[at as usize].newer, self.entries[at as usize].older) = (NONE, before);
        self.set_neighbours(at, NONE, before);
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older) = (self.entries[at as usize].newer, self.entries[at as usize].older);
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
    }

    /// Tells the neighbours of an entry where it is.
    fn set_neighbours(&mut self, at: u32, newer: u32, older: u32) {
        match newer {
            NONE => self.newest = at,
            newer => self.entries[newer as usize].older = at,
        }
        match older {
            NONE => self.oldest = at,
            older => self.entries[older as usize].newer = at,
        }
    }
}

/// The places of the nodes used last.
#[derive(Debug)]
pub(super) struct NodeTable {
    trees: HashMap<TreeId, TreeNodes>,
    len: usize,
    capacity: usize,
    hasher: RandomState,
}

impl NodeTable {
    /// A table of at most `capacity` nodes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { trees: HashMap::new(), len: 0, capacity, hasher: RandomState::new() }
    }

    /// Notes that `node` is the entry `name` of `parent`; forgets nodes unused longest when there are too many.
    pub(super) fn record(&mut self, tree: TreeId, node: NodeId, parent: NodeId, name: &[u8]) {
        let nodes = self.trees.entry(tree).or_insert_with(TreeNodes::new);
        if let Some(entry) = nodes.get(&self.hasher, node) {
            entry.parent = parent;
            if *entry.name != *name {
                entry.name = name.into();
            }
            return;
        }
        nodes.add(&self.hasher, node, parent, name);
        self.len += 1;
        if self.len > self.capacity {
            self.give_up();
        }
    }

    /// The tree with most nodes gives up some.
    fn give_up(&mut self) {
        let Some(largest) = self.trees.values_mut().max_by_key(|nodes| nodes.entries.len()) else { return };
        let count = (largest.entries.len() / GIVEN_UP_SHARE).max(1);
        (0..count).for_each(|_| largest.remove_oldest(&self.hasher));
        self.len -= count;
    }

    /// Takes all that is known of a tree out of the table, to be dropped where nobody waits for it.
    pub(super) fn forget_tree(&mut self, tree: TreeId) -> impl Sized + use<> {
        let nodes = self.trees.remove(&tree);
        self.len -= nodes.as_ref().map_or(0, |nodes| nodes.entries.len());
        nodes
    }

    /// The path from `root` to `node`, names joined by `/`; empty for the root itself, `None` when the way is not known.
    pub(super) fn path(&mut self, tree: TreeId, root: NodeId, node: NodeId) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = node;
        while at != root {
            if names.len() == DEPTH_MAX {
                return None;
            }
            // Asking for the ancestors last keeps them longer than what hangs on them.
            let entry = self.get(tree, at)?;
            names.push(entry.name.clone());
            at = entry.parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// The name under which `node` was seen last.
    pub(super) fn name(&mut self, tree: TreeId, node: NodeId) -> Option<Box<[u8]>> {
        self.get(tree, node).map(|entry| entry.name.clone())
    }

    /// The folder in which `node` was seen last, and its name there.
    pub(super) fn place(&mut self, tree: TreeId, node: NodeId) -> Option<(NodeId, Box<[u8]>)> {
        self.get(tree, node).map(|entry| (entry.parent, entry.name.clone()))
    }

    /// How many nodes are known.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn get(&mut self, tree: TreeId, node: NodeId) -> Option<&Entry> {
        self.trees.get_mut(&tree)?.get(&self.hasher, node).map(|entry| &*entry)
    }

    /// Memory that it takes, in bytes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let of_tree = |nodes: &TreeNodes| {
            let names: usize = nodes.entries.iter().map(|entry| entry.name.len()).sum();
            nodes.entries.capacity() * size_of::<Entry>() + nodes.index.allocation_size() + names
        };
        self.trees.values().map(of_tree).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TREE: TreeId = TreeId(1);

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 0 }
    }

    #[test]
    fn a_path_is_the_names_from_the_root_on() {
        let mut table = NodeTable::new(10);
        table.record(TREE, node(2), node(1), b"folder");
        table.record(TREE, node(3), node(2), b"file \xff");
        assert_eq!(table.path(TREE, node(1), node(3)).unwrap(), b"folder/file \xff");
        assert_eq!(table.path(TREE, node(1), node(1)).unwrap(), b"");
        assert_eq!(table.path(TREE, node(1), node(4)), None);
    }

    #[test]
    fn a_node_of_one_tree_is_unknown_in_another() {
        let mut table = NodeTable::new(10);
        table.record(TREE, node(2), node(1), b"file");
        assert_eq!(table.path(TreeId(2), node(1), node(2)), None);
    }

    #[test]
    fn directories_moved_into_each_other_make_no_endless_path() {
        let mut table = NodeTable::new(10);
        table.record(TREE, node(3), node(2), b"b");
        table.record(TREE, node(2), node(3), b"a");
        assert_eq!(table.path(TREE, node(1), node(2)), None);
    }

    #[test]
    fn a_tree_that_asks_for_much_takes_nothing_from_others_and_leaves_nothing_behind() {
        let (mut table, other) = (NodeTable::new(1000), TreeId(2));
        for number in 0..100 {
            table.record(other, node(number + 2), node(1), b"file");
        }
        for number in 0..10_000 {
            table.record(TREE, node(number + 2), node(1), b"file");
            assert!(table.len() <= 1000);
        }
        assert!((0..100).all(|number| table.name(other, node(number + 2)).is_some()));
        assert!(table.name(TREE, node(10_001)).is_some() && table.name(TREE, node(2)).is_none());
        drop(table.forget_tree(TREE));
        assert_eq!((table.len(), table.name(TREE, node(10_001))), (100, None));
        drop(table.forget_tree(TREE));
        assert_eq!(table.len(), 100);
    }

    #[test]
    fn a_node_takes_little_memory() {
        let count = 200_000;
        let mut table = NodeTable::new(count as usize);
        for number in 0..count {
            table.record(TREE, node(number + 2), node(1), b"a name of 24 bytes, this");
        }
        let each = table.bytes() / table.len();
        assert!(each <= NODE_BYTES, "{each} bytes a node");
    }

    #[test]
    fn folders_in_use_outlive_files_seen_once() {
        let mut table = NodeTable::new(3);
        table.record(TREE, node(2), node(1), b"folder");
        for file in 10..100 {
            table.record(TREE, node(file), node(2), b"file");
            assert!(table.path(TREE, node(1), node(file)).is_some());
        }
        assert_eq!(table.len(), 3);
    }

    /// The same, slowly: a list with the one used last at the end.
    #[derive(Default)]
    struct SlowTable(Vec<(NodeId, NodeId, Vec<u8>)>);

    impl SlowTable {
        fn use_node(&mut self, wanted: NodeId) -> Option<(NodeId, Vec<u8>)> {
            let at = self.0.iter().position(|(node, ..)| *node == wanted)?;
            let entry = self.0.remove(at);
            self.0.push(entry.clone());
            Some((entry.1, entry.2))
        }

        fn record(&mut self, capacity: usize, node: NodeId, parent: NodeId, name: &[u8]) {
            self.0.retain(|(known, ..)| *known != node);
            self.0.push((node, parent, name.to_vec()));
            if self.0.len() > capacity {
                self.0.remove(0);
            }
        }

        fn path(&mut self, root: NodeId, node: NodeId) -> Option<Vec<u8>> {
            let (mut names, mut at) = (Vec::new(), node);
            while at != root {
                if names.len() == DEPTH_MAX {
                    return None;
                }
                let (parent, name) = self.use_node(at)?;
                names.push(name);
                at = parent;
            }
            names.reverse();
            Some(names.join(&b'/'))
        }
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Record { node: u64, parent: u64, name: Vec<u8> },
        Path { root: u64, node: u64 },
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0u64..12, 0u64..12, proptest::collection::vec(b'a'..=b'd', 1..3))
                .prop_map(|(node, parent, name)| Operation::Record { node, parent, name }),
            (0u64..12, 0u64..12).prop_map(|(root, node)| Operation::Path { root, node }),
        ]
    }

    proptest! {
        #[test]
        fn it_knows_what_a_slow_twin_knows(
            capacity in 1usize..10,
            operations in proptest::collection::vec(operation(), 0..60),
        ) {
            let (mut table, mut slow) = (NodeTable::new(capacity), SlowTable::default());
            for operation in operations {
                match operation {
                    Operation::Record { node: id, parent, name } => {
                        table.record(TREE, node(id), node(parent), &name);
                        slow.record(capacity, node(id), node(parent), &name);
                    }
                    Operation::Path { root, node: id } => {
                        let path = table.path(TREE, node(root), node(id));
                        prop_assert_eq!(path, slow.path(node(root), node(id)));
                    }
                }
                prop_assert_eq!(table.len(), slow.0.len());
            }
        }
    }
}
