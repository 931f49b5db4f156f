//! Queue of operations for a ring's thread, and its wake-up.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::io::operation::Operation;

/// Operations on their way to a ring. The queue slots of the engine bound it.
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
    /// Creates an empty queue. Fails if the event descriptor cannot be created.
    pub(super) fn new() -> Result<Self, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::default(), wake })
    }

    /// Returns the descriptor that becomes readable when a sleeping thread has work.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Adds an operation, and wakes the thread if it sleeps. A closed queue drops the operation.
    pub(super) fn push(&self, operation: Operation) {
        let mut state = self.lock();
        if state.closed {
            // Dropped outside of the lock, because it may hold the last reference to a file.
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

    /// Closes the queue. The thread ends after the queued operations.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.asleep = false;
        drop(state);
        self.ring();
    }

    /// Closes the queue and drops its operations, because the thread is gone.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let operations = std::mem::take(&mut state.operations);
        drop(state);
        drop(operations);
    }

    /// Moves all operations to `into`, which must be empty. Returns `true` if the queue is closed.
    pub(super) fn take(&self, into: &mut VecDeque<Operation>) -> bool {
        debug_assert!(into.is_empty(), "operations would change their order");
        let mut state = self.lock();
        std::mem::swap(&mut state.operations, into);
        state.asleep = false;
        state.closed
    }

    /// Marks the thread as sleeping, unless operations arrived since the last [`Queue::take`]. Returns
    /// `true` if it may sleep.
    pub(super) fn may_sleep(&self) -> bool {
        let mut state = self.lock();
        state.asleep = state.operations.is_empty() && !state.closed;
        state.operations.is_empty()
    }

    fn ring(&self) {
        // Fails only if the counter would exceed 2^64, and then the descriptor is readable already.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
