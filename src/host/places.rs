//! In which file each chunk was last seen, so that a client which writes it again need not send it; bounded in number.
//!
//! Pure. The first place that was seen stays until it is found wrong: a later one is a copy, perhaps not whole yet. A place is a hint: whoever goes there proves what is there now. It holds for one tree, so that nobody learns anything of
//! content outside of what he has mounted, not even by how long an answer takes. What is known is lost with the daemon.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::nodes::TreeId;
use crate::chunk::{ChunkHash, ChunkIndex};
use crate::proto::NodeId;

/// Most chunks whose places are known: 64 GiB of content, some 30 MB of memory.
const PLACES_MAX: NonZeroUsize = NonZeroUsize::new(262_144).expect("not zero");

/// A chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: NodeId,
    pub(super) index: ChunkIndex,
}

/// The places of the chunks seen last.
#[derive(Debug)]
pub(super) struct Places {
    // By the first bytes of the hash: two chunks that share them are as good as one that has changed.
    places: LruCache<(TreeId, u64), Place>,
    capacity: NonZeroUsize,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(PLACES_MAX)
    }
}

impl Places {
    fn new(capacity: NonZeroUsize) -> Self {
        // Unbounded, as a bounded one would allocate for all its entries at once.
        Self { places: LruCache::unbounded(), capacity }
    }

    /// A whole chunk with this hash was read at, or written to, a place.
    pub(super) fn note(&mut self, tree: TreeId, hash: ChunkHash, place: Place) {
        self.places.get_or_insert((tree, first_bytes(hash)), || place);
        if self.places.len() > self.capacity.get() {
            self.places.pop_lru();
        }
    }

    /// Where a chunk may be.
    pub(super) fn find(&mut self, tree: TreeId, hash: ChunkHash) -> Option<Place> {
        self.places.get(&(tree, first_bytes(hash))).copied()
    }

    /// Something else is there.
    pub(super) fn forget(&mut self, tree: TreeId, hash: ChunkHash, place: Place) {
        let key = (tree, first_bytes(hash));
        if self.places.peek(&key) == Some(&place) {
            self.places.pop(&key);
        }
    }
}

fn first_bytes(hash: ChunkHash) -> u64 {
    hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TREE: TreeId = TreeId(1);

    fn hash(number: u8) -> ChunkHash {
        ChunkHash::of(&[number])
    }

    fn place(number: u64) -> Place {
        Place { node: NodeId { device: 1, inode: number, birth_ns: 0 }, index: ChunkIndex(number) }
    }

    #[test]
    fn another_tree_learns_nothing() {
        let mut places = Places::default();
        places.note(TREE, hash(1), place(1));
        assert_eq!(places.find(TreeId(2), hash(1)), None);
        assert_eq!(places.find(TREE, hash(1)), Some(place(1)));
    }

    #[test]
    fn only_what_was_found_wrong_is_forgotten() {
        let mut places = Places::default();
        places.note(TREE, hash(1), place(1));
        places.note(TREE, hash(1), place(2));
        places.forget(TREE, hash(1), place(2));
        assert_eq!(places.find(TREE, hash(1)), Some(place(1)));
        places.forget(TREE, hash(1), place(1));
        assert_eq!(places.find(TREE, hash(1)), None);
        places.note(TREE, hash(1), place(2));
        assert_eq!(places.find(TREE, hash(1)), Some(place(2)));
    }

    proptest! {
        #[test]
        fn the_first_place_of_the_chunks_seen_last_is_known(
            capacity in 1usize..8,
            seen in prop::collection::vec((0u8..12, 0u64..5), 0..60),
        ) {
            let mut places = Places::new(NonZeroUsize::new(capacity).unwrap());
            let mut slow: Vec<(u8, u64)> = Vec::new();
            for (chunk, at) in seen {
                places.note(TREE, hash(chunk), place(at));
                let known = slow.iter().find(|(other, _)| *other == chunk).map_or(at, |(_, first)| *first);
                slow.retain(|(other, _)| *other != chunk);
                slow.push((chunk, known));
                if slow.len() > capacity {
                    slow.remove(0);
                }
            }
            prop_assert_eq!(places.places.len(), slow.len());
            for chunk in 0..12 {
                let known = slow.iter().find(|(other, _)| *other == chunk).map(|(_, at)| place(*at));
                prop_assert_eq!(places.places.peek(&(TREE, first_bytes(hash(chunk)))).copied(), known);
            }
        }
    }
}
