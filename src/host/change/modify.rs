//! Changing attributes, extended ones too.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, ftruncate};

use super::{Changer, Done, changed, errno, refused};
use crate::host::answer::malformed;
use crate::host::attributes;
use crate::host::confine::proc_path;
use crate::io::sys::{self, XattrSet, XattrTarget};
use crate::proto::{
    Attributes, Errno, FileKind, NodeId, SetAttributes, SetTime, WireError, XATTR_VALUE_BYTES_MAX, XattrHow,
};

/// Longest name of an extended attribute, in bytes (the kernel's `XATTR_NAME_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;

impl Changer<'_> {
    pub(super) fn set_attributes(&self, node: NodeId, set: &SetAttributes) -> Result<Done, WireError> {
        let (reached, found) = self.session.reach(node)?;
        let fd = reached.as_fd();
        self.set_owner(fd, &found, set)?;
        if let Some(permissions) = set.permissions {
            if permissions & !found.permissions != 0 {
                self.may_have_bits(found.kind, permissions & !found.permissions)?;
            }
            let mode = Mode::from_bits_truncate(u32::from(permissions & 0o7777));
            errno(fchmodat(AT_FDCWD, proc_path(fd).as_str(), mode, FchmodatFlags::FollowSymlink))?;
        }
        if let Some(size) = set.size {
            if found.kind != FileKind::Regular {
                let is_folder = found.kind == FileKind::Directory;
                return Err(WireError::system(if is_folder { Errno::EISDIR } else { Errno::EINVAL }));
            }
            let size = i64::try_from(size).map_err(|_| WireError::system(Errno::EFBIG))?;
            errno(ftruncate(&*self.session.file_to_write(node)?.file, size))?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let path = proc_path(fd);
            let (atime, mtime) = (time_spec(set.atime), time_spec(set.mtime));
            errno(utimensat(AT_FDCWD, path.as_str(), &atime, &mtime, UtimensatFlags::FollowSymlink))?;
        }
        as_it_is(fd)
    }

    fn set_owner(
        &self,
        fd: BorrowedFd<'_>,
        found: &Attributes,
        set: &SetAttributes,
    ) -> Result<(), WireError> {
        let changes =
            set.uid.is_some_and(|uid| uid != found.uid) || set.gid.is_some_and(|gid| gid != found.gid);
        if changes && self.is_root() && !self.owners {
            let text = "a host that runs as root gives files to nobody else for this key";
            return Err(refused(Errno::EPERM, text.into()));
        }
        if set.uid.is_none() && set.gid.is_none() {
            return Ok(());
        }
        let (owner, group) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        errno(fchownat(fd, c"", owner, group, AtFlags::AT_EMPTY_PATH))
    }

    pub(super) fn set_xattr(
        &self,
        node: NodeId,
        name: Vec<u8>,
        value: &[u8],
        how: XattrHow,
    ) -> Result<Done, WireError> {
        let name = writable_xattr(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(malformed("a value of an extended attribute that is too long"));
        }
        // After a restart `Create` would find what it made itself, and setting it again changes nothing.
        let how = match how {
            XattrHow::Create if self.is_certain() => XattrSet::Create,
            XattrHow::Replace => XattrSet::Replace,
            XattrHow::Create | XattrHow::Any => XattrSet::Any,
        };
        let (reached, _) = self.session.reach(node)?;
        errno(sys::set_xattr(XattrTarget::Fd(reached.as_fd()), &name, value, how))?;
        as_it_is(reached.as_fd())
    }

    pub(super) fn remove_xattr(&self, node: NodeId, name: Vec<u8>) -> Result<Done, WireError> {
        let name = writable_xattr(name)?;
        let (reached, _) = self.session.reach(node)?;
        match sys::remove_xattr(XattrTarget::Fd(reached.as_fd()), &name) {
            Err(nix::errno::Errno::ENODATA) if !self.is_certain() => {}
            removed => errno(removed)?,
        }
        as_it_is(reached.as_fd())
    }
}

fn as_it_is(fd: BorrowedFd<'_>) -> Result<Done, WireError> {
    attributes::of_open(fd).map(|found| changed(Some(found), []))
}

/// The name of an attribute that clients may change: their own, and ACLs.
fn writable_xattr(name: Vec<u8>) -> Result<CString, WireError> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(WireError::system(Errno::ERANGE));
    }
    let allowed = name.starts_with(b"user.")
        || [&b"system.posix_acl_access"[..], b"system.posix_acl_default"].contains(&name.as_slice());
    if !allowed {
        return Err(WireError::system(Errno::EOPNOTSUPP));
    }
    CString::new(name).map_err(|_| malformed("an attribute's name holds a NUL"))
}

fn time_spec(time: Option<SetTime>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(SetTime::Now) => TimeSpec::UTIME_NOW,
        Some(SetTime::At(time)) => TimeSpec::new(time.seconds(), i64::from(time.subsecond_ns())),
    }
}
