//! Disk I/O for host and cache behind one small trait. All `unsafe` code of the crate is in this folder.
//!
//! An [`Engine`] reads into buffers of a fixed pool and returns them as [`Bytes`] without a copy. The
//! buffer returns to the pool when the last clone is dropped. There are two backends:
//!
//! - `io_uring`: a thread per ring, which sleeps in the kernel while idle, submits all queued operations in
//!   one call, and reads into registered buffers (`READ_FIXED`);
//! - `blocking`: a few threads with `pread`, for systems where containers or administrators forbid
//!   `io_uring`.
//!
//! The caller itself copies data from the page cache ([`EngineConfig::reads_resident`]). The backend only
//! reads data that a disk must deliver.
//!
//! [`EngineKind::Auto`] takes `io_uring` if it works, otherwise `blocking` with the reason.
//!
//! # Bounds
//!
//! - Memory: reads wait for a buffer of the pool in order of arrival, so none starves. Buffers are 256 KiB.
//!   Reads of at most [`SMALL_READ_BYTES`] have their own buffers, so a random 4 KiB read does not queue
//!   behind a bulk transfer that holds all the large ones. Holding `Bytes` holds a buffer: copy data that
//!   is kept for long. Do not collect the answers of more reads than the pool has buffers, or the last read
//!   waits for the first to be dropped.
//! - Queue: at most `rings * ring_depth` operations are queued or running. Others wait for a slot.
//! - Time: a file system that hangs blocks only its own operations. Dropping the future abandons its
//!   operation, which keeps its buffer and file until the kernel is done with them.
//!
//! # Shutdown
//!
//! Dropping the last clone of an [`Engine`] completes the running operations and then ends the threads, in
//! the background. [`Bytes`] may outlive the engine.

mod aligned;
mod backend;
mod blocking;
mod buffer_pool;
mod diagnosis;
mod error;
mod operation;
pub mod private;
mod registered_pool;
mod slack;
mod stats;
pub mod sys;
mod uring;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod denied;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use tokio::sync::{Semaphore, oneshot};

use crate::chunk::CHUNK_BYTES;

pub use aligned::{AlignedBuffer, DIRECT_ALIGN_BYTES};
pub use buffer_pool::{ContentBuffers, RUN_BUFFER_BYTES, alloc_aligned, split_aligned};
pub use error::IoError;
pub use registered_pool::SMALL_READ_BYTES;
pub use slack::Slack;
pub use stats::EngineStats;

use backend::Backend;
use blocking::Blocking;
use operation::{Operation, SlotGuard, Work};
use registered_pool::RegisteredPool;
use stats::{Counters, add};
use uring::Uring;

/// Choice of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// `io_uring` if it works, otherwise threads.
    #[default]
    Auto,
    /// `io_uring`, or an error.
    Uring,
    /// Blocking threads.
    Blocking,
}

/// Configuration of an engine. The default suits a host and a client alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Choice of the backend.
    pub kind: EngineKind,
    /// Memory of the buffer pool in bytes. `io_uring` locks it. 64 MiB: 240 reads of a chunk.
    pub pool_bytes: usize,
    /// Size of a buffer and thus of the largest read, in bytes: a chunk. A multiple of 4 KiB.
    pub buffer_bytes: usize,
    /// Number of rings, each with a thread. One copies from the page cache faster than QUIC can send on the
    /// same machine.
    pub rings: usize,
    /// Operations in flight on one ring. 256: as many as the default pool has buffers.
    pub ring_depth: u32,
    /// Threads of the blocking backend. 16: an SSD needs as many reads in flight to reach its speed.
    pub blocking_threads: usize,
    /// True if the caller itself reads from the page cache. A copy on another thread would cost two thread
    /// switches and cache misses, more than the copy. Not for files opened with `O_DIRECT`.
    pub reads_resident: bool,
}

/// Reads and writes files. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    backend: Box<dyn Backend>,
    pool: Arc<RegisteredPool>,
    slots: Arc<Semaphore>,
    counters: Arc<Counters>,
    buffer_bytes: usize,
    reads_resident: bool,
    fallback_reason: Option<String>,
}

