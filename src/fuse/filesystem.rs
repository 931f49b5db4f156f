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

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::caller;
use super::reply::{GENERATION, failed};
use super::session::KernelLimits;
use super::{capabilities, convert, reply};
use crate::chunk::ByteRange;
use crate::fs::{DirectoryItem, FileSystem, Inode, Made, OpenRequest};
use crate::proto::{LockRange, SeekTarget, SetAttributes};

/// Most bytes of one copy within the host, whose length is answered in 32 bits: as many as one system call copies.
const COPY_BYTES_MAX: u64 = 0x7fff_f000;

/// What the FUSE library calls.
pub(super) struct Glue {
    fs: Arc<FileSystem>,
    limits: KernelLimits,
}

impl Glue {
    pub(super) const fn new(fs: Arc<FileSystem>, limits: KernelLimits) -> Self {
        Self { fs, limits }
    }

    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        call: impl FnOnce(Arc<FileSystem>) -> F,
    ) {
        self.fs.runtime().spawn(call(Arc::clone(&self.fs)));
    }
}

/// Calls that only ask and answer: what the kernel sends behind the request, the reply, how it is filled, and from what.
macro_rules! answered {
    ($($call:ident($($argument:ident: $type:ty),*) $reply:ty => $answer:ident, |$fs:ident| $work:expr;)*) => {$(
        fn $call(&self, _request: &Request, $($argument: $type,)* reply: $reply) {
            tracing::trace!($(?$argument,)* stringify!($call));
            self.spawn(move |$fs| async move { reply::$answer(stringify!($call), reply, $work.await) });
        }
    )*};
}

pub(super) fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}

