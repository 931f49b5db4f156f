//! Thread of one ring: takes operations from the queue, submits them and handles their completions.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;

use super::queue::Queue;
use super::setup::{self, Refusal, errno_of};
use crate::io::operation::{Operation, Target};
use crate::io::registered_pool::RegisteredPool;
use crate::io::stats::{Counters, add};

/// Marks the completion of the read on the event descriptor. Operations carry the index of their slot.
const WAKE: u64 = u64::MAX;

/// Most bytes that one call submits. The kernel copies cached data during the call, before the first
/// completion can be answered: 1 MiB takes 0.1 ms.
const BATCH_BYTES: usize = 1 << 20;

/// Most bytes of one submission. Longer writes go in parts, because the kernel's count has 32 bits with a
/// sign.
const SUBMISSION_BYTES_MAX: usize = 1 << 30;

/// Pause if the kernel has no memory for requests.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(1);

/// Ring with the operations in it.
pub(super) struct Driver {
    ring: IoUring,
    queue: Arc<Queue>,
    /// Operations taken from the queue and not submitted yet.
    backlog: VecDeque<Operation>,
    /// Submitted operations, whose memory the kernel uses.
    slots: Vec<Option<Operation>>,
    free_slots: Vec<u32>,
    registered: bool,
    /// Destination of the read on the event descriptor, and a flag for its presence in the ring.
    wake_value: ManuallyDrop<Box<UnsafeCell<u64>>>,
    wake_pending: bool,
    counters: Arc<Counters>,
    /// Dropped after the ring, in which its memory is registered.
    _pool: Arc<RegisteredPool>,
}

impl Driver {
    /// Creates a ring for the calling thread. Also returns the error if only the registration of buffers
    /// failed.
    pub(super) fn new(
        depth: u32,
        queue: Arc<Queue>,
        pool: Arc<RegisteredPool>,
        counters: Arc<Counters>,
    ) -> Result<(Self, Option<Errno>), Refusal> {
        // One more entry for the read on the event descriptor.
        let ring = setup::make(depth + 1)?;
        let unregistered = setup::register(&ring, &pool).err();
        let driver = Self {
            ring,
            queue,
            backlog: VecDeque::new(),
            slots: (0..depth).map(|_| None).collect(),
            free_slots: (0..depth).rev().collect(),
            registered: unregistered.is_none(),
            wake_value: ManuallyDrop::new(Box::new(UnsafeCell::new(0))),
            wake_pending: false,
            counters,
            _pool: pool,
        };
        Ok((driver, unregistered))
    }

    /// Runs until the queue is closed and all operations are done.
    pub(super) fn run(mut self) {
        if let Err(errno) = self.work() {
            tracing::error!("io_uring failed, the disk engine stops: {errno}");
        }
    }

    /// Submits all queued operations without waiting.
    #[cfg(test)]
    pub(super) fn submit_all(&mut self) {
        self.queue.take(&mut self.backlog);
        self.await_wake();
        self.submit_backlog();
        self.enter(0).expect("the ring can be entered");
    }

    fn work(&mut self) -> Result<(), Errno> {
        let mut closed = false;
        loop {
            if self.backlog.is_empty() {
                closed = self.queue.take(&mut self.backlog);
            }
            if !closed {
                self.await_wake();
            }
            let submitted = self.submit_backlog();
            if closed && self.is_idle() {
                return Ok(());
            }
            // A submitted operation may be complete already. Checking before sleeping saves callers a
            // wake-up.
            if submitted {
                self.enter(0)?;
                if self.reap() {
                    continue;
                }
            }
            if self.must_wait() {
                self.enter(1)?;
                self.reap();
            }
        }
    }

    /// Returns `true` if only a completion allows progress: nothing is left to submit, or no slot is free.
    fn must_wait(&self) -> bool {
        if self.backlog.is_empty() { self.queue.may_sleep() } else { self.free_slots.is_empty() }
    }