impl Engine {
    /// Starts threads and allocates the pool.
    ///
    /// If `io_uring` cannot be used, [`EngineKind::Auto`] falls back to threads and logs one warning with
    /// the likely cause and a remedy; [`EngineKind::Uring`] fails with the same text. If only the
    /// registration of buffers fails, `io_uring` is used without it: see [`Engine::fallback_reason`].
    pub fn start(config: &EngineConfig) -> Result<Self, IoError> {
        config.check()?;
        let pool = RegisteredPool::new(config.pool_bytes, config.buffer_bytes)?;
        let counters = Arc::new(Counters::default());
        let (backend, fallback_reason) = start_backend(config, &pool, &counters)?;
        let slots = Arc::new(Semaphore::new(config.operations_max()));
        let EngineConfig { buffer_bytes, reads_resident, .. } = *config;
        let shared = Shared { backend, pool, slots, counters, buffer_bytes, reads_resident, fallback_reason };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns `io_uring` or `blocking`.
    pub fn name(&self) -> &'static str {
        self.shared.backend.name()
    }

    /// Returns the reason why this engine is slower than it could be, with a remedy; `None` if there is
    /// none.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.shared.fallback_reason.as_deref()
    }

    /// Returns the most bytes that one [`Engine::read`] can request.
    pub fn read_bytes_max(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// Returns the counters since the start.
    pub fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot(&self.shared.pool)
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the file. Waits for a buffer first.
    ///
    /// `len` is at most [`Engine::read_bytes_max`]. Dropping the future abandons the read.
    pub async fn read<F>(&self, file: Arc<F>, offset: u64, len: usize) -> Result<Bytes, IoError>
    where
        F: AsFd + Send + Sync + 'static,
    {
        if len > self.shared.buffer_bytes {
            return Err(IoError::ReadTooLong { len, len_max: self.shared.buffer_bytes });
        }
        if len == 0 {
            return Ok(Bytes::new());
        }
        check_range(offset, len)?;
        let mut buffer = self.shared.pool.acquire(len).await;
        let done = self.read_resident(file.as_fd(), offset, &mut buffer.memory()[..len]);
        if done == len {
            buffer.set_filled(len);
            return Ok(Bytes::from_owner(buffer));
        }
        let (reply, answer) = oneshot::channel();
        self.run(file, offset, done, Work::Read { buffer, want: len, reply }).await;
        match answer.await {
            Ok(Ok(buffer)) => Ok(Bytes::from_owner(buffer)),
            Ok(Err(errno)) => Err(IoError::Failed { what: "read", offset, len, errno }),
            Err(_) => Err(IoError::Stopped),
        }
    }

    /// Writes all of `bytes` at `offset`. On return they may be only in the page cache.
    ///
    /// Dropping the future abandons the write: none, some or all of the bytes may reach the file.
    pub async fn write<F>(&self, file: Arc<F>, offset: u64, bytes: Bytes) -> Result<(), IoError>
    where
        F: AsFd + Send + Sync + 'static,
    {
        let len = bytes.len();
        if len == 0 {
            return Ok(());
        }
        check_range(offset, len)?;
        let (reply, answer) = oneshot::channel();
        self.run(file, offset, 0, Work::Write { bytes, reply }).await;
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) => Err(IoError::Failed { what: "write", offset, len, errno }),
            Err(_) => Err(IoError::Stopped),
        }
    }

    /// Fills the start of `memory` with data that the page cache holds. Returns the number of bytes.
    fn read_resident(&self, file: BorrowedFd<'_>, offset: u64, memory: &mut [u8]) -> usize {
        if !self.shared.reads_resident {
            return 0;
        }
        // The backend will meet any error again and report it.
        let done = sys::read_cached(file, offset, memory).unwrap_or(0);
        if done == memory.len() {
            let counters = &self.shared.counters;
            add(&counters.resident_reads, 1);
            add(&counters.reads, 1);
            add(&counters.read_bytes, done as u64);
        }
        done
    }

    /// Waits for a queue slot and queues the work, of which the first `done` bytes are complete.
    async fn run<F>(&self, file: Arc<F>, offset: u64, done: usize, work: Work)
    where
        F: AsFd + Send + Sync + 'static,
    {
        let slot = Arc::clone(&self.shared.slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        let guard = SlotGuard::new(slot, Arc::clone(&self.shared.counters));
        self.shared.backend.push(Operation::new(file, offset, work, guard).after(done));
    }
}

