//! The disk cache: what was read once is not sent again, under whatever name, across remounts and restarts.
//!
//! A [`ChunkCache`] keeps chunks by their BLAKE3 hash, and which hash each chunk of a known file version has.
//! [`DiskCache`] keeps them in a directory, [`NoCache`] (`cache=none`) keeps nothing. The promises:
//!
//! - **Verified.** A chunk from disk is hashed before anybody gets it. What is damaged, cut short or gone is a miss.
//! - **Bounded.** The segment files take at most `size_bytes`, at every moment, for all processes that share the
//!   directory; and the file system keeps its share of free space.
//! - **Advisory.** An insert waits for nobody and may be dropped. A full or read-only disk costs the cache, not the read.
//! - **Crash-safe.** Nothing is synced and nothing needs to be: a crash loses what the kernel had not written.
//! - **Shared.** Several processes use one directory at once; each appends to a segment of its own and finds what the
//!   others wrote.
//! - **Pinned.** What somebody pinned stays until it is unpinned, whichever process makes room.
//! - **Scan-proof.** Reading cold data through the cache does not flush what is used again and again (`eviction.rs`).
//!
//! In reading order: `record` (the bytes on disk), `index` (what lies where), `eviction` (what goes), `manifest`
//! (which hashes are known), `pins` (what must stay), `staging` (what is written next), `way` (through the page cache or around it): pure. `directory`, `direct`,
//! `segment`, `payload`, `spare`, `recovery`, `queue`, `shared`, `room`, `writer`: the disk and the one thread that writes.
//! `pinning`: what makes and takes back pins. `store`: all of it together. `standby`: a directory that cannot be used for a while. `maintain`: what people do to it by hand.

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
mod record;
mod recovery;
mod room;
mod segment;
mod shared;
mod staging;
mod standby;
mod store;
#[cfg(test)]
mod tests;
/// The same tests once more, without direct I/O.
#[cfg(test)]
#[path = "tests/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "a cache must keep its promises either way")]
mod tests_buffered;
mod way;
mod writer;

use std::sync::Arc;

pub use directory::clear;
pub use error::{CacheError, PinError};
pub use maintain::{Collected, Damaged, VerifyProgress, gc};
pub use manifest::FileKey;
pub use pinning::{PinSummary, Pinning, pins, unpin};
pub use standby::StandbyCache;
pub use store::{CacheConfig, DiskCache};

use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

/// What keeps chunks, and which chunks a file version consists of. Never fails: what cannot be kept or found is a
/// miss.
pub trait ChunkCache: Send + Sync + 'static {
    /// Whether [`ChunkCache::load`] would probably find the chunk. Does no I/O.
    fn contains(&self, hash: ChunkHash) -> bool;

    /// The chunks with these hashes, in this order, each freshly verified. Chunks of one file in their order are read
    /// together. Blocks on the disk: in async code use [`load_async`].
    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>>;

    /// The chunk with this hash, freshly verified. Blocks on the disk.
    fn load(&self, hash: ChunkHash) -> Option<VerifiedChunk> {
        self.load_run(&[hash]).pop().flatten()
    }

    /// Keeps a chunk, if there is room for it now. Does no I/O and never waits for the disk.
    fn insert(&self, chunk: VerifiedChunk);

    /// The hash of chunk `index` of this file version. Reads up to 8 KiB from disk for each 256 chunks.
    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash>;

    /// Whether no hash of these chunks of this file version is known. Does no I/O: also `false` where the disk must be asked.
    fn knows_none(&self, _file: &FileKey, _chunks: ChunkRange) -> bool {
        false
    }

    /// Takes note of the hash of chunk `index` of this file version. Does no I/O.
    fn record_hash(&self, file: &FileKey, index: ChunkIndex, hash: ChunkHash);

    /// Lets the recorded hashes of this file version be written, because it was closed. Does no I/O.
    fn flush_file(&self, file: &FileKey);

    /// Whether so much waits to be written that more would soon be dropped; whoever can should wait a little.
    fn is_behind(&self) -> bool;

    /// How many bytes a second the disk takes at the moment; 0 where that is not known.
    fn writes_bytes_per_second(&self) -> u64;

    /// Waits until everything taken so far is written, some seconds at most. Returns whether it was. Blocks.
    fn flush(&self) -> bool;

    /// What the cache holds and what happened since it was opened.
    fn stats(&self) -> CacheStats;

    /// Whether anything is kept at all; a directory that cannot be written keeps what it has.
    fn is_writable(&self) -> bool {
        true
    }

    /// Why nothing, or nothing new, is kept at the moment; `None` if all is well.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Begins to pin content under a name, so that it is not removed to make room. Blocks on the disk.
    fn begin_pin(&self, _name: &str) -> Result<Pinning, PinError> {
        Err(PinError::NoCache)
    }
}

/// What a cache holds and what happened since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Records that can be found now: chunks and manifest pages.
    pub entries: u64,
    /// Bytes of all segment files, of other processes as last looked at.
    pub bytes: u64,
    /// Number of segment files.
    pub segments: u64,
    /// Chunks that were found.
    pub hits: u64,
    /// Chunks that were not found.
    pub misses: u64,
    /// Records that did not prove themselves when read.
    pub corrupt: u64,
    /// Records taken to be written.
    pub inserts: u64,
    /// Records not kept: the writer was behind, the disk full or the directory read-only.
    pub dropped: u64,
    /// Bytes of segments removed by this process.
    pub evicted_bytes: u64,
}

/// [`ChunkCache::load_run`] for async code: on a thread that may block. A dropped call finishes its reads unseen.
pub async fn load_async(cache: &Arc<dyn ChunkCache>, hashes: Vec<ChunkHash>) -> Vec<Option<VerifiedChunk>> {
    let (cache, count) = (Arc::clone(cache), hashes.len());
    let loaded = tokio::task::spawn_blocking(move || cache.load_run(&hashes)).await;
    // The runtime is shutting down.
    loaded.unwrap_or_else(|_| vec![None; count])
}

/// Keeps nothing: `cache=none`.
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
