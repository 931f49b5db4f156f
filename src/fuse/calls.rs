//! Calls of one kind that several callbacks share: making and taking away, and locks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileHandle, INodeNo, ReplyEmpty, ReplyEntry, ReplyLock};

use super::filesystem::{Glue, inode};
use super::{convert, reply, signals};
use crate::fs::{LockWish, Made};
use crate::proto::{Caller, LockRange};

impl Glue {
    /// Makes something else than an open file.
    pub(super) fn make(
        &self,
        call: &'static str,
        reply: ReplyEntry,
        (parent, name): (INodeNo, &OsStr),
        what: Made,
        (mode, caller): (u32, Caller),
    ) {
        tracing::trace!(call, %parent, ?name, mode);
        let name = name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            let made = fs.make(inode(parent), &name, &what, convert::permissions(mode), caller).await;
            reply::entry(call, reply, made);
        });
    }

    /// Takes a name away.
    pub(super) fn remove(
        &self,
        call: &'static str,
        reply: ReplyEmpty,
        (parent, name): (INodeNo, &OsStr),
        directory: bool,
    ) {
        tracing::trace!(call, %parent, ?name);
        let name = name.as_bytes().to_vec();
        self.spawn(move |fs| async move {
            reply::empty(call, reply, fs.remove(inode(parent), &name, directory).await);
        });
    }

    /// Who stands against a lock; no wish is one that makes no sense.
    pub(super) fn test_lock(
        &self,
        reply: ReplyLock,
        (number, handle): (INodeNo, FileHandle),
        wish: Option<LockWish>,
    ) {
        tracing::trace!(%number, ?wish, "getlk");
        let Some(wish) = wish else { return reply.error(fuser::Errno::EINVAL) };
        self.spawn(move |fs| async move { reply::lock(reply, fs.test_lock(handle.0, wish).await) });
    }

    /// Takes a lock; `waiting` is the thread that waits for it, if one does.
    pub(super) fn lock(
        &self,
        reply: ReplyEmpty,
        (number, handle): (INodeNo, FileHandle),
        wish: Option<LockWish>,
        waiting: Option<u32>,
    ) {
        tracing::trace!(%number, ?wish, ?waiting, "setlk");
        let Some(wish) = wish else { return reply.error(fuser::Errno::EINVAL) };
        let signal = signals::comes_to(waiting.unwrap_or(0));
        self.spawn(move |fs| async move {
            let locked = fs.lock(handle.0, wish, waiting.is_some(), signal).await;
            reply::empty("setlk", reply, locked);
        });
    }

    /// Gives a lock back.
    pub(super) fn unlock(
        &self,
        reply: ReplyEmpty,
        (number, handle): (INodeNo, FileHandle),
        owner: u64,
        range: LockRange,
    ) {
        tracing::trace!(%number, ?range, "unlock");
        self.spawn(move |fs| async move {
            reply::empty("setlk", reply, fs.unlock(handle.0, owner, range).await);
        });
    }
}