impl Filesystem for Glue {
    fn destroy(&mut self) {
        self.fs.end();
    }

    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        capabilities::offer(config, self.fs.config().locks);
        self.limits.apply(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        tracing::trace!(%parent, ?name, "lookup");
        let (name, process) = (name.as_bytes().to_vec(), request.pid());
        self.spawn(move |fs| async move {
            reply::lookup(reply, fs.lookup_for(process, inode(parent), &name).await);
        });
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        tracing::trace!(%number, count, "forget");
        self.fs.forget(inode(number), count);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        tracing::trace!(%number, "getattr");
        self.spawn(move |fs| async move {
            reply::attributes("getattr", reply, inode(number), fs.getattr(inode(number)).await);
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

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        tracing::trace!(%number, ?flags, "open");
        let copies = self.fs.seems_to_copy(request.pid());
        let request = OpenRequest { copies, ..convert::open_request(flags.0) };
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

    /// On a mount that changes nothing and holds no locks there is nothing to flush; told so once, the kernel does not ask again.
    fn flush(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.fs.config().read_only && !self.fs.config().locks.any() {
            return reply.error(fuser::Errno::ENOSYS);
        }
        tracing::trace!(%number, "flush");
        self.spawn(move |fs| async move {
            let flushed = fs.flush(handle.0).await;
            let unlocked = fs.closed_by(handle.0, owner.0).await;
            reply::empty("flush", reply, flushed.and(unlocked));
        });
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

    fn statfs(&self, _request: &Request, number: INodeNo, reply: ReplyStatfs) {
        tracing::trace!(%number, "statfs");
        self.spawn(move |fs| async move {
            reply::statistics(reply, fs.statfs().await);
        });
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, ?name, "getxattr");
        let name = name.as_bytes().to_vec();
        self.spawn(
            move |fs| async move { reply::xattr(reply, size, fs.getxattr(inode(number), &name).await) },
        );
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, "listxattr");
        self.spawn(move |fs| async move { reply::xattr(reply, size, fs.listxattr(inode(number)).await) });
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

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let permissions = mode.map(convert::permissions);
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let set = SetAttributes { permissions, uid, gid, size, atime, mtime };
        tracing::trace!(%number, ?set, "setattr");
        self.spawn(move |fs| async move {
            reply::attributes("setattr", reply, inode(number), fs.setattr(inode(number), set).await);
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::kind_of(mode) else { return reply.error(fuser::Errno::EINVAL) };
        let what = Made::Node(kind, convert::decode_device(device));
        self.make("mknod", reply, (parent, name), what, (mode, caller(request, umask)));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make("mkdir", reply, (parent, name), Made::Directory, (mode, caller(request, umask)));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Made::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make("symlink", reply, (parent, name), target, (0o777, caller(request, 0)));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove("unlink", reply, (parent, name), false);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove("rmdir", reply, (parent, name), true);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(%parent, ?name, %new_parent, ?new_name, ?flags, "rename");
        let Some(how) = convert::rename_how(flags.bits()) else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.spawn(move |fs| async move {
            let done = fs.rename((inode(parent), &name), (inode(new_parent), &new_name), how).await;
            reply::empty("rename", reply, done);
        });
    }

    fn link(
        &self,
        _request: &Request,
        number: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        tracing::trace!(%number, %new_parent, ?new_name, "link");
        let name = new_name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            reply::entry("link", reply, fs.link(inode(number), inode(new_parent), &name).await);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        tracing::trace!(%parent, ?name, mode, flags, "create");
        self.fs.note_copier(request.pid());
        let create = convert::create_request(caller(request, umask), mode, flags);
        let name = name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            reply::created(reply, fs.create(inode(parent), &name, create).await);
        });
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        tracing::trace!(%number, offset, len = data.len(), ?flags, ?write_flags, "write");
        let how = convert::write_how(flags.0, write_flags);
        // Most writes wait for nothing: a small one costs less than to hand it on.
        if let Some(written) = self.fs.write_now(handle.0, offset, data, how) {
            return reply::written("write", reply, written);
        }
        let bytes = Bytes::copy_from_slice(data);
        self.spawn(move |fs| async move {
            reply::written("write", reply, fs.write(handle.0, offset, bytes, how).await);
        });
    }

    fn getlk(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        process: u32,
        reply: ReplyLock,
    ) {
        self.test_lock(reply, (number, handle), convert::lock_wish(owner.0, (start, end), kind, process));
    }

    fn setlk(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        process: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let Some(range) = LockRange::new(start, end) else { return reply.error(fuser::Errno::EINVAL) };
        if kind == libc::F_UNLCK {
            return self.unlock(reply, (number, handle), owner.0, range);
        }
        let wish = convert::lock_wish(owner.0, (start, end), kind, process);
        self.lock(reply, (number, handle), wish, waits.then(|| request.pid()));
    }

    fn setxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(%number, ?name, flags, "setxattr");
        let Some(how) = convert::xattr_how(flags) else { return reply.error(fuser::Errno::EINVAL) };
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.spawn(move |fs| async move {
            reply::empty("setxattr", reply, fs.setxattr(inode(number), &name, &value, how).await);
        });
    }

    fn removexattr(&self, _request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(%number, ?name, "removexattr");
        let name = name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            reply::empty("removexattr", reply, fs.removexattr(inode(number), &name).await);
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(%number, offset, len, mode, "fallocate");
        let Some(how) = convert::allocate_how(mode) else {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        };
        self.spawn(move |fs| async move {
            let done = fs.allocate(handle.0, ByteRange::new(offset, len), how).await;
            reply::empty("fallocate", reply, done);
        });
    }

    answered! {
        access(number: INodeNo, mask: AccessFlags) ReplyEmpty => empty, |fs| fs.access(inode(number), mask.bits() as u8);
        fsync(_number: INodeNo, handle: FileHandle, data_only: bool) ReplyEmpty => empty, |fs| fs.fsync(handle.0, data_only);
        fsyncdir(_number: INodeNo, handle: FileHandle, data_only: bool) ReplyEmpty => empty, |fs| fs.fsyncdir(handle.0, data_only);
        copy_file_range(_number: INodeNo, from: FileHandle, offset: u64, _to: INodeNo, to: FileHandle, to_offset: u64, len: u64,
            _flags: CopyFileRangeFlags) ReplyWrite => copied, |fs|
            fs.copy_range((from.0, ByteRange::new(offset, len.min(COPY_BYTES_MAX))), (to.0, to_offset));
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
