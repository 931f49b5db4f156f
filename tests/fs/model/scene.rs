//! What a history has to do with: one host, two mounts, and what may be of them after what was seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{Entry, Freshness, FsConfig, FsError, Inode, Lookup};
use wormhole::proto::{Errno, FileKind, NodeId};

use super::tree::{Id, Name, Op, ROOT, Tag};
use super::worlds::{OpId, Seen, Worlds};
use crate::fs::{FLEETING, World};

/// The names that there can be, and which of them are ever looked below.
pub(super) const NAMES: [&str; 4] = ["a", "b", "d", "e"];
const FOLDERS: [Name; 2] = [2, 3];

/// How long copies hold where they hold at all, and longer.
const LIFETIME: Duration = Duration::from_millis(5);
const LONGER: Duration = Duration::from_millis(7);

/// Below the root, or one directory further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) folder: Option<usize>,
    pub(super) name: Name,
}

impl Path {
    pub(super) fn folder_name(self) -> Option<Name> {
        self.folder.map(|folder| FOLDERS[folder])
    }

    pub(super) fn text(self) -> String {
        let name = NAMES[usize::from(self.name)];
        self.folder_name()
            .map_or_else(|| name.to_owned(), |folder| format!("{}/{name}", NAMES[usize::from(folder)]))
    }
}

/// How a history goes about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Bytes in a unit: what one write fills is told from others unit by unit.
    pub(super) unit_bytes: usize,
    /// Copies hold for a while and are served while the host is away; otherwise each answer is of now.
    pub(super) keeps_copies: bool,
    /// The host's clock stands still for so long.
    pub(super) granularity: Duration,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) number: u64,
    pub(super) inode: Inode,
    pub(super) node: NodeId,
    pub(super) id: Id,
    /// The first of the recorded contents that may be read through it.
    pub(super) from_content: usize,
}

/// A write that nobody has been told to be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    pub(super) op: OpId,
    /// From which unit to which; `None` for one at the end.
    pub(super) place: Option<(usize, usize)>,
    pub(super) tag: Tag,
    /// Somebody was told of a failure that may be its.
    pub(super) may_be_lost: bool,
}

/// What is known so far.
pub(super) struct State {
    pub(super) worlds: Worlds,
    pub(super) ids: HashMap<NodeId, Id>,
    pub(super) queued: HashMap<(usize, Id), Vec<Queued>>,
    /// The first of the recorded contents that a mount may still show, as it has written since.
    pub(super) floors: HashMap<(usize, Id), usize>,
    pub(super) last_tag: Tag,
    /// How often something happened by which writes may be lost.
    pub(super) breaks: usize,
    /// The link is cut, or answers are held back.
    pub(super) is_hindered: bool,
    pub(super) hindrances: usize,
    /// Every copy that a mount has is of now.
    is_fresh: bool,
    /// Changes that were begun.
    pub(super) changes: usize,
}

pub(super) struct Scene {
    pub(super) host: MemoryHost,
    pub(super) mounts: [World; 2],
    pub(super) rules: Rules,
    state: Mutex<State>,
}

impl State {
    fn put_under_way(&mut self, op: Op, after: Vec<OpId>) -> OpId {
        let id = self.worlds.begin(op, after);
        if self.breaks > 0 {
            self.worlds.relax();
        }
        id
    }

    /// From now on something may be lost: the host restarts, or a file was opened while it was away, and it does not know of that.
    pub(super) fn breaks_off(&mut self) {
        self.breaks += 1;
        self.worlds.relax();
    }

    /// Whether something may have failed because the host does not know who has what open: nothing of what has no name is left then, what
    /// moved meanwhile is not found again, and what was not synced may be lost.
    pub(super) fn may_be_lost(&self, error: &FsError) -> bool {
        self.breaks > 0 && matches!(error.errno(), Errno::EIO | Errno::ESTALE)
    }
}

