//! Leases: directories whose changes the host tells, and what was learned while they were told.
//!
//! Pure: `now` comes in as an argument.
//!
//! A lease on a directory covers its names (also the ones that are not there), the attributes of its files, and its own
//! attributes. It covers an answer only if the host looked while its watch stood, and if no change of the directory was
//! told since the question was sent: such a change may or may not be in the answer. An answer that is covered
//! carries the [`LeaseId`], and holds until the lease ends or a change of that very entry is told.
//!
//! It does not cover attributes of a file with several names, because a change through a name in another directory is
//! not told, and not those of a sub-directory, which has a lease of its own.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::proto::{Attributes, FileKind, LeaseEpoch, NodeId};

/// Longest silence of the host after which leases still hold. It says every 0.5 s that nothing has changed.
const SILENCE_MAX: Duration = Duration::from_millis(1_100);

/// Most leases; above it no new ones are taken. The host has a bound of its own, which is lower.
const LEASES_MAX: usize = 65_536;

/// Names one lease; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(NonZeroU64);

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: LeaseId,
    /// When the question was sent by whose answer it was given: what was asked earlier is not covered.
    since: Instant,
    /// When a change of the directory was told last.
    changed: Option<Instant>,
}

/// The leases of a mount.
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    /// The event stream that is open.
    epoch: Option<LeaseEpoch>,
    heard: Option<Instant>,
    leases: HashMap<NodeId, Lease>,
    directories: HashMap<LeaseId, NodeId>,
    /// When a change was told last of a directory without a lease here: one may be on its way.
    unknown_changed: Option<Instant>,
    next: u64,
}

impl LeaseTable {
    /// A new event stream is open: all leases of the one before are over.
    pub(super) fn begin(&mut self, epoch: LeaseEpoch, now: Instant) {
        self.end();
        self.epoch = Some(epoch);
        self.heard = Some(now);
    }

    /// The event stream is over, and all leases with it.
    pub(super) fn end(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// The host said something on the event stream.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.map(|_| now);
    }

    /// The host gave a lease on a directory with the answer to a question that was sent at `asked`. Returns the lease if
    /// it covers that answer.
    pub(super) fn grant(&mut self, directory: NodeId, epoch: LeaseEpoch, asked: Instant) -> Option<LeaseId> {
        if self.epoch != Some(epoch) {
            return None;
        }
        if !self.leases.contains_key(&directory) {
            let was_changed = self.unknown_changed.is_some_and(|changed| changed >= asked);
            if was_changed || self.leases.len() >= LEASES_MAX {
                return None;
            }
            let id = LeaseId(NonZeroU64::MIN.saturating_add(self.next));
            self.next += 1;
            self.leases.insert(directory, Lease { id, since: asked, changed: None });
            self.directories.insert(id, directory);
        }
        self.covering(directory, asked)
    }

    /// The lease on a directory, if it covers what is answered now to a question that was sent at `asked`.
    pub(super) fn covering(&self, directory: NodeId, asked: Instant) -> Option<LeaseId> {
        let lease = self.leases.get(&directory)?;
        let covers = asked >= lease.since && lease.changed.is_none_or(|changed| asked > changed);
        covers.then_some(lease.id)
    }

    /// A change of a directory is told. Returns the lease that covers what is told.
    pub(super) fn changed(&mut self, directory: NodeId, now: Instant) -> Option<LeaseId> {
        let Some(lease) = self.leases.get_mut(&directory) else {
            self.unknown_changed = Some(now);
            return None;
        };
        lease.changed = Some(now);
        Some(lease.id)
    }

    /// The lease on a directory is over.
    pub(super) fn revoke(&mut self, directory: NodeId, now: Instant) {
        self.unknown_changed = Some(now);
        if let Some(lease) = self.leases.remove(&directory) {
            self.directories.remove(&lease.id);
        }
    }

    /// Tells whether a lease still covers names.
    pub(super) fn covers_entry(&self, lease: Option<LeaseId>, now: Instant) -> bool {
        self.directory_of(lease, now).is_some()
    }

    /// Tells whether a lease still covers these attributes.
    pub(super) fn covers_attributes(
        &self,
        lease: Option<LeaseId>,
        attributes: &Attributes,
        now: Instant,
    ) -> bool {
        self.directory_of(lease, now).is_some_and(|directory| match attributes.kind {
            FileKind::Directory => directory == attributes.node,
            _ => attributes.links == 1,
        })
    }

