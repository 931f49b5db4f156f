//! Common part of all callbacks: a call runs on a task and is answered from there, also if a signal ends its
//! wait.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use fuser::{INodeNo, Request};

use super::pending_signals::InterruptPolicy;
use super::reply::failed;
use super::session::KernelLimits;
use super::signals::{SignalPoller, Waiter};
use crate::fs::{FileSystem, FsError, Inode};

/// The file system that the FUSE library calls.
pub(super) struct FuseAdapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) limits: KernelLimits,
    poller: SignalPoller,
}

impl FuseAdapter {
    pub(super) fn new(fs: Arc<FileSystem>, limits: KernelLimits) -> Self {
        Self { fs, limits, poller: SignalPoller::default() }
    }

    /// Runs a call and answers it. If a signal ends the wait of the requesting thread, the answer is EINTR
    /// and the work is dropped.
    pub(super) fn answer<T, F>(
        &self,
        (request, policy): (&Request, InterruptPolicy),
        work: impl FnOnce(Arc<FileSystem>) -> F,
        reply: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        T: Send,
    {
        let (work, waiter) = (work(Arc::clone(&self.fs)), self.waiter(request, policy));
        self.fs.runtime().spawn(async move {
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                () = waiter.signalled() => Err(FsError::Interrupted),
            };
            reply(answer);
        });
    }

    /// Does the same, but completes the work even if the wait ends.
    pub(super) fn answer_and_finish<T, F>(
        &self,
        (request, policy): (&Request, InterruptPolicy),
        work: impl FnOnce(Arc<FileSystem>) -> F,
        reply: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        T: Send,
    {
        let waiter = Waiter { closes: true, ..self.waiter(request, policy) };
        let work = work(Arc::clone(&self.fs));
        self.fs.runtime().spawn(async move {
            let mut work = pin!(work);
            tokio::select! {
                biased;
                answer = &mut work => return reply(answer),
                () = waiter.signalled() => reply(Err(FsError::Interrupted)),
            }
            if let Err(error) = work.await {
                failed("flush", &error);
            }
        });
    }

    /// Returns the thread that makes a request, with its interrupt policy.
    pub(super) fn waiter(&self, request: &Request, policy: InterruptPolicy) -> Waiter {
        let (poller, fs) = (self.poller.clone(), Arc::clone(&self.fs));
        Waiter { thread: request.pid(), policy, closes: false, poller, fs }
    }
}

pub(super) fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}
