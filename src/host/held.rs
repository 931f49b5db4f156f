//! What is held beyond its name: folders that were renamed, and what was just looked up.
//!
//! A program that looks a name up and then acts on what it found, as the kernel does for it in each system call, sends two
//! requests with a round trip between them. On a local disk the second finds the same inode whatever happened to the
//! name meanwhile. So what a lookup found is held by a descriptor for [`HELD_KEEP`].
//!
//! Who asks by a name that was cached for a while must not get what was replaced long ago. So what *changes* a node goes by
//! its path; only a client that knows that it has just looked the name up has the node held for it
//! ([`OpenAccess::NONE`]) and repeats the change. What only asks, and an open, takes what is held: an answer may be as
//! old as what names hold anyway, and of an open the client checks the name beside it.
//!
//! Folders are held for as long as there is room: working directories and open directories of clients are one of them.
//!
//! # What was moved out of the export
//!
//! Before a descriptor is used that is not fresh it is found again from the root of the tree, by the path that the kernel
//! tells of it now; what has none below the root is out of reach. A file without any name is nowhere else.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::attributes::{self, system_error, unknown_node};
use super::confine::{open_beneath, open_for, open_where_it_is};
use super::handles::Kept;
use super::nodes::DEPTH_MAX;
use super::tree::{Handle, Reached, Tree, lock};
use crate::proto::{Attributes, Errno, ErrorCode, FileKind, NodeId, OpenAccess, WireError};

/// How long what was looked up is held.
///
/// The kernel believes a name for a second and comes back within some round trips; a file that was removed keeps its place
/// on the disk for so long.
const HELD_KEEP: Duration = Duration::from_secs(10);

/// The same for what lies on another file system than the root of the tree, which somebody may want to unmount.
const HELD_KEEP_ELSEWHERE: Duration = Duration::from_secs(2);

impl Tree {
    /// Holds what a lookup has found.
    pub(super) fn hold(&self, fd: OwnedFd, found: &Attributes) {
        if found.node == self.root.node {
            return;
        }
        if found.kind == FileKind::Directory {
            self.keep(&Handle::folder(fd, found.node));
            return;
        }
        let keep = self.keep_of(found.node).unwrap_or(HELD_KEEP);
        lock(&self.known.pins).put(self.id, found.node, Arc::new(fd), Instant::now(), Some(keep));
    }

    /// Lets go of what lost its last name by a client's own call.
    pub(super) fn release(&self, node: NodeId) {
        lock(&self.known.pins).remove(self.id, node);
    }

    /// How long a folder is kept; `None`: until others need its place.
    pub(super) fn keep_of(&self, node: NodeId) -> Option<Duration> {
        (node.device != self.root.node.device).then_some(HELD_KEEP_ELSEWHERE)
    }

    /// Any node by its path, or what was looked up lately.
    pub(super) fn reach_named_or_held(
        &self,
        node: NodeId,
    ) -> Result<(Reached, Option<Attributes>), WireError> {
        or_held(self.reach(node), || {
            let (fd, found) = self.held(node)?;
            Some(fd.try_clone().map(|fd| (Reached::Path(fd), Some(found))).map_err(no_descriptor))
        })
    }

    /// What was looked up lately, as a handle that can be held for a client.
    pub(super) fn held_handle(&self, node: NodeId) -> Option<Result<(Arc<Handle>, Attributes), WireError>> {
        let (fd, found) = self.held(node)?;
        let handle = |fd| (Handle::path(fd, node, found.kind), found);
        Some(fd.try_clone().map(handle).map_err(no_descriptor))
    }

    /// A regular file that was looked up lately, opened.
    pub(super) fn open_held(
        &self,
        node: NodeId,
        access: OpenAccess,
    ) -> Option<Result<(Arc<Handle>, Attributes), WireError>> {
        let (fd, found) = self.held(node)?;
        Some(match found.kind {
            FileKind::Regular => open_for(fd.as_fd(), access)
                .map(|(fd, access)| (Handle::file(fd, node, access), found))
                .map_err(system_error),
            _ => Err(system_error(nix::errno::Errno::EINVAL)),
        })
    }

    /// What was looked up lately and lies in the tree, or has no name any more.
    fn held(&self, node: NodeId) -> Option<(Arc<OwnedFd>, Attributes)> {
        let kept = lock(&self.known.pins).get(self.id, node, Instant::now())?;
        let is_fresh = matches!(kept, Kept::Fresh(_));
        let (Kept::Fresh(fd) | Kept::Old(fd)) = kept;
        let found = attributes::of_open(fd.as_fd()).ok()?;
        let lies_in_tree = || {
            let again = open_where_it_is(self.root.file.as_fd(), fd.as_fd())?;
            (attributes::of_open(again.as_fd()).ok()?.node == node).then_some(())
        };
        let may_be_used = is_fresh || found.links == 0 || lies_in_tree().is_some();
        may_be_used.then_some((fd, found))
    }

    /// A node to which its whole path does not lead: a folder where it was moved to, anything else below the nearest folder
    /// above it that is kept.
    pub(super) fn reach_moved(&self, node: NodeId) -> Option<Result<(Reached, Attributes), WireError>> {
        if let Some(folder) = self.moved_folder(node) {
            return Some(Ok(folder));
        }
        let (mut names, mut at) = (Vec::new(), node);
        while names.len() < DEPTH_MAX {
            let (parent, name) = lock(&self.known.nodes).place(self.id, at)?;
            names.push(name);
            if let Some(folder) = self.kept_or_moved(parent) {
                names.reverse();
                let fd = open_beneath(folder.file.as_fd(), &names.join(&b'/'), OFlag::O_PATH).ok()?;
                return self.recognise(fd, node).ok().map(Ok);
            }
            at = parent;
        }
        None
    }

    fn kept_or_moved(&self, node: NodeId) -> Option<Arc<Handle>> {
        if node == self.root.node {
            return Some(Arc::clone(&self.root));
        }
        let kept = lock(&self.known.folders).get(self.id, node, Instant::now())?;
        match kept {
            Kept::Fresh(folder) => Some(folder),
            Kept::Old(_) => match self.moved_folder(node)?.0 {
                Reached::Handle(folder) => Some(folder),
                Reached::Path(_) => None,
            },
        }
    }

    fn moved_folder(&self, node: NodeId) -> Option<(Reached, Attributes)> {
        let kept = lock(&self.known.folders).get(self.id, node, Instant::now())?;
        let (Kept::Fresh(folder) | Kept::Old(folder)) = kept;
        let fd = open_where_it_is(self.root.file.as_fd(), folder.file.as_fd())?;
        self.recognise(fd, node).ok()
    }
}

/// The answer, or what is held where the host does not find the node.
pub(super) fn or_held<T>(
    answer: Result<T, WireError>,
    held: impl FnOnce() -> Option<Result<T, WireError>>,
) -> Result<T, WireError> {
    match answer {
        Err(error) if error.code == ErrorCode::UnknownNode => held().unwrap_or_else(|| Err(unknown_node())),
        answer => answer,
    }
}

fn no_descriptor(_: std::io::Error) -> WireError {
    WireError::system(Errno::EMFILE)
}
