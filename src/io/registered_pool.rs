//! Fixed memory for all reads: one locked slab, cut into buffers that travel as `Bytes`.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use tokio::sync::Semaphore;

use super::error::IoError;

/// Largest read that uses a small buffer, and the size of such a buffer. 16 KiB holds a page of any
/// database and the small files of a source tree.
pub const SMALL_READ_BYTES: usize = 16 * 1024;

/// Share of the small buffers in the pool: one part in 16.
const SMALL_SHARE: usize = 16;
/// Fewest small buffers, however small the pool.
const SMALL_COUNT_MIN: usize = 4;
/// Most small buffers, because the kernel registers each.
const SMALL_COUNT_MAX: usize = 1024;
/// Most buffers that a ring may register (`IORING_MAX_REG_BUFFERS`).
const BUFFERS_MAX: usize = 16 * 1024;
/// Alignment of every buffer in bytes, for files opened with `O_DIRECT`.
const ALIGN_BYTES: usize = 4096;

/// Slab of memory with the lists of its free buffers.
pub(super) struct RegisteredPool {
    slab: Slab,
    small: Class,
    large: Class,
}

/// Buffers of one size. Indices count through the whole pool: large ones first, then small ones.
struct Class {
    first_index: usize,
    first_offset: usize,
    count: usize,
    bytes: usize,
    free: Mutex<Vec<u16>>,
    /// One permit for each entry of `free`. Waiters are served in order.
    available: Semaphore,
}

/// Buffer in exclusive use. It returns to its pool when dropped.
pub(super) struct PooledBuffer {
    pool: Arc<RegisteredPool>,
    index: u16,
    filled: usize,
}

impl RegisteredPool {
    /// Creates a pool of at most `pool_bytes`, with buffers of `buffer_bytes` and a few small ones.
    pub(super) fn new(pool_bytes: usize, buffer_bytes: usize) -> Result<Arc<Self>, IoError> {
        if buffer_bytes <= SMALL_READ_BYTES || !buffer_bytes.is_multiple_of(ALIGN_BYTES) {
            return Err(IoError::Config("a buffer must be a multiple of 4 KiB, and larger than 16 KiB"));
        }
        let small_count =
            (pool_bytes / SMALL_SHARE / SMALL_READ_BYTES).clamp(SMALL_COUNT_MIN, SMALL_COUNT_MAX);
        let small_bytes = small_count * SMALL_READ_BYTES;
        let large_count = pool_bytes.saturating_sub(small_bytes) / buffer_bytes;
        if large_count == 0 {
            return Err(IoError::Config("the pool must hold at least one buffer, and 64 KiB of small ones"));
        }
        if small_count + large_count > BUFFERS_MAX {
            return Err(IoError::Config(
                "the pool must not have more than 15,360 buffers (3.75 GiB of 256 KiB)",
            ));
        }
        let large_bytes = large_count * buffer_bytes;
        let slab = Slab::new(large_bytes + small_bytes)?;
        let large = Class::new(0, 0, large_count, buffer_bytes);
        let small = Class::new(large_count, large_bytes, small_count, SMALL_READ_BYTES);
        Ok(Arc::new(Self { slab, small, large }))
    }

    /// Waits for a buffer of at least `len` bytes, at most the size of a large one.
    ///
    /// Requests are served in order. A small read takes a large buffer if no small one is free and no
    /// request waits for a large one. The reverse never happens.
    pub(super) async fn acquire(self: &Arc<Self>, len: usize) -> PooledBuffer {
        let index = if len > SMALL_READ_BYTES {
            self.large.take().await
        } else if let Some(index) = self.small.try_take().or_else(|| self.large.try_take()) {
            index
        } else {
            self.small.take().await
        };
        PooledBuffer { pool: Arc::clone(self), index, filled: 0 }
    }

    /// Returns the number of buffers.
    pub(super) fn buffers(&self) -> usize {
        self.small.count + self.large.count
    }

    /// Returns the number of free buffers.
    pub(super) fn free(&self) -> usize {
        self.small.lock().len() + self.large.lock().len()
    }

    /// Returns the bytes of all buffers.
    pub(super) fn bytes(&self) -> usize {
        self.slab.bytes.get()
    }

    /// Returns all buffers in the order of their indices, for registration with the kernel.
    pub(super) fn vectors(&self) -> Vec<libc::iovec> {
        let index_max = u16::try_from(self.buffers()).expect("checked against BUFFERS_MAX");
        (0..index_max)
            .map(|index| {
                let memory = self.memory(index);
                libc::iovec { iov_base: memory.as_ptr().cast(), iov_len: memory.len() }
            })
            .collect()
    }

    fn class(&self, index: u16) -> &Class {
        if usize::from(index) < self.small.first_index { &self.large } else { &self.small }
    }

    fn memory(&self, index: u16) -> NonNull<[u8]> {
        let class = self.class(index);
        let offset = class.first_offset + (usize::from(index) - class.first_index) * class.bytes;
        self.slab.part(offset, class.bytes)
    }
}

impl Class {
    fn new(first_index: usize, first_offset: usize, count: usize, bytes: usize) -> Self {
        // The last entry is taken first, because recently used memory is probably in the processor's cache.
        let free = (first_index..first_index + count).rev().map(|index| index as u16).collect();
        let available = Semaphore::new(count);
        Self { first_index, first_offset, count, bytes, free: Mutex::new(free), available }
    }

    async fn take(&self) -> u16 {
        let permit = self.available.acquire().await.expect("the semaphore is never closed");
        permit.forget();
        self.pop()
    }

