//! Files of file systems that may hang are closed on a thread of their own: `close` waits for a FUSE daemon or an NFS server as
//! any other call does.
//!
//! One thread for each such file system, while there is something to close. What waits there is bounded by the open files that
//! keys may have.

use std::collections::HashMap;
use std::fs::File;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread waits for more to close.
const IDLE: Duration = Duration::from_secs(5);

type Closers = HashMap<u64, Sender<Arc<File>>>;

/// Where the threads take files from, by the number of the file system.
static CLOSERS: LazyLock<Mutex<Closers>> = LazyLock::new(Mutex::default);

/// Closes `file`, which lies on the file system `device`, without waiting for it. Where no thread can be started it is closed here.
pub(super) fn close_elsewhere(device: u64, file: Arc<File>) {
    let mut closers = lock();
    if !closers.contains_key(&device) {
        let (sender, receiver) = channel();
        let work = move || close_all(device, &receiver);
        if thread::Builder::new().name("wormhole-close".into()).spawn(work).is_err() {
            drop(closers);
            return drop(file);
        }
        closers.insert(device, sender);
    }
    if let Some(closer) = closers.get(&device) {
        // A thread takes its sender away before it ends.
        let _ = closer.send(file);
    }
}

/// The life of a thread.
fn close_all(device: u64, files: &Receiver<Arc<File>>) {
    loop {
        if let Ok(file) = files.recv_timeout(IDLE) {
            drop(file);
            continue;
        }
        // Nobody sends while the lock is held.
        let mut closers = lock();
        if let Ok(file) = files.try_recv() {
            drop(closers);
            drop(file);
            continue;
        }
        closers.remove(&device);
        return;
    }
}

fn lock() -> MutexGuard<'static, Closers> {
    CLOSERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn files_are_closed_soon_also_after_a_thread_has_ended() {
        let device = u64::MAX;
        for _ in 0..3 {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let seen = Arc::downgrade(&file);
            close_elsewhere(device, file);
            let begun = Instant::now();
            while seen.strong_count() > 0 {
                assert!(begun.elapsed() < Duration::from_secs(60), "it is not closed");
                thread::sleep(Duration::from_millis(5));
            }
            // As if it had been idle for long enough.
            lock().remove(&device);
        }
    }
}
