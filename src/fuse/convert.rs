//! Conversions of attributes, times, error numbers and names to FUSE's types.
//!
//! Pure: no I/O, no clock.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, FopenFlags, Generation, INodeNo, Request, TimeOrNow, WriteFlags};

use crate::fs::{CreateRequest, DirectoryItem, Entry, FsError, LockWish, OpenMode, OpenRequest, WriteHow};
use crate::proto::{
    AllocateHow, Attributes, Caller, Errno, FileKind, LockKind, LockRange, RenameHow, SetTime, Timestamp,
    XattrHow,
};

/// `st_blksize`, in bytes. `cp` and many others read in blocks of this size. One block is one request.
const BLOCK_BYTES: u32 = 1024 * 1024;

/// Returns attributes under a number: the one that users see, or of an entry the kernel's.
pub(super) fn file_attr(number: u64, attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: system_time(attributes.btime.unwrap_or_default()),
        kind: file_type(attributes.kind),
        perm: attributes.permissions,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: encode_device(attributes.device_number),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Returns the lock request of a program, `None` if the kernel's values are unknown.
pub(super) fn lock_wish(owner: u64, (start, end): (u64, u64), kind: i32, process: u32) -> Option<LockWish> {
    let kind = match kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        _ => return None,
    };
    Some(LockWish { owner, range: LockRange::new(start, end)?, kind, process })
}

/// Returns a kind of lock as a constant of the kernel.
pub(super) const fn lock_type(kind: LockKind) -> i32 {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// Returns the attributes for `.` and `..`. The kernel uses only the number.
fn dot_attr(number: u64) -> FileAttr {
    FileAttr { ino: INodeNo(number), kind: FileType::Directory, ..absent_attr() }
}

/// Returns the attributes for an absent name. Number 0 marks it as absent.
pub(super) const fn absent_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Returns the only time that an entry of `readdirplus` can carry.
pub(super) fn entry_ttl(entry: &Entry) -> Duration {
    attributes_ttl(entry).min(entry.entry_ttl)
}

/// Returns an entry's attributes under the kernel's number: the library sends one number for both.
pub(super) fn entry_attr(entry: &Entry) -> FileAttr {
    file_attr(entry.inode.0, &entry.attributes)
}

/// Returns the time for which the kernel may keep an entry's attributes: none if they bear another number
/// than users see. The kernel then asks again before it shows them, and takes the number of that answer.
pub(super) fn attributes_ttl(entry: &Entry) -> Duration {
    if entry.inode.0 == entry.number { entry.attributes_ttl } else { Duration::ZERO }
}

/// Returns the number that tells a file from others that have had its inode number.
pub(super) fn generation(entry: &Entry) -> Generation {
    Generation(u64::from(entry.generation))
}

/// Returns attributes, their time and the generation of an item of a directory, also of `.` and `..`.
pub(super) fn item_attr(item: &DirectoryItem<'_>) -> (FileAttr, Duration, Generation) {
    match &item.entry {
        Some(entry) => (entry_attr(entry), entry_ttl(entry), generation(entry)),
        None => (dot_attr(item.number), Duration::ZERO, Generation(0)),
    }
}

pub(super) const fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn open_flags(mode: OpenMode) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, mode.is_direct);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, mode.keeps_pages);
    flags
}

/// Returns the open mode from the flags of `open(2)`.
pub(super) const fn open_request(flags: i32) -> OpenRequest {
    let mode = flags & libc::O_ACCMODE;
    OpenRequest {
        reads: mode != libc::O_WRONLY,
        writes: mode != libc::O_RDONLY,
        is_direct: flags & libc::O_DIRECT != 0,
        copies: false,
        appends: flags & libc::O_APPEND != 0,
    }
}

/// Caller of a request.
pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask: (umask & 0o777) as u16 }
}

