//! What callers push to a ring's thread, and how they wake it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::io::operation::Operation;

/// Operations on their way to a ring. Bounded by the places of the engine.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: EventFd,
}

#[derive(Default)]
struct State {
    operations: VecDeque<Operation>,
    asleep: bool,
    closed: bool,
}

impl Queue {
    /// An empty queue. The error is that of the event descriptor.
    pub(super) fn new() -> Result<Self, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::default(), wake })
    }

    /// What to wait for: becomes readable when a sleeping thread has something to do.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Adds an operation, and wakes the thread where it sleeps. On a closed queue the operation is dropped.
    pub(super) fn push(&self, operation: Operation) {
        let mut state = self.lock();
        if state.closed {
            // Dropped outside of the lock: it may hold the last reference to a file.
            drop(state);
            drop(operation);
            return;
        }
        state.operations.push_back(operation);
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.ring();
        }
    }

    /// Lets the thread end when all is done.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.asleep = false;
        drop(state);
        self.ring();
    }

    /// Closes the queue and drops what is in it: nobody will run it.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let operations = std::mem::take(&mut state.operations);
        drop(state);
        drop(operations);
    }

    /// Moves all operations to `into`, which must be empty. Returns whether the queue is closed.
    pub(super) fn take(&self, into: &mut VecDeque<Operation>) -> bool {
        debug_assert!(into.is_empty(), "operations would change their order");
        let mut state = self.lock();
        std::mem::swap(&mut state.operations, into);
        state.asleep = false;
        state.closed
    }

    /// Says that the thread goes to sleep, unless something has come in since the last [`Queue::take`].
    pub(super) fn may_sleep(&self) -> bool {
        let mut state = self.lock();
        state.asleep = state.operations.is_empty() && !state.closed;
        state.operations.is_empty()
    }

    fn ring(&self) {
        // Fails only when the counter would pass 2^64, and then it is readable already.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
