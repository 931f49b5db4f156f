//! Looks for signals that come for a program while it waits for an answer.
//!
//! The FUSE library answers `FUSE_INTERRUPT` with "not implemented", after which the kernel sends no more of
//! them, and a thread whose request was read waits for the answer whatever happens to it, in state D and deaf
//! to SIGKILL. So when a call has waited for a moment the kernel's account of the waiting thread is read from
//! `/proc`, again and again: a call whose thread is to end is answered with EINTR. Calls that are answered
//! sooner pay for a timer and nothing else.
//!
//! A look runs on a thread of its own kind, because it may wait: the kernel gives out `stat` and `syscall` of a program
//! under a lock that the program holds while it becomes another one (`execve`), and becoming another one closes files,
//! which waits for this very daemon. At most [`LOOKS_MAX`] looks run at a time.
//!
//! Threads that `/proc` does not show to this process, because they live in another PID namespace or because
//! of `hidepid`, wait for their answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::pending_signals::{self, InterruptPolicy, SignalWait, Signals};
use crate::fs::FileSystem;

/// How long a call waits before the first look.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// The same for the close of a file, as a program that was killed closes all it had open, one after another.
const FIRST_LOOK_CLOSING: Duration = Duration::from_millis(5);

/// Time between two looks. People do not notice it, also where a signal has to be seen twice.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time to the second look at a signal that another thread of the program may take.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Time between two looks of all calls together: a look takes some 20 µs of a processor.
const LOOK_EVERY_ALL: Duration = Duration::from_millis(1);

/// Most looks of a mount at a time. A look that waits keeps its thread; the runtime has 512 of them for other work, too.
const LOOKS_MAX: usize = 32;

/// Counts the calls of a mount that wait long enough to be looked at, and bounds the looks.
#[derive(Debug, Clone)]
pub(super) struct Looking {
    calls: Arc<AtomicUsize>,
    places: Arc<Semaphore>,
}

impl Default for Looking {
    fn default() -> Self {
        Self { calls: Arc::default(), places: Arc::new(Semaphore::new(LOOKS_MAX)) }
    }
}

impl Looking {
    fn begin(&self) -> Looked<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Looked(&self.calls)
    }

    fn pace(&self) -> Duration {
        let calls = u32::try_from(self.calls.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        LOOK_EVERY.max(LOOK_EVERY_ALL.saturating_mul(calls))
    }
}

struct Looked<'a>(&'a AtomicUsize);

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Thread that waits for an answer.
pub(super) struct Waiter {
    /// By the kernel's number; 0 where it has none for this process.
    pub thread: u32,
    /// Signals that end its wait.
    pub policy: InterruptPolicy,
    /// Whether it closes a file, perhaps because it was killed.
    pub closes: bool,
    pub looking: Looking,
    pub fs: Arc<FileSystem>,
}

impl Waiter {
    /// Returns when a signal has come that ends the wait.
    pub(super) async fn signalled(self) {
        let begun = Instant::now();
        if self.thread == 0 {
            return std::future::pending().await;
        }
        if self.closes {
            sleep(FIRST_LOOK_CLOSING).await;
            if self.was_killed().await {
                return;
            }
        }
        sleep(FIRST_LOOK).await;
        let _looked = self.looking.begin();
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
            let pace = self.looking.pace();
            sleep(if wait.is_undecided() { LOOK_AGAIN.min(pace) } else { pace }).await;
        }
    }

    /// Returns `true` if the thread ends because its process was killed.
    async fn was_killed(&self) -> bool {
        self.read("stat").await.is_some_and(|stat| pending_signals::was_killed(&stat))
    }

    /// Returns `true` if the thread waits for a page. Where that is not told (Yama keeps it from plain users) a
    /// read from a host that does not answer counts as a call.
    async fn is_in_fault(&self) -> bool {
        let told = self.read("syscall").await.map(|syscall| !pending_signals::reads_by_call(&syscall));
        told.unwrap_or_else(|| self.fs.is_connected())
    }

    /// Reads a file of the thread in `/proc`; `None` if it has none. Waits for a place, and for as long as the kernel does.
    async fn read(&self, name: &'static str) -> Option<String> {
        let place = Arc::clone(&self.looking.places).acquire_owned().await.ok()?;
        let path = format!("/proc/{}/{name}", self.thread);
        let read = move || {
            // Held by the thread: a call that is answered leaves its look behind.
            let _place = place;
            std::fs::read(path).ok()
        };
        let text = self.fs.runtime().spawn_blocking(read).await.ok()??;
        // A program's name is any bytes.
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_waits_share_one_pace() {
        let looking = Looking::default();
        assert_eq!(looking.pace(), LOOK_EVERY);
        let looked: Vec<_> = (0..2000).map(|_| looking.begin()).collect();
        assert_eq!(looking.pace(), LOOK_EVERY_ALL * 2000);
        drop(looked);
        assert_eq!(looking.pace(), LOOK_EVERY);
    }
}
