//! A folder as its clients see it: from nodes to descriptors, none of which ever lies outside.
//!
//! A node is found by its path: the names under which it and the folders above it were seen last. Folders are kept open
//! besides, so that a folder which was renamed is still the same folder; see [`super::held`].
//!
//! Everything here blocks for as long as the disk does.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{self, FsType, fstatfs};

use super::attributes::{self, system_error, unknown_node};
use super::closing::close_elsewhere;
use super::confine::{lies_in, open_beneath, open_entry, open_for, open_if_in_memory};
use super::crossing;
use super::handles::{HANDLE_FRESH, HandleCache, Kept};
use super::held::or_held;
use super::nodes::{NODES_MAX, NodeTable, TreeId};
use super::places::{Place, Places};
use crate::chunk::ChunkHash;
use crate::proto::{Attributes, ErrorCode, FileKind, NAME_BYTES_MAX, NodeId, OpenAccess, Version, WireError};

/// File systems whose inodes lie in memory once a file is open, so that asking for its times never waits.
const LOCAL_FILE_SYSTEMS: [FsType; 7] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
    FsType(0x2fc1_2fc1), // zfs
];

/// An open node: a regular file open for reading, or a folder as a place to look names up from.
#[derive(Debug)]
pub(super) struct Handle {
    /// What is open; an `O_PATH` descriptor where it is a folder.
    pub(super) file: Arc<File>,
    /// Which node.
    pub(super) node: NodeId,
    /// Whether it is a folder.
    pub(super) is_folder: bool,
    /// Whether it is a regular file.
    pub(super) is_file: bool,
    /// Whether its attributes can be asked for without waiting.
    pub(super) is_local: bool,
    /// For what it is open, where it is a file.
    pub(super) access: OpenAccess,
    appending: Mutex<()>,
    /// When it was last seen to lie where clients may reach it.
    seen_inside: Mutex<Instant>,
}

/// How long it is not looked again whether what is open still lies in the mounted folder.
const INSIDE_KEEP: Duration = Duration::from_secs(1);

impl Handle {
    /// A folder, as an `O_PATH` descriptor.
    pub(super) fn folder(fd: OwnedFd, node: NodeId) -> Arc<Self> {
        Self::new(fd, (node, FileKind::Directory), OpenAccess::NONE)
    }

    /// Anything else than a folder, as an `O_PATH` descriptor: good for asking about it and for changing its attributes.
    pub(super) fn path(fd: OwnedFd, node: NodeId, kind: FileKind) -> Arc<Self> {
        Self::new(fd, (node, kind), OpenAccess::NONE)
    }

    /// A regular file that is open for `access`.
    pub(super) fn file(fd: OwnedFd, node: NodeId, access: OpenAccess) -> Arc<Self> {
        Self::new(fd, (node, FileKind::Regular), access)
    }

    fn new(fd: OwnedFd, (node, kind): (NodeId, FileKind), access: OpenAccess) -> Arc<Self> {
        let is_local = fstatfs(&fd).is_ok_and(|found| LOCAL_FILE_SYSTEMS.contains(&found.filesystem_type()));
        Arc::new(Self {
            file: Arc::new(File::from(fd)),
            node,
            is_folder: kind == FileKind::Directory,
            is_file: kind == FileKind::Regular,
            is_local,
            access,
            appending: Mutex::default(),
            seen_inside: Mutex::new(Instant::now()),
        })
    }

    /// An error if it was opened for appending alone: whatever is written goes to its end.
    pub(super) fn check_place(&self) -> Result<(), WireError> {
        if self.access.appends { Err(system_error(Errno::EPERM)) } else { Ok(()) }
    }

    /// Whether it lies in the folder `root`, or did within the last second: what a person moves out of an export is out of reach, also if
    /// it is open.
    pub(super) fn lies_in(&self, root: &Self, now: Instant) -> bool {
        let mut seen = lock(&self.seen_inside);
        if now.saturating_duration_since(*seen) < INSIDE_KEEP {
            return true;
        }
        let is_inside = lies_in(root.file.as_fd(), self.file.as_fd());
        if is_inside {
            *seen = now;
        }
        is_inside
    }

    /// One at a time appends through a descriptor, whose own offset tells where to.
    pub(super) fn append_turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.appending)
    }

    /// Its version now.
    pub(super) fn version(&self) -> Result<Version, WireError> {
        attributes::version_of_open(self.file.as_fd())
    }

    /// What `stat` tells now.
    pub(super) fn attributes(&self) -> Result<Attributes, WireError> {
        attributes::of_open(self.file.as_fd())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Where nothing hangs `close` does not wait, and a place to look names up from has nothing to write.
        if !self.is_local && !self.is_folder {
            close_elsewhere(self.node.device, Arc::clone(&self.file));
        }
    }
}

