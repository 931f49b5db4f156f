//! The disk cache. It keeps content across remounts and restarts, so that it is sent once.
//!
//! A [`ChunkCache`] stores chunks by their BLAKE3 hash, and the chunk hashes of known file versions.
//! [`DiskCache`] stores them in a directory. [`NoCache`] (`cache=none`) stores nothing. The guarantees:
//!
//! - **Verified.** A chunk from disk is hashed before it is returned. A damaged, truncated or missing chunk
//!   is a miss.
//! - **Bounded.** The segment files take at most `size_bytes` at every moment, for all processes that share
//!   the directory. The file system keeps its share of free space.
//! - **Advisory.** An insert never blocks and may be dropped. A full or read-only disk disables the cache,
//!   and reads go on.
//! - **Crash-safe.** Nothing needs a sync. A crash loses the data that the kernel had not written.
//! - **Shared.** Several processes use one directory at once. Each appends to its own segment and finds the
//!   records of the others.
//! - **Pinned.** Pinned content stays until it is unpinned. No process evicts it.
//! - **Scan-resistant.** Reading cold data does not evict the hot set (`eviction.rs`).
//!
//! Reading order: first the files without I/O: `record` (bytes on disk), `index` (location of records),
//! `eviction` (policy), `manifest` (known hashes), `pins` (pin files), `staging` (next write), `write_mode`
//! (buffered or direct writes). Then the I/O: `directory`, `direct`, `segment`, `payload`, `recovery`,
//! `queue`, `shared`, `reclaim`, and `writer`, the only thread that writes. `pinning` makes and removes
//! pins. `store` puts it all together. `standby` handles a directory that is unusable for a while.
//! `maintain` holds the manual maintenance commands.

mod direct;
mod directory;
mod error;
mod eviction;
mod index;
mod maintain;
mod manifest;
mod payload;
mod pinning;
mod pins;
mod queue;
mod reclaim;
mod record;
mod recovery;
mod segment;
mod shared;
mod staging;
mod standby;
mod store;
#[cfg(test)]
mod tests;
/// Runs the same tests again without direct I/O.
#[cfg(test)]
#[path = "tests/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "every guarantee holds with and without direct I/O")]
mod tests_without_direct_io;
mod write_mode;
mod writer;

use std::sync::Arc;

pub use directory::clear;
pub use error::{CacheError, PinError};
pub use maintain::{Damaged, GcReport, VerifyProgress, gc};
pub use manifest::FileKey;
pub use pinning::{PinBuilder, PinSummary, pins, unpin};
pub use standby::StandbyCache;
pub use store::{CacheConfig, DiskCache};

use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

/// Store of chunks and of the chunk hashes of file versions. It never fails: an item that cannot be stored
/// or found is a miss.
pub trait ChunkCache: Send + Sync + 'static {
    /// Returns `true` if [`ChunkCache::load`] would probably find the chunk. Does no I/O.
    fn contains(&self, hash: ChunkHash) -> bool;

    /// Returns the chunks with these hashes, in this order, each verified on this call. Adjacent chunks of
    /// one file are read together. Blocks on the disk; async code uses [`load_async`].
    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>>;

    /// Returns the chunk with this hash, verified on this call. Blocks on the disk.
    fn load(&self, hash: ChunkHash) -> Option<VerifiedChunk> {
        self.load_run(&[hash]).pop().flatten()
    }

    /// Stores a chunk if the queue has room for it. Does no I/O and never waits for the disk.
    fn insert(&self, chunk: VerifiedChunk);

    /// Returns the hash of chunk `index` of this file version. Reads up to 8 KiB from disk for each 256
    /// chunks.
    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash>;

    /// Returns `true` if no hash of these chunks is known. Does no I/O, so it returns `false` if only the
    /// disk could tell.
    fn knows_none(&self, _file: &FileKey, _chunks: ChunkRange) -> bool {
        false
    }

    /// Records the hash of chunk `index` of this file version. Does no I/O.
    fn record_hash(&self, file: &FileKey, index: ChunkIndex, hash: ChunkHash);

    /// Queues the recorded hashes of this file version for writing, because the file was closed. Does no
    /// I/O.
    fn flush_file(&self, file: &FileKey);

    /// Returns `true` if the write queue is nearly full. Callers that can wait should wait a little.
    fn is_behind(&self) -> bool;

    /// Returns the current write rate of the disk in bytes per second, or 0 if it is unknown.
    fn writes_bytes_per_second(&self) -> u64;

    /// Waits up to some seconds until everything accepted so far is written. Returns `true` if it was.
    /// Blocks.
    fn flush(&self) -> bool;

    /// Returns the content of the cache and its counters since it was opened.
    fn stats(&self) -> CacheStats;

    /// Returns `true` if new content is stored. A read-only directory still serves the content it has.
    fn is_writable(&self) -> bool {
        true
    }

    /// Returns the reason why nothing new is stored at the moment, or `None` if all is well.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Begins to pin content under a name, which protects it from eviction. Blocks on the disk.
    fn begin_pin(&self, _name: &str) -> Result<PinBuilder, PinError> {
        Err(PinError::NoCache)
    }
}

/// Content of a cache and counters since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Records that can be found now: chunks and manifest pages.
    pub entries: u64,
    /// Bytes of all segment files. For other processes this is the size last seen.
    pub bytes: u64,
    /// Number of segment files.
    pub segments: u64,
    /// Chunks found.
    pub hits: u64,
    /// Chunks not found.
    pub misses: u64,
    /// Records that failed verification when read.
    pub corrupt: u64,
    /// Records accepted for writing.
    pub inserts: u64,
    /// Records dropped because the writer was behind, the disk full or the directory read-only.
    pub dropped: u64,
    /// Bytes of the segments that this process removed.
    pub evicted_bytes: u64,
}

/// Runs [`ChunkCache::load_run`] on a blocking thread. A dropped future still finishes its reads.
pub async fn load_async(cache: &Arc<dyn ChunkCache>, hashes: Vec<ChunkHash>) -> Vec<Option<VerifiedChunk>> {
    let (cache, count) = (Arc::clone(cache), hashes.len());
    let loaded = tokio::task::spawn_blocking(move || cache.load_run(&hashes)).await;
    // The runtime is shutting down.
    loaded.unwrap_or_else(|_| vec![None; count])
}

/// Cache that stores nothing: `cache=none`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl ChunkCache for NoCache {
    fn is_writable(&self) -> bool {
        false
    }

    fn contains(&self, _: ChunkHash) -> bool {
        false
    }

    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
        vec![None; hashes.len()]
    }

    fn insert(&self, _: VerifiedChunk) {}

    fn known_hash(&self, _: &FileKey, _: ChunkIndex) -> Option<ChunkHash> {
        None
    }

    fn knows_none(&self, _: &FileKey, _: ChunkRange) -> bool {
        true
    }

    fn record_hash(&self, _: &FileKey, _: ChunkIndex, _: ChunkHash) {}

    fn flush_file(&self, _: &FileKey) {}

    fn is_behind(&self) -> bool {
        false
    }

    fn writes_bytes_per_second(&self) -> u64 {
        0
    }

    fn flush(&self) -> bool {
        true
    }

    fn stats(&self) -> CacheStats {
        CacheStats::default()
    }
}
