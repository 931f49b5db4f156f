//! Where each node was last seen: its parent and its name there, bounded in number.
//!
//! Pure: what is known goes in, paths come out. Whether a path still leads to the node is for whoever opens it.
//!
//! One table serves all trees, so that one bound holds for the daemon. A node is known per tree only: what was looked
//! up through one export, or below one sub path, says nothing to a client of another.

use lru::LruCache;

use crate::proto::NodeId;

/// Most nodes known at a time.
///
/// A node with a name of 20 bytes takes about 160 bytes of memory, so a full table takes 160 MB; a client whose node
/// fell out looks it up again by its path, which costs round trips and nothing else.
pub(super) const NODES_MAX: usize = 1_000_000;

/// Deepest node that is found again, in components below the root.
///
/// Twice what fits the longest path Linux takes in one call. Also what ends the walk when directories that were moved
/// into each other left a circle behind.
pub(super) const DEPTH_MAX: usize = 4096;

/// Which tree: one export, or one directory of it, as clients mount it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TreeId(pub(super) u64);

/// A node's parent and its name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    parent: NodeId,
    name: Box<[u8]>,
}

/// The places of the nodes used last.
#[derive(Debug)]
pub(super) struct NodeTable {
    places: LruCache<(TreeId, NodeId), Place>,
    capacity: usize,
}

impl NodeTable {
    /// A table of at most `capacity` nodes.
    pub(super) fn new(capacity: usize) -> Self {
        // Unbounded, as a bounded one would allocate for all its entries at once.
        Self { places: LruCache::unbounded(), capacity }
    }

    /// Notes that `node` is the entry `name` of `parent`; forgets the node unused longest when there are too many.
    pub(super) fn record(&mut self, tree: TreeId, node: NodeId, parent: NodeId, name: &[u8]) {
        if let Some(place) = self.places.get_mut(&(tree, node)) {
            if place.parent != parent || *place.name != *name {
                *place = Place { parent, name: name.into() };
            }
            return;
        }
        self.places.put((tree, node), Place { parent, name: name.into() });
        if self.places.len() > self.capacity {
            self.places.pop_lru();
        }
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
            let place = self.places.get(&(tree, at))?;
            names.push(place.name.clone());
            at = place.parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// The name under which `node` was seen last.
    pub(super) fn name(&mut self, tree: TreeId, node: NodeId) -> Option<Box<[u8]>> {
        self.places.get(&(tree, node)).map(|place| place.name.clone())
    }

    /// The folder in which `node` was seen last, and its name there.
    pub(super) fn place(&mut self, tree: TreeId, node: NodeId) -> Option<(NodeId, Box<[u8]>)> {
        self.places.get(&(tree, node)).map(|place| (place.parent, place.name.clone()))
    }

    /// How many nodes are known.
    pub(super) fn len(&self) -> usize {
        self.places.len()
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
