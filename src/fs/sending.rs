//! What programs have written, on its way to the host behind their backs.
//!
//! A write is answered when its bytes are queued; a writer who is ahead of the link by the budget waits. Everything that looks at
//! a file's content or times, or changes them, first waits until the host has what was written before; `close` and `fsync` do, too, and
//! tell what went wrong.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::behind::{Behind, ExtentId};
use super::inodes::Inode;
use super::{FileSystem, FsError, lock};
use crate::client::{CallError, Client};
use crate::proto::{Attributes, FileKind, SessionRun, WriteAt};

/// Bytes that may be queued and under way, of all files together: 50 ms of 5 Gbit/s.
const BUDGET_BYTES: usize = 32 * 1024 * 1024;

/// Extents of one file under way at once: what joins in the queue meanwhile makes larger ones of small writes.
const UNDER_WAY_MAX: usize = 16;

/// The unaccepted writes of all files.
pub(super) struct Sending {
    files: std::sync::Mutex<HashMap<Inode, File>>,
    /// Writes so far.
    writes: AtomicU64,
    budget: Semaphore,
    /// Changes whenever something was accepted.
    progress: watch::Sender<()>,
}

#[derive(Default)]
struct File {
    behind: Behind,
    under_way: usize,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            files: std::sync::Mutex::default(),
            writes: AtomicU64::new(0),
            budget: Semaphore::new(BUDGET_BYTES),
            progress: watch::channel(()).0,
        }
    }
}

impl FileSystem {
    /// Queues a write; waits while too much is queued.
    pub(super) async fn send_behind(
        self: &Arc<Self>,
        inode: Inode,
        under: Option<SessionRun>,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), FsError> {
        let room = self.sending.budget.acquire_many(bytes.len() as u32);
        match timeout(self.config.patience, room).await {
            Ok(Ok(room)) => room.forget(),
            // Nobody closes the semaphore.
            Ok(Err(_)) => {}
            Err(_) => return Err(self.too_late()),
        }
        {
            let mut files = lock(&self.sending.files);
            let number = self.sending.writes.fetch_add(1, Ordering::Relaxed) + 1;
            files.entry(inode).or_default().behind.push_under(under, number, offset, bytes);
        }
        self.send_next(inode);
        Ok(())
    }

    /// Returns when the host has, or will not have, all that was written to the file until now. An error says that the host is
    /// away; what was written stays on its way.
    pub(super) async fn sent(&self, inode: Inode) -> Result<(), FsError> {
        let mut progress = self.sending.progress.subscribe();
        let until_now = self.sending.writes.load(Ordering::Relaxed);
        while self.oldest_unsent(inode).is_some_and(|oldest| oldest <= until_now) {
            // The sender lives as long as `self`.
            let accepted = timeout(self.config.patience, progress.changed()).await;
            accepted.map_err(|_| self.too_late())?.map_err(|_| FsError::Invalid)?;
        }
        Ok(())
    }

    const fn too_late(&self) -> FsError {
        FsError::Call(CallError::TimedOut(self.config.patience))
    }

    /// Returns when the host has everything.
    pub async fn all_sent(&self) {
        let mut progress = self.sending.progress.subscribe();
        while self.unsent_bytes() > 0 {
            let _ = progress.changed().await;
        }
    }

    /// Bytes that programs have written and the host has not accepted.
    pub fn unsent_bytes(&self) -> u64 {
        lock(&self.sending.files).values().map(|file| file.behind.bytes()).sum()
    }

    fn oldest_unsent(&self, inode: Inode) -> Option<u64> {
        lock(&self.sending.files).get(&inode).and_then(|file| file.behind.oldest())
    }

    /// Whether the host lacks something that was written to the file.
    pub(super) fn is_behind(&self, inode: Inode) -> bool {
        lock(&self.sending.files).contains_key(&inode)
    }

    /// A file as it will be when everything has arrived, as far as that shows in its attributes.
    pub(super) fn with_unsent(&self, inode: Inode, attributes: Attributes, seen: Instant) -> Attributes {
        if attributes.kind != FileKind::Regular {
            return attributes;
        }
        let files = lock(&self.sending.files);
        let Some(file) = files.get(&inode) else { return attributes };
        let now = attributes.observed.0.saturating_add(seen.elapsed().as_nanos() as i64);
        let touched = |time: crate::proto::Timestamp| crate::proto::Timestamp(time.0.max(now));
        Attributes {
            size: attributes.size.max(file.behind.end()),
            mtime: touched(attributes.mtime),
            ctime: touched(attributes.ctime),
            ..attributes
        }
    }

    /// Sends what may be sent.
    fn send_next(self: &Arc<Self>, inode: Inode) {
        loop {
            let next = {
                let mut files = lock(&self.sending.files);
                let Some(file) = files.get_mut(&inode).filter(|file| file.under_way < UNDER_WAY_MAX) else {
                    return;
                };
                let Some((id, offset, bytes)) = file.behind.next() else { return };
                file.under_way += 1;
                let at = match file.behind.under(id) {
                    Some(run) => WriteAt::Under { run, offset },
                    None => WriteAt::Offset(offset),
                };
                (id, at, bytes)
            };
            let fs = Arc::clone(self);
            self.runtime.spawn(async move { fs.send(inode, next).await });
        }
    }

    async fn send(self: Arc<Self>, inode: Inode, (id, at, bytes): (ExtentId, WriteAt, Bytes)) {
        // Whatever becomes of it, also in a panic: nobody may wait for it for ever.
        let mut ended = Ended { fs: Arc::clone(&self), inode, id, len: bytes.len(), is_decided: false };
        let call = |client: Arc<dyn Client>, [node]: [_; 1]| {
            let bytes = bytes.clone();
            async move { client.write(node, at, bytes).await }
        };
        let begun = Instant::now();
        let answer = self.ask_to_change([inode], call).await;
        if let Err(error) = self.written(inode, begun, answer) {
            tracing::warn!(inode = inode.0, ?at, %error, "what was written could not be sent");
            self.write_failed(inode, error);
        }
        ended.is_decided = true;
    }

    fn write_failed(&self, inode: Inode, error: FsError) {
        if let Some(record) = lock(&self.inodes).get_mut(inode) {
            record.writes.failed(error);
        }
    }
}

/// Takes an extent off the table when its task ends.
struct Ended {
    fs: Arc<FileSystem>,
    inode: Inode,
    id: ExtentId,
    len: usize,
    /// Whether the host has it, or its writers are told that it has not.
    is_decided: bool,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if !self.is_decided {
            // The task panicked, or the mount ends: what was written is not where it should be.
            let lost = CallError::BadAnswer("what was written was lost on its way".to_owned());
            self.fs.write_failed(self.inode, FsError::Call(lost));
        }
        {
            let mut files = lock(&self.fs.sending.files);
            if let Some(file) = files.get_mut(&self.inode) {
                file.behind.done(self.id);
                file.under_way -= 1;
                if file.behind.is_empty() {
                    files.remove(&self.inode);
                }
            }
        }
        self.fs.sending.budget.add_permits(self.len);
        self.fs.send_next(self.inode);
        self.fs.sending.progress.send_replace(());
    }
}