/// Returns the request to create a file, from the mode and the flags of `open(2)`.
pub(super) const fn create_request(caller: Caller, mode: u32, flags: i32) -> CreateRequest {
    CreateRequest {
        permissions: permissions(mode),
        caller,
        open: open_request(flags),
        exclusive: flags & libc::O_EXCL != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// Returns the write mode of a program, from the present flags of its file. Pages that the kernel writes back
/// have an offset, and an `fsync` follows if needed.
pub(super) fn write_how(flags: i32, write_flags: WriteFlags) -> WriteHow {
    let from_page = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
    WriteHow {
        appends: !from_page && flags & libc::O_APPEND != 0,
        // `O_SYNC` is `O_DSYNC` with one more bit.
        syncs: !from_page && flags & libc::O_DSYNC != 0,
        drops_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
    }
}

/// Returns the low 12 bits of a mode.
pub(super) const fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// Returns the object that `mknod(2)` must create, `None` for unsupported kinds.
pub(super) const fn kind_of(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// Returns the rename mode from the flags of `renameat2(2)`, `None` for unsupported flags.
pub(super) const fn rename_how(flags: u32) -> Option<RenameHow> {
    match flags {
        0 => Some(RenameHow::Replace),
        libc::RENAME_NOREPLACE => Some(RenameHow::NoReplace),
        libc::RENAME_EXCHANGE => Some(RenameHow::Exchange),
        _ => None,
    }
}

/// Returns the mode of `setxattr(2)` from its flags.
pub(super) const fn xattr_how(flags: i32) -> Option<XattrHow> {
    match flags {
        0 => Some(XattrHow::Any),
        libc::XATTR_CREATE => Some(XattrHow::Create),
        libc::XATTR_REPLACE => Some(XattrHow::Replace),
        _ => None,
    }
}

/// Returns the operation of `fallocate(2)` from its mode, `None` for unknown modes.
pub(super) const fn allocate_how(mode: i32) -> Option<AllocateHow> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Some(AllocateHow::Grow),
        libc::FALLOC_FL_KEEP_SIZE => Some(AllocateHow::KeepSize),
        PUNCH => Some(AllocateHow::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Some(AllocateHow::Zero),
        ZERO_KEEP => Some(AllocateHow::ZeroKeepSize),
        libc::FALLOC_FL_COLLAPSE_RANGE => Some(AllocateHow::Collapse),
        libc::FALLOC_FL_INSERT_RANGE => Some(AllocateHow::Insert),
        _ => None,
    }
}

/// Returns a time that a program sets.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Returns a time from the library. For times before 1970 the library subtracts the nanoseconds that the
/// kernel adds (fuser 0.18, `system_time_from_time`).
fn timestamp(time: SystemTime) -> Timestamp {
    let ns = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Timestamp(ns(after.as_secs()).saturating_add(i64::from(after.subsec_nanos()))),
        Err(before) => {
            let before = before.duration();
            Timestamp(i64::from(before.subsec_nanos()).saturating_sub(ns(before.as_secs())))
        }
    }
}

pub(super) fn errno(error: &FsError) -> fuser::Errno {
    number(error.errno())
}

pub(super) fn number(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

/// Converts a device number from the user-space form (64 bits) to the form in kernel messages (32 bits: 12
/// bits of the minor, 12 of the major, 8 of the minor).
const fn encode_device(user: u64) -> u32 {
    let major = ((user >> 8) & 0xfff) | ((user >> 32) & !0xfff);
    let minor = (user & 0xff) | ((user >> 12) & 0xffff_ff00);
    ((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)) as u32
}

/// Converts a device number from kernel messages to the user-space form.
pub(super) const fn decode_device(kernel: u32) -> u64 {
    let major = ((kernel & 0x000f_ff00) >> 8) as u64;
    let minor = ((kernel & 0xff) | ((kernel >> 12) & 0x000f_ff00)) as u64;
    ((major & !0xfff) << 32) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | (minor & 0xff)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn device_numbers_keep_major_and_minor(major in 0u32..4096, minor in 0u32..1 << 20) {
            let encoded = encode_device(nix::sys::stat::makedev(u64::from(major), u64::from(minor)));
            // In the way the kernel decodes it (`new_decode_dev`).
            let kernel = ((encoded & 0x000f_ff00) >> 8, (encoded & 0xff) | ((encoded >> 12) & 0x000f_ff00));
            prop_assert_eq!(kernel, (major, minor));
            prop_assert_eq!(decode_device(encoded), nix::sys::stat::makedev(u64::from(major), u64::from(minor)));
        }

        #[test]
        fn times_keep_their_nanoseconds(ns in any::<i64>()) {
            let time = system_time(Timestamp(ns));
            let back = match time.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            prop_assert_eq!(back, i128::from(ns));
            // In the way the library converts the kernel's value.
            let (seconds, rest) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000) as u32);
            let distance = Duration::new(seconds.unsigned_abs(), rest);
            let handed_over = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            prop_assert_eq!(set_time(TimeOrNow::SpecificTime(handed_over)), SetTime::At(Timestamp(ns)));
        }
    }

    #[test]
    fn a_written_back_page_has_an_offset() {
        let flags = libc::O_APPEND | libc::O_DSYNC;
        let how = WriteHow { appends: true, syncs: true, drops_set_id: false };
        assert_eq!(write_how(flags, WriteFlags::empty()), how);
        assert_eq!(write_how(flags, WriteFlags::FUSE_WRITE_CACHE), WriteHow::default());
        let drops_set_id = WriteHow { drops_set_id: true, ..WriteHow::default() };
        assert_eq!(write_how(libc::O_RDWR, WriteFlags::FUSE_WRITE_KILL_SUIDGID), drops_set_id);
    }

    #[test]
    fn an_error_number_goes_through() {
        assert_eq!(errno(&FsError::Stale).code(), libc::ESTALE);
        assert_eq!(errno(&FsError::ReadOnly).code(), libc::EROFS);
    }

    #[test]
    fn modes_become_flags() {
        let flags = |is_direct, keeps_pages| open_flags(OpenMode { is_direct, keeps_pages });
        assert_eq!(flags(false, false), FopenFlags::empty());
        assert_eq!(flags(true, false), FopenFlags::FOPEN_DIRECT_IO);
        assert_eq!(flags(false, true), FopenFlags::FOPEN_KEEP_CACHE);
    }
}