/// A descriptor of any node, good for asking about it.
#[derive(Debug)]
pub(super) enum Reached {
    /// One that is kept.
    Handle(Arc<Handle>),
    /// One for this request: `O_PATH`.
    Path(OwnedFd),
}

impl AsFd for Reached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Handle(handle) => handle.file.as_fd(),
            Self::Path(fd) => fd.as_fd(),
        }
    }
}

/// What is known of the nodes of all trees.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) nodes: Mutex<NodeTable>,
    /// Files that were opened for reading lately.
    handles: Mutex<HandleCache<Handle>>,
    /// Folders, for as long as there is room.
    pub(super) folders: Mutex<HandleCache<Handle>>,
    /// What else was looked up lately, as `O_PATH` descriptors: who looked a name up acts on what he found.
    pub(super) pins: Mutex<HandleCache<OwnedFd>>,
    places: Mutex<Places>,
    trees: AtomicU64,
}

impl Known {
    /// Nothing yet; at most `handles_max` descriptors of each kind are kept open.
    pub(super) fn new(handles_max: usize) -> Self {
        Self {
            nodes: Mutex::new(NodeTable::new(NODES_MAX)),
            handles: Mutex::new(HandleCache::new(handles_max)),
            folders: Mutex::new(HandleCache::new(handles_max)),
            pins: Mutex::new(HandleCache::new(handles_max)),
            places: Mutex::default(),
            trees: AtomicU64::new(0),
        }
    }

    /// Closes what was not used lately.
    pub(super) fn expire(&self, now: Instant) {
        lock(&self.handles).expire(now);
        lock(&self.folders).expire(now);
        lock(&self.pins).expire(now);
    }

    /// How many nodes are known.
    pub(super) fn nodes(&self) -> usize {
        lock(&self.nodes).len()
    }
}

/// One folder and everything below it.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) id: TreeId,
    pub(super) root: Arc<Handle>,
    pub(super) known: Arc<Known>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let nodes = lock(&self.known.nodes).forget_tree(self.id);
        drop(nodes);
        lock(&self.known.handles).forget_tree(self.id);
        lock(&self.known.folders).forget_tree(self.id);
        lock(&self.known.pins).forget_tree(self.id);
    }
}

impl Tree {
    /// The tree below `root`, an `O_PATH` descriptor of a folder.
    pub(super) fn new(root: OwnedFd, known: Arc<Known>) -> Result<Self, WireError> {
        let node = attributes::of_open(root.as_fd())?.node;
        let id = TreeId(known.trees.fetch_add(1, Ordering::Relaxed));
        Ok(Self { id, root: Handle::folder(root, node), known })
    }

    /// The root's attributes.
    pub(super) fn root(&self) -> Result<Attributes, WireError> {
        self.root.attributes()
    }

    /// Whether the mounted folder lies in the exported one.
    pub(super) fn is_in(&self, export: BorrowedFd<'_>) -> bool {
        lies_in(export, self.root.file.as_fd())
    }

    /// Whether what is open lies in the mounted folder.
    pub(super) fn has(&self, handle: &Handle) -> bool {
        handle.lies_in(&self.root, Instant::now())
    }

    /// Which node the root is.
    pub(super) fn root_node(&self) -> NodeId {
        self.root.node
    }

    /// The attributes of the entry `name` of `parent`; its node is known from then on, and held for a while.
    pub(super) fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attributes, WireError> {
        let c_name = check_name(name)?;
        let folder = self.folder(parent)?;
        let fd = open_entry(folder.file.as_fd(), &c_name).map_err(system_error)?;
        crossing::check(folder.file.as_fd(), fd.as_fd())?;
        let found = attributes::of_open(fd.as_fd())?;
        self.record(parent, [(found.node, name)]);
        self.hold(fd, &found);
        Ok(found)
    }

    /// The same without holding it.
    pub(super) fn look(&self, parent: NodeId, name: &[u8]) -> Result<Attributes, WireError> {
        let c_name = check_name(name)?;
        let folder = self.folder(parent)?;
        crossing::check_entry(folder.file.as_fd(), &c_name)?;
        let found = attributes::of_entry(folder.file.as_fd(), &c_name)?;
        self.record(parent, [(found.node, name)]);
        Ok(found)
    }

