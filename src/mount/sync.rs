//! Syncs of a mount. The control socket starts and watches them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::SyncReport;
use crate::fs::{FileSystem, SyncJob};

/// Largest number of concurrent syncs.
const JOBS_MAX: usize = 8;

/// Time without a status request after which a sync ends, because its client is gone.
const UNWATCHED_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Jobs {
    running: BTreeMap<u64, (SyncJob, Instant)>,
    last_id: u64,
}

/// Table of syncs.
#[derive(Default)]
pub(super) struct SyncJobs(Mutex<Jobs>);

impl SyncJobs {
    /// Starts a sync.
    pub(super) fn begin(&self, file_system: &Arc<FileSystem>) -> Result<SyncReport, String> {
        let mut jobs = lock(&self.0);
        jobs.running.retain(|_, (_, asked)| asked.elapsed() < UNWATCHED_TIMEOUT);
        if jobs.running.len() >= JOBS_MAX {
            return Err(format!("{JOBS_MAX} syncs are under way on this mount; wait for one of them"));
        }
        jobs.last_id += 1;
        let (id, job) = (jobs.last_id, file_system.sync_all());
        let report = report(id, &job, file_system);
        jobs.running.insert(id, (job, Instant::now()));
        Ok(report)
    }

    /// Returns the progress of a sync. A finished one is then removed.
    pub(super) fn report(&self, id: u64, file_system: &FileSystem) -> Result<SyncReport, String> {
        let mut jobs = lock(&self.0);
        let gone = || format!("there is no sync {id}; a sync may end after 5 s without a status request");
        let (job, asked) = jobs.running.get_mut(&id).ok_or_else(gone)?;
        *asked = Instant::now();
        let report = report(id, job, file_system);
        if report.done {
            jobs.running.remove(&id);
        }
        Ok(report)
    }

    /// Ends all syncs.
    pub(super) fn end(&self) {
        lock(&self.0).running.clear();
    }
}

fn report(id: u64, job: &SyncJob, file_system: &FileSystem) -> SyncReport {
    let progress = job.progress();
    SyncReport {
        id,
        source: file_system.source_of(b""),
        files: progress.files,
        synced: progress.synced,
        failed: progress.failed,
        problems: progress.problems,
        unsent_bytes: file_system.unsent_bytes(),
        done: progress.is_done,
        error: progress.error,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
