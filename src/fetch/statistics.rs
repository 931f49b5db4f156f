//! What the fetcher holds and has done, for people who look.

use serde::Serialize;

/// What is held now and what was done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FetchStatistics {
    /// Chunks in memory, in bytes.
    pub memory_bytes: u64,
    /// Chunks in memory.
    pub memory_chunks: u64,
    /// Chunks in memory that were read ahead and not read yet, in bytes.
    pub unread_bytes: u64,
    /// Chunks under way, from disk or host.
    pub inflight_chunks: u64,
    /// The same in bytes.
    pub inflight_bytes: u64,
    /// Requests under way ahead of their readers.
    pub ahead_requests: u64,
    /// Runs that wait to be read ahead.
    pub ahead_queued: u64,
    /// Chunks read ahead that left memory or were given up before anybody read them.
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
    /// Bytes that were put together from an earlier version of their file, where they lay elsewhere.
    pub moved_bytes: u64,
    /// Requests for content made to the host.
    pub host_requests: u64,
    /// Requests that ended without all they were to bring, cancelled ones not counted.
    pub failed_requests: u64,
    /// Chunks whose hashes the host told ahead.
    pub manifest_chunks: u64,
    /// Those of them that the disk cache held under another name.
    pub manifest_chunks_held: u64,
}

/// The part that only grows.
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
