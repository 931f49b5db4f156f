//! Table of watched directories: which subscribers want to hear of which watch, bounded per key over all of its subscribers.
//!
//! Pure: the kernel's names of watches (`W`) go in, decisions come out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use crate::proto::NodeId;

/// Number of a subscriber: one event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SubscriberId(pub(super) u64);

#[derive(Debug)]
struct Watch {
    directory: NodeId,
    subscribers: Vec<SubscriberId>,
}

/// Consequences of a change of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Consequences<W> {
    /// A directory that a subscriber of the key lost, so that the key stays within its bound.
    pub(super) revoked: Option<(SubscriberId, NodeId)>,
    /// Watches that nobody wants any more.
    pub(super) unwanted: Vec<W>,
}

/// The table.
#[derive(Debug)]
pub(super) struct WatchTable<W, K> {
    watches: HashMap<W, Watch>,
    /// Whose each subscriber is.
    keys: HashMap<SubscriberId, K>,
    /// Watches of the subscribers of each key, the oldest first.
    by_key: HashMap<K, VecDeque<(SubscriberId, W)>>,
    held: HashSet<(SubscriberId, NodeId)>,
    directories_max: usize,
}

impl<W: Copy + Eq + Hash, K: Copy + Eq + Hash> WatchTable<W, K> {
    /// Returns an empty table in which the subscribers of a key have at most `directories_max` watches together.
    pub(super) fn new(directories_max: usize) -> Self {
        let (watches, keys, by_key) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { watches, keys, by_key, held: HashSet::new(), directories_max }
    }

    /// Adds a subscriber of a key, without watches.
    pub(super) fn subscribe(&mut self, subscriber: SubscriberId, key: K) {
        self.keys.insert(subscriber, key);
    }

    /// Tells whether a subscriber has a watch on a directory.
    pub(super) fn has(&self, subscriber: SubscriberId, directory: NodeId) -> bool {
        self.held.contains(&(subscriber, directory))
    }

    /// Adds the watch of a directory for a subscriber. If its key has too many then, the oldest one of the key ends. Does nothing for a
    /// subscriber that is not there (any more): the watch is then unwanted unless others want it.
    pub(super) fn add(&mut self, subscriber: SubscriberId, watch: W, directory: NodeId) -> Consequences<W> {
        let mut consequences = Consequences { revoked: None, unwanted: Vec::new() };
        let Some(key) = self.keys.get(&subscriber) else {
            if !self.watches.contains_key(&watch) {
                consequences.unwanted.push(watch);
            }
            return consequences;
        };
        let entry = self.watches.entry(watch).or_insert_with(|| Watch { directory, subscribers: Vec::new() });
        if entry.subscribers.contains(&subscriber) {
            return consequences;
        }
        entry.subscribers.push(subscriber);
        let own = self.by_key.entry(*key).or_default();
        own.push_back((subscriber, watch));
        self.held.insert((subscriber, directory));
        if own.len() > self.directories_max
            && let Some((loser, oldest)) = own.pop_front()
        {
            consequences.revoked = self.watches.get(&oldest).map(|watch| (loser, watch.directory));
            consequences.unwanted.extend(self.leave(loser, oldest));
        }
        consequences
    }

