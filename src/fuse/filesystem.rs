//! The kernel's callbacks: log, call, reply.
//!
//! A callback that may wait is spawned with its reply and returns at once, so that no request waits behind another.
//! Reads that memory can answer are answered in place.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert;
use super::session::KernelLimits;
use crate::chunk::ByteRange;
use crate::fs::{DirectoryItem, FileSystem, FsError, Inode, Lookup, OpenRequest};
use crate::proto::SeekTarget;

/// Numbers of inodes are not used again for another file while the kernel refers to them, so generations say nothing.
const GENERATION: Generation = Generation(0);

/// What the kernel is offered, where it has it.
const CAPABILITIES: [InitFlags; 10] = [
    // An abort is told from an unmount: readers get ECONNABORTED and not a story about sockets.
    InitFlags::FUSE_ABORT_ERROR,
    // Reads of one file at once, in any order.
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    // Lookups and listings of one directory at once.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Attributes along with names when a program seems to want them.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Pages are dropped when attributes show another time of change: an open file follows its host.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // Requests of up to 1 MiB.
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Shared mappings of files that are read past the page cache.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// What the FUSE library calls.
pub(super) struct Glue {
    fs: Arc<FileSystem>,
    limits: KernelLimits,
}

impl Glue {
    pub(super) const fn new(fs: Arc<FileSystem>, limits: KernelLimits) -> Self {
        Self { fs, limits }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, call: impl FnOnce(Arc<FileSystem>) -> F) {
        self.fs.runtime().spawn(call(Arc::clone(&self.fs)));
    }
}

/// The error, logged.
fn failed(call: &str, error: &FsError) -> fuser::Errno {
    tracing::debug!(call, %error, "fails");
    convert::errno(error)
}

/// Calls that would change something, each with what it takes behind the request and with its reply: refused.
macro_rules! refused {
    ($($call:ident($($argument:ty,)*) $reply:ty;)*) => {$(
        fn $call(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(convert::errno(&FsError::ReadOnly));
        }
    )*};
}

fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}

/// A value of an extended attribute, or its size where that was asked (`size` 0).
fn reply_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(error) => reply.error(failed("xattr", &error)),
    }
}

