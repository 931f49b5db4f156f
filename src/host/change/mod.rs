//! What clients change: names, attributes, and content where it needs no bytes from them. Everything here blocks.
//!
//! Names are made and taken by calls that end in `at`, with the descriptor of a folder that was reached beneath the export and
//! one checked name, which none of them follows: nothing outside can be touched.
//!
//! # Who owns what is made
//!
//! Where the key names a user (`user=`), all is done with that user's rights, and the kernel says what they are. Otherwise the daemon
//! acts as the user who runs it, and what it makes is his. Where that is root, a client could make itself root on the host by
//! way of owners, set-user-id bits and devices. So these are refused, unless the client's key has the option `owners`: then
//! what it makes belongs to the user and group of the asking process, by the client's numbers, and everything is allowed that
//! root may do.
//!
//! # A session that the host does not know any more
//!
//! A change that was first sent to an earlier life of the session may or may not have been done. [`Certainty`] says so.

mod content;
mod known;
mod make;
mod modify;
mod names;

pub(super) use known::have;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::attributes::{self, system_error};
use super::confine::open_entry;
use super::session::Session;
use super::tree::Handle;
use crate::proto::{
    Attributes, BootId, Change, Changed, Errno, ErrorCode, KnownChunk, NodeId, Reply, WireError,
};

/// Whether it is known that a change was not done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// It was not.
    New,
    /// The answer may have been lost with an earlier life of the session.
    Unknown,
}

/// What one client may change, and how.
pub(super) struct Changer<'a> {
    pub(super) session: &'a Session,
    /// Whether the client may choose owners; see the module.
    pub(super) owners: bool,
    pub(super) certainty: Certainty,
    pub(super) boot: BootId,
}

impl Changer<'_> {
    /// Does it.
    pub(super) fn apply(&self, change: Change) -> Result<Reply, WireError> {
        match change {
            Change::Create { parent, name, permissions, caller, open, access, exclusive, truncate } => {
                let create = make::Create { permissions, caller, open, access, exclusive, truncate };
                self.create(parent, &name, &create)
            }
            Change::MakeDirectory { parent, name, permissions, caller } => {
                self.make_directory(parent, &name, permissions, caller)
            }
            Change::MakeNode { parent, name, kind, permissions, device_number, caller } => {
                self.make_node(parent, &name, (kind, device_number), permissions, caller)
            }
            Change::MakeSymlink { parent, name, target, caller } => {
                self.make_symlink(parent, &name, &target, caller)
            }
            Change::Link { node, seen_as, parent, name } => self.link(node, seen_as, parent, &name),
            Change::Remove { parent, name, directory, expected } => {
                self.remove(parent, &name, directory, expected)
            }
            Change::Rename { from_parent, from_name, to_parent, to_name, how, expected } => {
                self.rename((from_parent, &from_name), (to_parent, &to_name), how, expected)
            }
            Change::SetAttributes { node, set } => self.set_attributes(node, &set),
            Change::SetXattr { node, name, value, how } => self.set_xattr(node, name, &value, how),
            Change::RemoveXattr { node, name } => self.remove_xattr(node, name),
            Change::Allocate { node, range, how } => self.allocate(node, range, how),
            Change::CopyRange { from, range, to, offset } => self.copy_range(from, range, to, offset),
            Change::WriteKnown { node, offset, chunks, .. } => self.write_known(node, offset, &chunks),
        }
        .map(|reply| match reply {
            Done::Changed(changed) => Reply::Changed(changed),
            Done::Written(written) => Reply::Written(written),
            Done::Taken(written, chunks) => Reply::Taken { written, chunks },
        })
    }

    fn folder(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        self.session.tree.folder(node)
    }

    /// Whether only the key keeps the client from making itself root on the host.
    fn is_root(&self) -> bool {
        self.session.actor.is_root()
    }

    fn is_certain(&self) -> bool {
        self.certainty == Certainty::New
    }
}

/// A folder's attributes, for an answer that must not fail any more.
fn folder_now(folder: &Handle) -> Option<Attributes> {
    attributes::of_open(folder.file.as_fd()).ok()
}

/// Whether it happened already, or not, cannot be told: an error in words.
fn cannot_tell<T>(what: &str) -> Result<T, WireError> {
    let text = format!(
        "the host restarted, or forgot the mount, while this was under way; {what}, so whether it was done cannot be told"
    );
    Err(WireError::new(ErrorCode::System(Errno::EIO), text))
}

/// What becomes of a change.
pub(super) enum Done {
    Changed(Changed),
    Written(crate::proto::Written),
    Taken(crate::proto::Written, Vec<KnownChunk>),
}

/// The node and what changed besides.
fn changed(node: Option<Attributes>, others: impl IntoIterator<Item = Option<Attributes>>) -> Done {
    Done::Changed(Changed { node, others: others.into_iter().flatten().collect() })
}

/// What bears a name, as a descriptor that outlives the name.
fn hold_entry(folder: &Handle, name: &std::ffi::CStr) -> Result<OwnedFd, nix::errno::Errno> {
    open_entry(folder.file.as_fd(), name)
}

fn now(fd: &OwnedFd) -> Option<Attributes> {
    attributes::of_open(fd.as_fd()).ok()
}

const fn refused(errno: Errno, text: String) -> WireError {
    WireError { code: ErrorCode::System(errno), text }
}

fn errno<T>(result: Result<T, nix::errno::Errno>) -> Result<T, WireError> {
    result.map_err(system_error)
}
