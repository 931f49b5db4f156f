//! Backend without `io_uring`: a few threads that block in `pread` and `pwrite`.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

use super::backend::Backend;
use super::error::IoError;
use super::operation::Operation;

/// Threads that share one queue.
pub(super) struct Blocking {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    operations: VecDeque<Operation>,
    closed: bool,
}

impl Blocking {
    /// Starts `threads` threads.
    pub(super) fn start(threads: usize) -> Result<Self, IoError> {
        // On an error, dropping it stops the threads that did start.
        let blocking = Self { queue: Arc::default() };
        for number in 0..threads {
            let queue = Arc::clone(&blocking.queue);
            let builder = thread::Builder::new().name(format!("wormhole-io-{number}"));
            builder.spawn(move || queue.work()).map_err(|error| IoError::Unavailable {
                backend: "blocking",
                reason: format!(
                    "thread {number} of {threads} could not be started: raise the limit of processes"
                ),
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            })?;
        }
        Ok(blocking)
    }
}

impl Backend for Blocking {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn push(&self, operation: Operation) {
        self.queue.lock().operations.push_back(operation);
        self.queue.filled.notify_one();
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.filled.notify_all();
    }
}

impl Queue {
    /// Runs operations until the queue is closed and empty.
    fn work(&self) {
        while let Some(operation) = self.next() {
            if operation.is_abandoned() {
                operation.cancel();
                continue;
            }
            run(operation);
        }
    }

    /// Waits for the next operation; `None` once the queue is closed and empty.
    fn next(&self) -> Option<Operation> {
        let waiting = |state: &mut State| state.operations.is_empty() && !state.closed;
        let mut state = self.filled.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        state.operations.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs an operation until it is answered.
fn run(operation: Operation) {
    let mut rest = Some(operation);
    while let Some(mut operation) = rest {
        let outcome = operation.call(
            |fd, memory, position| pread(fd, memory, position as libc::off_t),
            |fd, bytes, position| pwrite(fd, bytes, position as libc::off_t),
        );
        rest = operation.advance(outcome);
    }
}
