//! Polls for signals of a program that waits for an answer.
//!
//! The FUSE library answers `FUSE_INTERRUPT` with "not implemented", and then the kernel sends no more of
//! them. A thread whose request was read waits for the answer in state D, and even SIGKILL does not end it.
//! So after a moment the thread's files in `/proc` are read repeatedly. A call whose thread must end is
//! answered with EINTR. Calls that are answered sooner cost only a timer.
//!
//! A poll runs on a blocking thread, because it may wait. The kernel returns `stat` and `syscall` of a
//! program under a lock that the program holds during `execve`, and `execve` closes files, which waits for
//! this daemon. At most [`POLLS_MAX`] polls run at a time.
//!
//! Threads that `/proc` does not show to this process (in another PID namespace, or with `hidepid`) wait for
//! their answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::pending_signals::{self, InterruptPolicy, SignalWait, Signals};
use crate::fs::FileSystem;

/// Time before the first poll of a call.
const FIRST_POLL: Duration = Duration::from_millis(100);

/// The same for the close of a file. A killed program closes all its open files, one after another.
const FIRST_POLL_CLOSING: Duration = Duration::from_millis(5);

/// Time between two polls. Users do not notice it, even if a signal must be seen twice.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Time to the second poll for a signal that another thread of the program may take.
const POLL_AGAIN: Duration = Duration::from_millis(20);

/// Time between two polls of all calls together. A poll takes some 20 µs of a processor.
const POLL_INTERVAL_ALL: Duration = Duration::from_millis(1);

/// Polls of a mount at a time. A poll that waits keeps its thread. The runtime has 512 of them for other
/// work, too.
const POLLS_MAX: usize = 32;

/// Counts the calls of a mount that are polled, and bounds the concurrent polls.
#[derive(Debug, Clone)]
pub(super) struct SignalPoller {
    calls: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Default for SignalPoller {
    fn default() -> Self {
        Self { calls: Arc::default(), permits: Arc::new(Semaphore::new(POLLS_MAX)) }
    }
}

impl SignalPoller {
    fn begin(&self) -> PolledCall<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        PolledCall(&self.calls)
    }

    fn interval(&self) -> Duration {
        let calls = u32::try_from(self.calls.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        POLL_INTERVAL.max(POLL_INTERVAL_ALL.saturating_mul(calls))
    }
}

struct PolledCall<'a>(&'a AtomicUsize);

impl Drop for PolledCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Thread that waits for an answer.
pub(super) struct Waiter {
    /// The kernel's thread number, 0 if it has none for this process.
    pub thread: u32,
    /// Signals that end its wait.
    pub policy: InterruptPolicy,
    /// True if it closes a file, perhaps because it was killed.
    pub closes: bool,
    pub poller: SignalPoller,
    pub fs: Arc<FileSystem>,
}

impl Waiter {
    /// Completes when a signal has come that ends the wait.
    pub(super) async fn signalled(self) {
        let begun = Instant::now();
        if self.thread == 0 {
            return std::future::pending().await;
        }
        if self.closes {
            sleep(FIRST_POLL_CLOSING).await;
            if self.was_killed().await {
                return;
            }
        }
        sleep(FIRST_POLL).await;
        let _polled = self.poller.begin();
        let mut wait = SignalWait::new(self.policy);
        loop {
            let Some(status) = self.read("status").await else { return std::future::pending().await };
            let is_fault = self.policy == InterruptPolicy::TerminatingUnlessFault && self.is_in_fault().await;
            let is_long = || self.policy.is_long(begun.elapsed(), self.fs.is_connected());
            let is_due =
                Signals::of(&status).is_some_and(|signals| wait.check(signals, is_long, || is_fault));
            if is_due || self.closes && self.was_killed().await {
                return;
            }
            let interval = self.poller.interval();
            sleep(if wait.is_undecided() { POLL_AGAIN.min(interval) } else { interval }).await;
        }
    }

    /// Returns `true` if the thread ends because its process was killed.
    async fn was_killed(&self) -> bool {
        self.read("stat").await.is_some_and(|stat| pending_signals::was_killed(&stat))
    }

    /// Returns `true` if the thread waits for a page. If that is unknown (Yama hides it from plain users), a
    /// read from a silent host counts as a system call.
    async fn is_in_fault(&self) -> bool {
        let told = self.read("syscall").await.map(|syscall| !pending_signals::reads_by_call(&syscall));
        told.unwrap_or_else(|| self.fs.is_connected())
    }

    /// Reads a file of the thread in `/proc`, `None` if it has none. Waits for a permit, and for the kernel.
    async fn read(&self, name: &'static str) -> Option<String> {
        let permit = Arc::clone(&self.poller.permits).acquire_owned().await.ok()?;
        let path = format!("/proc/{}/{name}", self.thread);
        let read = move || {
            // The thread holds the permit: a call that is answered leaves its poll running.
            let _permit = permit;
            std::fs::read(path).ok()
        };
        let text = self.fs.runtime().spawn_blocking(read).await.ok()??;
        // A program's name can have any bytes.
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_waits_share_one_interval() {
        let poller = SignalPoller::default();
        assert_eq!(poller.interval(), POLL_INTERVAL);
        let looked: Vec<_> = (0..2000).map(|_| poller.begin()).collect();
        assert_eq!(poller.interval(), POLL_INTERVAL_ALL * 2000);
        drop(looked);
        assert_eq!(poller.interval(), POLL_INTERVAL);
    }
}