    /// Notes where nodes were seen: entries of `parent`.
    pub(super) fn record<'a>(&self, parent: NodeId, entries: impl IntoIterator<Item = (NodeId, &'a [u8])>) {
        let mut nodes = lock(&self.known.nodes);
        for (node, name) in entries {
            // The root is found without the table, and must not hang below one of its own folders.
            if node != self.root.node {
                nodes.record(self.id, node, parent, name);
            }
        }
    }

    /// The name under which a node was seen last.
    pub(super) fn name(&self, node: NodeId) -> Option<Box<[u8]>> {
        lock(&self.known.nodes).name(self.id, node)
    }

    /// Notes where chunks were seen: whole ones of files in this tree.
    pub(super) fn note_places(&self, chunks: impl IntoIterator<Item = (ChunkHash, Place)>) {
        let mut places = lock(&self.known.places);
        for (hash, place) in chunks {
            places.note(self.id, hash, place);
        }
    }

    /// Where a chunk was seen last.
    pub(super) fn place(&self, hash: ChunkHash) -> Option<Place> {
        lock(&self.known.places).find(self.id, hash)
    }

    /// A chunk is no longer where it was seen.
    pub(super) fn forget_place(&self, hash: ChunkHash, place: Place) {
        lock(&self.known.places).forget(self.id, hash, place);
    }

    /// A folder, as a place to look names up from. ENOTDIR where it is something else.
    pub(super) fn folder(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        if let Some(handle) = self.kept_folder(node) {
            return Ok(handle);
        }
        match self.reach_by_path(node)? {
            (Reached::Handle(handle), _) => Ok(handle),
            (Reached::Path(_), _) => Err(system_error(Errno::ENOTDIR)),
        }
    }

    /// A folder, if the way to it lies in memory.
    pub(super) fn folder_at_hand(&self, node: NodeId) -> Option<Arc<Handle>> {
        match self.reach_at_hand(node)?.0 {
            Reached::Handle(handle) if handle.is_folder => Some(handle),
            _ => None,
        }
    }

    /// A regular file, open for reading. EISDIR for a folder, EINVAL for what is neither: that is never opened.
    pub(super) fn file(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        match self.kept(node) {
            Some(handle) if handle.is_folder => Err(system_error(Errno::EISDIR)),
            Some(handle) => Ok(handle),
            None => self.open_by_path(node, OpenAccess::READ).map(|(handle, _)| handle),
        }
    }

    /// The same, also of what was looked up lately and bears its name no more.
    pub(super) fn named_or_held_file(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        or_held(self.file(node), || {
            self.open_held(node, OpenAccess::READ).map(|opened| opened.map(|(handle, _)| handle))
        })
    }

    /// A regular file and its attributes: by its path, or, where that leads elsewhere by now, what was looked up lately.
    pub(super) fn open_named_or_held(
        &self,
        node: NodeId,
        access: OpenAccess,
    ) -> Result<(Arc<Handle>, Attributes), WireError> {
        let opened = self.open_by_path(node, access);
        or_held(opened, || self.open_held(node, access))
    }

    /// A regular file that is open already.
    pub(super) fn file_at_hand(&self, node: NodeId) -> Option<Arc<Handle>> {
        self.kept(node).filter(|handle| !handle.is_folder)
    }

    /// A regular file and its attributes, found by its path, so that a file which was replaced is noticed.
    pub(super) fn open_by_path(
        &self,
        node: NodeId,
        access: OpenAccess,
    ) -> Result<(Arc<Handle>, Attributes), WireError> {
        let (reached, found) = self.reach_file_by_path(node)?;
        let (opened, access) = open_for(reached.as_fd(), access).map_err(system_error)?;
        let handle = Handle::file(opened, node, access);
        if !access.writes {
            self.keep(&handle);
        }
        Ok((handle, found))
    }

    /// A regular file, not opened, by its path.
    pub(super) fn reach_file_by_path(&self, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        let (reached, found) = self.reach_by_path(node)?;
        match (&reached, found.kind) {
            (Reached::Path(_), FileKind::Regular) => Ok((reached, found)),
            (_, FileKind::Directory) => Err(system_error(Errno::EISDIR)),
            _ => Err(system_error(Errno::EINVAL)),
        }
    }

    /// Any node, and what it looked like if it had to be looked at.
    pub(super) fn reach(&self, node: NodeId) -> Result<(Reached, Option<Attributes>), WireError> {
        match self.kept(node) {
            Some(handle) => Ok((Reached::Handle(handle), None)),
            None => self.reach_by_path(node).map(|(reached, found)| (reached, Some(found))),
        }
    }

    /// The attributes of a node that has a name.
    pub(super) fn attributes(&self, node: NodeId) -> Result<Attributes, WireError> {
        let found = match self.reach(node)? {
            (_, Some(found)) => found,
            (reached, None) => attributes::of_open(reached.as_fd())?,
        };
        // A descriptor outlives its file's last name; a client that did not open it has no claim to it.
        if found.links == 0 && node != self.root.node { Err(unknown_node()) } else { Ok(found) }
    }

    /// Any node by its name, whatever was renamed above it; folders also where they were moved. Folders are kept.
    pub(super) fn reach_by_path(&self, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        if node == self.root.node {
            return Ok((Reached::Handle(Arc::clone(&self.root)), self.root()?));
        }
        or_held(self.reach_by_whole_path(node), || self.reach_moved(node))
    }

    fn reach_by_whole_path(&self, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        let path = lock(&self.known.nodes).path(self.id, self.root.node, node).ok_or_else(unknown_node)?;
        let fd = open_beneath(self.root.file.as_fd(), &path, OFlag::O_PATH).map_err(gone_or_system)?;
        self.recognise(fd, node)
    }

    /// Whether what was found at a node's path is that node; folders are kept.
    pub(super) fn recognise(&self, fd: OwnedFd, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        let found = attributes::of_open(fd.as_fd())?;
        if found.node != node {
            return Err(unknown_node());
        }
        if found.kind != FileKind::Directory {
            return Ok((Reached::Path(fd), found));
        }
        let handle = Handle::folder(fd, node);
        self.keep(&handle);
        Ok((Reached::Handle(handle), found))
    }

    /// What [`Self::lookup`] answers, if that is known without waiting for a disk.
    pub(super) fn lookup_at_hand(
        &self,
        parent: NodeId,
        name: &[u8],
    ) -> Option<Result<Attributes, WireError>> {
        check_name(name).ok()?;
        let Reached::Handle(folder) = self.reach_at_hand(parent)?.0 else { return None };
        if !folder.is_folder {
            return None;
        }
        let fd = match open_if_in_memory(folder.file.as_fd(), name)? {
            Ok(fd) => fd,
            Err(errno) => return Some(Err(system_error(errno))),
        };
        let found = attributes::of_open(fd.as_fd()).ok()?;
        self.record(parent, [(found.node, name)]);
        self.hold(fd, &found);
        Some(Ok(found))
    }

    /// What [`Self::attributes`] answers, if that is known without waiting for a disk.
    pub(super) fn attributes_at_hand(&self, node: NodeId) -> Option<Attributes> {
        let (_, found) = self.reach_at_hand(node)?;
        (found.links > 0 || node == self.root.node).then_some(found)
    }

    /// Any node, if the way to it lies in memory.
    fn reach_at_hand(&self, node: NodeId) -> Option<(Reached, Attributes)> {
        if let Some(handle) = self.kept(node) {
            let found = if handle.is_local { handle.attributes().ok()? } else { return None };
            return Some((Reached::Handle(handle), found));
        }
        if !self.root.is_local {
            return None;
        }
        let path = lock(&self.known.nodes).path(self.id, self.root.node, node)?;
        let fd = open_if_in_memory(self.root.file.as_fd(), &path)?.ok()?;
        self.recognise(fd, node).ok()
    }

    fn kept(&self, node: NodeId) -> Option<Arc<Handle>> {
        let now = Instant::now();
        let file = lock(&self.known.handles).get(self.id, node, now).and_then(Kept::fresh);
        let file = file.filter(|handle| handle.lies_in(&self.root, now));
        file.or_else(|| self.kept_folder(node))
    }

    fn kept_folder(&self, node: NodeId) -> Option<Arc<Handle>> {
        if node == self.root.node {
            return Some(Arc::clone(&self.root));
        }
        let now = Instant::now();
        let kept = lock(&self.known.folders).get(self.id, node, now).and_then(Kept::fresh);
        kept.filter(|handle| handle.lies_in(&self.root, now))
    }

    pub(super) fn keep(&self, handle: &Arc<Handle>) {
        let (cache, keep) = if handle.is_folder {
            (&self.known.folders, self.keep_of(handle.node))
        } else {
            (&self.known.handles, Some(HANDLE_FRESH))
        };
        lock(cache).put(self.id, handle.node, Arc::clone(handle), Instant::now(), keep);
    }
}

/// A name as the protocol allows it: what leads anywhere else than to an entry of its folder breaks the protocol.
pub(super) fn check_name(name: &[u8]) -> Result<CString, WireError> {
    let malformed = |why: &str| WireError::new(ErrorCode::Malformed, format!("a name {why}"));
    match name {
        b"" => Err(malformed("is empty")),
        b"." | b".." => Err(malformed("is `.` or `..`")),
        name if name.contains(&b'/') => Err(malformed("holds a `/`")),
        name if name.len() > NAME_BYTES_MAX => Err(system_error(Errno::ENAMETOOLONG)),
        name => CString::new(name).map_err(|_| malformed("holds a NUL")),
    }
}

/// Where the way to a node no longer leads anywhere, the client looks for a new one.
fn gone_or_system(errno: Errno) -> WireError {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::ESTALE => unknown_node(),
        errno => system_error(errno),
    }
}

/// A panic while the lock was held leaves a table of hints, which is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
