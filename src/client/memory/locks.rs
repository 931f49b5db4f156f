//! Locks of the model host: those of its clients and those of its own processes.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{MemoryHost, Stage, found};
use crate::client::CallError;
use crate::lock::BothKinds;
use crate::proto::{
    Errno, ErrorCode, LockAction, LockAnswer, LockCall, LockFound, LockKind, LockKinds, LockOwner, LockRange,
    LockRequest, LockTest, NodeId, Reply, Request, SessionRun, WholeFile, WireError, WriteRequest,
};

/// Client and owner. Client 0 is the host itself.
type Owner = (u64, LockOwner);

/// Locks of all files, and the processes that took them.
#[derive(Debug, Default)]
pub(super) struct Locks {
    files: HashMap<NodeId, BothKinds<Owner>>,
    processes: HashMap<Owner, u32>,
}

impl Locks {
    /// Releases all locks.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn test(&self, client: u64, test: &LockTest) -> Option<LockFound> {
        let &LockTest { node, owner, range, kind } = test;
        let kinds = WholeFile::Fcntl.kinds_of(range);
        let (owner, held) = self.files.get(&node)?.conflict((client, owner), range, kinds, kind)?;
        let process = self.processes.get(&owner).copied().filter(|_| owner.0 == client);
        Some(LockFound { range: held.range, kind: held.kind, process: process.unwrap_or(0) })
    }

    fn act(&mut self, client: u64, call: &LockCall) -> bool {
        let owner = (client, call.owner);
        let file = self.files.entry(call.node).or_default();
        match call.action {
            LockAction::Take { range, kind, process, whole, .. } => {
                let kinds = whole.kinds_of(range);
                if file.conflict(owner, range, kinds, kind).is_some() {
                    return false;
                }
                file.set(owner, range, kinds, Some(kind));
                self.processes.insert(owner, process);
            }
            LockAction::Release { range } => file.release(owner, range),
            LockAction::Leave { .. } => return false,
        }
        true
    }
}

impl MemoryHost {
    /// Returns the same host as another client sees it, with a session and locks of its own.
    #[must_use]
    pub fn another_client(&self) -> Self {
        let number = self.shared.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let run = watch::channel(Some(SessionRun { instance: self.instance(), number })).0;
        let client = Self { shared: Arc::clone(&self.shared), client: number, run: Arc::new(run) };
        self.shared.runs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&client.run));
        client
    }

    /// Takes or releases (`None`) an `fcntl` lock of a host process. Returns true on success.
    pub fn lock_locally(&self, path: impl AsRef<[u8]>, range: LockRange, kind: Option<LockKind>) -> bool {
        self.lock_locally_as(WholeFile::Fcntl.kinds_of(range), path, range, kind)
    }

    /// Does the same with a `flock` lock of the whole file.
    pub fn flock_locally(&self, path: impl AsRef<[u8]>, kind: Option<LockKind>) -> bool {
        self.lock_locally_as(WholeFile::Flock.kinds_of(LockRange::WHOLE), path, LockRange::WHOLE, kind)
    }

    fn lock_locally_as(
        &self,
        kinds: LockKinds,
        path: impl AsRef<[u8]>,
        range: LockRange,
        kind: Option<LockKind>,
    ) -> bool {
        let node = found(self.tree().find(path.as_ref()).ok_or(Errno::ENOENT), path.as_ref());
        let mut locks = self.locks();
        let file = locks.files.entry(node).or_default();
        // One table for each kind, because the kinds do not conflict.
        let owner = (0, LockOwner(u64::from(kinds.flock)));
        let is_free = kind.is_none_or(|kind| file.conflict(owner, range, kinds, kind).is_none());
        if is_free {
            file.set(owner, range, kinds, kind);
        }
        drop(locks);
        self.shared.changes.send_replace(());
        is_free
    }

    /// Returns the locks that clients hold on a file.
    pub fn locks_on(&self, path: impl AsRef<[u8]>) -> usize {
        let node = self.tree().find(path.as_ref());
        let locks = self.locks();
        node.and_then(|node| locks.files.get(&node)).map_or(0, BothKinds::count)
    }

    /// Ends this client's session, as after a long interruption. Its locks are released, and a new epoch
    /// begins.
    pub fn expire_session(&self) {
        for file in self.locks().files.values_mut() {
            let theirs = file.owners().into_iter().filter(|owner| owner.0 == self.client);
            theirs.for_each(|owner| file.release(owner, LockRange::WHOLE));
        }
        let number = self.shared.clients.fetch_add(1, Ordering::Relaxed) + 1;
        self.run.send_replace(Some(SessionRun { instance: self.instance(), number }));
        self.shared.changes.send_replace(());
    }

    /// Restarts all sessions, as after a restart of the host. No lock is held.
    pub(super) fn end_all_sessions(&self) {
        self.locks().clear();
        let runs = self.shared.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for run in runs.iter().filter_map(std::sync::Weak::upgrade) {
            let number = self.shared.clients.fetch_add(1, Ordering::Relaxed) + 1;
            run.send_replace(Some(SessionRun { instance: self.instance(), number }));
        }
    }

    /// Refuses a write under a lock of another session epoch.
    pub(super) fn check_write(&self, write: &WriteRequest) -> Result<(), WireError> {
        match write.at.place() {
            Some((_, _, Some(run))) if *self.run.borrow() != Some(run) => {
                Err(WireError::new(ErrorCode::LocksLost, "another life of the session"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn answer_test(&self, test: &LockTest) -> Reply {
        Reply::LockTest(self.locks().test(self.client, test))
    }

    /// Executes it once the link is up, however long that takes.
    pub(super) async fn serve_lock(self, call: LockCall) -> Result<LockAnswer, CallError> {
        let request = Request::Lock(LockRequest { operation: self.operation(), call });
        self.count(|counters| counters.count(&request));
        self.pass_patiently(&request, Stage::Arrived).await?;
        let error = self.settings().error.clone();
        if let Some(error) = error.and_then(|error| error(&request)) {
            return Err(error.into());
        }
        let answer = self.decide(&call).await;
        self.shared.changes.send_replace(());
        self.pass_patiently(&request, Stage::Answered).await?;
        Ok(answer?)
    }

    async fn decide(&self, call: &LockCall) -> Result<LockAnswer, WireError> {
        let wait_ms = match call.action {
            LockAction::Take { wait: Some(wait), .. } => wait.for_ms,
            _ => 0,
        };
        let until = Instant::now() + Duration::from_millis(u64::from(wait_ms));
        let mut changes = self.shared.changes.subscribe();
        loop {
            if *self.run.borrow() != Some(call.run) {
                return Err(WireError::new(ErrorCode::LocksLost, "another life of the session"));
            }
            let attributes = self.tree().get_attributes(call.node)?;
            if self.locks().act(self.client, call) {
                return Ok(LockAnswer::Done(attributes));
            }
            if timeout_at(until, changes.changed()).await.is_err() {
                return Ok(LockAnswer::Held);
            }
        }
    }

    async fn pass_patiently(&self, request: &Request, stage: Stage) -> Result<(), CallError> {
        loop {
            match self.pass(request, stage).await {
                Err(CallError::TimedOut(_)) => {}
                passed => return passed,
            }
        }
    }

    fn locks(&self) -> MutexGuard<'_, Locks> {
        self.shared.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
