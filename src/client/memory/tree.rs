//! (P) Tree of the model host: nodes, names, and a clock that moves only on request.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::content::{BLOCK_BYTES, Content};
use crate::proto::{Attributes, Errno, FileKind, NodeId, OpenId, Timestamp, Trust, TrustReason};

/// Device number of the model's file system.
const DEVICE: u64 = 1;
/// Start of the clock: a day in 2023.
const START: Timestamp = Timestamp::new(1_700_000_000, 0);
/// Age of a built tree, well above the age of settled versions.
const BUILT_AGE_NS: i64 = 3_600_000_000_000;
/// Default number of looked-up nodes that are held without a name.
const PINS_MAX: usize = 64;
/// Step of the clock at every change.
const STEP_NS: i64 = 1_000;

/// Content of a node, apart from its attributes.
#[derive(Debug, Clone)]
pub(super) enum Body {
    File(Content),
    Directory(BTreeMap<Vec<u8>, NodeId>),
    Symlink(Vec<u8>),
    Special(FileKind),
}

/// A client, and its number of an open file.
pub(super) type Opener = (u64, OpenId);

/// A file, directory or link.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) body: Body,
    pub(super) permissions: u16,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
    /// Time of access, if it was set.
    pub(super) atime: Option<Timestamp>,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) btime: Timestamp,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Each client numbers its own opens.
    pub(super) opens: BTreeSet<Opener>,
}

/// The tree, and the host's state about its clients.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: HashMap<NodeId, Node>,
    pub(super) root: NodeId,
    /// Nodes that a client has learnt since the last restart.
    pub(super) known: HashSet<NodeId>,
    /// Name and directory under which a node was seen last.
    places: HashMap<NodeId, (NodeId, Vec<u8>)>,
    /// Nodes that were looked up lately and are held without a name, too, the newest last.
    pins: VecDeque<NodeId>,
    pub(super) pins_max: usize,
    /// Recorded contents, if enabled: that of each file before its first change, and after each change.
    pub(super) recorded: Option<HashMap<NodeId, Vec<Content>>>,
    next_inode: u64,
    given_again: Option<u64>,
    now: Timestamp,
    granularity_ns: i64,
    trust: Trust,
    /// Offset of the clock for timestamps from the host's clock.
    stamps_ahead_ns: i64,
}

impl Body {
    pub(super) const fn kind(&self) -> FileKind {
        match self {
            Self::File(_) => FileKind::Regular,
            Self::Directory(_) => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special(kind) => *kind,
        }
    }

    const fn permissions(&self) -> u16 {
        match self {
            Self::File(_) | Self::Special(_) => 0o644,
            Self::Directory(_) => 0o755,
            Self::Symlink(_) => 0o777,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::File(content) => content.size(),
            Self::Directory(_) => BLOCK_BYTES,
            Self::Symlink(target) => target.len() as u64,
            Self::Special(_) => 0,
        }
    }

    fn blocks(&self) -> u64 {
        match self {
            Self::File(content) => content.allocated_bytes() / 512,
            Self::Directory(_) => BLOCK_BYTES / 512,
            Self::Symlink(_) | Self::Special(_) => 0,
        }
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self {
            nodes: HashMap::new(),
            root: NodeId { device: DEVICE, inode: 0, birth_ns: 0 },
            known: HashSet::new(),
            places: HashMap::new(),
            pins: VecDeque::new(),
            pins_max: PINS_MAX,
            recorded: None,
            next_inode: 2,
            given_again: None,
            now: START,
            granularity_ns: 1,
            trust: Trust::Full,
            stamps_ahead_ns: 0,
        };
        tree.root = tree.add(Body::Directory(BTreeMap::new()), BUILT_AGE_NS);
        tree.nodes.get_mut(&tree.root).expect("just added").links = 2;
        tree.known.insert(tree.root);
        tree
    }

