//! Requests that are answered by one message and a few system calls. All of it blocks, unless it says otherwise.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{AccessFlags, Whence, faccessat, lseek64};

use super::attributes::{self, system_error};
use super::confine::proc_path;
use super::session::Session;
use crate::io::sys::{self, XattrTarget};
use crate::proto::{
    Attributes, Errno, ErrorCode, FileKind, FsStatistics, LOOKUP_NAME_BYTES_MAX, LOOKUPS_MAX, LeaseEpoch,
    NodeId, OpenAccess, Reply, Request, SeekTarget, WireError,
};

/// Longest name of an extended attribute, in bytes (the kernel's `XATTR_NAME_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;

/// Whether [`answer_at_hand`] may have an answer.
pub(super) const fn may_be_at_hand(request: &Request) -> bool {
    matches!(request, Request::Ping | Request::Lookup { .. } | Request::GetAttributes { .. })
}

/// Answers what can be answered from memory, without waiting: a thread that may wait costs more than the answer.
pub(super) fn answer_at_hand(session: &Session, request: &Request) -> Option<Result<Reply, WireError>> {
    match request {
        Request::Ping => Some(Ok(Reply::Done)),
        Request::Lookup { parent, name } => {
            let lease = session.lease_at_hand(*parent);
            let found = session.tree.lookup_at_hand(*parent, name)?;
            Some(found.map(|attributes| entry(attributes, lease)))
        }
        Request::GetAttributes { node } => {
            session.attributes_at_hand(*node).map(|found| Ok(Reply::Attributes(found)))
        }
        _ => None,
    }
}

/// Answers a request about names and attributes; `read_only` tells whether the client may change nothing.
pub(super) fn answer(session: &Session, read_only: bool, request: Request) -> Result<Reply, WireError> {
    match request {
        Request::Ping => Ok(Reply::Done),
        Request::Lookup { parent, name } => {
            let lease = session.lease(&*session.tree.folder(parent)?);
            session.tree.lookup(parent, &name).map(|attributes| entry(attributes, lease))
        }
        Request::LookupMany { parent, names } => lookup_many(session, parent, &names),
        Request::GetAttributes { node } => session.attributes(node).map(Reply::Attributes),
        Request::ReadLink { node } => read_link(session, node),
        Request::StatFs { node } => fs_statistics(session, node),
        Request::GetXattr { node, name } => get_xattr(session, node, name),
        Request::ListXattr { node } => list_xattr(session, node),
        Request::Access { node, mask } => access(session, read_only, node, mask),
        Request::Open { node, open } => session.open(node, open, OpenAccess::READ).map(Reply::Attributes),
        Request::OpenFor { access, .. } if access.writes && read_only => Err(WireError::system(Errno::EROFS)),
        Request::OpenFor { node, open, access } => session.open(node, open, access).map(Reply::Attributes),
        Request::Close { node, open } => {
            session.close(node, open);
            Ok(Reply::Done)
        }
        Request::Seek { node, offset, target } => seek(session, node, offset, target),
        Request::Hello(_) => Err(WireError::new(ErrorCode::Malformed, "the connection has had its hello")),
        Request::ReadDirectory { .. }
        | Request::Read(..)
        | Request::ReadCurrent { .. }
        | Request::Change(_)
        | Request::Write(_)
        | Request::Sync { .. }
        | Request::SyncFileSystem { .. }
        | Request::Sum { .. }
        | Request::Lock(_)
        | Request::TestLock(_)
        | Request::Blocks { .. }
        | Request::HaveChunks { .. }
        | Request::Events
        | Request::Manifest(_) => Err(WireError::new(ErrorCode::Unsupported, "this is answered by a stream")),
    }
}

/// The answer to a lookup; the lease was given before the entry was looked at.
const fn entry(attributes: Attributes, lease: Option<LeaseEpoch>) -> Reply {
    match lease {
        Some(lease) => Reply::Entry { attributes, lease },
        None => Reply::Attributes(attributes),
    }
}

fn lookup_many(session: &Session, parent: NodeId, names: &[Vec<u8>]) -> Result<Reply, WireError> {
    if names.len() > LOOKUPS_MAX || names.iter().map(Vec::len).sum::<usize>() > LOOKUP_NAME_BYTES_MAX {
        return Err(WireError::new(ErrorCode::Malformed, "more names than may be asked for at once"));
    }
    // So that an error of the directory is not taken for one of its entries.
    session.tree.folder(parent)?;
    Ok(Reply::Entries(names.iter().map(|name| session.tree.look(parent, name).ok()).collect()))
}

fn read_link(session: &Session, node: NodeId) -> Result<Reply, WireError> {
    let (reached, found) = session.reach_to_ask(node)?;
    if found.kind != FileKind::Symlink {
        return Err(WireError::system(Errno::EINVAL));
    }
    readlinkat(reached.as_fd(), "").map(|target| Reply::Bytes(target.into_vec())).map_err(system_error)
}

fn fs_statistics(session: &Session, node: NodeId) -> Result<Reply, WireError> {
    let (reached, _) = session.reach_to_ask(node)?;
    let found = fstatvfs(&reached).map_err(system_error)?;
    Ok(Reply::FsStatistics(FsStatistics {
        // statvfs counts its blocks in fragments.
        block_bytes: found.fragment_size() as u32,
        blocks: found.blocks(),
        blocks_free: found.blocks_free(),
        blocks_available: found.blocks_available(),
        inodes: found.files(),
        inodes_free: found.files_free(),
        name_bytes_max: found.name_max() as u32,
    }))
}

fn get_xattr(session: &Session, node: NodeId, name: Vec<u8>) -> Result<Reply, WireError> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(WireError::system(Errno::ERANGE));
    }
    if attributes::is_hidden_xattr(&name) {
        return Err(WireError::system(Errno::ENODATA));
    }
    let name = CString::new(name)
        .map_err(|_| WireError::new(ErrorCode::Malformed, "an attribute's name holds a NUL"))?;
    let (reached, _) = session.reach_to_ask(node)?;
    sys::get_xattr(XattrTarget::Fd(reached.as_fd()), &name).map(Reply::Bytes).map_err(system_error)
}

fn list_xattr(session: &Session, node: NodeId) -> Result<Reply, WireError> {
    let (reached, _) = session.reach_to_ask(node)?;
    attributes::xattr_names(XattrTarget::Fd(reached.as_fd())).map(Reply::Bytes)
}

fn access(session: &Session, read_only: bool, node: NodeId, mask: u8) -> Result<Reply, WireError> {
    let Some(wanted) = AccessFlags::from_bits(i32::from(mask)) else {
        return Err(WireError::system(Errno::EINVAL));
    };
    if read_only && wanted.contains(AccessFlags::W_OK) {
        return Err(WireError::system(Errno::EROFS));
    }
    let (reached, _) = session.reach_to_ask(node)?;
    faccessat(AT_FDCWD, proc_path(reached.as_fd()).as_str(), wanted, AtFlags::AT_EACCESS)
        .map(|()| Reply::Done)
        .map_err(system_error)
}

fn seek(session: &Session, node: NodeId, offset: u64, target: SeekTarget) -> Result<Reply, WireError> {
    let file = session.file(node)?;
    let offset = i64::try_from(offset).map_err(|_| WireError::system(Errno::ENXIO))?;
    let whence = match target {
        SeekTarget::Data => Whence::SeekData,
        SeekTarget::Hole => Whence::SeekHole,
    };
    // This moves the descriptor's own offset, which nothing reads by.
    lseek64(&*file.file, offset, whence).map(|found| Reply::Offset(found as u64)).map_err(system_error)
}
