//! Descriptors kept open between requests, so that a read need not open the file again; bounded, and not for long.
//!
//! Pure: `now` comes in as an argument, and what is kept is up to the caller.
//!
//! A descriptor follows its file wherever it is moved, also out of the export. One that a client has not opened is
//! therefore only trusted for [`HANDLE_FRESH`]; after that the path must lead to it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::nodes::TreeId;
use crate::proto::NodeId;

/// How long a descriptor is used without going by its path again.
///
/// One second is how soon changes on the host are promised to be seen, and an open costs microseconds.
pub(super) const HANDLE_FRESH: Duration = Duration::from_secs(1);

/// The descriptors used last.
#[derive(Debug)]
pub(super) struct HandleCache<T> {
    handles: LruCache<(TreeId, NodeId), (Arc<T>, Instant)>,
    capacity: usize,
}

impl<T> HandleCache<T> {
    /// A cache of at most `capacity` descriptors.
    pub(super) fn new(capacity: usize) -> Self {
        Self { handles: LruCache::unbounded(), capacity }
    }

    /// The descriptor of `node`, if one was resolved less than [`HANDLE_FRESH`] before `now`.
    pub(super) fn get(&mut self, tree: TreeId, node: NodeId, now: Instant) -> Option<Arc<T>> {
        let (handle, resolved) = self.handles.get(&(tree, node))?;
        if now.saturating_duration_since(*resolved) < HANDLE_FRESH {
            return Some(Arc::clone(handle));
        }
        self.handles.pop(&(tree, node));
        None
    }

    /// Keeps the descriptor of `node`, to which its path led at `now`.
    pub(super) fn put(&mut self, tree: TreeId, node: NodeId, handle: Arc<T>, now: Instant) {
        self.handles.put((tree, node), (handle, now));
        if self.handles.len() > self.capacity {
            self.handles.pop_lru();
        }
    }

    /// Lets go of every descriptor that is no longer trusted at `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        let old: Vec<_> = self
            .handles
            .iter()
            .filter(|(_, (_, resolved))| now.saturating_duration_since(*resolved) >= HANDLE_FRESH)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.handles.pop(&key);
        }
    }

    /// How many are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.handles.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: TreeId = TreeId(1);

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 0 }
    }

    #[test]
    fn a_handle_is_trusted_for_its_time_only() {
        let (mut cache, start) = (HandleCache::new(4), Instant::now());
        cache.put(TREE, node(1), Arc::new("one"), start);
        let just_before = start + HANDLE_FRESH.saturating_sub(Duration::from_nanos(1));
        assert_eq!(cache.get(TREE, node(1), just_before).as_deref(), Some(&"one"));
        assert_eq!(cache.get(TREE, node(1), start + HANDLE_FRESH), None);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn the_one_unused_longest_goes_first() {
        let (mut cache, now) = (HandleCache::new(2), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), now);
        cache.put(TREE, node(2), Arc::new(2), now);
        assert!(cache.get(TREE, node(1), now).is_some());
        cache.put(TREE, node(3), Arc::new(3), now);
        assert!(cache.get(TREE, node(2), now).is_none());
        assert!(cache.get(TREE, node(1), now).is_some());
    }

    #[test]
    fn another_tree_has_none() {
        let (mut cache, now) = (HandleCache::new(2), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), now);
        assert!(cache.get(TreeId(2), node(1), now).is_none());
    }

    #[test]
    fn what_is_old_is_let_go_without_being_asked_for() {
        let (mut cache, start) = (HandleCache::new(4), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), start);
        cache.put(TREE, node(2), Arc::new(2), start + HANDLE_FRESH / 2);
        cache.expire(start + HANDLE_FRESH);
        assert_eq!(cache.len(), 1);
    }
}