    /// Number of leases.
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    fn directory_of(&self, lease: Option<LeaseId>, now: Instant) -> Option<NodeId> {
        let heard = self.heard?;
        if now.saturating_duration_since(heard) > SILENCE_MAX {
            return None;
        }
        self.directories.get(&lease?).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fs::tests::attributes;

    const EPOCH: LeaseEpoch = LeaseEpoch(7);

    fn directory(inode: u64) -> NodeId {
        attributes(inode, FileKind::Directory).node
    }

    fn table(now: Instant) -> LeaseTable {
        let mut table = LeaseTable::default();
        table.begin(EPOCH, now);
        table
    }

    #[test]
    fn a_lease_holds_while_the_host_is_heard() {
        let now = Instant::now();
        let mut table = table(now);
        let lease = table.grant(directory(2), EPOCH, now);
        assert!(lease.is_some());
        let late = now + Duration::from_secs(60);
        assert!(!table.covers_entry(lease, late));
        table.heard(late);
        assert!(table.covers_entry(lease, late + SILENCE_MAX));
        assert!(!table.covers_entry(None, late));
    }

    #[test]
    fn a_lease_of_another_stream_is_none() {
        let now = Instant::now();
        let mut table = table(now);
        assert_eq!(table.grant(directory(2), LeaseEpoch(6), now), None);
        let lease = table.grant(directory(2), EPOCH, now);
        table.begin(LeaseEpoch(8), now);
        assert!(!table.covers_entry(lease, now));
        assert_eq!(table.grant(directory(2), EPOCH, now), None);
        let other = table.grant(directory(2), LeaseEpoch(8), now);
        assert_ne!(other, lease);
        table.end();
        assert!(!table.covers_entry(other, now));
    }

    #[test]
    fn sub_directories_and_files_with_several_names_are_not_covered() {
        let now = Instant::now();
        let mut table = table(now);
        let lease = table.grant(directory(2), EPOCH, now);
        let file = attributes(3, FileKind::Regular);
        assert!(table.covers_attributes(lease, &file, now));
        assert!(!table.covers_attributes(lease, &Attributes { links: 2, ..file }, now));
        assert!(!table.covers_attributes(lease, &attributes(4, FileKind::Directory), now));
        assert!(table.covers_attributes(lease, &attributes(2, FileKind::Directory), now));
        assert!(table.covers_entry(lease, now));
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// The host changes the only entry of the directory.
        Change,
        /// The client asks for it.
        Ask,
        /// The host looks for the oldest question that it has not looked for.
        Look,
        /// The oldest answer arrives.
        Answer,
        /// The oldest event arrives.
        Event,
        Revoke,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Change),
            4 => Just(Step::Ask),
            4 => Just(Step::Look),
            4 => Just(Step::Answer),
            4 => Just(Step::Event),
            1 => Just(Step::Revoke),
            1 => Just(Step::Restart),
        ]
    }

    /// What travels on the event stream.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Told {
        Begun(LeaseEpoch),
        State(u32),
        Revoked,
    }

    /// A host with one directory that holds one entry, whose state is a number, and a client that asks for it. Answers and
    /// events travel separately, each kind in order.
    struct World {
        table: LeaseTable,
        now: Instant,
        state: u32,
        epoch: u64,
        watched: bool,
        asked: Vec<Instant>,
        answers: Vec<(Instant, u32, Option<LeaseEpoch>)>,
        events: Vec<Told>,
        /// The state that the client knows, and the lease by which.
        known: Option<(u32, LeaseId)>,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let table = table(now);
            Self {
                table,
                now,
                state: 0,
                epoch: EPOCH.0,
                watched: false,
                asked: Vec::new(),
                answers: Vec::new(),
                events: Vec::new(),
                known: None,
            }
        }

        fn apply(&mut self, step: &Step) {
            self.now += Duration::from_millis(1);
            match step {
                Step::Change => {
                    self.state += 1;
                    if self.watched {
                        self.events.push(Told::State(self.state));
                    }
                }
                Step::Ask => self.asked.push(self.now),
                Step::Look if !self.asked.is_empty() => {
                    self.watched = true;
                    let asked = self.asked.remove(0);
                    self.answers.push((asked, self.state, Some(LeaseEpoch(self.epoch))));
                }
                Step::Answer if !self.answers.is_empty() => {
                    let (asked, state, epoch) = self.answers.remove(0);
                    let lease = epoch.and_then(|epoch| self.table.grant(directory(2), epoch, asked));
                    if let Some(lease) = lease {
                        self.known = Some((state, lease));
                    }
                }
                Step::Event if !self.events.is_empty() => match self.events.remove(0) {
                    Told::Begun(epoch) => self.table.begin(epoch, self.now),
                    Told::Revoked => self.table.revoke(directory(2), self.now),
                    Told::State(state) => {
                        if let Some(lease) = self.table.changed(directory(2), self.now) {
                            self.known = Some((state, lease));
                        }
                    }
                },
                Step::Revoke if self.watched => {
                    self.watched = false;
                    self.events.push(Told::Revoked);
                }
                Step::Restart => {
                    (self.epoch, self.watched) = (self.epoch + 1, false);
                    // What was on its way is lost, and that is noticed at once.
                    self.events = vec![Told::Begun(LeaseEpoch(self.epoch))];
                    self.table.end();
                }
                _ => {}
            }
            self.table.heard(self.now);
        }

        /// With nothing under way, what is covered is true.
        fn check(&self) {
            if let Some((state, lease)) = self.known
                && self.events.is_empty()
                && self.table.covers_entry(Some(lease), self.now)
            {
                assert_eq!(state, self.state, "a lease covers what is no longer so");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn what_is_covered_is_true_once_events_have_arrived(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut world = World::new();
            for step in &steps {
                world.apply(step);
                world.check();
            }
        }
    }
}
