//! Statistics of the fetcher.

use serde::Serialize;

/// Current usage, and counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FetchStatistics {
    /// Bytes of chunks in memory.
    pub memory_bytes: u64,
    /// Chunks in memory.
    pub memory_chunks: u64,
    /// Bytes of chunks in memory that were read ahead and not read yet.
    pub unread_bytes: u64,
    /// Chunks in flight, from disk or host.
    pub inflight_chunks: u64,
    /// Bytes of chunks in flight.
    pub inflight_bytes: u64,
    /// Read-ahead requests in flight.
    pub ahead_requests: u64,
    /// Queued runs of read-ahead.
    pub ahead_queued: u64,
    /// Chunks read ahead that were evicted or cancelled unread.
    pub ahead_wasted_chunks: u64,
    /// Reads answered from memory alone.
    pub hits_memory: u64,
    /// Chunks that came from the disk cache.
    pub hits_disk: u64,
    /// Chunks that came from the host.
    pub host_chunks: u64,
    /// Pieces that came from the host.
    pub host_pieces: u64,
    /// Bytes of chunks and pieces that came from the host.
    pub host_bytes: u64,
    /// Bytes rebuilt from other places of an earlier version of their file.
    pub moved_bytes: u64,
    /// Content requests to the host.
    pub host_requests: u64,
    /// Failed requests, without cancelled ones.
    pub failed_requests: u64,
    /// Chunks whose hashes the host sent ahead.
    pub manifest_chunks: u64,
    /// Those of them that the disk cache held under another name.
    pub manifest_chunks_held: u64,
}

/// Counters of [`FetchStatistics`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) hits_memory: u64,
    pub(super) hits_disk: u64,
    pub(super) host_chunks: u64,
    pub(super) host_pieces: u64,
    pub(super) host_bytes: u64,
    pub(super) moved_bytes: u64,
    pub(super) host_requests: u64,
    pub(super) failed_requests: u64,
    pub(super) manifest_chunks: u64,
    pub(super) manifest_chunks_held: u64,
}
