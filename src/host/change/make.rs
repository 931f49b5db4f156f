//! Making: files, folders, links, pipes and the like.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno as SystemErrno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, ftruncate, linkat, symlinkat};

use super::{Changer, Done, cannot_tell, changed, errno, folder_now, hold_entry, now, refused};
use crate::host::attributes::{self, system_error};
use crate::host::confine::{open_for, proc_path};
use crate::host::tree::{Handle, check_name};
use crate::io::sys::{self, XattrTarget};
use crate::proto::{Attributes, Caller, Errno, ErrorCode, FileKind, NodeId, OpenAccess, OpenId, WireError};

/// The bits that lend a program its file's user and group.
const SET_ID_BITS: u16 = 0o6000;

/// Attempts to link what bears a name while somebody replaces it.
const LINK_ATTEMPTS_MAX: u32 = 32;

/// The set-group-id bit; on a folder it hands the folder's group on.
const SET_GID_BIT: u16 = 0o2000;

/// How a file is to be made.
pub(super) struct Create {
    pub(super) permissions: u16,
    pub(super) caller: Caller,
    pub(super) open: OpenId,
    pub(super) access: OpenAccess,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
}

impl Changer<'_> {
    pub(super) fn create(&self, parent: NodeId, name: &[u8], create: &Create) -> Result<Done, WireError> {
        let c_name = check_name(name)?;
        self.may_have_bits(FileKind::Regular, create.permissions)?;
        let folder = self.folder(parent)?;
        let mode = masked(&folder, create.permissions, create.caller);
        let flags = OFlag::O_RDWR
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC
            | OFlag::O_NOCTTY;
        let (fd, access) = match openat(folder.file.as_fd(), c_name.as_c_str(), flags, mode) {
            Ok(fd) => {
                self.give(fd.as_fd(), &folder, create.caller, FileKind::Regular, mode)?;
                (fd, OpenAccess { reads: true, writes: true, appends: false })
            }
            Err(SystemErrno::EEXIST) if create.exclusive && !self.is_certain() => {
                return cannot_tell("the name is taken now");
            }
            Err(SystemErrno::EEXIST) if !create.exclusive => open_existing(&folder, &c_name, create)?,
            Err(error) => return Err(system_error(error)),
        };
        let found = attributes::of_open(fd.as_fd())?;
        let handle = Handle::file(fd, found.node, access);
        self.session.hold(found.node, create.open, handle)?;
        self.session.tree.record(parent, [(found.node, name)]);
        Ok(changed(Some(found), [folder_now(&folder)]))
    }

    pub(super) fn make_directory(
        &self,
        parent: NodeId,
        name: &[u8],
        permissions: u16,
        caller: Caller,
    ) -> Result<Done, WireError> {
        let folder = self.folder(parent)?;
        let mode = masked(&folder, permissions, caller);
        self.make(&folder, parent, name, (caller, FileKind::Directory, mode), |at, name| {
            mkdirat(at, name, mode)
        })
    }

    pub(super) fn make_node(
        &self,
        parent: NodeId,
        name: &[u8],
        (kind, device_number): (FileKind, u64),
        permissions: u16,
        caller: Caller,
    ) -> Result<Done, WireError> {
        self.may_have_bits(kind, permissions)?;
        let type_bits = match kind {
            FileKind::Regular => SFlag::S_IFREG,
            FileKind::Fifo => SFlag::S_IFIFO,
            FileKind::Socket => SFlag::S_IFSOCK,
            FileKind::CharDevice | FileKind::BlockDevice if !self.owners => {
                return Err(refused(Errno::EPERM, "this key may not make devices".into()));
            }
            FileKind::CharDevice => SFlag::S_IFCHR,
            FileKind::BlockDevice => SFlag::S_IFBLK,
            FileKind::Directory | FileKind::Symlink => return Err(WireError::system(Errno::EINVAL)),
        };
        let folder = self.folder(parent)?;
        let mode = masked(&folder, permissions, caller);
        self.make(&folder, parent, name, (caller, kind, mode), |at, name| {
            mknodat(at, name, type_bits, mode, device_number)
        })
    }

    pub(super) fn make_symlink(
        &self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Done, WireError> {
        let target = CString::new(target).map_err(|_| WireError::system(Errno::EINVAL))?;
        let folder = self.folder(parent)?;
        self.make(&folder, parent, name, (caller, FileKind::Symlink, Mode::empty()), |at, name| {
            symlinkat(target.as_c_str(), at, name)
        })
    }

    pub(super) fn link(
        &self,
        node: NodeId,
        seen_as: Option<(NodeId, Vec<u8>)>,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Done, WireError> {
        const UNKNOWN: ErrorCode = ErrorCode::UnknownNode;
        const GONE: ErrorCode = ErrorCode::System(Errno::ENOENT);
        match (self.link_node(node, parent, name), seen_as) {
            (Err(WireError { code: UNKNOWN | GONE, .. }), Some(seen_as)) => {
                self.link_entry((seen_as.0, &seen_as.1), parent, name)
            }
            (linked, _) => linked,
        }
    }

    /// Gives whatever bears a name another one. Linux itself looks the name up and then links what it found, which is ENOENT where
    /// that was replaced within these microseconds.
    fn link_entry(&self, from: (NodeId, &[u8]), parent: NodeId, name: &[u8]) -> Result<Done, WireError> {
        let (from_name, c_name) = (check_name(from.1)?, check_name(name)?);
        let (from_folder, folder) = (self.folder(from.0)?, self.folder(parent)?);
        let (from_fd, fd) = (from_folder.file.as_fd(), folder.file.as_fd());
        let link = || linkat(from_fd, from_name.as_c_str(), fd, c_name.as_c_str(), AtFlags::empty());
        let mut linked = link();
        for _ in 1..LINK_ATTEMPTS_MAX {
            if linked != Err(SystemErrno::ENOENT) || hold_entry(&from_folder, &from_name).is_err() {
                break;
            }
            linked = link();
        }
        errno(linked)?;
        let made = errno(hold_entry(&folder, &c_name))?;
        let found = attributes::of_open(made.as_fd())?;
        self.session.tree.record(parent, [(found.node, name)]);
        Ok(changed(Some(found), [folder_now(&folder)]))
    }

    fn link_node(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Done, WireError> {
        let c_name = check_name(name)?;
        let folder = self.folder(parent)?;
        let (reached, _) = self.session.reach(node)?;
        let made = linkat(
            AT_FDCWD,
            proc_path(reached.as_fd()).as_str(),
            folder.file.as_fd(),
            c_name.as_c_str(),
            AtFlags::AT_SYMLINK_FOLLOW,
        );
        match made {
            // The very file under this very name: that was us.
            Err(SystemErrno::EEXIST) if !self.is_certain() => {
                let there = attributes::of_entry(folder.file.as_fd(), &c_name)?;
                if there.node != node {
                    return Err(WireError::system(Errno::EEXIST));
                }
            }
            made => errno(made)?,
        }
        self.session.tree.record(parent, [(node, name)]);
        let found = attributes::of_open(reached.as_fd())?;
        Ok(changed(Some(found), [folder_now(&folder)]))
    }

    /// Makes something that is not opened.
    fn make(
        &self,
        folder: &Arc<Handle>,
        parent: NodeId,
        name: &[u8],
        (caller, kind, mode): (Caller, FileKind, Mode),
        make: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<(), SystemErrno>,
    ) -> Result<Done, WireError> {
        let c_name = check_name(name)?;
        match make(folder.file.as_fd(), &c_name) {
            Err(SystemErrno::EEXIST) if !self.is_certain() => {
                return cannot_tell("the name is taken now");
            }
            made => errno(made)?,
        }
        let fd = errno(hold_entry(folder, &c_name))?;
        self.give(fd.as_fd(), folder, caller, kind, mode)?;
        let found = attributes::of_open(fd.as_fd())?;
        self.session.tree.record(parent, [(found.node, name)]);
        self.session.tree.hold(fd, &found);
        Ok(changed(Some(found), [folder_now(folder)]))
    }

    /// Gives what was just made to the one who asked, where the client may choose owners.
    fn give(
        &self,
        fd: BorrowedFd<'_>,
        folder: &Handle,
        caller: Caller,
        kind: FileKind,
        mode: Mode,
    ) -> Result<(), WireError> {
        if !self.owners || !self.is_root() {
            return Ok(());
        }
        let hands_group_on = folder_now(folder).is_some_and(|found| found.permissions & SET_GID_BIT != 0);
        let group = (!hands_group_on).then(|| Gid::from_raw(caller.gid));
        let owner = Some(Uid::from_raw(caller.uid));
        errno(nix::unistd::fchownat(fd, c"", owner, group, AtFlags::AT_EMPTY_PATH))?;
        // A change of owner takes these bits away from everything but folders.
        let loses_bits = !matches!(kind, FileKind::Directory | FileKind::Symlink);
        if loses_bits && mode.bits() & u32::from(SET_ID_BITS) != 0 {
            let path = proc_path(fd);
            errno(fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink))?;
        }
        Ok(())
    }

    /// Whether the client may set these permission bits on something of this kind.
    pub(super) fn may_have_bits(&self, kind: FileKind, permissions: u16) -> Result<(), WireError> {
        let lends = permissions & SET_ID_BITS != 0 && kind != FileKind::Directory;
        if lends && self.is_root() && !self.owners {
            let text = "a host that runs as root sets no set-user-id or set-group-id bit for this key";
            return Err(refused(Errno::EPERM, text.into()));
        }
        Ok(())
    }
}

/// Opens what has the name already.
fn open_existing(folder: &Handle, name: &CStr, create: &Create) -> Result<(OwnedFd, OpenAccess), WireError> {
    let there = errno(hold_entry(folder, name))?;
    match now(&there).map(|found: Attributes| found.kind) {
        Some(FileKind::Regular) => {}
        Some(FileKind::Directory) => return Err(WireError::system(Errno::EISDIR)),
        Some(FileKind::Symlink) => return Err(WireError::system(Errno::ELOOP)),
        _ => return Err(WireError::system(Errno::ENXIO)),
    }
    let (fd, access) = errno(open_for(there.as_fd(), create.access))?;
    if create.truncate && create.access.writes {
        errno(ftruncate(&fd, 0))?;
    }
    Ok((fd, access))
}

/// The permissions with which to make something: without what the caller masks, unless the folder has an ACL for what is
/// made in it, which the kernel then goes by.
fn masked(folder: &Handle, permissions: u16, caller: Caller) -> Mode {
    let path = proc_path(folder.file.as_fd());
    let has_default_acl = CString::new(path)
        .is_ok_and(|path| sys::get_xattr(XattrTarget::Path(&path), c"system.posix_acl_default").is_ok());
    let mask = if has_default_acl { 0 } else { caller.umask };
    Mode::from_bits_truncate(u32::from(permissions & 0o7777 & !mask))
}