impl EngineConfig {
    fn check(&self) -> Result<(), IoError> {
        if self.rings == 0 || self.ring_depth == 0 || self.blocking_threads == 0 {
            return Err(IoError::Config("rings, ring depth and blocking threads must be at least 1"));
        }
        if self.rings > RINGS_MAX || self.ring_depth > RING_DEPTH_MAX || self.blocking_threads > THREADS_MAX {
            return Err(IoError::Config("at most 64 rings, a ring depth of 4096, and 1024 blocking threads"));
        }
        Ok(())
    }

    fn operations_max(&self) -> usize {
        self.rings * self.ring_depth as usize
    }
}

/// Rings beyond the number of cores do not help.
const RINGS_MAX: usize = 64;
/// The kernel allows 32,768, but so many concurrent reads never occur.
const RING_DEPTH_MAX: u32 = 4096;
/// A thread costs a stack and a task in the kernel.
const THREADS_MAX: usize = 1024;

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kind: EngineKind::Auto,
            pool_bytes: 64 << 20,
            buffer_bytes: CHUNK_BYTES as usize,
            rings: 1,
            ring_depth: 256,
            blocking_threads: 16,
            reads_resident: true,
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("name", &self.name()).field("stats", &self.stats()).finish()
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Blocking => "blocking",
        })
    }
}

impl FromStr for EngineKind {
    type Err = IoError;

    fn from_str(text: &str) -> Result<Self, IoError> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "blocking" => Ok(Self::Blocking),
            _ => Err(IoError::UnknownKind(text.to_owned())),
        }
    }
}

/// Starts the backend that `config` selects. Returns a note if it is not the best one.
fn start_backend(
    config: &EngineConfig,
    pool: &Arc<RegisteredPool>,
    counters: &Arc<Counters>,
) -> Result<(Box<dyn Backend>, Option<String>), IoError> {
    let blocking = || Blocking::start(config.blocking_threads);
    if config.kind == EngineKind::Blocking {
        return Ok((Box::new(blocking()?), None));
    }
    match Uring::start(config.rings, config.ring_depth, pool, counters) {
        Ok((uring, note)) => {
            if let Some(note) = &note {
                tracing::info!("{note}");
            }
            Ok((Box::new(uring), note))
        }
        Err(error) if config.kind == EngineKind::Auto => {
            let reason = error.to_string();
            tracing::warn!("reading files with blocking threads: {reason}");
            Ok((Box::new(blocking()?), Some(reason)))
        }
        Err(error) => Err(error),
    }
}

/// Rejects a range beyond the signed offsets of the kernel, where -1 has a special meaning.
fn check_range(offset: u64, len: usize) -> Result<(), IoError> {
    match offset.checked_add(len as u64) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(IoError::Failed { what: "access", offset, len, errno: Errno::EINVAL }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_shown() {
        for kind in [EngineKind::Auto, EngineKind::Uring, EngineKind::Blocking] {
            assert_eq!(kind.to_string().parse::<EngineKind>().unwrap(), kind);
        }
        let error = "libaio".parse::<EngineKind>().unwrap_err().to_string();
        assert!(error.contains("libaio") && error.contains("uring"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let good = EngineConfig { kind: EngineKind::Blocking, ..EngineConfig::default() };
        assert!(Engine::start(&good).is_ok());
        for bad in [
            EngineConfig { rings: 0, ..good.clone() },
            EngineConfig { ring_depth: 0, ..good.clone() },
            EngineConfig { ring_depth: 1 << 20, ..good.clone() },
            EngineConfig { blocking_threads: 0, ..good.clone() },
            EngineConfig { pool_bytes: 4096, ..good.clone() },
            EngineConfig { buffer_bytes: 4095, ..good.clone() },
            EngineConfig { buffer_bytes: 0, ..good.clone() },
            EngineConfig { pool_bytes: 1 << 40, ..good.clone() },
        ] {
            assert!(matches!(Engine::start(&bad), Err(IoError::Config(_))), "{bad:?}");
        }
    }
}
