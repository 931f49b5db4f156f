//! File attributes in one call, birth time and nanoseconds included.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;

/// Point in time: seconds since 1970 (negative before), and nanoseconds after them, 0 to 999,999,999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Whole seconds since the epoch, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// Both kinds of mount ids. A kernel that has the unique one returns it.
const MOUNT_IDS: libc::c_uint = libc::STATX_MNT_ID | libc::STATX_MNT_ID_UNIQUE;

/// Attributes of a file, from `statx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statx {
    /// Device of the file, as `st_dev` (glibc's encoding of major and minor).
    pub dev: u64,
    /// Inode number, unique on `dev`.
    pub ino: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device of a device file, as `st_rdev`; 0 for other files.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space in use, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation; `None` if the file system does not record it.
    pub btime: Option<Timestamp>,
    /// Mount through which the file was reached; `None` before Linux 5.8.
    pub mount_id: Option<u64>,
    /// True if that number is never reused, as from Linux 6.8 on.
    pub has_unique_mount_id: bool,
    /// Supported `STATX_ATTR_*` bits that are set (immutable, append only, ...).
    pub attributes: u64,
}

/// Returns the attributes of `path`, relative to `dirfd`.
///
/// `flags` may hold `AT_SYMLINK_NOFOLLOW`, `AT_NO_AUTOMOUNT` and `AT_EMPTY_PATH`. The last one with an
/// empty path means `dirfd` itself, which may be an `O_PATH` descriptor.
pub fn statx(dirfd: BorrowedFd<'_>, path: &CStr, flags: AtFlags) -> Result<Statx, Errno> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | MOUNT_IDS;
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` ends in NUL, `raw` is a writable `struct statx`, and both outlive the call.
    let code = unsafe { libc::statx(dirfd.as_raw_fd(), path.as_ptr(), flags.bits(), mask, raw.as_mut_ptr()) };
    Errno::result(code)?;
    // SAFETY: every field is an integer, the memory was zeroed, and the call succeeded.
    Ok(Statx::from_raw(&unsafe { raw.assume_init() }))
}

/// Returns the attributes of the open file `fd`, which may be an `O_PATH` descriptor.
pub fn fstatx(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::AT_EMPTY_PATH)
}

/// Returns the device of the file system of `path` as `st_dev`, with the arguments of [`statx`]. Does not
/// ask the file system, so a hanging one does not block it. Looking up a name in it may block.
pub fn device_of(dirfd: BorrowedFd<'_>, path: &CStr, flags: AtFlags) -> Result<u64, Errno> {
    let flags = flags.bits() | libc::AT_STATX_DONT_SYNC;
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` ends in NUL, `raw` is a writable `struct statx`, and both outlive the call.
    let code = unsafe { libc::statx(dirfd.as_raw_fd(), path.as_ptr(), flags, 0, raw.as_mut_ptr()) };
    Errno::result(code)?;
    // SAFETY: every field is an integer, the memory was zeroed, and the call succeeded.
    let raw = unsafe { raw.assume_init() };
    Ok(libc::makedev(raw.stx_dev_major, raw.stx_dev_minor))
}

impl Statx {
    fn from_raw(raw: &libc::statx) -> Self {
        let has = |bit: libc::c_uint| raw.stx_mask & bit != 0;
        Self {
            dev: libc::makedev(raw.stx_dev_major, raw.stx_dev_minor),
            ino: raw.stx_ino,
            mode: u32::from(raw.stx_mode),
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            rdev: libc::makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            blksize: raw.stx_blksize,
            atime: timestamp(&raw.stx_atime),
            mtime: timestamp(&raw.stx_mtime),
            ctime: timestamp(&raw.stx_ctime),
            btime: has(libc::STATX_BTIME).then(|| timestamp(&raw.stx_btime)),
            mount_id: has(MOUNT_IDS).then_some(raw.stx_mnt_id),
            has_unique_mount_id: has(libc::STATX_MNT_ID_UNIQUE),
            attributes: raw.stx_attributes & raw.stx_attributes_mask,
        }
    }
}

const fn timestamp(raw: &libc::statx_timestamp) -> Timestamp {
    Timestamp { secs: raw.tv_sec, nanos: raw.tv_nsec }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn agrees_with_stat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![7; 10_000]).unwrap();
        let file = File::open(&path).unwrap();
        let expected = file.metadata().unwrap();
        let root = File::open(dir.path()).unwrap();
        let got = statx(root.as_fd(), c"file", AtFlags::empty()).unwrap();
        assert_eq!(got, fstatx(file.as_fd()).unwrap());
        assert_eq!(device_of(root.as_fd(), c"file", AtFlags::empty()), Ok(got.dev));
        assert_eq!((got.dev, got.ino, got.mode), (expected.dev(), expected.ino(), expected.mode()));
        assert_eq!((got.size, got.blocks), (10_000, expected.blocks()));
        assert_eq!((got.uid, got.gid), (expected.uid(), expected.gid()));
        assert_eq!((u64::from(got.nlink), u64::from(got.blksize)), (1, expected.blksize()));
        assert_eq!((got.mtime.secs, i64::from(got.mtime.nanos)), (expected.mtime(), expected.mtime_nsec()));
        assert_eq!((got.ctime.secs, i64::from(got.ctime.nanos)), (expected.ctime(), expected.ctime_nsec()));
        assert_eq!((got.atime.secs, i64::from(got.atime.nanos)), (expected.atime(), expected.atime_nsec()));
        assert_eq!(got.btime.is_some(), expected.created().is_ok());
    }

    #[test]
    fn devices_links_and_errors() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(fstatx(null.as_fd()).unwrap().rdev, null.metadata().unwrap().rdev());
        let dir = tempfile::tempdir().unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let link = statx(root.as_fd(), c"link", AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(link.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(statx(root.as_fd(), c"link", AtFlags::empty()).unwrap_err(), Errno::ENOENT);
    }
}
