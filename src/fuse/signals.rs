//! Whether a signal waits for a thread that waits for us.
//!
//! The FUSE library does not pass `FUSE_INTERRUPT` on, and a program that waits for a lock may wait for ever. So while it does, the
//! kernel's account of the waiting thread is looked at: a signal that is pending and not blocked would have interrupted it. Threads
//! that we cannot see, because they live in another PID namespace or `/proc` is hidden, wait until they have the lock.

use std::time::Duration;

/// How often it is looked. A person who presses Ctrl-C does not notice it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Comes back when a signal has come to `thread` that it would act on; `thread` is the kernel's number, 0 where it has none for us.
pub(super) async fn comes_to(thread: u32) {
    if thread == 0 {
        return std::future::pending().await;
    }
    let path = format!("/proc/{thread}/status");
    // What is pending for the whole process is usually taken by another thread at once; what is still there the second time is not.
    let mut seen = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Some lines that the kernel has at hand.
        let Ok(status) = tokio::fs::read_to_string(&path).await else { return std::future::pending().await };
        let Some(Signals { own, shared }) = Signals::of(&status) else { continue };
        if own != 0 || shared & seen != 0 {
            return;
        }
        seen = shared;
    }
}

/// Signals that a thread would act on, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signals {
    /// Sent to the thread itself.
    own: u64,
    /// Sent to its process.
    shared: u64,
}

impl Signals {
    /// From `/proc/TID/status`.
    fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let acted_on = !field("SigBlk")?;
        Some(Self { own: field("SigPnd")? & acted_on, shared: field("ShdPnd")? & acted_on })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_and_not_blocked_counts() {
        let status = "Name:\tcat\nSigQ:\t0/1\nSigPnd:\t0000000000000003\nShdPnd:\t0000000000000104\n\
                      SigBlk:\t0000000000000101\nSigIgn:\t0000000000000000\n";
        assert_eq!(Signals::of(status), Some(Signals { own: 2, shared: 4 }));
        assert_eq!(Signals::of("Name:\tcat\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(Signals::of(&own).is_some(), "{own}");
    }
}
