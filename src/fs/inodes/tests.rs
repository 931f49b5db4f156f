//! Random histories of the inode table against a slow twin that keeps only the facts.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::fs::leases::LeaseTable;
use crate::fs::tests::attributes;
use crate::proto::{FileKind, LeaseEpoch, OpenId};

fn table() -> (InodeTable, Instant) {
    let now = Instant::now();
    (InodeTable::new(attributes(500, FileKind::Directory), now), now)
}

fn name(text: &str) -> Name {
    Name::from(text.as_bytes())
}

#[test]
fn inodes_are_numbered_as_on_the_host_unless_they_would_meet() {
    let (mut table, now) = table();
    let learned = Learned::by_asking(now);
    let file = attributes(7, FileKind::Regular);
    assert_eq!(table.remember(Inode::ROOT, &name("a"), file, learned), Inode(7));
    let mut elsewhere = file;
    elsewhere.node.device = 2;
    let other = table.remember(Inode::ROOT, &name("b"), elsewhere, learned);
    assert!(other.0 & MADE_UP != 0);
    assert_eq!(table.number_of(elsewhere.node), other);
    let mut reused = file;
    reused.node.birth_ns = 99;
    assert_ne!(table.remember(Inode::ROOT, &name("a"), reused, learned), Inode(7));
    let one = table.remember(Inode::ROOT, &name("one"), attributes(1, FileKind::Regular), learned);
    assert_ne!(one, Inode::ROOT);
}

#[test]
fn hard_links_share_one_inode() {
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let first = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    let second = table.remember(Inode::ROOT, &name("b"), file, Learned::by_asking(now));
    assert_eq!(first, second);
    assert_eq!(table.child(Inode::ROOT, &name("a")), Some(first));
    table.forget(first, 1);
    assert!(table.get(first).is_some());
    table.forget(first, 1);
    assert!(table.get(first).is_none());
    assert_eq!(table.child(Inode::ROOT, &name("a")), None);
}

#[test]
fn who_comes_with_an_inode_has_just_looked_it_up_where_its_name_is_not_believed() {
    const WALK: Duration = Duration::from_secs(1);
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    assert!(table.was_just_looked_up(inode, now, WALK));
    table.name_told(inode, Inode::ROOT, &name("a"), Some(now + WALK));
    for (after_ms, was) in [(0, false), (1999, false), (2000, false), (2001, true)] {
        let at = now + Duration::from_millis(after_ms);
        assert_eq!(table.was_just_looked_up(inode, at, WALK), was, "{after_ms}");
    }
    table.remove_name(Inode::ROOT, &name("a"));
    assert_eq!(table.reached_by(inode), Some((Inode::ROOT, name("a"))), "the host took it away");
    table.name_taken(inode, Inode::ROOT, &name("b"));
    assert_eq!(table.reached_by(inode), Some((Inode::ROOT, name("a"))), "another name was taken");
    table.name_taken(inode, Inode::ROOT, &name("a"));
    assert!(table.was_just_looked_up(inode, now, WALK));
    assert_eq!(table.reached_by(inode), None);
}

#[test]
fn where_a_link_is_taken_away_again_the_name_that_the_kernel_knew_before_is_known_still() {
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    table.name_told(inode, Inode::ROOT, &name("a"), Some(now));
    table.remember(Inode::ROOT, &name("link"), file, Learned::by_asking(now));
    table.name_told(inode, Inode::ROOT, &name("link"), Some(now));
    table.remove_name(Inode::ROOT, &name("link"));
    table.name_taken(inode, Inode::ROOT, &name("link"));
    table.remove_name(Inode::ROOT, &name("a"));
    assert_eq!(table.reached_by(inode), Some((Inode::ROOT, name("a"))), "the host took it away");
}

#[test]
fn an_answer_to_an_earlier_question_does_not_replace_a_later_one() {
    let (mut table, now) = table();
    let later = Learned::by_asking(now + Duration::from_millis(5));
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), Attributes { size: 20, ..file }, later);
    assert_eq!(table.learn(Attributes { size: 10, ..file }, Learned::by_asking(now)), None);
    assert_eq!(table.get(inode).unwrap().attributes().size, 20);
    assert_eq!(table.learn(Attributes { size: 30, ..file }, later), Some(inode));
    assert_eq!(table.learn(Attributes { size: 30, ..file }, later), None);
}