impl Filesystem for Glue {
    fn destroy(&mut self) {
        self.fs.end();
    }

    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not have it");
            }
        }
        self.limits.apply(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        tracing::trace!(%parent, ?name, "lookup");
        let name = name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            match fs.lookup(inode(parent), &name).await {
                Ok(Lookup::Found(entry)) => {
                    let attr = convert::file_attr(entry.inode, &entry.attributes);
                    reply.entry_with_ttls(&entry.attributes_ttl, &entry.entry_ttl, &attr, GENERATION);
                }
                Ok(Lookup::Absent { ttl }) if ttl.is_zero() => reply.error(fuser::Errno::ENOENT),
                Ok(Lookup::Absent { ttl }) => reply.entry(&ttl, &convert::absent_attr(), GENERATION),
                Err(error) => reply.error(failed("lookup", &error)),
            }
        });
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        tracing::trace!(%number, count, "forget");
        self.fs.forget(inode(number), count);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        tracing::trace!(%number, "getattr");
        self.spawn(move |fs| async move {
            match fs.getattr(inode(number)).await {
                Ok((attributes, ttl)) => reply.attr(&ttl, &convert::file_attr(inode(number), &attributes)),
                Err(error) => reply.error(failed("getattr", &error)),
            }
        });
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        tracing::trace!(%number, "readlink");
        self.spawn(move |fs| async move {
            match fs.readlink(inode(number)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(failed("readlink", &error)),
            }
        });
    }

    fn access(&self, _request: &Request, number: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        tracing::trace!(%number, ?mask, "access");
        self.spawn(move |fs| async move {
            match fs.access(inode(number), mask.bits() as u8).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("access", &error)),
            }
        });
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        tracing::trace!(%number, ?flags, "open");
        let request = OpenRequest {
            writes: flags.acc_mode() != OpenAccMode::O_RDONLY,
            is_direct: flags.0 & libc::O_DIRECT != 0,
        };
        self.spawn(move |fs| async move {
            match fs.open(inode(number), request).await {
                Ok(opened) => reply.opened(FileHandle(opened.handle), convert::open_flags(opened.mode)),
                Err(error) => reply.error(failed("open", &error)),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        tracing::trace!(%number, offset, size, "read");
        let range = ByteRange::new(offset, u64::from(size));
        if let Some(bytes) = self.fs.read_now(handle.0, range) {
            return reply.data(&bytes);
        }
        self.spawn(move |fs| async move {
            match fs.read(handle.0, range).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", &error)),
            }
        });
    }

    /// Nothing is written, so there is nothing to flush; told so once, the kernel does not ask again.
    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(%number, "release");
        // Nobody waits for this answer, and an unmount on a long way would be over before it.
        reply.ok();
        self.spawn(move |fs| async move {
            if let Err(error) = fs.release(handle.0).await {
                failed("release", &error);
            }
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        tracing::trace!(%number, "opendir");
        match self.fs.opendir(inode(number)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(failed("opendir", &error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        tracing::trace!(%number, offset, "readdir");
        self.spawn(move |fs| async move {
            let add = |item: &DirectoryItem<'_>| {
                let kind = convert::file_type(item.kind);
                !reply.add(INodeNo(item.inode.0), item.next_offset, kind, OsStr::from_bytes(item.name))
            };
            match fs.readdir(handle.0, offset, false, add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdir", &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        tracing::trace!(%number, offset, "readdirplus");
        self.spawn(move |fs| async move {
            let add = |item: &DirectoryItem<'_>| {
                let (attr, ttl) = match &item.entry {
                    Some(entry) => {
                        (convert::file_attr(entry.inode, &entry.attributes), convert::entry_ttl(entry))
                    }
                    None => (convert::dot_attr(item.inode), std::time::Duration::ZERO),
                };
                let name = OsStr::from_bytes(item.name);
                !reply.add(attr.ino, item.next_offset, name, &ttl, &attr, GENERATION)
            };
            match fs.readdir(handle.0, offset, true, add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdirplus", &error)),
            }
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(%number, "releasedir");
        match self.fs.releasedir(handle.0) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(failed("releasedir", &error)),
        }
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, number: INodeNo, reply: ReplyStatfs) {
        tracing::trace!(%number, "statfs");
        self.spawn(move |fs| async move {
            match fs.statfs().await {
                Ok(all) => reply.statfs(
                    all.blocks,
                    all.blocks_free,
                    all.blocks_available,
                    all.inodes,
                    all.inodes_free,
                    all.block_bytes,
                    all.name_bytes_max,
                    all.block_bytes,
                ),
                Err(error) => reply.error(failed("statfs", &error)),
            }
        });
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, ?name, "getxattr");
        let name = name.as_bytes().to_vec();
        self.spawn(
            move |fs| async move { reply_xattr(reply, size, fs.getxattr(inode(number), &name).await) },
        );
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, "listxattr");
        self.spawn(move |fs| async move { reply_xattr(reply, size, fs.listxattr(inode(number)).await) });
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        tracing::trace!(%number, offset, whence, "lseek");
        let target = match whence {
            libc::SEEK_DATA => SeekTarget::Data,
            libc::SEEK_HOLE => SeekTarget::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        self.spawn(move |fs| async move {
            match fs.lseek(handle.0, offset, target).await {
                Ok(found) => reply.offset(found as i64),
                Err(error) => reply.error(failed("lseek", &error)),
            }
        });
    }

    // What would change something. The kernel refuses most of it by itself on a read-only mount.

    refused! {
        setattr(
            INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>, Option<TimeOrNow>,
            Option<SystemTime>, Option<FileHandle>, Option<SystemTime>, Option<SystemTime>, Option<SystemTime>,
            Option<BsdFileFlags>,
        ) ReplyAttr;
        mknod(INodeNo, &OsStr, u32, u32, u32,) ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32,) ReplyEntry;
        unlink(INodeNo, &OsStr,) ReplyEmpty;
        rmdir(INodeNo, &OsStr,) ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path,) ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags,) ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr,) ReplyEntry;
        create(INodeNo, &OsStr, u32, u32, i32,) ReplyCreate;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>,) ReplyWrite;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32,) ReplyEmpty;
        removexattr(INodeNo, &OsStr,) ReplyEmpty;
        fallocate(INodeNo, FileHandle, u64, u64, i32,) ReplyEmpty;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags,) ReplyWrite;
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }
}
