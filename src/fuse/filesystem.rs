//! Callbacks of the kernel: log, call, reply.
//!
//! A callback that may wait is spawned with its reply and returns at once, so no request waits behind
//! another. A signal for the waiting thread ends the call (see `signals`). Reads that memory can answer are
//! answered in place.

use std::ffi::OsStr;
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

use super::adapter::{FuseAdapter, inode};
use super::convert::caller;
use super::pending_signals::InterruptPolicy;
use super::reply::failed;
use super::{capabilities, convert, reply};
use crate::chunk::ByteRange;
use crate::fs::{DirectoryItem, FileSystem, Made, OpenRequest};
use crate::proto::{LockRange, SeekTarget, SetAttributes};

/// Largest copy within the host, as in one system call. Its length is answered in 32 bits.
const COPY_BYTES_MAX: u64 = 0x7fff_f000;

/// Defines callbacks that only call and reply: their interrupt policy, the arguments of the request, the
/// reply type, the reply function, and the call.
macro_rules! answered {
    ($($call:ident[$policy:ident]($($argument:ident: $type:ty),*) $reply:ty => $answer:ident, |$fs:ident| $work:expr;)*) => {$(
        fn $call(&self, request: &Request, $($argument: $type,)* reply: $reply) {
            tracing::trace!($(?$argument,)* stringify!($call));
            self.answer(
                (request, InterruptPolicy::$policy),
                move |$fs| async move { $work.await },
                move |answer| reply::$answer(stringify!($call), reply, answer),
            );
        }
    )*};
}