    /// Returns the time of the host's clock.
    pub(super) const fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now.0 = self.now.0.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX));
    }

    pub(super) fn set_granularity(&mut self, granularity: Duration) {
        self.granularity_ns = i64::try_from(granularity.as_nanos()).unwrap_or(i64::MAX).max(1);
    }

    /// Reports this trust class in attributes from now on.
    pub(super) fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
    }

    /// Uses another clock for timestamps from now on.
    pub(super) fn set_stamps_ahead(&mut self, by_ns: i64) {
        self.stamps_ahead_ns = by_ns;
    }

    /// Returns the reason for the trust class.
    pub(super) const fn trust_reason(&self) -> TrustReason {
        match self.trust {
            Trust::Full => TrustReason::OwnStamps,
            Trust::Weak => TrustReason::Program,
        }
    }

    /// Forgets everything that a restarted daemon would not know.
    pub(super) fn restart(&mut self) {
        self.known = HashSet::from([self.root]);
        self.places.clear();
        self.pins.clear();
        self.nodes.values_mut().for_each(|node| node.opens.clear());
        self.nodes.retain(|_, node| node.links > 0);
    }

    /// Records that a client learnt a node by its name.
    pub(super) fn see(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        self.known.insert(id);
        self.places.insert(id, (parent, name.to_vec()));
    }

    /// Holds a looked-up node for a while.
    pub(super) fn pin(&mut self, id: NodeId) {
        self.pins.retain(|pinned| *pinned != id);
        self.pins.push_back(id);
        while self.pins.len() > self.pins_max {
            if let Some(oldest) = self.pins.pop_front() {
                self.drop_if_gone(oldest);
            }
        }
    }

    /// Returns true if changes by this client find the node: it has a name, or is open.
    pub(super) fn is_found(&self, client: u64, id: NodeId) -> bool {
        let is_open = |node: &Node| node.opens.iter().any(|(of, _)| *of == client);
        let bears_its_name = || {
            let (parent, name) = self.places.get(&id)?;
            self.entries(*parent)?.get(name).copied()
        };
        self.entries(id).is_some() || self.nodes.get(&id).is_some_and(is_open) || bears_its_name() == Some(id)
    }

    /// Returns the present attributes of a node as a client sees them.
    pub(super) fn attributes(&self, id: NodeId) -> Option<Attributes> {
        let node = self.nodes.get(&id)?;
        Some(Attributes {
            node: id,
            kind: node.body.kind(),
            permissions: node.permissions,
            links: node.links,
            uid: node.owner.0,
            gid: node.owner.1,
            device_number: 0,
            size: node.body.size(),
            blocks: node.body.blocks(),
            atime: node.atime.unwrap_or(node.mtime),
            mtime: node.mtime,
            ctime: node.ctime,
            btime: Some(node.btime),
            has_xattrs: !node.xattrs.is_empty(),
            trust: self.trust,
            observed: self.now,
        })
    }

    /// Returns the node at a path from the root. Links are not followed.
    pub(super) fn find(&self, path: &[u8]) -> Option<NodeId> {
        names(path).try_fold(self.root, |parent, name| self.entries(parent)?.get(name).copied())
    }

    pub(super) fn entries(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        match &self.nodes.get(&id)?.body {
            Body::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Creates a node that looks an hour old at `path`, with the directories above. An existing node loses
    /// the name.
    pub(super) fn create(&mut self, path: &[u8], body: Body) -> NodeId {
        let (parent, name) = self.parent_of(path);
        let id = self.add(body, BUILT_AGE_NS);
        self.name(parent, &name, id);
        id
    }

    /// Does the same as [`Self::create`], with the present time.
    pub(super) fn create_young(&mut self, path: &[u8], body: Body) -> NodeId {
        let (parent, name) = self.parent_of(path);
        let id = self.add(body, 0);
        self.name(parent, &name, id);
        id
    }

    /// Gives a node another name.
    pub(super) fn link(&mut self, id: NodeId, path: &[u8]) {
        let (parent, name) = self.parent_of(path);
        self.name(parent, &name, id);
    }

    /// Removes a name. The node ends with its last name and last open.
    pub(super) fn unlink(&mut self, path: &[u8]) -> Result<(), Errno> {
        let id = self.find(path).ok_or(Errno::ENOENT)?;
        let (parent, name) = self.parent_of(path);
        self.entries_mut(parent).remove(&name);
        self.lost_a_name(parent, id);
        Ok(())
    }

    /// Renames a node, also over another one.
    pub(super) fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let id = self.find(from).ok_or(Errno::ENOENT)?;
        if self.find(to) == Some(id) {
            return Ok(());
        }
        self.link(id, to);
        self.unlink(from)
    }

    /// Changes content and updates the times.
    pub(super) fn change_content(
        &mut self,
        path: &[u8],
        change: impl FnOnce(&mut Content),
    ) -> Result<(), Errno> {
        let id = self.find(path).ok_or(Errno::ENOENT)?;
        self.change_file(id, change)
    }

    /// Does the same for a node.
    pub(super) fn change_file(&mut self, id: NodeId, change: impl FnOnce(&mut Content)) -> Result<(), Errno> {
        let stamp = self.tick();
        let node = self.nodes.get_mut(&id).ok_or(Errno::ENOENT)?;
        let Body::File(content) = &mut node.body else { return Err(Errno::EINVAL) };
        let recorded = self.recorded.as_mut().map(|all| all.entry(id).or_default());
        if let Some(recorded) = recorded {
            if recorded.is_empty() {
                recorded.push(content.clone());
            }
            change(content);
            recorded.push(content.clone());
        } else {
            change(content);
        }
        (node.mtime, node.ctime) = (stamp, stamp);
        Ok(())
    }

    /// Changes a file's content and none of its times.
    pub(super) fn change_unnoticed(
        &mut self,
        path: &[u8],
        change: impl FnOnce(&mut Content),
    ) -> Result<(), Errno> {
        let id = self.find(path).ok_or(Errno::ENOENT)?;
        let node = self.nodes.get_mut(&id).ok_or(Errno::ENOENT)?;
        let Body::File(content) = &mut node.body else { return Err(Errno::EINVAL) };
        change(content);
        Ok(())
    }

    /// Changes a node's attributes and updates its `ctime`.
    pub(super) fn change_node(&mut self, path: &[u8], change: impl FnOnce(&mut Node)) -> Result<(), Errno> {
        let id = self.find(path).ok_or(Errno::ENOENT)?;
        let stamp = self.tick();
        let node = self.nodes.get_mut(&id).ok_or(Errno::ENOENT)?;
        node.ctime = stamp;
        change(node);
        Ok(())
    }

    /// Records an open of a node, or its end.
    pub(super) fn set_open(&mut self, id: NodeId, open: Opener, is_open: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if is_open {
            node.opens.insert(open);
        } else {
            node.opens.remove(&open);
        }
        self.drop_if_gone(id);
    }

    pub(super) fn tick(&mut self) -> Timestamp {
        self.now.0 += STEP_NS;
        let stamp = self.now.0 + self.stamps_ahead_ns;
        Timestamp(stamp - stamp.rem_euclid(self.granularity_ns))
    }

    pub(super) const fn give_number_again(&mut self, inode: u64) {
        self.given_again = Some(inode);
    }

    pub(super) fn add(&mut self, body: Body, age_ns: i64) -> NodeId {
        let inode = self.given_again.take().unwrap_or(self.next_inode);
        self.next_inode = self.next_inode.max(inode + 1);
        let stamp = Timestamp(self.tick().0 - age_ns);
        let id = NodeId { device: DEVICE, inode, birth_ns: stamp.0 };
        let (permissions, is_directory) = (body.permissions(), matches!(body, Body::Directory(_)));
        let node = Node {
            body,
            permissions,
            links: u32::from(is_directory),
            owner: (1000, 1000),
            atime: None,
            mtime: stamp,
            ctime: stamp,
            btime: stamp,
            xattrs: BTreeMap::new(),
            opens: BTreeSet::new(),
        };
        self.nodes.insert(id, node);
        id
    }

    pub(super) fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        let replaced = self.entries_mut(parent).insert(name.to_vec(), id);
        let stamp = self.tick();
        let is_directory = self.entries(id).is_some();
        if let Some(node) = self.nodes.get_mut(&id) {
            // Naming a new node is part of creating it.
            if node.links > u32::from(is_directory) {
                node.ctime = stamp;
            }
            node.links += 1;
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            (node.mtime, node.ctime) = (stamp, stamp);
            node.links += u32::from(is_directory);
        }
        if let Some(old) = replaced {
            self.lost_a_name(parent, old);
        }
    }

    pub(super) fn lost_a_name(&mut self, parent: NodeId, id: NodeId) {
        let stamp = self.tick();
        let is_directory = self.entries(id).is_some();
        if let Some(node) = self.nodes.get_mut(&parent) {
            (node.mtime, node.ctime) = (stamp, stamp);
            node.links -= u32::from(is_directory);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.ctime = stamp;
            node.links -= 1;
            // A directory without a name has lost its `.` too.
            if is_directory && node.links == 1 {
                node.links = 0;
            }
        }
        self.drop_if_gone(id);
    }

    fn drop_if_gone(&mut self, id: NodeId) {
        let is_gone = |node: &Node| node.links == 0 && node.opens.is_empty();
        if self.nodes.get(&id).is_some_and(is_gone) && !self.pins.contains(&id) {
            self.nodes.remove(&id);
        }
    }

    fn parent_of(&mut self, path: &[u8]) -> (NodeId, Vec<u8>) {
        let mut names: Vec<&[u8]> = names(path).collect();
        let last = names.pop().expect("a path with at least one name").to_vec();
        let mut parent = self.root;
        for name in names {
            parent = if let Some(&id) = self.entries(parent).and_then(|entries| entries.get(name)) {
                id
            } else {
                let id = self.add(Body::Directory(BTreeMap::new()), BUILT_AGE_NS);
                self.name(parent, name, id);
                id
            };
        }
        (parent, last)
    }

    pub(super) fn entries_mut(&mut self, id: NodeId) -> &mut BTreeMap<Vec<u8>, NodeId> {
        match self.nodes.get_mut(&id).map(|node| &mut node.body) {
            Some(Body::Directory(entries)) => entries,
            _ => panic!("the path leads through something that is no directory"),
        }
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}
