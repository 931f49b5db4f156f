//! Warm-ups of a mount. The control socket starts and watches them. A warm-up ends if no client watches it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::time::Instant;

use crate::control::{WarmOrder, WarmReport};
use crate::fs::{FileSystem, WarmJob};

/// Largest number of concurrent warm-ups. They share the spare capacity of the link.
const JOBS_MAX: usize = 4;

/// Time without a status request after which a warm-up ends, because its client is gone.
const UNWATCHED_TIMEOUT: Duration = Duration::from_secs(5);

struct Job {
    work: WarmJob,
    source: String,
    pin: bool,
    asked_at: Instant,
}

#[derive(Default)]
struct Jobs {
    running: BTreeMap<u64, Job>,
    last_id: u64,
    has_ended: bool,
}

/// Table of warm-ups.
pub(super) struct WarmJobs {
    file_system: Mutex<Option<Arc<FileSystem>>>,
    jobs: Arc<Mutex<Jobs>>,
    unwatched_timeout: Duration,
}

impl WarmJobs {
    pub(super) fn new(file_system: Arc<FileSystem>) -> Self {
        let file_system = Mutex::new(Some(file_system));
        Self { file_system, jobs: Arc::default(), unwatched_timeout: UNWATCHED_TIMEOUT }
    }

    /// Starts a warm-up.
    pub(super) fn begin(&self, order: &WarmOrder) -> Result<WarmReport, String> {
        let path = HEXLOWER.decode(order.path_hex.as_bytes());
        let path = path.map_err(|_| "a path is given as hexadecimal digits".to_owned())?;
        let mut jobs = lock(&self.jobs);
        let file_system = lock(&self.file_system).clone().filter(|_| !jobs.has_ended);
        let file_system = file_system.ok_or("the mount is being taken down")?;
        if jobs.running.len() >= JOBS_MAX {
            return Err(format!("{JOBS_MAX} warm-ups are under way on this mount; wait for one of them"));
        }
        let source = file_system.source_of(&path);
        let job = file_system.warm(path, order.pin.then(|| source.clone()));
        jobs.last_id += 1;
        let id = jobs.last_id;
        let job = Job { work: job, source, pin: order.pin, asked_at: Instant::now() };
        let report = report(id, &job);
        jobs.running.insert(id, job);
        file_system.runtime().spawn(expire(Arc::downgrade(&self.jobs), id, self.unwatched_timeout));
        Ok(report)
    }

    /// Returns the progress of a warm-up. A finished one is then removed.
    pub(super) fn report(&self, id: u64) -> Result<WarmReport, String> {
        let mut jobs = lock(&self.jobs);
        let gone = || format!("there is no warm-up {id}; a warm-up ends after 5 s without a status request");
        let job = jobs.running.get_mut(&id).ok_or_else(gone)?;
        job.asked_at = Instant::now();
        let report = report(id, job);
        if report.done {
            jobs.running.remove(&id);
        }
        Ok(report)
    }

    /// Ends all warm-ups and accepts no more.
    pub(super) fn end(&self) {
        let mut jobs = lock(&self.jobs);
        jobs.has_ended = true;
        jobs.running.clear();
        *lock(&self.file_system) = None;
    }
}

fn report(id: u64, job: &Job) -> WarmReport {
    let progress = job.work.progress();
    WarmReport {
        id,
        source: job.source.clone(),
        pin: job.pin,
        files: progress.files,
        bytes: progress.bytes,
        host_bytes: progress.host_bytes,
        skipped: progress.skipped,
        unproven: progress.unproven,
        failed: progress.failed,
        problems: progress.problems,
        done: progress.is_done,
        error: progress.error,
    }
}

async fn expire(jobs: Weak<Mutex<Jobs>>, id: u64, unwatched_timeout: Duration) {
    loop {
        let Some(asked_at) = jobs.upgrade().and_then(|jobs| Some(lock(&jobs).running.get(&id)?.asked_at))
        else {
            return;
        };
        let left = unwatched_timeout.saturating_sub(asked_at.elapsed());
        if left.is_zero() {
            if let Some(jobs) = jobs.upgrade() {
                lock(&jobs).running.remove(&id);
            }
            return;
        }
        tokio::time::sleep(left).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheConfig, DiskCache};
    use crate::client::memory::MemoryHost;
    use crate::fetch::{FetchConfig, Fetcher};
    use crate::fs::FsConfig;

    /// Returns a table with a cache in a directory that is removed when this returns. Nothing is written to
    /// it here.
    fn jobs(host: &MemoryHost) -> WarmJobs {
        let directory = tempfile::tempdir().unwrap();
        let (size_bytes, segment_bytes) = (1 << 20, Some(1 << 16));
        let cache = CacheConfig {
            directory: directory.path().to_owned(),
            size_bytes,
            min_free_ratio: 0.0,
            segment_bytes,
        };
        let cache = Arc::new(DiskCache::open(&cache).unwrap());
        let fetcher = Fetcher::new(host.client(), cache, FetchConfig::default());
        WarmJobs::new(FileSystem::new(host.client(), fetcher, FsConfig::default()))
    }

    fn order(path: &str) -> WarmOrder {
        WarmOrder { path_hex: HEXLOWER.encode(path.as_bytes()), pin: false }
    }

    /// Returns a host that answers no lookup, so every warm-up waits.
    fn silent_host() -> MemoryHost {
        let host = MemoryHost::new();
        host.create_file("file", "content");
        host.hold(|_, _| true);
        host
    }

    #[tokio::test]
    async fn an_unwatched_warm_up_ends() {
        let host = silent_host();
        // Long compared with the pauses of a busy machine.
        let jobs = WarmJobs { unwatched_timeout: Duration::from_secs(2), ..jobs(&host) };
        let watched = jobs.begin(&order("file")).unwrap().id;
        let forgotten = jobs.begin(&order("file")).unwrap().id;
        while lock(&jobs.jobs).running.contains_key(&forgotten) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!jobs.report(watched).unwrap().done);
        }
        assert!(jobs.report(forgotten).unwrap_err().contains("without a status request"));
        host.until(|host| host.held().len() <= 1).await;
    }

    #[tokio::test]
    async fn warm_ups_are_bounded_and_none_starts_after_the_end() {
        let host = silent_host();
        let jobs = jobs(&host);
        for _ in 0..JOBS_MAX {
            jobs.begin(&order("file")).unwrap();
        }
        assert!(jobs.begin(&order("file")).unwrap_err().contains("4 warm-ups"));
        assert!(jobs.begin(&WarmOrder { path_hex: "xy".to_owned(), pin: false }).is_err());
        jobs.end();
        assert!(jobs.report(1).is_err());
        assert!(jobs.begin(&order("file")).unwrap_err().contains("taken down"));
    }

    #[tokio::test]
    async fn a_finished_warm_up_reports_once() {
        let host = MemoryHost::new();
        host.create_file("empty", "");
        host.advance(Duration::from_secs(10));
        let jobs = jobs(&host);
        let id = jobs.begin(&order("nothing")).unwrap().id;
        let report = loop {
            let report = jobs.report(id).unwrap();
            if report.done {
                break report;
            }
            tokio::task::yield_now().await;
        };
        assert!(report.error.is_some() && report.source.ends_with("nothing"), "{report:?}");
        assert!(jobs.report(id).is_err());
    }
}
