//! Descriptors kept open between requests; bounded in number, with a fair share for each tree.
//!
//! Pure: `now` comes in as an argument, and what is kept is up to the caller.
//!
//! A descriptor follows its file wherever it is moved, also out of the export. So one that a client has not opened is
//! used without a look for [`HANDLE_FRESH`] only. After that it is [`Kept::Old`]: whoever gets it checks where the file
//! is before he uses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::nodes::TreeId;
use crate::proto::NodeId;

/// How long a descriptor is used without a look at where its file is.
///
/// One second is how soon changes on the host are promised to be seen, and an open costs microseconds.
pub(super) const HANDLE_FRESH: Duration = Duration::from_secs(1);

/// A descriptor that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kept<T> {
    /// Its file was found in the tree less than [`HANDLE_FRESH`] ago.
    Fresh(Arc<T>),
    /// Its file was found in the tree once and may be anywhere now.
    Old(Arc<T>),
}

impl<T> Kept<T> {
    /// The descriptor if it is fresh.
    pub(super) fn fresh(self) -> Option<Arc<T>> {
        match self {
            Self::Fresh(handle) => Some(handle),
            Self::Old(_) => None,
        }
    }
}

#[derive(Debug)]
struct Entry<T> {
    handle: Arc<T>,
    resolved: Instant,
    until: Option<Instant>,
}

/// The descriptors used last.
#[derive(Debug)]
pub(super) struct HandleCache<T> {
    trees: HashMap<TreeId, LruCache<NodeId, Entry<T>>>,
    count: usize,
    capacity: usize,
}

impl<T> HandleCache<T> {
    /// A cache of at most `capacity` descriptors.
    pub(super) fn new(capacity: usize) -> Self {
        Self { trees: HashMap::new(), count: 0, capacity }
    }

    /// Returns the descriptor of `node` if one is kept at `now`.
    pub(super) fn get(&mut self, tree: TreeId, node: NodeId, now: Instant) -> Option<Kept<T>> {
        let entries = self.trees.get_mut(&tree)?;
        let entry = entries.get(&node)?;
        if entry.is_over(now) {
            entries.pop(&node);
            self.count -= 1;
            return None;
        }
        let handle = Arc::clone(&entry.handle);
        let is_fresh = now.saturating_duration_since(entry.resolved) < HANDLE_FRESH;
        Some(if is_fresh { Kept::Fresh(handle) } else { Kept::Old(handle) })
    }

    /// Keeps the descriptor of `node`, which was found in the tree at `now`, for the time `keep` or until others need
    /// its place. The tree that keeps most gives up the descriptor that it used longest ago.
    pub(super) fn put(
        &mut self,
        tree: TreeId,
        node: NodeId,
        handle: Arc<T>,
        now: Instant,
        keep: Option<Duration>,
    ) {
        let entry = Entry { handle, resolved: now, until: keep.and_then(|keep| now.checked_add(keep)) };
        let entries = self.trees.entry(tree).or_insert_with(LruCache::unbounded);
        self.count += usize::from(entries.put(node, entry).is_none());
        while self.count > self.capacity {
            let Some(largest) = self.trees.values_mut().max_by_key(|entries| entries.len()) else { return };
            largest.pop_lru();
            self.count -= 1;
        }
    }

    /// Lets go of the descriptor of `node`.
    pub(super) fn remove(&mut self, tree: TreeId, node: NodeId) {
        let removed = self.trees.get_mut(&tree).and_then(|entries| entries.pop(&node));
        self.count -= usize::from(removed.is_some());
    }

    /// Lets go of every descriptor whose time is over at `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        for entries in self.trees.values_mut() {
            let over: Vec<_> =
                entries.iter().filter(|(_, entry)| entry.is_over(now)).map(|(node, _)| *node).collect();
            self.count -= over.len();
            for node in over {
                entries.pop(&node);
            }
        }
        self.trees.retain(|_, entries| !entries.is_empty());
    }

    /// Lets go of every descriptor of a tree.
    pub(super) fn forget_tree(&mut self, tree: TreeId) {
        self.count -= self.trees.remove(&tree).map_or(0, |entries| entries.len());
    }

    /// How many are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.count
    }
}

