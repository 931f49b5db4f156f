//! Inodes that the kernel forgot, as far as they may come back by a file handle (`open_by_handle_at`, an NFS server).
//!
//! Pure: no I/O, no clock.
//!
//! The kernel does not tell of which inodes somebody has a handle, so the last ones that it forgot are kept, whoever asks for them.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::{Inode, Name};
use crate::proto::NodeId;

/// Most inodes; some 180 bytes each.
const INODES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Where an inode was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fs) struct Gone {
    pub node: NodeId,
    /// The directory that held its newest name.
    pub parent: NodeId,
    pub name: Name,
}

/// The inodes that were forgotten last.
#[derive(Debug)]
pub(super) struct Forgotten(LruCache<Inode, Gone>);

impl Default for Forgotten {
    fn default() -> Self {
        // A bounded one would take its room at once.
        Self(LruCache::unbounded())
    }
}

impl Forgotten {
    pub(super) fn insert(&mut self, inode: Inode, gone: Gone) {
        self.0.put(inode, gone);
        if self.0.len() > INODES_MAX.get() {
            self.0.pop_lru();
        }
    }

    pub(super) fn get(&self, inode: Inode) -> Option<&Gone> {
        self.0.peek(&inode)
    }

    /// The number is in use again.
    pub(super) fn remove(&mut self, inode: Inode) {
        self.0.pop(&inode);
    }

    /// Memory that it takes, in bytes, about.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        const LINKS: usize = 2 * size_of::<usize>();
        self.0.iter().map(|(_, gone)| size_of::<(Inode, Gone)>() + LINKS + gone.name.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        let mut forgotten = Forgotten::default();
        let node = |inode| NodeId { device: 1, inode, birth_ns: 0 };
        let gone = |number| Gone { node: node(number), parent: node(1), name: Name::from(b"a".as_slice()) };
        let count = INODES_MAX.get() as u64;
        (0..count + 10).for_each(|number| forgotten.insert(Inode(number), gone(number)));
        assert_eq!((forgotten.get(Inode(9)), forgotten.get(Inode(10))), (None, Some(&gone(10))));
        forgotten.remove(Inode(10));
        assert_eq!(forgotten.get(Inode(10)), None);
    }
}
