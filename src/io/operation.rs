//! One read or write in progress, and the rules for continuing after a partial result.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use nix::errno::Errno;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::registered_pool::PooledBuffer;
use super::stats::{Counters, add};

/// Retries of an operation after EINTR or EAGAIN. Regular files return neither for long. A descriptor that
/// is not a file and never becomes ready must not keep a thread busy.
const RETRIES_MAX: u8 = 8;

/// Read or write with everything that the kernel needs until it is done: file, buffer, queue slot.
pub(super) struct Operation {
    file: Arc<dyn AsFd + Send + Sync>,
    offset: u64,
    done: usize,
    retries: u8,
    work: Work,
    guard: SlotGuard,
}

/// Kind of work and its reply channel.
pub(super) enum Work {
    /// Fill the first `want` bytes of `buffer`.
    Read {
        /// Destination of the bytes.
        buffer: PooledBuffer,
        /// Number of bytes.
        want: usize,
        /// Channel for the answer.
        reply: oneshot::Sender<Result<PooledBuffer, Errno>>,
    },
    /// Write all of `bytes`.
    Write {
        /// Source of the bytes.
        bytes: Bytes,
        /// Channel for the answer.
        reply: oneshot::Sender<Result<(), Errno>>,
    },
}

/// Memory of the remaining part of an operation, for the kernel.
pub(super) enum Target {
    /// Destination: pointer, length, index of the registered buffer that contains it.
    Read(*mut u8, usize, u16),
    /// Source: pointer, length.
    Write(*const u8, usize),
}

/// Queue slot, which counts its operation as in flight while it exists.
pub(super) struct SlotGuard {
    counters: Arc<Counters>,
    _slot: OwnedSemaphorePermit,
}

impl SlotGuard {
    /// Counts one more operation.
    pub(super) fn new(slot: OwnedSemaphorePermit, counters: Arc<Counters>) -> Self {
        let now = counters.in_flight.fetch_add(1, Relaxed) + 1;
        counters.in_flight_max.fetch_max(now, Relaxed);
        Self { counters, _slot: slot }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Operation {
    /// Creates an operation without progress.
    pub(super) fn new(file: Arc<dyn AsFd + Send + Sync>, offset: u64, work: Work, guard: SlotGuard) -> Self {
        Self { file, offset, done: 0, retries: 0, work, guard }
    }

    /// Marks the first `done` bytes as complete.
    pub(super) fn after(mut self, done: usize) -> Self {
        self.done = done;
        self
    }

    /// Returns the file of the operation.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns the file offset of the remaining part.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    /// Returns the number of remaining bytes.
    pub(super) fn remaining(&self) -> usize {
        match &self.work {
            Work::Read { want, .. } => want - self.done,
            Work::Write { bytes, .. } => bytes.len() - self.done,
        }
    }

    /// Returns `true` if the answer is no longer wanted. A write that has begun is never abandoned, because
    /// half of it would stay.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.work {
            Work::Read { reply, .. } => reply.is_closed(),
            Work::Write { reply, .. } => self.done == 0 && reply.is_closed(),
        }
    }

    /// Drops an abandoned operation.
    pub(super) fn cancel(self) {
        add(&self.guard.counters.cancelled, 1);
    }

    /// Returns the memory of the remaining part. The pointers are valid while the operation lives, and must
    /// have a single user at a time.
    pub(super) fn target(&mut self) -> Target {
        match &mut self.work {
            Work::Read { buffer, want, .. } => {
                let index = buffer.index();
                let rest = &mut buffer.memory()[self.done..*want];
                Target::Read(rest.as_mut_ptr(), rest.len(), index)
            }
            Work::Write { bytes, .. } => {
                let rest = &bytes[self.done..];
                Target::Write(rest.as_ptr(), rest.len())
            }
        }
    }