    /// Removes a subscriber. Returns the watches that nobody wants any more.
    pub(super) fn unsubscribe(&mut self, subscriber: SubscriberId) -> Vec<W> {
        let Some(key) = self.keys.remove(&subscriber) else { return Vec::new() };
        let all = self.by_key.remove(&key).unwrap_or_default();
        let (own, others): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|(who, _)| *who == subscriber);
        if !others.is_empty() {
            self.by_key.insert(key, others);
        }
        own.into_iter().filter_map(|(_, watch)| self.leave(subscriber, watch)).collect()
    }

    /// Removes a watch that has ended by itself. Returns its directory and who is to be told.
    pub(super) fn ended(&mut self, watch: W) -> Option<(NodeId, Vec<SubscriberId>)> {
        let ended = self.watches.remove(&watch)?;
        for subscriber in &ended.subscribers {
            let key = self.keys.get(subscriber);
            if let Some(own) = key.and_then(|key| self.by_key.get_mut(key)) {
                own.retain(|known| *known != (*subscriber, watch));
            }
            self.held.remove(&(*subscriber, ended.directory));
        }
        Some((ended.directory, ended.subscribers))
    }

    /// The directory of a watch and its subscribers.
    pub(super) fn get(&self, watch: W) -> Option<(NodeId, &[SubscriberId])> {
        self.watches.get(&watch).map(|watch| (watch.directory, watch.subscribers.as_slice()))
    }

    /// Number of directories that are watched.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Takes a subscriber off a watch. Returns the watch if it was the last one.
    fn leave(&mut self, subscriber: SubscriberId, watch: W) -> Option<W> {
        let entry = self.watches.get_mut(&watch)?;
        entry.subscribers.retain(|known| *known != subscriber);
        self.held.remove(&(subscriber, entry.directory));
        if !entry.subscribers.is_empty() {
            return None;
        }
        self.watches.remove(&watch);
        Some(watch)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type WatchId = i32;

    const DIRECTORIES_MAX: usize = 3;

    /// Two of the three subscribers are of one key.
    fn key_of(who: u64) -> u64 {
        who / 2
    }

    fn node(watch: WatchId) -> NodeId {
        NodeId { device: 1, inode: watch as u64, birth_ns: 0 }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Subscribe(u64),
        Add(u64, WatchId),
        Unsubscribe(u64),
        Ended(WatchId),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0u64..3).prop_map(Step::Subscribe),
            6 => (0u64..3, 1..7).prop_map(|(who, watch)| Step::Add(who, watch)),
            1 => (0u64..3).prop_map(Step::Unsubscribe),
            1 => (1..7).prop_map(Step::Ended),
        ]
    }

    proptest! {
        /// Beside a list of pairs, searched from end to end.
        #[test]
        fn it_agrees_with_a_list_of_pairs(steps in proptest::collection::vec(step(), 0..80)) {
            let mut table = WatchTable::new(DIRECTORIES_MAX);
            let mut subscribers = BTreeSet::new();
            let mut pairs: Vec<(u64, WatchId)> = Vec::new();
            for step in steps {
                match step {
                    Step::Subscribe(who) => {
                        table.subscribe(SubscriberId(who), key_of(who));
                        subscribers.insert(who);
                    }
                    Step::Add(who, watch) => {
                        let consequences = table.add(SubscriberId(who), watch, node(watch));
                        let before = pairs.clone();
                        let mut revoked = None;
                        if subscribers.contains(&who) && !pairs.contains(&(who, watch)) {
                            pairs.push((who, watch));
                            let is_of_key = |pair: &&(u64, WatchId)| key_of(pair.0) == key_of(who);
                            let own: Vec<_> = pairs.iter().filter(is_of_key).copied().collect();
                            if own.len() > DIRECTORIES_MAX {
                                pairs.retain(|pair| *pair != own[0]);
                                revoked = Some((SubscriberId(own[0].0), node(own[0].1)));
                            }
                        }
                        let is_wanted = |watch: WatchId| pairs.iter().any(|pair| pair.1 == watch);
                        let mut gone: Vec<_> = before.iter().map(|pair| pair.1).collect();
                        gone.push(watch);
                        gone.retain(|watch| !is_wanted(*watch));
                        gone.dedup();
                        prop_assert_eq!(consequences.revoked, revoked);
                        prop_assert_eq!(
                            consequences.unwanted.into_iter().collect::<BTreeSet<_>>(),
                            gone.into_iter().collect::<BTreeSet<_>>()
                        );
                    }
                    Step::Unsubscribe(who) => {
                        let unwanted = table.unsubscribe(SubscriberId(who));
                        subscribers.remove(&who);
                        let own: BTreeSet<_> =
                            pairs.iter().filter(|pair| pair.0 == who).map(|pair| pair.1).collect();
                        pairs.retain(|pair| pair.0 != who);
                        let gone: BTreeSet<_> =
                            own.into_iter().filter(|watch| !pairs.iter().any(|pair| pair.1 == *watch)).collect();
                        prop_assert_eq!(unwanted.into_iter().collect::<BTreeSet<_>>(), gone);
                    }
                    Step::Ended(watch) => {
                        let told = table.ended(watch).map(|(_, told)| told).unwrap_or_default();
                        let expected: Vec<_> =
                            pairs.iter().filter(|pair| pair.1 == watch).map(|pair| SubscriberId(pair.0)).collect();
                        pairs.retain(|pair| pair.1 != watch);
                        prop_assert_eq!(told, expected);
                    }
                }
                for (who, watch) in (0..3).flat_map(|who| (1..7).map(move |watch| (who, watch))) {
                    prop_assert_eq!(table.has(SubscriberId(who), node(watch)), pairs.contains(&(who, watch)));
                }
                let watched: BTreeSet<_> = pairs.iter().map(|pair| pair.1).collect();
                prop_assert_eq!(table.len(), watched.len());
            }
        }
    }
}