    fn is_idle(&self) -> bool {
        self.backlog.is_empty() && self.free_slots.len() == self.slots.len() && !self.wake_pending
    }

    /// Keeps a read on the event descriptor in the ring.
    fn await_wake(&mut self) {
        if self.wake_pending {
            return;
        }
        let fd = types::Fd(self.queue.wake().as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_value.get().cast(), size_of::<u64>() as u32)
            .build()
            .user_data(WAKE);
        // SAFETY: the queue keeps the descriptor open, and `wake_value` is freed only when no read is
        // pending.
        self.wake_pending = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    /// Moves operations from the backlog to the submission queue, at most one batch. Returns `true` if
    /// there were any.
    fn submit_backlog(&mut self) -> bool {
        let mut batch_bytes = 0;
        let mut any = false;
        while batch_bytes < BATCH_BYTES && !self.free_slots.is_empty() {
            let Some(operation) = self.backlog.pop_front() else { break };
            if operation.is_abandoned() {
                operation.cancel();
                continue;
            }
            batch_bytes += operation.remaining();
            self.submit(operation);
            any = true;
        }
        any
    }

    /// Puts an operation into a free slot and into the submission queue.
    fn submit(&mut self, mut operation: Operation) {
        let Some(slot) = self.free_slots.pop() else {
            self.backlog.push_front(operation);
            return;
        };
        let entry = self.entry(&mut operation).user_data(u64::from(slot));
        self.slots[slot as usize] = Some(operation);
        // SAFETY: file and memory belong to the operation, which stays in its slot until its completion was
        // seen.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for each slot and one more");
    }

    fn entry(&self, operation: &mut Operation) -> squeue::Entry {
        let (fd, position) = (types::Fd(operation.fd().as_raw_fd()), operation.position());
        match operation.target() {
            Target::Read(memory, len, index) if self.registered => {
                add(&self.counters.fixed_reads, 1);
                opcode::ReadFixed::new(fd, memory, len as u32, index).offset(position).build()
            }
            Target::Read(memory, len, _) => {
                opcode::Read::new(fd, memory, len as u32).offset(position).build()
            }
            Target::Write(bytes, len) => {
                opcode::Write::new(fd, bytes, len.min(SUBMISSION_BYTES_MAX) as u32).offset(position).build()
            }
        }
    }

    /// Submits the submission queue and waits for `want` completions.
    fn enter(&mut self, want: usize) -> Result<(), Errno> {
        add(&self.counters.submissions, 1);
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match errno_of(&error) {
                Errno::EINTR => Ok(()),
                // Unseen completions are in the way, or memory is short. Both conditions pass.
                Errno::EAGAIN | Errno::EBUSY => {
                    thread::sleep(EXHAUSTED_PAUSE);
                    Ok(())
                }
                errno => Err(errno),
            },
        }
    }

    /// Handles all available completions. Returns `true` if there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        // The completion queue is read again for each, because answering one needs the whole driver.
        while let Some((token, result)) = self.next_completion() {
            any = true;
            if token == WAKE {
                self.wake_pending = false;
                continue;
            }
            let operation = self.slots[token as usize].take().expect("a completion for each submission");
            self.free_slots.push(token as u32);
            let outcome = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
            if let Some(rest) = operation.advance(outcome) {
                self.submit(rest);
            }
        }
        any
    }

    fn next_completion(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }
}

impl Drop for Driver {
    /// Leaks the memory of submitted operations after an error or a panic, because the kernel may still use
    /// it. After a regular end there are none. Waiting callers get an error.
    fn drop(&mut self) {
        self.queue.abandon();
        self.slots.drain(..).flatten().for_each(Operation::leak);
        if !self.wake_pending {
            // SAFETY: no read is pending, so the box has no other user; this runs once.
            unsafe { ManuallyDrop::drop(&mut self.wake_value) };
        }
    }
}