    fn try_take(&self) -> Option<u16> {
        self.available.try_acquire().ok()?.forget();
        Some(self.pop())
    }

    fn pop(&self) -> u16 {
        self.lock().pop().expect("a permit stands for an entry")
    }

    fn put(&self, index: u16) {
        self.lock().push(index);
        self.available.add_permits(1);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u16>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PooledBuffer {
    /// Returns the index under which the kernel knows the buffer.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Returns the whole buffer, with old content behind the bytes just read.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the memory is mapped while `pool` lives, was zeroed by the kernel, and belongs to this
        // value alone: an index is either in a free list or in exactly one `PooledBuffer`.
        unsafe { self.pool.memory(self.index).as_mut() }
    }

    /// Sets the number of bytes read.
    pub(super) fn set_filled(&mut self, filled: usize) {
        self.filled = filled.min(self.pool.class(self.index).bytes);
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `memory`; `&self` keeps writers out.
        unsafe { &self.pool.memory(self.index).as_ref()[..self.filled] }
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.class(self.index).put(self.index);
    }
}

/// Zeroed, page-aligned memory from the kernel.
struct Slab {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: a `Slab` is an address and a length. Its memory is accessed only through `PooledBuffer`, one at a
// time.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(bytes: usize) -> Result<Self, IoError> {
        let bytes = NonZeroUsize::new(bytes).ok_or(IoError::Config("the pool must not be empty"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address chosen by the kernel touches no existing memory.
        let start =
            unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) }.map_err(|errno| {
                IoError::Unavailable {
                    backend: "buffer pool",
                    reason: format!("no {bytes} bytes of memory"),
                    errno,
                }
            })?;
        let slab = Self { start, bytes };
        // A child after fork must not copy pages that the kernel writes to. The oldest kernels ignore this.
        // Large pages are faster to look up: with them a cold read over loopback took 6 % less time.
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_HUGEPAGE] {
            // SAFETY: the range is the mapping made above, and the advice does not change its content in
            // this process.
            let _ = unsafe { madvise(start, bytes.get(), advice) };
        }
        Ok(slab)
    }

    fn part(&self, offset: usize, len: usize) -> NonNull<[u8]> {
        assert!(offset + len <= self.bytes.get(), "buffer outside of its slab");
        // SAFETY: the assertion keeps the pointer inside the mapping.
        let start = unsafe { self.start.cast::<u8>().add(offset) };
        NonNull::slice_from_raw_parts(start, len)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no `PooledBuffer` is left, because each holds the pool.
        let _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;

    use super::*;

    const LARGE: usize = 64 * 1024;

    fn pool(large_count: usize) -> Arc<RegisteredPool> {
        RegisteredPool::new(large_count * LARGE + SMALL_COUNT_MIN * SMALL_READ_BYTES, LARGE).unwrap()
    }

    #[tokio::test]
    async fn buffers_do_not_overlap_and_come_back() {
        let pool = pool(3);
        assert_eq!((pool.buffers(), pool.free()), (7, 7));
        let mut held = Vec::new();
        let mut ranges = HashSet::new();
        for len in [LARGE, SMALL_READ_BYTES + 1, LARGE, 1, 1, 1, SMALL_READ_BYTES] {
            let mut buffer = pool.acquire(len).await;
            assert!(buffer.memory().len() >= len);
            let number = held.len() as u8;
            buffer.memory().fill(number);
            buffer.set_filled(len);
            assert!(ranges.insert(buffer.index()));
            assert_eq!(buffer.as_ref().as_ptr() as usize % ALIGN_BYTES, 0);
            held.push(Bytes::from_owner(buffer));
        }
        assert_eq!(pool.free(), 0);
        for (number, bytes) in held.iter().enumerate() {
            assert!(bytes.iter().all(|&byte| usize::from(byte) == number), "buffer {number} was overwritten");
        }
        drop(held);
        assert_eq!(pool.free(), pool.buffers());
    }

    #[tokio::test]
    async fn bulk_reads_do_not_take_small_buffers() {
        let pool = pool(1);
        let bulk = pool.acquire(LARGE).await;
        let mut waiting = Box::pin(pool.acquire(LARGE));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is only one large buffer"),
            small = pool.acquire(4096) => drop(small),
        }
        drop(bulk);
        waiting.await;
    }

    #[tokio::test]
    async fn small_reads_borrow_large_buffers_but_do_not_push_in() {
        let pool = pool(1);
        let mut small = Vec::new();
        for _ in 0..=SMALL_COUNT_MIN {
            small.push(pool.acquire(1).await);
        }
        assert_eq!(pool.free(), 0);
        let mut large = Box::pin(pool.acquire(LARGE));
        let mut late = Box::pin(pool.acquire(1));
        tokio::select! {
            biased;
            _ = &mut large => panic!("the large buffer is taken"),
            _ = &mut late => panic!("no buffer is free"),
            () = std::future::ready(()) => {}
        }
        drop(small.pop());
        let large = large.await;
        assert!(large.index() < 1, "the first request got the large buffer");
        drop(small.pop());
        assert!(late.await.index() >= 1);
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_loses_nothing() {
        let pool = pool(1);
        let held = pool.acquire(LARGE).await;
        for _ in 0..100 {
            let mut waiting = Box::pin(pool.acquire(LARGE));
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("the large buffer is taken"),
                () = std::future::ready(()) => {}
            }
        }
        drop(held);
        assert_eq!(pool.free(), pool.buffers());
        pool.acquire(LARGE).await;
    }
}
