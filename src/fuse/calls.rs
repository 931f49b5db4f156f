//! Calls that several callbacks share: creating, removing, listing and locking.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{FileHandle, INodeNo, ReplyEmpty, ReplyEntry, ReplyLock, Request};

use super::adapter::{FuseAdapter, inode};
use super::pending_signals::InterruptPolicy;
use super::{convert, reply};
use crate::fs::{DirectoryItems, FileSystem, Inode, LockWish, Made};
use crate::proto::{Caller, LockRange};

impl FuseAdapter {
    /// Creates any object except an open file.
    pub(super) fn make(
        &self,
        (request, call): (&Request, &'static str),
        reply: ReplyEntry,
        (parent, name): (INodeNo, &OsStr),
        what: Made,
        (mode, caller): (u32, Caller),
    ) {
        tracing::trace!(call, %parent, ?name, mode);
        let name = name.as_bytes().to_vec();
        let work = move |fs: Arc<FileSystem>| async move {
            fs.make(inode(parent), &name, &what, convert::permissions(mode), caller).await
        };
        self.answer((request, InterruptPolicy::Terminating), work, move |made| {
            reply::entry(call, reply, made);
        });
    }

    /// Looks up an inode of which a program has a file handle, or the directory that holds it.
    pub(super) fn by_handle(&self, (request, reply): (&Request, ReplyEntry), inode: Inode, parent: bool) {
        let work = move |fs: Arc<FileSystem>| async move {
            if parent { fs.lookup_parent(inode).await } else { fs.lookup_itself(inode).await }
        };
        self.answer((request, InterruptPolicy::Terminating), work, move |found| {
            reply::entry("lookup", reply, found);
        });
    }

    /// Removes a name.
    pub(super) fn remove(
        &self,
        (request, call): (&Request, &'static str),
        reply: ReplyEmpty,
        (parent, name): (INodeNo, &OsStr),
        directory: bool,
    ) {
        tracing::trace!(call, %parent, ?name);
        let name = name.as_bytes().to_vec();
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.remove(inode(parent), &name, directory).await },
            move |done| reply::empty(call, reply, done),
        );
    }

    /// Waits for items of a directory and passes them, or the error, to `fill`.
    pub(super) fn list(
        &self,
        (request, call): (&Request, &'static str),
        (handle, offset): (FileHandle, u64),
        fill: impl FnOnce(&FileSystem, Result<DirectoryItems, fuser::Errno>) + Send + 'static,
    ) {
        let fs = Arc::clone(&self.fs);
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.entries_from(handle.0, offset).await },
            move |items| fill(&fs, items.map_err(|error| reply::failed(call, &error))),
        );
    }

    /// Finds a lock that conflicts with another. `None` as request means that the request was not valid.
    pub(super) fn test_lock(
        &self,
        (request, reply): (&Request, ReplyLock),
        (number, handle): (INodeNo, FileHandle),
        wish: Option<LockWish>,
    ) {
        tracing::trace!(%number, ?wish, "getlk");
        let Some(wish) = wish else { return reply.error(fuser::Errno::EINVAL) };
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.test_lock(handle.0, wish).await },
            move |found| reply::lock(reply, found),
        );
    }

    /// Takes a lock. The file system handles interruption.
    pub(super) fn lock(
        &self,
        (request, reply): (&Request, ReplyEmpty),
        (number, handle): (INodeNo, FileHandle),
        wish: Option<LockWish>,
        waits: bool,
    ) {
        tracing::trace!(%number, ?wish, waits, "setlk");
        let Some(wish) = wish else { return reply.error(fuser::Errno::EINVAL) };
        let waiter =
            self.waiter(request, if waits { InterruptPolicy::Any } else { InterruptPolicy::Terminating });
        let fs = Arc::clone(&self.fs);
        self.fs.runtime().spawn(async move {
            reply::empty("setlk", reply, fs.lock(handle.0, wish, waits, waiter.signalled()).await);
        });
    }

    /// Releases a lock.
    pub(super) fn unlock(
        &self,
        (request, reply): (&Request, ReplyEmpty),
        (number, handle): (INodeNo, FileHandle),
        owner: u64,
        range: LockRange,
    ) {
        tracing::trace!(%number, ?range, "unlock");
        self.answer(
            (request, InterruptPolicy::Terminating),
            move |fs| async move { fs.unlock(handle.0, owner, range).await },
            move |done| reply::empty("setlk", reply, done),
        );
    }
}
