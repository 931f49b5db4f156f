//! The files a session holds open, and by which opens.
//!
//! Pure: what is held is up to the caller.

use std::collections::{HashMap, HashSet};

use crate::proto::{NodeId, OpenId};

/// Most opens of one session at a time.
///
/// Far above what programs have open (a soft limit of 1,024 each), and what keeps one client from taking all
/// descriptors of the host.
pub(super) const OPENS_MAX: u64 = 65_536;

/// The session has too many files open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// Open files by node, each with the names of its opens: an open that comes again is the same one.
#[derive(Debug)]
pub(super) struct OpenFiles<T> {
    files: HashMap<NodeId, (T, HashSet<OpenId>)>,
    opens: u64,
    opens_max: u64,
}

impl<T> OpenFiles<T> {
    /// None open; at most `opens_max` at a time.
    pub(super) fn new(opens_max: u64) -> Self {
        Self { files: HashMap::new(), opens: 0, opens_max }
    }

    /// Notes an open of `node`, whose file is made if it is the first.
    pub(super) fn open(
        &mut self,
        node: NodeId,
        open: OpenId,
        make: impl FnOnce() -> Option<T>,
    ) -> Result<(), TooMany> {
        if self.opened(node, open).is_some() {
            return Ok(());
        }
        if self.opens == self.opens_max {
            return Err(TooMany);
        }
        match self.files.get_mut(&node) {
            Some((_, opens)) => {
                opens.insert(open);
            }
            None => {
                self.files.insert(node, (make().ok_or(TooMany)?, HashSet::from([open])));
            }
        }
        self.opens += 1;
        Ok(())
    }

    /// Takes an open of `node` back and returns the file after the last; nothing happens where there is none of that name.
    pub(super) fn close(&mut self, node: NodeId, open: OpenId) -> Option<T> {
        let (_, opens) = self.files.get_mut(&node)?;
        self.opens -= u64::from(opens.remove(&open));
        if !opens.is_empty() {
            return None;
        }
        self.files.remove(&node).map(|(file, _)| file)
    }

    /// The file of `node`, if this very open of it was noted.
    pub(super) fn opened(&self, node: NodeId, open: OpenId) -> Option<&T> {
        self.files.get(&node).filter(|(_, opens)| opens.contains(&open)).map(|(file, _)| file)
    }

    /// The open file of `node`.
    pub(super) fn get(&self, node: NodeId) -> Option<&T> {
        self.files.get(&node).map(|(file, _)| file)
    }

    /// The same, to put another in its place.
    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut T> {
        self.files.get_mut(&node).map(|(file, _)| file)
    }

    /// Number of opens.
    pub(super) fn len(&self) -> u64 {
        self.opens
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 0 }
    }

    #[test]
    fn a_file_is_held_until_its_last_close() {
        let mut files = OpenFiles::new(10);
        files.open(node(1), OpenId(1), || Some("file")).unwrap();
        files.open(node(1), OpenId(2), || None).unwrap();
        assert_eq!(files.close(node(1), OpenId(1)), None);
        assert_eq!(files.get(node(1)), Some(&"file"));
        assert_eq!(files.close(node(1), OpenId(1)), None, "it was taken back already");
        assert_eq!(files.close(node(1), OpenId(2)), Some("file"));
        assert_eq!((files.get(node(1)), files.len()), (None, 0));
    }

    #[test]
    fn an_open_that_comes_again_is_the_same() {
        let mut files = OpenFiles::new(1);
        files.open(node(1), OpenId(1), || Some("file")).unwrap();
        files.open(node(1), OpenId(1), || None).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files.close(node(1), OpenId(1)), Some("file"));
    }

    #[test]
    fn a_file_that_cannot_be_held_is_not_counted() {
        let mut files = OpenFiles::<()>::new(10);
        assert_eq!(files.open(node(1), OpenId(1), || None), Err(TooMany));
        assert_eq!((files.get(node(1)), files.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(steps in proptest::collection::vec((any::<bool>(), 0u64..4, 0u64..4), 0..60)) {
            const MAX: usize = 8;
            let (mut files, mut slow) = (OpenFiles::new(MAX as u64), BTreeSet::new());
            for (is_open, inode, open) in steps {
                if is_open {
                    let fits = slow.len() < MAX || slow.contains(&(inode, open));
                    prop_assert_eq!(files.open(node(inode), OpenId(open), || Some(inode)).is_ok(), fits);
                    if fits {
                        slow.insert((inode, open));
                    }
                } else {
                    files.close(node(inode), OpenId(open));
                    slow.remove(&(inode, open));
                }
                prop_assert_eq!(files.len(), slow.len() as u64);
                for inode in 0..4 {
                    prop_assert_eq!(files.get(node(inode)).is_some(), slow.iter().any(|(held, _)| *held == inode));
                }
            }
        }
    }
}