impl Scene {
    pub(super) fn new(rules: Rules) -> Arc<Self> {
        let host = MemoryHost::new();
        host.record_contents();
        host.set_clock_granularity(rules.granularity);
        let brief = Freshness { attributes: LIFETIME, entries: LIFETIME, absence: LIFETIME };
        let config = FsConfig {
            read_only: false,
            freshness: if rules.keeps_copies { brief } else { FLEETING },
            serves_stale: rules.keeps_copies,
            ..FsConfig::default()
        };
        let mounts = [(); 2].map(|()| World::with_config(host.another_client(), config.clone()));
        let state = State {
            worlds: Worlds::new(),
            ids: HashMap::from([(host.root_node(), ROOT)]),
            queued: HashMap::new(),
            floors: HashMap::new(),
            last_tag: 0,
            breaks: 0,
            is_hindered: false,
            hindrances: 0,
            is_fresh: true,
            changes: 0,
        };
        Arc::new(Self { host, mounts, rules, state: Mutex::new(state) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time goes by, on the host and here.
    pub(super) async fn age(&self) {
        self.host.advance(Duration::from_secs(3));
        if self.rules.keeps_copies {
            tokio::time::sleep(LONGER).await;
        }
        let mut state = self.state();
        state.is_fresh = !state.is_hindered && !state.worlds.changes_under_way();
    }

    /// From now on something stands in the way of answers.
    pub(super) fn hinder(&self) {
        let mut state = self.state();
        (state.is_hindered, state.is_fresh) = (true, false);
        state.hindrances += 1;
    }

    /// A change begins.
    pub(super) fn begin(&self, op: Op, after: Vec<OpId>) -> OpId {
        let mut state = self.state();
        state.is_fresh = false;
        state.changes += 1;
        state.put_under_way(op, after)
    }

    /// The same for one that makes something, which bears the operation's number.
    pub(super) fn begin_making(&self, op: impl FnOnce(Id) -> Op) -> OpId {
        let new = self.state().worlds.next();
        self.begin(op(new), Vec::new())
    }

    /// A look begins; `None` where what is seen may be a copy of earlier.
    pub(super) fn look(&self, op: Op, after: Vec<OpId>) -> Option<OpId> {
        let mut state = self.state();
        let is_told = !self.rules.keeps_copies || (state.is_fresh && !state.is_hindered);
        is_told.then(|| state.put_under_way(op, after))
    }

    /// What came of an operation; which node it led to, if it did and it is known.
    pub(super) fn end(&self, op: OpId, answer: Result<Seen, FsError>) -> Option<Id> {
        let mut state = self.state();
        match answer {
            Err(error) if state.may_be_lost(&error) => {
                state.worlds.give_up(op);
                None
            }
            Err(error) => state.worlds.end(op, &Seen::Error(error.errno())),
            Ok(seen) => state.worlds.end(op, &seen),
        }
    }

    /// The same of one that led to a node.
    pub(super) fn end_at(&self, op: OpId, answer: Result<NodeId, FsError>) -> Option<Id> {
        let node = answer.as_ref().ok().copied();
        let known = node.and_then(|node| self.state().ids.get(&node).copied());
        let id = self.end(op, answer.map(|_| Seen::Node(known)));
        if let (Some(node), Some(id)) = (node, id) {
            self.state().ids.insert(node, id);
        }
        id
    }

    /// The same of a look. A copy may also lead to what is gone.
    pub(super) fn end_look(&self, op: Option<OpId>, answer: Result<Seen, FsError>) {
        match (op, answer) {
            (Some(op), answer) => {
                self.end(op, answer);
            }
            (None, Err(error)) => {
                assert!(matches!(error.errno(), Errno::ESTALE | Errno::ENOENT), "{error} by a look");
            }
            (None, Ok(_)) => {}
        }
    }

    /// Writes of a mount's own that may be on their way.
    pub(super) fn own(&self, mount: usize, id: Id) -> Vec<Queued> {
        self.state().queued.get(&(mount, id)).cloned().unwrap_or_default()
    }

    pub(super) fn own_ops(&self, mount: usize, id: Id) -> Vec<OpId> {
        self.own(mount, id).iter().map(|queued| queued.op).collect()
    }

    /// The number of what the host recorded last of a file.
    pub(super) fn newest_content(&self, node: NodeId) -> usize {
        self.host.recorded_contents(node).saturating_sub(1)
    }

    /// The directory that holds a path, if there is one.
    pub(super) async fn parent(&self, mount: usize, path: Path) -> Option<(Inode, Id)> {
        let Some(folder) = path.folder_name() else { return Some((Inode::ROOT, ROOT)) };
        let (entry, id) = self.lookup(mount, (Inode::ROOT, ROOT), folder).await?;
        (entry.attributes.kind == FileKind::Directory).then_some((entry.inode, id))
    }

    /// What a path leads to.
    pub(super) async fn walk(&self, mount: usize, path: Path) -> Option<(Entry, Id)> {
        let parent = self.parent(mount, path).await?;
        self.lookup(mount, parent, path.name).await
    }

    /// What a name leads to, if it does, and it is known by which operation it came.
    pub(super) async fn lookup(
        &self,
        mount: usize,
        (inode, parent): (Inode, Id),
        name: Name,
    ) -> Option<(Entry, Id)> {
        let look = self.look(Op::Lookup { parent, name }, Vec::new());
        let text = NAMES[usize::from(name)].as_bytes();
        let found = self.mounts[mount].fs.lookup(inode, text).await;
        let entry = match &found {
            Ok(Lookup::Found(entry)) => Some(*entry),
            _ => None,
        };
        let node = entry.map(|entry| entry.attributes.node);
        let id = match (look, node, found) {
            (Some(look), Some(node), Ok(_)) => self.end_at(look, Ok(node)),
            (look, _, found) => {
                self.end_look(look, found.map(|_| Seen::Absent));
                node.and_then(|node| self.state().ids.get(&node).copied())
            }
        };
        Some((entry?, id?))
    }

    /// The tags of content that begins and ends with a unit.
    pub(super) fn tags(&self, bytes: &[u8]) -> Vec<Tag> {
        let units = bytes.chunks(self.rules.unit_bytes);
        let tag = |unit: &[u8]| {
            let is_whole = unit.len() == self.rules.unit_bytes && unit.iter().all(|byte| *byte == unit[0]);
            assert!(is_whole, "a unit of two writes: {:?}", &unit[..unit.len().min(16)]);
            unit[0]
        };
        units.map(tag).collect()
    }

    pub(super) fn offset(&self, unit: usize) -> u64 {
        (unit * self.rules.unit_bytes) as u64
    }
}