#[test]
fn an_open_inode_stays_and_the_host_is_told_of_each_close() {
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    table.opened(inode, OpenAccess::READ, Some(OpenId(1)));
    table.opened(inode, OpenAccess::READ, Some(OpenId(2)));
    table.opened(inode, OpenAccess::READ, None);
    table.forget(inode, 1);
    assert_eq!(table.closed(inode), None);
    assert_eq!(table.closed(inode), Some((file.node, OpenId(2))));
    assert_eq!(table.closed(inode), Some((file.node, OpenId(1))));
    assert!(table.get(inode).is_none());
}

#[test]
fn after_a_recovery_the_host_counts_one_open() {
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    table.opened(inode, OpenAccess::READ, Some(OpenId(1)));
    table.opened(inode, OpenAccess::READ, Some(OpenId(2)));
    table.recovered(inode, Some(OpenId(3)));
    assert_eq!(table.closed(inode), None);
    assert_eq!(table.closed(inode), Some((file.node, OpenId(3))));
}

#[test]
fn the_way_up_ends_at_the_root_and_loops_end() {
    let (mut table, now) = table();
    let learned = Learned::by_asking(now);
    let a = table.remember(Inode::ROOT, &name("a"), attributes(7, FileKind::Directory), learned);
    let b = table.remember(a, &name("b"), attributes(8, FileKind::Directory), learned);
    let names: Vec<_> = table.way_up(b).unwrap().into_iter().map(|step| step.name).collect();
    assert_eq!(names, [name("b"), name("a")]);
    assert_eq!(table.way_up(Inode::ROOT), Some(Vec::new()));
    table.remember(b, &name("a"), attributes(7, FileKind::Directory), learned);
    assert_eq!(table.way_up(b), None);
}

#[test]
fn a_number_given_to_another_directory_brings_no_names_along() {
    let (mut table, now) = table();
    let learned = Learned::by_asking(now);
    let old = table.remember(Inode::ROOT, &name("d"), attributes(7, FileKind::Directory), learned);
    table.remember(old, &name("f"), attributes(8, FileKind::Regular), learned);
    table.forget(old, 1);
    let mut reused = attributes(7, FileKind::Directory);
    reused.node.birth_ns = 99;
    let new = table.remember(Inode::ROOT, &name("d"), reused, learned);
    assert_eq!(new, old);
    assert_eq!(table.child(new, &name("f")), None);
}

/// A table with `count` files in directories of a thousand, and their numbers.
fn full_table(count: u64) -> (InodeTable, Vec<Inode>) {
    let (mut table, now) = table();
    let mut inodes = Vec::new();
    let mut directory = Inode::ROOT;
    for number in 0..count {
        let learned = Learned::by_asking(now);
        if number % 1000 == 0 {
            let folder = attributes(10_000_000 + number, FileKind::Directory);
            directory = table.remember(Inode::ROOT, &name(&format!("folder {number}")), folder, learned);
            inodes.push(directory);
        }
        let file = attributes(1000 + number, FileKind::Regular);
        inodes.push(table.remember(
            directory,
            &name(&format!("a file that has number {number:>8}")),
            file,
            learned,
        ));
        table.name_told(
            inodes[inodes.len() - 1],
            directory,
            &name(&format!("a file that has number {number:>8}")),
            Some(now),
        );
    }
    (table, inodes)
}

#[test]
fn an_inode_takes_little_memory_and_gives_it_back() {
    let count = 200_000;
    let (mut table, inodes) = full_table(count);
    let full = table.bytes();
    let each = full / inodes.len();
    assert!(each <= INODE_BYTES, "{each} bytes an inode");
    // Directories stay longest, as the kernel lets go of what hangs on them first.
    let (directories, files): (Vec<_>, Vec<_>) = inodes.into_iter().partition(|inode| inode.0 >= 10_000_000);
    for inode in files {
        table.forget(inode, 1);
    }
    assert!(table.bytes() < full / 10, "{} of {full} bytes are left", table.bytes());
    for inode in directories {
        table.forget(inode, 1);
    }
    assert_eq!((table.len(), table.names()), (0, 0));
    assert!(table.bytes() < full / 20, "{} of {full} bytes are left", table.bytes());
}

