//! `wormhole sync`: everything that was written on the mount is brought to the host's disk.
//!
//! The kernel sends `syncfs` to no file system of this kind, so a program of our own asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::inodes::Inode;
use super::{FileSystem, FsError, lock};
use crate::client::CallError;

/// Files that are synced at a time.
const FILES_MAX: usize = 16;

/// Problems that are kept to be told.
const PROBLEMS_MAX: usize = 10;

/// How often a host is asked again that is there and has not ended within a deadline: its disk may have much to write.
const PATIENT_TRIES_MAX: usize = 10;

/// Progress of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncProgress {
    /// Files that were written and not synced when it began.
    pub files: u64,
    /// Number of them that are on the disk of the host.
    pub synced: u64,
    /// Number of files that could not be brought there.
    pub failed: u64,
    /// Why, for the first of them: the path below the root and an error.
    pub problems: Vec<String>,
    /// `true` once it has ended.
    pub is_done: bool,
    /// Why it ended early.
    pub error: Option<String>,
}

/// A sync under way. Dropping it ends it.
#[derive(Debug)]
pub struct SyncJob {
    progress: Arc<Mutex<SyncProgress>>,
    task: JoinHandle<()>,
}

impl SyncJob {
    /// How far it is.
    pub fn progress(&self) -> SyncProgress {
        lock(&self.progress).clone()
    }
}

impl Drop for SyncJob {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FileSystem {
    /// Begins to bring everything that was written until now to the host's disk: the content of files, then whatever their
    /// file systems have besides, names above all.
    pub fn sync_all(self: &Arc<Self>) -> SyncJob {
        let progress = Arc::new(Mutex::new(SyncProgress::default()));
        let (fs, writes, told) = (Arc::clone(self), self.writes_so_far(), Arc::clone(&progress));
        let task = self.runtime().spawn(async move {
            let error = fs.sync_everything(writes, &told).await.err();
            let mut told = lock(&told);
            told.error = error.map(|error| error.to_string());
            told.is_done = true;
        });
        SyncJob { progress, task }
    }

    async fn sync_everything(
        self: &Arc<Self>,
        writes: u64,
        progress: &Arc<Mutex<SyncProgress>>,
    ) -> Result<(), FsError> {
        if self.config.read_only {
            return Ok(());
        }
        let (files, disks) = self.to_be_synced();
        lock(progress).files = files.len() as u64;
        let (places, mut tasks) = (Arc::new(Semaphore::new(FILES_MAX)), JoinSet::new());
        for inode in files {
            let (fs, places) = (Arc::clone(self), Arc::clone(&places));
            tasks.spawn(async move {
                let _place = places.acquire().await;
                (inode, fs.sync_inode(inode, writes).await)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            let (inode, synced) = ended.map_err(|_| FsError::Call(CallError::Closed))?;
            match synced {
                Ok(()) => lock(progress).synced += 1,
                Err(error) if error.is_out_of_reach() => return Err(error),
                Err(error) => self.note_problem(progress, inode, &error),
            }
        }
        for inode in disks.into_values() {
            self.sync_disk(inode).await?;
        }
        Ok(())
    }

    /// Files with content that is not on the host's disk or failed to come there, and an inode on each disk.
    fn to_be_synced(&self) -> (BTreeSet<Inode>, BTreeMap<u64, Inode>) {
        let mut files: BTreeSet<Inode> = lock(&self.sending.files).keys().copied().collect();
        let mut disks = BTreeMap::new();
        let inodes = lock(&self.inodes);
        for (inode, record) in inodes.numbered() {
            if record.writes().unsynced_bytes() > 0 || record.writes().has_failed_since_sync() {
                files.insert(inode);
            }
            disks.entry(record.node().device).or_insert(inode);
        }
        // The root is always there.
        if let Some(root) = inodes.get(Inode::ROOT) {
            disks.insert(root.node().device, Inode::ROOT);
        }
        (files, disks)
    }

    /// Brings a file to the host's disk. Failures are told that no sync of everything has told.
    async fn sync_inode(self: &Arc<Self>, inode: Inode, writes: u64) -> Result<(), FsError> {
        let synced = match self.sync_content(inode, writes, false).await {
            // Nobody needs it any more.
            Err(FsError::UnknownInode(_)) => return Ok(()),
            synced => synced,
        };
        let failed =
            self.with_record(inode, |record| record.writes_mut().failure_since_sync()).ok().flatten();
        synced.and(failed.map_or(Ok(()), Err))
    }

    /// Brings everything on one of the host's disks to it.
    async fn sync_disk(&self, inode: Inode) -> Result<(), FsError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let call =
                async |client: Arc<dyn crate::client::Client>, node| client.sync_file_system(node).await;
            match self.ask(inode, call).await {
                Err(FsError::Call(CallError::TimedOut(_)))
                    if self.is_connected() && tries < PATIENT_TRIES_MAX => {}
                answer => return answer.map(drop),
            }
        }
    }

    fn note_problem(&self, progress: &Mutex<SyncProgress>, inode: Inode, error: &FsError) {
        let path = lock(&self.inodes).path(inode);
        let mut progress = lock(progress);
        progress.failed += 1;
        if progress.problems.len() < PROBLEMS_MAX {
            let path = String::from_utf8_lossy(&path);
            progress.problems.push(format!("{path}: {error}"));
        }
    }
}
