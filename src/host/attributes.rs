//! From what the kernel tells of a file to what the wire says of it.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::AtFlags;

use super::confine::proc_path;
use super::file_systems::{self, FileSystem};
use super::trust;
use crate::io::sys::{self, Statx, XattrTarget};
use crate::proto::{Attributes, Errno, ErrorCode, FileKind, NodeId, Timestamp, Version, WireError};

/// Attempts to look at the file that bears a name while somebody replaces it. More than one failed attempt in a row means
/// a file system that counts no names.
const STATS_MAX: u32 = 4;

/// Attributes of the entry `name` of the folder `at`, a link's own where it is one.
pub(super) fn of_entry(at: BorrowedFd<'_>, name: &CStr) -> Result<Attributes, WireError> {
    // Taken before the call: its answer cannot be older than this.
    let mut observed = now();
    let stat = || sys::statx(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system_error);
    let mut raw = stat()?;
    for _ in 1..STATS_MAX {
        // Linux finds the file first and looks at it then. A file without a name was replaced in between.
        if raw.nlink > 0 {
            break;
        }
        observed = now();
        raw = stat()?;
    }
    let on = file_systems::of_entry(at, name, &raw);
    Ok(Attributes { has_xattrs: entry_has_xattrs(at, name), ..from_statx(&raw, on, observed) })
}

/// Attributes of an open file.
pub(super) fn of_open(fd: BorrowedFd<'_>) -> Result<Attributes, WireError> {
    let observed = now();
    let raw = sys::fstatx(fd).map_err(system_error)?;
    let has_xattrs = xattr_names(XattrTarget::Fd(fd)).map_or(true, |names| !names.is_empty());
    Ok(Attributes { has_xattrs, ..from_statx(&raw, file_systems::of_open(fd, &raw), observed) })
}

/// The version of an open file: a part of what [`of_open`] tells, for half of the system calls.
pub(super) fn version_of_open(fd: BorrowedFd<'_>) -> Result<Version, WireError> {
    let raw = sys::fstatx(fd).map_err(system_error)?;
    Ok(Version { size: raw.size, mtime: timestamp(raw.mtime), ctime: timestamp(raw.ctime) })
}

/// The names of the extended attributes that clients may see, each ended by a NUL.
///
/// Not those that only the host's root may see, and not labels and capabilities: they mean something to the host's kernel only.
pub(super) fn xattr_names(target: XattrTarget<'_>) -> Result<Vec<u8>, WireError> {
    match sys::list_xattr(target) {
        Ok(list) => {
            let shown = sys::split_xattr_names(&list).filter(|name| !is_hidden_xattr(name));
            Ok(shown.flat_map(|name| [name, b"\0"]).collect::<Vec<_>>().concat())
        }
        // A file system without attributes has an empty list of them.
        Err(nix::errno::Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(system_error(errno)),
    }
}

/// Whether clients may not see the attribute of this name.
pub(super) fn is_hidden_xattr(name: &[u8]) -> bool {
    [&b"trusted."[..], b"security."].iter().any(|prefix| name.starts_with(prefix))
}

/// What cannot be told counts as yes: who wants to know more asks, and hears why not.
fn entry_has_xattrs(at: BorrowedFd<'_>, name: &CStr) -> bool {
    let path = [proc_path(at).as_bytes(), b"/", name.to_bytes()].concat();
    let Ok(path) = CString::new(path) else { return true };
    xattr_names(XattrTarget::Link(&path)).map_or(true, |names| !names.is_empty())
}

/// The host's clock.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since.as_secs() as i64, since.subsec_nanos())
}

/// An error number of the kernel, as the wire carries it.
pub(super) fn system_error(errno: nix::errno::Errno) -> WireError {
    WireError::system(Errno(errno as i32))
}

/// The answer that makes the client look the node up again.
pub(super) fn unknown_node() -> WireError {
    WireError::new(ErrorCode::UnknownNode, "")
}

fn timestamp(time: sys::Timestamp) -> Timestamp {
    Timestamp::new(time.secs, time.nanos)
}

fn from_statx(raw: &Statx, on: FileSystem, observed: Timestamp) -> Attributes {
    let birth = raw.btime.map(timestamp);
    Attributes {
        node: NodeId { device: on.id, inode: raw.ino, birth_ns: birth.map_or(0, |birth| birth.0) },
        kind: kind_of(raw.mode),
        permissions: (raw.mode & 0o7777) as u16,
        links: raw.nlink,
        uid: raw.uid,
        gid: raw.gid,
        device_number: raw.rdev,
        size: raw.size,
        blocks: raw.blocks,
        atime: timestamp(raw.atime),
        mtime: timestamp(raw.mtime),
        ctime: timestamp(raw.ctime),
        btime: birth,
        has_xattrs: false,
        trust: trust::of_file(on.verdict.trust(), birth.is_some(), timestamp(raw.ctime)),
        observed,
    }
}

fn kind_of(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => FileKind::Regular,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::io::sys::XattrSet;

    #[test]
    fn they_say_what_stat_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
        let (before, expected) = (now(), fs::metadata(&path).unwrap());
        let got = of_entry(File::open(folder.path()).unwrap().as_fd(), c"file").unwrap();
        assert_eq!(got.node.inode, expected.ino());
        assert_eq!((got.kind, got.permissions, got.size), (FileKind::Regular, 0o4750, 7));
        assert_eq!(got.mtime, Timestamp::new(expected.mtime(), expected.mtime_nsec() as u32));
        assert!(got.observed >= before);
        let opened = of_open(File::open(&path).unwrap().as_fd()).unwrap();
        assert_eq!(Attributes { observed: got.observed, ..opened }, got);
    }

    #[test]
    fn they_tell_who_has_extended_attributes_that_are_shown() {
        // Not in memory: tmpfs has user attributes only on newer kernels.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = File::open(folder.path()).unwrap();
        for (name, xattr) in [("none", None), ("some", Some(c"user.a")), ("hidden", Some(c"trusted.a"))] {
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            if let Some(xattr) = xattr
                && let Err(error) = sys::set_xattr(XattrTarget::Fd(file.as_fd()), xattr, b"1", XattrSet::Any)
            {
                assert_eq!((error, name), (nix::errno::Errno::EPERM, "hidden"), "only root may set those");
            }
            let c_name = CString::new(name).unwrap();
            let (entry, open) = (of_entry(at.as_fd(), &c_name).unwrap(), of_open(file.as_fd()).unwrap());
            assert_eq!((entry.has_xattrs, open.has_xattrs), (name == "some", name == "some"), "{name}");
        }
    }

    #[test]
    fn errors_keep_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let error = of_entry(File::open(folder.path()).unwrap().as_fd(), c"none").unwrap_err();
        assert_eq!(error, WireError::system(Errno::ENOENT));
    }
}