#[test]
fn what_was_open_leaves_nothing_behind_but_what_the_kernel_may_have_kept() {
    let (mut table, now) = table();
    let directory = attributes(7, FileKind::Directory);
    let inode = table.remember(Inode::ROOT, &name("d"), directory, Learned::by_asking(now));
    let before = table.bytes();
    table.opened(inode, OpenAccess::READ, None);
    assert!(table.bytes() > before);
    table.closed(inode);
    assert_eq!(table.bytes(), before);
}

#[test]
fn what_the_kernel_was_told_outlives_a_name_that_is_lost() {
    let (mut table, now) = table();
    let file = attributes(7, FileKind::Regular);
    let inode = table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    table.name_told(inode, Inode::ROOT, &name("a"), Some(now));
    table.remember(Inode::ROOT, &name("b"), file, Learned::by_asking(now));
    table.remove_name(Inode::ROOT, &name("b"));
    assert_eq!(
        table.reached_by(inode),
        Some((Inode::ROOT, name("a"))),
        "the name before is the newest again"
    );
    table.remove_name(Inode::ROOT, &name("a"));
    assert_eq!(table.newest_name(inode), None);
    assert_eq!(table.reached_by(inode), Some((Inode::ROOT, name("a"))), "it was told last");
}

#[test]
fn leases_go_with_their_names() {
    let (mut leases, epoch, now) = (LeaseTable::default(), LeaseEpoch(1), Instant::now());
    let (mut table, _) = table();
    let file = attributes(7, FileKind::Regular);
    leases.begin(epoch, now);
    let lease = leases.grant(file.node, epoch, now);
    assert!(lease.is_some());
    table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    table.set_lease_of_name(Inode::ROOT, &name("a"), lease);
    table.remember(Inode::ROOT, &name("b"), file, Learned::by_asking(now));
    let lease_of = |table: &InodeTable, text: &str| table.lease_of_name(Inode::ROOT, &name(text));
    assert_eq!((lease_of(&table, "a"), lease_of(&table, "b")), (lease, None));
    table.set_lease_of_name(Inode::ROOT, &name("a"), None);
    assert_eq!(lease_of(&table, "a"), None);
    table.set_lease_of_name(Inode::ROOT, &name("a"), lease);
    table.remove_name(Inode::ROOT, &name("b"));
    assert_eq!(lease_of(&table, "a"), lease, "it is the newest again");
    table.remember(Inode::ROOT, &name("a"), file, Learned::by_asking(now));
    assert_eq!(lease_of(&table, "a"), None, "it was looked up anew");
}

/// The twin: the names of each node, newest last; how often each was told; how often each is open.
#[derive(Default)]
struct Twin {
    names: HashMap<NodeId, Vec<(NodeId, Name)>>,
    lookups: HashMap<NodeId, u64>,
    opens: HashMap<NodeId, u32>,
}

impl Twin {
    fn is_alive(&self, node: NodeId) -> bool {
        let count = |map: &HashMap<NodeId, u64>| map.get(&node).copied().unwrap_or(0);
        count(&self.lookups) > 0 || self.opens.get(&node).copied().unwrap_or(0) > 0
    }

    fn remove_name(&mut self, key: &(NodeId, Name)) {
        self.names.values_mut().for_each(|names| names.retain(|known| known != key));
    }

    fn set_name(&mut self, node: NodeId, key: (NodeId, Name)) {
        self.remove_name(&key);
        let names = self.names.entry(node).or_default();
        names.push(key);
        if names.len() > NAMES_MAX {
            names.remove(0);
        }
    }

    fn named(&self, key: &(NodeId, Name)) -> Option<NodeId> {
        self.names.iter().find(|(_, names)| names.contains(key)).map(|(node, _)| *node)
    }

    fn drop_dead_names(&mut self) {
        let names = std::mem::take(&mut self.names);
        self.names = names.into_iter().filter(|(node, _)| self.is_alive(*node)).collect();
    }
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Remember { node: NodeId, key: (bool, u8) },
    Forget { node: NodeId, count: u64 },
    Open { node: NodeId },
    Close { node: NodeId },
    Rename { node: NodeId, key: (bool, u8) },
    RemoveName { key: (bool, u8) },
}

