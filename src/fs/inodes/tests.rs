//! Random histories of the inode table against a slow twin that keeps only the facts.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::fs::tests::attributes;
use crate::proto::{FileKind, OpenId};

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
    assert_eq!(table.get(inode).unwrap().attributes.size, 20);
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

/// The twin: which names name which node, how often each was told, how often each is open.
#[derive(Default)]
struct Twin {
    names: HashMap<(NodeId, Name), NodeId>,
    lookups: HashMap<NodeId, u64>,
    opens: HashMap<NodeId, u32>,
}

impl Twin {
    fn is_alive(&self, node: NodeId) -> bool {
        let count = |map: &HashMap<NodeId, u64>| map.get(&node).copied().unwrap_or(0);
        count(&self.lookups) > 0 || self.opens.get(&node).copied().unwrap_or(0) > 0
    }

    fn drop_dead_names(&mut self) {
        let names = std::mem::take(&mut self.names);
        self.names = names.into_iter().filter(|(_, node)| self.is_alive(*node)).collect();
    }
}

#[derive(Debug, Clone)]
enum Step_ {
    Remember { inode: u64, device: u64, birth: i64, name: u8 },
    Forget { inode: u64, device: u64, birth: i64, count: u64 },
    Open { inode: u64, device: u64, birth: i64 },
    Close { inode: u64, device: u64, birth: i64 },
    RemoveName { name: u8 },
}

fn step() -> impl Strategy<Value = Step_> {
    let node = (1u64..6, 1u64..3, 0i64..2);
    prop_oneof![
        4 => (node.clone(), 0u8..6).prop_map(|((inode, device, birth), name)| Step_::Remember { inode, device, birth, name }),
        3 => (node.clone(), 1u64..3).prop_map(|((inode, device, birth), count)| Step_::Forget { inode, device, birth, count }),
        1 => node.clone().prop_map(|(inode, device, birth)| Step_::Open { inode, device, birth }),
        1 => node.prop_map(|(inode, device, birth)| Step_::Close { inode, device, birth }),
        1 => (0u8..6).prop_map(|name| Step_::RemoveName { name }),
    ]
}

proptest! {
    #[test]
    fn the_table_agrees_with_its_twin(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut table, now) = table();
        let root = attributes(500, FileKind::Directory).node;
        let mut twin = Twin::default();
        let node = |inode, device, birth_ns| NodeId { device, inode, birth_ns };
        for step in steps {
            match step {
                Step_::Remember { inode, device, birth, name } => {
                    let node = node(inode, device, birth);
                    let attributes = Attributes { node, ..attributes(inode, FileKind::Regular) };
                    let key = Name::from([name].as_slice());
                    table.remember(Inode::ROOT, &key, attributes, Learned::by_asking(now));
                    twin.names.insert((root, key), node);
                    *twin.lookups.entry(node).or_default() += 1;
                }
                Step_::Forget { inode, device, birth, count } => {
                    let node = node(inode, device, birth);
                    if twin.is_alive(node) {
                        table.forget(table.number_of(node), count);
                        let lookups = twin.lookups.entry(node).or_default();
                        *lookups = lookups.saturating_sub(count);
                    }
                }
                Step_::Open { inode, device, birth } => {
                    let node = node(inode, device, birth);
                    if twin.is_alive(node) {
                        table.opened(table.number_of(node), OpenAccess::READ, Some(OpenId(1)));
                        *twin.opens.entry(node).or_default() += 1;
                    }
                }
                Step_::Close { inode, device, birth } => {
                    let node = node(inode, device, birth);
                    if twin.opens.get(&node).copied().unwrap_or(0) > 0 {
                        prop_assert_eq!(table.closed(table.number_of(node)), Some((node, OpenId(1))));
                        *twin.opens.get_mut(&node).unwrap() -= 1;
                    }
                }
                Step_::RemoveName { name } => {
                    let key = Name::from([name].as_slice());
                    table.remove_name(Inode::ROOT, &key);
                    twin.names.remove(&(root, key));
                }
            }
            twin.drop_dead_names();
            check(&table, &twin)?;
        }
    }
}

fn check(table: &InodeTable, twin: &Twin) -> Result<(), TestCaseError> {
    let alive: Vec<NodeId> =
        twin.lookups.keys().chain(twin.opens.keys()).copied().filter(|node| twin.is_alive(*node)).collect();
    let mut numbers: Vec<_> = alive.iter().map(|node| table.number_of(*node)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut distinct = alive.clone();
    distinct.sort_unstable();
    distinct.dedup();
    prop_assert_eq!(numbers.len(), distinct.len(), "two nodes share a number");
    prop_assert_eq!(table.len(), distinct.len());
    for node in distinct {
        prop_assert_eq!(table.get(table.number_of(node)).map(Record::node), Some(node));
    }
    for name in 0u8..6 {
        let key = Name::from([name].as_slice());
        let expected = twin
            .names
            .values()
            .next()
            .and(twin.names.get(&(table.get(Inode::ROOT).unwrap().node(), key.clone())));
        let actual = table.child(Inode::ROOT, &key).and_then(|inode| table.get(inode)).map(Record::node);
        prop_assert_eq!(actual, expected.copied());
    }
    prop_assert_eq!(table.by_name.len(), twin.names.len());
    Ok(())
}
