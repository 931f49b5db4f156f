//! The thread of one ring: takes operations from the queue, submits them, deals with their completions.

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
use crate::io::pool::Pool;
use crate::io::stats::{Counters, add};

/// Marks the completion of the read on the event descriptor; operations have the index of their slot.
const WAKE: u64 = u64::MAX;

/// Bytes that one call may submit. The kernel copies what is in the page cache during the call, before anybody hears
/// of the first completion: 1 MiB is 0.1 ms.
const BATCH_BYTES: usize = 1 << 20;

/// Bytes of one submission; longer writes go in parts, as the kernel's count is signed 32 bits.
const SUBMISSION_BYTES_MAX: usize = 1 << 30;

/// Pause when the kernel has no memory for requests.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(1);

/// A ring and the operations in it.
pub(super) struct Driver {
    ring: IoUring,
    queue: Arc<Queue>,
    /// Taken from the queue, not yet in the ring.
    backlog: VecDeque<Operation>,
    /// In the ring: the kernel uses their memory.
    slots: Vec<Option<Operation>>,
    free_slots: Vec<u32>,
    registered: bool,
    /// Where the read on the event descriptor goes, and whether one is in the ring.
    wake_value: ManuallyDrop<Box<UnsafeCell<u64>>>,
    wake_pending: bool,
    counters: Arc<Counters>,
    /// Dropped after the ring: its memory is registered there.
    _pool: Arc<Pool>,
}

impl Driver {
    /// Makes a ring for the calling thread. Gives the error of registering the buffers where that alone failed.
    pub(super) fn new(
        depth: u32,
        queue: Arc<Queue>,
        pool: Arc<Pool>,
        counters: Arc<Counters>,
    ) -> Result<(Self, Option<Errno>), Refusal> {
        // One more for the read on the event descriptor.
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

    /// The life of the thread: until the queue is closed and all is done.
    pub(super) fn run(mut self) {
        if let Err(errno) = self.work() {
            tracing::error!("io_uring failed, no file can be read any more: {errno}");
        }
    }

    /// Takes what is queued and submits it, without waiting for anything.
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
            // What was just submitted may be done already: look before sleeping, so that callers need not wake us.
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

    /// Whether only the kernel can bring news: nothing is left to submit, or nowhere to put it.
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
        // SAFETY: the queue keeps the descriptor open, and `wake_value` is freed only when no read is pending.
        self.wake_pending = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    /// Moves operations from the backlog to the submission queue, at most one batch. Returns whether there were any.
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
        // SAFETY: file and memory belong to the operation, which stays in its slot until its completion was seen.
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

    /// Submits what is in the submission queue and waits for `want` completions.
    fn enter(&mut self, want: usize) -> Result<(), Errno> {
        add(&self.counters.submissions, 1);
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match errno_of(&error) {
                Errno::EINTR => Ok(()),
                // Completions that are not yet seen are in the way, or memory is short: both pass.
                Errno::EAGAIN | Errno::EBUSY => {
                    thread::sleep(EXHAUSTED_PAUSE);
                    Ok(())
                }
                errno => Err(errno),
            },
        }
    }

    /// Deals with all completions there are. Returns whether there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        // The queue is looked at anew for each: answering one needs the whole driver.
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
    /// On the regular way out nothing is left to do. After an error or a panic the kernel may still use the memory of
    /// what is in the ring: that is leaked. Who waits for an answer is told either way.
    fn drop(&mut self) {
        self.queue.abandon();
        self.slots.drain(..).flatten().for_each(Operation::leak);
        if !self.wake_pending {
            // SAFETY: no read is pending, so nobody else uses the box; this runs once.
            unsafe { ManuallyDrop::drop(&mut self.wake_value) };
        }
    }
}
