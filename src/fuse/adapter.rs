//! What all callbacks have in common: a call does its work on a task and is answered from there, also when a signal ends its wait.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use fuser::{INodeNo, Request};

use super::pending_signals::InterruptPolicy;
use super::reply::failed;
use super::session::KernelLimits;
use super::signals::{Looking, Waiter};
use crate::fs::{FileSystem, FsError, Inode};

/// What the FUSE library calls.
pub(super) struct FuseAdapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) limits: KernelLimits,
    looking: Looking,
}

impl FuseAdapter {
    pub(super) fn new(fs: Arc<FileSystem>, limits: KernelLimits) -> Self {
        Self { fs, limits, looking: Looking::default() }
    }

    /// Does the work of a call and answers it. When a signal ends the wait of the thread that makes the
    /// request, the call is answered as interrupted and its work is dropped.
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

    /// The same for what is done to its end whether anybody waits or not.
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

    /// The thread that makes a request, and which signals end its wait.
    pub(super) fn waiter(&self, request: &Request, policy: InterruptPolicy) -> Waiter {
        let (looking, fs) = (self.looking.clone(), Arc::clone(&self.fs));
        Waiter { thread: request.pid(), policy, closes: false, looking, fs }
    }
}

pub(super) fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}