    /// Runs one system call for the remaining part with `read` or `write`.
    pub(super) fn call(
        &mut self,
        read: impl FnOnce(BorrowedFd<'_>, &mut [u8], u64) -> Result<usize, Errno>,
        write: impl FnOnce(BorrowedFd<'_>, &[u8], u64) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let (fd, position) = (self.file.as_fd(), self.offset + self.done as u64);
        match &mut self.work {
            Work::Read { buffer, want, .. } => read(fd, &mut buffer.memory()[self.done..*want], position),
            Work::Write { bytes, .. } => write(fd, &bytes[self.done..], position),
        }
    }

    /// Applies the result of a system call. Returns the operation if it must be submitted again; otherwise
    /// the operation was answered.
    pub(super) fn advance(mut self, outcome: Result<usize, Errno>) -> Option<Self> {
        match outcome {
            Err(Errno::EINTR | Errno::EAGAIN) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Some(self)
            }
            Err(errno) => self.answer(Err(errno)),
            // No progress: a read is at the end of the file. A write must not be retried for ever.
            Ok(0) => match self.work {
                Work::Read { .. } => self.answer(Ok(())),
                Work::Write { .. } => self.answer(Err(Errno::EIO)),
            },
            Ok(moved) => {
                self.done += moved.min(self.remaining());
                if self.remaining() == 0 {
                    return self.answer(Ok(()));
                }
                if matches!(self.work, Work::Read { .. }) {
                    add(&self.guard.counters.short_reads, 1);
                }
                Some(self)
            }
        }
    }

    /// Leaks the memory of an operation, because the kernel may still use it. The caller gets an error.
    pub(super) fn leak(self) {
        match self.work {
            Work::Read { buffer, .. } => std::mem::forget(buffer),
            Work::Write { bytes, .. } => std::mem::forget(bytes),
        }
        std::mem::forget(self.file);
    }

    /// Sends the answer. File and queue slot are released first, so that the receiver finds them free.
    fn answer(self, outcome: Result<(), Errno>) -> Option<Self> {
        let Self { file, done, work, guard, .. } = self;
        drop(file);
        let counters = Arc::clone(&guard.counters);
        drop(guard);
        let done_bytes = done as u64;
        // A send fails if the receiver is gone. Its content is dropped then, as it should be.
        match work {
            Work::Read { mut buffer, reply, .. } => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, done_bytes);
                buffer.set_filled(done);
                let _ = reply.send(outcome.map(|()| buffer));
            }
            Work::Write { bytes, reply } => {
                add(&counters.writes, 1);
                add(&counters.written_bytes, done_bytes);
                drop(bytes);
                let _ = reply.send(outcome);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::super::registered_pool::RegisteredPool;
    use super::*;

    fn guard(counters: &Arc<Counters>) -> SlotGuard {
        let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        SlotGuard::new(slot, Arc::clone(counters))
    }

    fn file() -> Arc<dyn AsFd + Send + Sync> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    async fn read(
        counters: &Arc<Counters>,
        want: usize,
    ) -> (Operation, oneshot::Receiver<Result<PooledBuffer, Errno>>) {
        let buffer = RegisteredPool::new(1 << 20, 1 << 17).unwrap().acquire(want).await;
        let (reply, answer) = oneshot::channel();
        (Operation::new(file(), 1000, Work::Read { buffer, want, reply }, guard(counters)), answer)
    }

    fn write(counters: &Arc<Counters>, len: usize) -> (Operation, oneshot::Receiver<Result<(), Errno>>) {
        let (reply, answer) = oneshot::channel();
        let work = Work::Write { bytes: vec![0; len].into(), reply };
        (Operation::new(file(), 0, work, guard(counters)), answer)
    }

    #[tokio::test]
    async fn short_reads_go_on_where_they_stopped() {
        let counters = Arc::default();
        let (operation, answer) = read(&counters, 100).await;
        let operation = operation.advance(Ok(30)).unwrap();
        assert_eq!((operation.position(), operation.remaining()), (1030, 70));
        let operation = operation.advance(Ok(69)).unwrap();
        assert!(operation.advance(Ok(1)).is_none());
        assert_eq!(answer.await.unwrap().unwrap().as_ref().len(), 100);

        let (operation, answer) = read(&counters, 100).await;
        assert!(operation.advance(Ok(30)).unwrap().advance(Ok(0)).is_none());
        assert_eq!(answer.await.unwrap().unwrap().as_ref().len(), 30, "the file ends there");
        assert_eq!((counters.short_reads.load(Relaxed), counters.reads.load(Relaxed)), (3, 2));
        assert_eq!((counters.read_bytes.load(Relaxed), counters.in_flight.load(Relaxed)), (130, 0));
    }

    #[tokio::test]
    async fn an_error_after_a_part_is_an_error() {
        let (operation, answer) = read(&Arc::default(), 100).await;
        assert!(operation.advance(Ok(30)).unwrap().advance(Err(Errno::EIO)).is_none());
        assert_eq!(answer.await.unwrap().err(), Some(Errno::EIO));
    }

    #[tokio::test]
    async fn interruptions_are_retried_but_not_for_ever() {
        for errno in [Errno::EINTR, Errno::EAGAIN] {
            let (operation, answer) = read(&Arc::default(), 100).await;
            let mut rest = Some(operation);
            let mut tries = 0;
            while let Some(operation) = rest {
                tries += 1;
                rest = operation.advance(Err(errno));
            }
            assert_eq!(tries, u32::from(RETRIES_MAX) + 1);
            assert_eq!(answer.await.unwrap().err(), Some(errno));
        }
    }

    #[tokio::test]
    async fn writes_go_on_or_fail() {
        let counters = Arc::default();
        let (operation, answer) = write(&counters, 10);
        assert!(operation.advance(Ok(4)).unwrap().advance(Ok(6)).is_none());
        assert_eq!(answer.await.unwrap(), Ok(()));
        let (operation, answer) = write(&counters, 10);
        assert!(operation.advance(Ok(4)).unwrap().advance(Ok(0)).is_none());
        assert_eq!(answer.await.unwrap(), Err(Errno::EIO));
    }

    #[tokio::test]
    async fn a_write_that_has_begun_is_finished() {
        let (operation, answer) = write(&Arc::default(), 10);
        assert!(!operation.is_abandoned());
        drop(answer);
        assert!(operation.is_abandoned());
        assert!(!operation.advance(Ok(4)).unwrap().is_abandoned());
    }
}
