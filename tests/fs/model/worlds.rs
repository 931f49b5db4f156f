//! (P) What may be, after what was seen: every state to which some order of the operations leads that fits all answers so far.
//!
//! An operation happens at one moment between its beginning and its end; one that nobody waits for, as a queued write, at any moment
//! until somebody was told that it is over. Each answer rules out the states that would have given another one. Where none is left, what
//! was seen cannot have come from one file system.

use std::collections::{BTreeMap, BTreeSet};

use wormhole::proto::Errno;

use super::tree::{Id, Name, Op, Outcome, Tag, Tree};

/// An operation.
pub(super) type OpId = u32;

/// Most states that are followed. More come from more operations under way than the histories have.
const WORLDS_MAX: usize = 50_000;

/// What somebody saw of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Done,
    /// A node; `None` if nobody knows yet by which operation it came.
    Node(Option<Id>),
    Absent,
    Names(BTreeSet<Name>),
    Tags(Vec<Tag>),
    /// So many units, where own writes that may be on their way count as far as they reach.
    Size {
        units: usize,
        unsent: Vec<(OpId, usize)>,
    },
    Error(Errno),
}

/// One state, and what operations came to whose end nobody has seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    tree: Tree,
    done: BTreeMap<OpId, Outcome>,
}

#[derive(Debug, Clone)]
struct Pending {
    op: Op,
    /// What happens before it.
    after: Vec<OpId>,
}

/// All states that may be.
#[derive(Debug)]
pub(super) struct Worlds {
    left: BTreeSet<World>,
    pending: BTreeMap<OpId, Pending>,
    /// What was made by operations of which the answer was seen.
    known: BTreeSet<Id>,
    begun: OpId,
}

impl Worlds {
    pub(super) fn new() -> Self {
        let world = World { tree: Tree::new(), done: BTreeMap::new() };
        let known = BTreeSet::from([super::tree::ROOT]);
        Self { left: BTreeSet::from([world]), pending: BTreeMap::new(), known, begun: 0 }
    }

    /// The number of the next operation, which is that of what it makes, too.
    pub(super) const fn next(&self) -> OpId {
        self.begun + 1
    }

    /// An operation may happen from now on, after some others.
    pub(super) fn begin(&mut self, op: Op, after: Vec<OpId>) -> OpId {
        self.begun += 1;
        self.pending.insert(self.begun, Pending { op, after });
        self.begun
    }

    /// Writes may be lost from now on: what comes after them need not wait for them any more, but for other writes.
    pub(super) fn relax(&mut self) {
        for pending in self.pending.values_mut().filter(|pending| !pending.op.writes()) {
            pending.after.clear();
        }
    }

    /// An operation is over. If it led to a node: which one that was, if it can be only one.
    pub(super) fn end(&mut self, id: OpId, seen: &Seen) -> Option<Id> {
        let op = self.pending[&id].op.clone();
        let (mut fitting, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for mut world in self.reached(id) {
            let Some(outcome) = world.done.remove(&id) else { continue };
            if self.fits(&world, &outcome, seen) {
                fitting.insert(world);
                nodes.extend(outcome.node());
            }
        }
        if matches!(seen, Seen::Error(Errno::ESTALE | Errno::ENOENT)) {
            // What has no name may be gone, and then nothing was done.
            fitting.extend(
                self.left
                    .iter()
                    .filter(|world| {
                        matches!(world.tree.clone().apply(&op), Outcome::Nameless(_))
                            && !world.done.contains_key(&id)
                    })
                    .cloned(),
            );
        }
        assert!(
            !fitting.is_empty(),
            "{op:?} cannot have come to {seen:?}; it could in none of {:#?}, with {:?} under way",
            self.left,
            self.pending
        );
        self.pending.remove(&id);
        self.left = fitting;
        let node = nodes.pop_first().filter(|_| nodes.is_empty());
        self.known.extend(node);
        node
    }

    /// An operation is over, and may have happened or not.
    pub(super) fn give_up(&mut self, id: OpId) {
        let mut left = BTreeSet::new();
        for mut world in self.reached(id).into_iter().chain(self.left.clone()) {
            world.done.remove(&id);
            left.insert(world);
        }
        self.pending.remove(&id);
        self.left = left;
    }

    /// Whether anything may still happen.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether anything may still happen that changes something.
    pub(super) fn changes_under_way(&self) -> bool {
        self.pending.values().any(|pending| !pending.op.only_looks())
    }

    /// Every state in which the operation has happened.
    fn reached(&self, id: OpId) -> BTreeSet<World> {
        let (mut reached, mut seen) = (BTreeSet::new(), self.left.clone());
        let mut open: Vec<World> = self.left.iter().cloned().collect();
        while let Some(world) = open.pop() {
            if world.done.contains_key(&id) {
                reached.insert(world);
                continue;
            }
            for next in self.pending.keys().filter_map(|next| self.step(&world, *next)) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
            assert!(seen.len() < WORLDS_MAX, "too much is under way: {:?}", self.pending);
        }
        reached
    }

    /// The operation happens now, if it may.
    fn step(&self, world: &World, id: OpId) -> Option<World> {
        let Pending { op, after } = &self.pending[&id];
        let is_over = |before: &OpId| !self.pending.contains_key(before) || world.done.contains_key(before);
        if world.done.contains_key(&id) || !after.iter().all(is_over) {
            return None;
        }
        let mut next = world.clone();
        let outcome = next.tree.apply(op);
        next.done.insert(id, outcome);
        Some(next)
    }

    fn fits(&self, world: &World, outcome: &Outcome, seen: &Seen) -> bool {
        match (outcome, seen) {
            (Outcome::Nameless(outcome), seen) => {
                matches!(seen, Seen::Error(Errno::ESTALE | Errno::ENOENT)) || self.fits(world, outcome, seen)
            }
            (Outcome::Done, Seen::Done) | (Outcome::Absent, Seen::Absent) => true,
            (Outcome::Node(id), Seen::Node(seen)) => {
                seen.map_or(!self.known.contains(id), |seen| seen == *id)
            }
            (Outcome::Names(names), Seen::Names(seen)) => names == seen,
            (Outcome::Tags(tags), Seen::Tags(seen)) => tags == seen,
            (Outcome::Size(size), Seen::Size { units, unsent }) => {
                let may_be_on_its_way =
                    |(id, _): &&(OpId, usize)| self.pending.contains_key(id) && !world.done.contains_key(id);
                let least = unsent.iter().filter(may_be_on_its_way).map(|(_, end)| *end).max();
                let most = unsent.iter().map(|(_, end)| *end).max();
                (least.unwrap_or(0).max(*size)..=most.unwrap_or(0).max(*size)).contains(units)
            }
            (Outcome::Error(errno), Seen::Error(seen)) => *errno == seen.0,
            _ => false,
        }
    }
}
