//! From what the kernel tells of a file to what the wire says of it.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::AtFlags;

use crate::io::sys::{self, Statx};
use crate::proto::{Attributes, Errno, ErrorCode, FileKind, NodeId, Timestamp, WireError};

/// Attributes of the entry `name` of the folder `at`, a link's own where it is one.
pub(super) fn of_entry(at: BorrowedFd<'_>, name: &CStr) -> Result<Attributes, WireError> {
    // Before the call: what the call then tells cannot be older than this.
    let observed = now();
    sys::statx(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map(|raw| from_statx(&raw, observed))
        .map_err(system_error)
}

/// Attributes of an open file.
pub(super) fn of_open(fd: BorrowedFd<'_>) -> Result<Attributes, WireError> {
    let observed = now();
    sys::fstatx(fd).map(|raw| from_statx(&raw, observed)).map_err(system_error)
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

fn from_statx(raw: &Statx, observed: Timestamp) -> Attributes {
    let time = |time: sys::Timestamp| Timestamp::new(time.secs, time.nanos);
    let birth = raw.btime.map(time);
    Attributes {
        node: NodeId { device: raw.dev, inode: raw.ino, birth_ns: birth.map_or(0, |birth| birth.0) },
        kind: kind_of(raw.mode),
        permissions: (raw.mode & 0o7777) as u16,
        links: raw.nlink,
        uid: raw.uid,
        gid: raw.gid,
        device_number: raw.rdev,
        size: raw.size,
        blocks: raw.blocks,
        atime: time(raw.atime),
        mtime: time(raw.mtime),
        ctime: time(raw.ctime),
        btime: birth,
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

    #[test]
    fn they_say_what_stat_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
        let (before, expected) = (now(), fs::metadata(&path).unwrap());
        let got = of_entry(File::open(folder.path()).unwrap().as_fd(), c"file").unwrap();
        assert_eq!((got.node.device, got.node.inode), (expected.dev(), expected.ino()));
        assert_eq!((got.kind, got.permissions, got.size), (FileKind::Regular, 0o4750, 7));
        assert_eq!(got.mtime, Timestamp::new(expected.mtime(), expected.mtime_nsec() as u32));
        assert!(got.observed >= before);
        let opened = of_open(File::open(&path).unwrap().as_fd()).unwrap();
        assert_eq!(Attributes { observed: got.observed, ..opened }, got);
    }

    #[test]
    fn errors_keep_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let error = of_entry(File::open(folder.path()).unwrap().as_fd(), c"none").unwrap_err();
        assert_eq!(error, WireError::system(Errno::ENOENT));
    }
}
