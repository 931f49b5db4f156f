//! The threads on which a daemon's async code runs.

use super::CliError;

/// Of the cores, one in so many gets a thread on which async code runs. What one packet wakes then mostly runs where the packet was
/// received, and the kernel, the disk's threads and whoever reads have the others. With a thread a core a cold read of both ends on
/// two cores took 10 % longer for the mount's second thread, and 7 % more processor time and 10 % longer for the host's.
const CORES_PER_WORKER: usize = 2;

/// Most threads that may wait for a disk. Each exists only while it is needed. Of a host 128 keys may have all of theirs stuck on a
/// file system that hangs before anybody else waits.
const BLOCKING_THREADS_MAX: usize = 4096;

/// What runs a daemon.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / CORES_PER_WORKER).max(1))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|error| CliError::system(format!("cannot start threads: {error}")))
}