impl<T> Entry<T> {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
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
    fn a_handle_is_trusted_for_its_time_and_kept_for_longer() {
        let (mut cache, start) = (HandleCache::new(4), Instant::now());
        cache.put(TREE, node(1), Arc::new("for good"), start, None);
        cache.put(TREE, node(2), Arc::new("for a while"), start, Some(2 * HANDLE_FRESH));
        let just_before = start + HANDLE_FRESH.saturating_sub(Duration::from_nanos(1));
        assert_eq!(cache.get(TREE, node(1), just_before), Some(Kept::Fresh(Arc::new("for good"))));
        assert_eq!(cache.get(TREE, node(2), just_before), Some(Kept::Fresh(Arc::new("for a while"))));
        let after = start + HANDLE_FRESH;
        assert_eq!(cache.get(TREE, node(1), after), Some(Kept::Old(Arc::new("for good"))));
        assert_eq!(cache.get(TREE, node(2), after), Some(Kept::Old(Arc::new("for a while"))));
        assert_eq!(cache.get(TREE, node(2), start + 2 * HANDLE_FRESH), None);
        assert!(cache.get(TREE, node(1), start + 1000 * HANDLE_FRESH).is_some());
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn the_one_unused_longest_goes_first() {
        let (mut cache, now) = (HandleCache::new(2), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), now, None);
        cache.put(TREE, node(2), Arc::new(2), now, None);
        assert!(cache.get(TREE, node(1), now).is_some());
        cache.put(TREE, node(3), Arc::new(3), now, None);
        assert!(cache.get(TREE, node(2), now).is_none());
        assert!(cache.get(TREE, node(1), now).is_some());
    }

    #[test]
    fn a_tree_that_wants_all_takes_nothing_from_one_that_has_little() {
        let (mut cache, now) = (HandleCache::new(8), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), now, None);
        for inode in 0..100 {
            cache.put(TreeId(2), node(inode), Arc::new(2), now, None);
        }
        assert!(cache.get(TREE, node(1), now).is_some());
        assert_eq!(cache.len(), 8);
        cache.forget_tree(TreeId(2));
        assert_eq!(cache.len(), 1);
        cache.remove(TREE, node(2));
        cache.remove(TREE, node(1));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_is_over_is_let_go_without_being_asked_for() {
        let (mut cache, start) = (HandleCache::new(4), Instant::now());
        cache.put(TREE, node(1), Arc::new(1), start, Some(HANDLE_FRESH));
        cache.put(TREE, node(2), Arc::new(2), start + HANDLE_FRESH / 2, Some(HANDLE_FRESH));
        cache.put(TREE, node(3), Arc::new(3), start, None);
        cache.expire(start + HANDLE_FRESH);
        assert_eq!(cache.len(), 2);
    }

    /// The same, slowly: a list with the one used last at the end.
    #[derive(Default)]
    struct SlowCache(Vec<(TreeId, NodeId, u64, u64, Option<u64>)>);

    impl SlowCache {
        fn get(&mut self, tree: u64, inode: u64, now_ms: u64) -> Option<(u64, bool)> {
            let at = self.0.iter().position(|entry| (entry.0, entry.1) == (TreeId(tree), node(inode)))?;
            let entry = self.0.remove(at);
            if entry.4.is_some_and(|until| until <= now_ms) {
                return None;
            }
            self.0.push(entry);
            Some((entry.2, now_ms - entry.3 < HANDLE_FRESH.as_millis() as u64))
        }

        fn put(
            &mut self,
            capacity: usize,
            (tree, inode, value): (u64, u64, u64),
            now_ms: u64,
            keep: Option<u64>,
        ) {
            self.0.retain(|entry| (entry.0, entry.1) != (TreeId(tree), node(inode)));
            self.0.push((TreeId(tree), node(inode), value, now_ms, keep.map(|keep| now_ms + keep)));
            if self.0.len() > capacity {
                let share = |tree: TreeId| self.0.iter().filter(|entry| entry.0 == tree).count();
                let most = self.0.iter().map(|entry| share(entry.0)).max().unwrap();
                let loser = self.0.iter().position(|entry| share(entry.0) == most).unwrap();
                self.0.remove(loser);
            }
        }
    }

    proptest! {
        #[test]
        fn it_keeps_what_a_slow_twin_keeps(
            half in 0usize..4,
            steps in proptest::collection::vec((0u64..3, 0u64..2, 0u64..6, 0u64..800, any::<bool>()), 0..80),
        ) {
            // With an even capacity one more makes an odd number, which two trees cannot share evenly.
            let capacity = 2 * half;
            let (mut cache, mut slow) = (HandleCache::new(capacity), SlowCache::default());
            let (start, mut now_ms) = (Instant::now(), 0);
            for (value, (kind, tree, inode, wait_ms, lasting)) in (0u64..).zip(steps) {
                now_ms += wait_ms;
                let now = start + Duration::from_millis(now_ms);
                match kind {
                    0 => {
                        let keep = (!lasting).then_some(1500);
                        let handle = Arc::new(value);
                        cache.put(TreeId(tree), node(inode), handle, now, keep.map(Duration::from_millis));
                        slow.put(capacity, (tree, inode, value), now_ms, keep);
                    }
                    1 => {
                        let found = cache.get(TreeId(tree), node(inode), now).map(|kept| match kept {
                            Kept::Fresh(value) => (*value, true),
                            Kept::Old(value) => (*value, false),
                        });
                        prop_assert_eq!(found, slow.get(tree, inode, now_ms));
                    }
                    _ => {
                        cache.expire(now);
                        slow.0.retain(|entry| entry.4.is_none_or(|until| until > now_ms));
                    }
                }
                prop_assert_eq!(cache.len(), slow.0.len());
            }
        }
    }
}