impl Filesystem for FuseAdapter {
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
        if name == "." || name == ".." {
            return self.by_handle((request, reply), inode(parent), name == "..");
        }
        let (name, process) = (name.as_bytes().to_vec(), request.pid());
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.lookup_for(process, inode(parent), &name).await },
            move |found| reply::lookup(reply, found),
        );
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        tracing::trace!(%number, count, "forget");
        self.fs.forget(inode(number), count);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        tracing::trace!(%number, "getattr");
        let fs = Arc::clone(&self.fs);
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.getattr(inode(number)).await },
            move |got| reply::attributes("getattr", reply, &fs, got),
        );
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        tracing::trace!(%number, ?flags, "open");
        let copies = self.fs.seems_to_copy(request.pid());
        let how = OpenRequest { copies, ..convert::open_request(flags.0) };
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.open(inode(number), how).await },
            move |opened| reply::opened(reply, opened),
        );
    }

    fn read(
        &self,
        request: &Request,
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
        self.answer(
            (request, InterruptPolicy::TerminatingUnlessFault),
            move |fs| async move { fs.read(handle.0, range).await },
            move |bytes| reply::data("read", reply, bytes),
        );
    }

    /// On a mount without changes and locks there is nothing to flush. ENOSYS tells the kernel not to ask
    /// again.
    fn flush(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.fs.config().read_only && !self.fs.config().locks.any() {
            return reply.error(fuser::Errno::ENOSYS);
        }
        tracing::trace!(%number, "flush");
        let work = move |fs: Arc<FileSystem>| async move {
            let flushed = fs.flush(handle.0).await;
            let unlocked = fs.closed_by(handle.0, owner.0).await;
            flushed.and(unlocked)
        };
        // This also runs for a killed program: the host gets the written bytes, and locks are released.
        self.answer_and_finish((request, InterruptPolicy::TerminatingIfSilent), work, move |done| {
            reply::empty("flush", reply, done);
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
        // No program waits for this answer, and on a long route an unmount would be over before it.
        reply.ok();
        let fs = Arc::clone(&self.fs);
        self.fs.runtime().spawn(async move {
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
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        tracing::trace!(%number, offset, "readdir");
        self.list((request, "readdir"), (handle, offset), move |fs, items| {
            let add = |item: &DirectoryItem<'_>| {
                let kind = convert::file_type(item.kind);
                !reply.add(INodeNo(item.number), item.next_offset, kind, OsStr::from_bytes(item.name))
            };
            match items {
                Ok(items) => {
                    fs.give_entries(&items, false, add);
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        tracing::trace!(%number, offset, "readdirplus");
        self.list((request, "readdirplus"), (handle, offset), move |fs, items| {
            let add = |item: &DirectoryItem<'_>| {
                let (attr, ttl, generation) = convert::item_attr(item);
                let name = OsStr::from_bytes(item.name);
                !reply.add(attr.ino, item.next_offset, name, &ttl, &attr, generation)
            };
            match items {
                Ok(items) => {
                    fs.give_entries(&items, true, add);
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
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

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, ?name, "getxattr");
        let name = name.as_bytes().to_vec();
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.getxattr(inode(number), &name).await },
            move |value| reply::xattr(reply, size, value),
        );
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        tracing::trace!(%number, "listxattr");
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.listxattr(inode(number)).await },
            move |names| reply::xattr(reply, size, names),
        );
    }

    fn lseek(
        &self,
        request: &Request,
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
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.lseek(handle.0, offset, target).await },
            move |found| reply::offset(reply, found),
        );
    }

    fn setattr(
        &self,
        request: &Request,
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
        let fs = Arc::clone(&self.fs);
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.setattr(inode(number), set).await },
            move |got| reply::attributes("setattr", reply, &fs, got),
        );
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
        self.make((request, "mknod"), reply, (parent, name), what, (mode, caller(request, umask)));
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
        self.make((request, "mkdir"), reply, (parent, name), Made::Directory, (mode, caller(request, umask)));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Made::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make((request, "symlink"), reply, (parent, name), target, (0o777, caller(request, 0)));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove((request, "unlink"), reply, (parent, name), false);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove((request, "rmdir"), reply, (parent, name), true);
    }

    fn rename(
        &self,
        request: &Request,
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
        let work = move |fs: Arc<FileSystem>| async move {
            fs.rename((inode(parent), &name), (inode(new_parent), &new_name), how).await
        };
        self.answer((request, InterruptPolicy::Terminating), work, move |done| {
            reply::empty("rename", reply, done);
        });
    }

    fn link(
        &self,
        request: &Request,
        number: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        tracing::trace!(%number, %new_parent, ?new_name, "link");
        let name = new_name.as_bytes().to_vec();
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.link(inode(number), inode(new_parent), &name).await },
            move |entry| reply::entry("link", reply, entry),
        );
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
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.create(inode(parent), &name, create).await },
            move |created| reply::created(reply, created),
        );
    }

    fn write(
        &self,
        request: &Request,
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
        // Most writes do not wait. For a small one, answering here costs less than a task.
        if let Some(written) = self.fs.write_now(handle.0, offset, data, how) {
            return reply::written("write", reply, written);
        }
        let bytes = Bytes::copy_from_slice(data);
        // A synchronous write waits when it is already queued. A program that repeats it after EINTR would
        // write it twice.
        let policy = if how.syncs { InterruptPolicy::Fatal } else { InterruptPolicy::Terminating };
        self.answer(
            (request, policy),
            move |fs| async move { fs.write(handle.0, offset, bytes, how).await },
            move |written| reply::written("write", reply, written),
        );
    }

    fn getlk(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        process: u32,
        reply: ReplyLock,
    ) {
        let wish = convert::lock_wish(owner.0, (start, end), kind, process);
        self.test_lock((request, reply), (number, handle), wish);
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
            return self.unlock((request, reply), (number, handle), owner.0, range);
        }
        let wish = convert::lock_wish(owner.0, (start, end), kind, process);
        self.lock((request, reply), (number, handle), wish, waits);
    }

    fn setxattr(
        &self,
        request: &Request,
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
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.setxattr(inode(number), &name, &value, how).await },
            move |done| reply::empty("setxattr", reply, done),
        );
    }

    fn removexattr(&self, request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(%number, ?name, "removexattr");
        let name = name.as_bytes().to_vec();
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.removexattr(inode(number), &name).await },
            move |done| reply::empty("removexattr", reply, done),
        );
    }

    fn fallocate(
        &self,
        request: &Request,
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
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.allocate(handle.0, ByteRange::new(offset, len), how).await },
            move |done| reply::empty("fallocate", reply, done),
        );
    }

    answered! {
        readlink[Terminating](number: INodeNo) ReplyData => data, |fs| fs.readlink(inode(number));
        statfs[Terminating](_number: INodeNo) ReplyStatfs => statistics, |fs| fs.statfs();
        access[Terminating](number: INodeNo, mask: AccessFlags) ReplyEmpty => empty, |fs| fs.access(inode(number), mask.bits() as u8);
        fsync[TerminatingIfSilent](_number: INodeNo, handle: FileHandle, data_only: bool) ReplyEmpty => empty, |fs| fs.fsync(handle.0, data_only);
        fsyncdir[TerminatingIfSilent](_number: INodeNo, handle: FileHandle, data_only: bool) ReplyEmpty => empty, |fs| fs.fsyncdir(handle.0, data_only);
        copy_file_range[Terminating](_number: INodeNo, from: FileHandle, offset: u64, _to: INodeNo, to: FileHandle, to_offset: u64, len: u64,
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
