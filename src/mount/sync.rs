//! The syncs of a mount: begun and watched over its control socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::SyncReport;
use crate::fs::{FileSystem, SyncJob};

/// Most syncs at once.
const JOBS_MAX: usize = 8;

/// Age of the last question at which a sync is given up: whoever began it is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Jobs {
    running: BTreeMap<u64, (SyncJob, Instant)>,
    last_id: u64,
}

/// The table of them.
#[derive(Default)]
pub(super) struct SyncJobs(Mutex<Jobs>);

impl SyncJobs {
    /// Begins one.
    pub(super) fn begin(&self, file_system: &Arc<FileSystem>) -> Result<SyncReport, String> {
        let mut jobs = lock(&self.0);
        jobs.running.retain(|_, (_, asked)| asked.elapsed() < FORGOTTEN_AFTER);
        if jobs.running.len() >= JOBS_MAX {
            return Err(format!("{JOBS_MAX} syncs are under way on this mount; wait for one of them"));
        }
        jobs.last_id += 1;
        let (id, job) = (jobs.last_id, file_system.sync_all());
        let report = report(id, &job, file_system);
        jobs.running.insert(id, (job, Instant::now()));
        Ok(report)
    }

    /// How far one is; one that has ended is forgotten with that.
    pub(super) fn report(&self, id: u64, file_system: &FileSystem) -> Result<SyncReport, String> {
        let mut jobs = lock(&self.0);
        let gone = || format!("there is no sync {id}; one that nobody asks about for 5 s may be given up");
        let (job, asked) = jobs.running.get_mut(&id).ok_or_else(gone)?;
        *asked = Instant::now();
        let report = report(id, job, file_system);
        if report.done {
            jobs.running.remove(&id);
        }
        Ok(report)
    }

    /// Ends all.
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
