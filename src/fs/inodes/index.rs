//! Index of places by a key that stands in what lies there, so that the key takes no room here.
//!
//! Pure: no I/O, no clock.

use hashbrown::HashTable;

/// Fewest places for which it is worth the work to make an index smaller.
const SHRINK_MIN: usize = 16 * 1024;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index(HashTable<u32>);

impl Index {
    /// The place with this hash that is the one.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(hash, |slot| is_it(*slot)).copied()
    }

    /// Adds a place. `hash_of` tells the hash of every place.
    pub(super) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        self.0.insert_unique(hash, slot, |slot| hash_of(*slot));
    }

    /// Removes the place with this hash that is the one.
    pub(super) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        Some(self.0.find_entry(hash, |slot| is_it(*slot)).ok()?.remove().0)
    }

    /// Gives memory back where most of it is not needed any more.
    pub(super) fn shrink(&mut self, hash_of: impl Fn(u32) -> u64) {
        let (len, capacity) = (self.0.len(), self.0.capacity());
        if capacity > SHRINK_MIN && len < capacity / 8 {
            self.0.shrink_to(len * 2, |slot| hash_of(*slot));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Memory that it takes, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_with_what_it_holds() {
        let mut index = Index::default();
        let hash = |slot: u32| u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..100_000).for_each(|slot| index.insert(hash(slot), slot, hash));
        let full = index.bytes();
        for slot in 100..100_000 {
            assert_eq!(index.remove(hash(slot), |found| found == slot), Some(slot));
            index.shrink(hash);
        }
        assert!(index.bytes() < full / 8, "{} of {full}", index.bytes());
        assert!((0..100).all(|slot| index.find(hash(slot), |found| found == slot) == Some(slot)));
        assert_eq!(index.len(), 100);
    }
}