fn operation() -> impl Strategy<Value = Operation> {
    let node =
        (1u64..6, 1u64..3, 0i64..2).prop_map(|(inode, device, birth_ns)| NodeId { device, inode, birth_ns });
    let key = (any::<bool>(), 0u8..8);
    prop_oneof![
        5 => (node.clone(), key.clone()).prop_map(|(node, key)| Operation::Remember { node, key }),
        3 => (node.clone(), 1u64..3).prop_map(|(node, count)| Operation::Forget { node, count }),
        1 => node.clone().prop_map(|node| Operation::Open { node }),
        1 => node.clone().prop_map(|node| Operation::Close { node }),
        2 => (node, key.clone()).prop_map(|(node, key)| Operation::Rename { node, key }),
        2 => key.prop_map(|key| Operation::RemoveName { key }),
    ]
}

/// The table and its twin, with two directories that hold names: the root and one that is always there.
struct Pair {
    table: InodeTable,
    twin: Twin,
    now: Instant,
    folder: Inode,
}

impl Pair {
    fn new() -> Self {
        let (mut table, now) = table();
        let folder = attributes(600, FileKind::Directory);
        let folder = table.remember(Inode::ROOT, &name("folder"), folder, Learned::by_asking(now));
        Self { table, twin: Twin::default(), now, folder }
    }

    fn key(&self, (in_folder, name): (bool, u8)) -> (Inode, NodeId, Name) {
        let parent = if in_folder { self.folder } else { Inode::ROOT };
        (parent, self.table.get(parent).unwrap().node(), Name::from([name].as_slice()))
    }

    fn apply(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::Remember { node, key } => {
                let (parent, parent_node, name) = self.key(key);
                let attributes = Attributes { node, ..attributes(node.inode, FileKind::Regular) };
                self.table.remember(parent, &name, attributes, Learned::by_asking(self.now));
                self.twin.set_name(node, (parent_node, name));
                *self.twin.lookups.entry(node).or_default() += 1;
            }
            Operation::Forget { node, count } if self.twin.is_alive(node) => {
                self.table.forget(self.table.number_of(node), count);
                let lookups = self.twin.lookups.entry(node).or_default();
                *lookups = lookups.saturating_sub(count);
            }
            Operation::Open { node } if self.twin.is_alive(node) => {
                self.table.opened(self.table.number_of(node), OpenAccess::READ, Some(OpenId(1)));
                *self.twin.opens.entry(node).or_default() += 1;
            }
            Operation::Close { node } if self.twin.opens.get(&node).copied().unwrap_or(0) > 0 => {
                prop_assert_eq!(self.table.closed(self.table.number_of(node)), Some((node, OpenId(1))));
                *self.twin.opens.get_mut(&node).unwrap() -= 1;
            }
            Operation::Rename { node, key } if self.twin.is_alive(node) => {
                let (parent, parent_node, name) = self.key(key);
                self.table.rename(self.table.number_of(node), parent, &name);
                self.twin.set_name(node, (parent_node, name));
            }
            Operation::RemoveName { key } => {
                let (parent, parent_node, name) = self.key(key);
                self.table.remove_name(parent, &name);
                self.twin.remove_name(&(parent_node, name));
            }
            _ => {}
        }
        self.twin.drop_dead_names();
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (table, twin) = (&self.table, &self.twin);
        let mut alive: Vec<NodeId> = twin
            .lookups
            .keys()
            .chain(twin.opens.keys())
            .copied()
            .filter(|node| twin.is_alive(*node))
            .collect();
        alive.sort_unstable();
        alive.dedup();
        let mut numbers: Vec<_> = alive.iter().map(|node| table.number_of(*node)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), alive.len(), "two nodes share a number");
        prop_assert_eq!(table.len(), alive.len() + 1);
        for node in alive {
            let inode = table.number_of(node);
            prop_assert_eq!(table.get(inode).map(|record| record.node()), Some(node));
            let newest = twin.names.get(&node).and_then(|names| names.last().cloned());
            let found = table.newest_name(inode);
            let found = found.map(|(parent, name)| (table.get(parent).unwrap().node(), name));
            prop_assert_eq!(found, newest);
        }
        for in_folder in [false, true] {
            for number in 0u8..8 {
                let (parent, parent_node, name) = self.key((in_folder, number));
                let actual = table.child(parent, &name).and_then(|inode| table.get(inode));
                prop_assert_eq!(actual.map(|record| record.node()), twin.named(&(parent_node, name)));
            }
        }
        prop_assert_eq!(table.names(), twin.names.values().map(Vec::len).sum::<usize>() + 1);
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_its_twin(operations in proptest::collection::vec(operation(), 1..120)) {
        let mut pair = Pair::new();
        for operation in operations {
            pair.apply(operation)?;
        }
    }
}
