//! What a directory held when it was listed, and the listings that are worth keeping.
//!
//! Pure: no I/O, no clock.
//!
//! A [`Snapshot`] fills as the host's stream arrives; positions in it never move, so that `seekdir` works while it does.
//! Offsets are positions: 0 is `.`, 1 is `..`, then the entries; what a program gets as the offset of an entry is the
//! position after it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::mem::size_of;

use super::attributes::Learned;
use super::inodes::Name;
use crate::proto::{Attributes, DirectoryEntry};

/// Most entries of one directory: a gigabyte of names and attributes.
pub(super) const ENTRIES_MAX: usize = 4 * 1024 * 1024;

/// Positions before the first entry: `.` and `..`.
pub(super) const DOTS: u64 = 2;

/// One entry of a listing.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub name: Name,
    pub attributes: Attributes,
    pub learned: Learned,
}

/// Where to find a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// At this position.
    At(usize),
    /// The directory had no such name.
    Absent,
    /// It may be among what has not arrived yet.
    NotYet,
}

/// A directory as it was listed.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    entries: Vec<Listed>,
    /// Hash of a name to the newest position with that hash.
    index: HashMap<u64, u32>,
    /// Positions whose hash another, newer position took over; hashes of 64 bits, so this is empty in practice.
    shadowed: Vec<u32>,
    hasher: RandomState,
    is_complete: bool,
    bytes: usize,
}

impl Snapshot {
    /// Appends what arrived.
    pub(super) fn push(&mut self, batch: Vec<DirectoryEntry>, learned: Learned) {
        for entry in batch {
            let name = Name::from(entry.name);
            self.bytes += name.len() + size_of::<Listed>() + size_of::<(u64, u32)>();
            let position = self.entries.len() as u32;
            if let Some(older) = self.index.insert(self.hasher.hash_one(&name), position) {
                self.shadowed.push(older);
            }
            self.entries.push(Listed { name, attributes: entry.attributes, learned });
        }
    }

    /// That was all.
    pub(super) fn finish(&mut self) {
        self.is_complete = true;
        self.entries.shrink_to_fit();
    }

    /// No lease covers its entries.
    pub(super) fn uncover(&mut self) {
        for listed in &mut self.entries {
            listed.learned.lease = None;
        }
    }

    /// How many entries have arrived.
    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// What it takes in memory, about.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry at a position was looked at again.
    pub(super) fn renew(&mut self, position: usize, attributes: Attributes, learned: Learned) {
        if let Some(listed) = self.entries.get_mut(position)
            && learned.asked >= listed.learned.asked
        {
            (listed.attributes, listed.learned) = (attributes, learned);
        }
    }

    pub(super) fn get(&self, position: usize) -> Option<&Listed> {
        self.entries.get(position)
    }

    pub(super) fn find(&self, name: &[u8]) -> Search {
        let is_it = |position: &u32| self.entries[*position as usize].name.as_ref() == name;
        let newest = self.index.get(&self.hasher.hash_one(name)).filter(|position| is_it(position));
        match newest.or_else(|| self.shadowed.iter().find(|position| is_it(position))) {
            Some(position) => Search::At(*position as usize),
            None if self.is_complete => Search::Absent,
            None => Search::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::fs::tests::attributes;
    use crate::proto::FileKind;

    fn batch(names: &[Vec<u8>], from: u64) -> Vec<DirectoryEntry> {
        let entry = |(at, name): (usize, &Vec<u8>)| DirectoryEntry {
            name: name.clone(),
            attributes: attributes(from + at as u64, FileKind::Regular),
        };
        names.iter().enumerate().map(entry).collect()
    }

    proptest! {
        #[test]
        fn names_are_found_where_they_are(
            names in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 1..4), 0..60),
            cut in 0usize..60,
            probe in proptest::collection::vec(any::<u8>(), 1..4),
        ) {
            let names: Vec<Vec<u8>> = names.into_iter().collect();
            let (first, second) = names.split_at(cut.min(names.len()));
            let learned = Learned::by_asking(Instant::now());
            let mut snapshot = Snapshot::default();
            snapshot.push(batch(first, 0), learned);
            for (at, name) in names.iter().enumerate() {
                let expected = if at < first.len() { Search::At(at) } else { Search::NotYet };
                prop_assert_eq!(snapshot.find(name), expected);
            }
            snapshot.push(batch(second, first.len() as u64), learned);
            snapshot.finish();
            let slow = names.iter().position(|name| *name == probe).map_or(Search::Absent, Search::At);
            prop_assert_eq!(snapshot.find(&probe), slow);
            for (at, name) in names.iter().enumerate() {
                prop_assert_eq!(snapshot.find(name), Search::At(at));
                prop_assert_eq!(snapshot.get(at).unwrap().attributes.node.inode, at as u64);
            }
        }
    }

    #[test]
    fn what_it_takes_grows_with_its_names() {
        let mut snapshot = Snapshot::default();
        snapshot.push(batch(&[vec![b'a'; 100], vec![b'b'; 100]], 0), Learned::by_asking(Instant::now()));
        assert!(snapshot.bytes() > 200 + 2 * size_of::<Attributes>());
        assert_eq!(snapshot.len(), 2);
    }
}
