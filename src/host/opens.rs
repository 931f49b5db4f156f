//! The files a session holds open, and how often.
//!
//! Pure: what is held is up to the caller.

use std::collections::HashMap;

use crate::proto::NodeId;

/// Most opens of one session at a time.
///
/// Far above what programs have open (a soft limit of 1,024 each), and what keeps one client from taking all
/// descriptors of the host.
pub(super) const OPENS_MAX: u64 = 65_536;

/// The session has too many files open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// Open files by node, each with the number of its opens.
#[derive(Debug)]
pub(super) struct OpenFiles<T> {
    files: HashMap<NodeId, (T, u64)>,
    opens: u64,
    opens_max: u64,
}

impl<T> OpenFiles<T> {
    /// None open; at most `opens_max` at a time.
    pub(super) fn new(opens_max: u64) -> Self {
        Self { files: HashMap::new(), opens: 0, opens_max }
    }

    /// Counts one more open of `node`, whose file is made if it is the first.
    pub(super) fn open(&mut self, node: NodeId, make: impl FnOnce() -> Option<T>) -> Result<(), TooMany> {
        if self.opens == self.opens_max {
            return Err(TooMany);
        }
        match self.files.get_mut(&node) {
            Some((_, count)) => *count += 1,
            None => {
                self.files.insert(node, (make().ok_or(TooMany)?, 1));
            }
        }
        self.opens += 1;
        Ok(())
    }

    /// Takes one open of `node` back and returns the file after the last; nothing happens where there is none.
    pub(super) fn close(&mut self, node: NodeId) -> Option<T> {
        let (_, count) = self.files.get_mut(&node)?;
        *count -= 1;
        self.opens -= 1;
        if *count > 0 {
            return None;
        }
        self.files.remove(&node).map(|(file, _)| file)
    }

    /// The open file of `node`.
    pub(super) fn get(&self, node: NodeId) -> Option<&T> {
        self.files.get(&node).map(|(file, _)| file)
    }

    /// Number of opens.
    pub(super) fn len(&self) -> u64 {
        self.opens
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 0 }
    }

    #[test]
    fn a_file_is_held_until_its_last_close() {
        let mut files = OpenFiles::new(10);
        files.open(node(1), || Some("file")).unwrap();
        files.open(node(1), || None).unwrap();
        assert_eq!(files.close(node(1)), None);
        assert_eq!(files.get(node(1)), Some(&"file"));
        assert_eq!(files.close(node(1)), Some("file"));
        assert_eq!((files.get(node(1)), files.len()), (None, 0));
    }

    #[test]
    fn a_file_that_cannot_be_held_is_not_counted() {
        let mut files = OpenFiles::<()>::new(10);
        assert_eq!(files.open(node(1), || None), Err(TooMany));
        assert_eq!((files.get(node(1)), files.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn it_counts_what_a_list_counts(steps in proptest::collection::vec((any::<bool>(), 0u64..4), 0..60)) {
            const MAX: u64 = 8;
            let (mut files, mut slow) = (OpenFiles::new(MAX), Vec::new());
            for (is_open, inode) in steps {
                if is_open {
                    let fits = (slow.len() as u64) < MAX;
                    prop_assert_eq!(files.open(node(inode), || Some(inode)).is_ok(), fits);
                    if fits {
                        slow.push(inode);
                    }
                } else {
                    files.close(node(inode));
                    if let Some(at) = slow.iter().position(|open| *open == inode) {
                        slow.remove(at);
                    }
                }
                prop_assert_eq!(files.len(), slow.len() as u64);
                for inode in 0..4 {
                    prop_assert_eq!(files.get(node(inode)).is_some(), slow.contains(&inode));
                }
            }
        }
    }
}
