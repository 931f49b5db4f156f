//! Counters of the requests to the model host and of the content that it sent.

use crate::proto::Request;

/// Requests by kind, and sent content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// [`Request::Hello`] and [`Request::Ping`].
    pub pings: u64,
    /// [`Request::Lookup`].
    pub lookups: u64,
    /// [`Request::LookupMany`].
    pub lookups_many: u64,
    /// [`Request::GetAttributes`].
    pub attributes: u64,
    /// [`Request::ReadDirectory`].
    pub listings: u64,
    /// [`Request::ReadLink`].
    pub links: u64,
    /// [`Request::StatFs`].
    pub fs_statistics: u64,
    /// [`Request::GetXattr`] and [`Request::ListXattr`].
    pub xattrs: u64,
    /// [`Request::Access`].
    pub accesses: u64,
    /// [`Request::Open`].
    pub opens: u64,
    /// [`Request::Close`].
    pub closes: u64,
    /// [`Request::Seek`].
    pub seeks: u64,
    /// [`Request::Read`].
    pub reads: u64,
    /// [`Request::ReadCurrent`].
    pub current_reads: u64,
    /// [`Request::Sum`].
    pub sums: u64,
    /// [`Request::Blocks`].
    pub blocks: u64,
    /// [`Request::Manifest`].
    pub manifests: u64,
    /// [`Request::Change`].
    pub changes: u64,
    /// [`Request::Write`].
    pub writes: u64,
    /// [`Request::HaveChunks`].
    pub offers: u64,
    /// Bytes of content that came with [`Request::Write`].
    pub written_bytes: u64,
    /// [`Request::Sync`].
    pub syncs: u64,
    /// [`Request::Lock`] and [`Request::TestLock`].
    pub locks: u64,
    /// Whole chunks sent.
    pub chunks: u64,
    /// Chunks that the client had already.
    pub same: u64,
    /// Pieces sent.
    pub pieces: u64,
    /// Bytes of content sent, in chunks and pieces.
    pub content_bytes: u64,
    /// Requests that were dropped before their answer was complete.
    pub cancelled: u64,
}

impl Counters {
    /// Returns the number of requests of all kinds.
    pub const fn requests(&self) -> u64 {
        self.pings
            + self.lookups
            + self.lookups_many
            + self.attributes
            + self.listings
            + self.links
            + self.fs_statistics
            + self.xattrs
            + self.accesses
            + self.opens
            + self.closes
            + self.seeks
            + self.reads
            + self.current_reads
            + self.sums
            + self.blocks
            + self.manifests
            + self.changes
            + self.writes
            + self.syncs
            + self.locks
            + self.offers
    }

    pub(super) const fn count(&mut self, request: &Request) {
        let counter = match request {
            Request::Hello(_) | Request::Ping | Request::Events => &mut self.pings,
            Request::Lookup { .. } => &mut self.lookups,
            Request::LookupMany { .. } => &mut self.lookups_many,
            Request::GetAttributes { .. } => &mut self.attributes,
            Request::ReadDirectory { .. } => &mut self.listings,
            Request::ReadLink { .. } => &mut self.links,
            Request::StatFs { .. } => &mut self.fs_statistics,
            Request::GetXattr { .. } | Request::ListXattr { .. } => &mut self.xattrs,
            Request::Access { .. } => &mut self.accesses,
            Request::Open { .. } | Request::OpenFor { .. } => &mut self.opens,
            Request::Change(_) => &mut self.changes,
            Request::Write(_) => &mut self.writes,
            Request::Sync { .. } | Request::SyncFileSystem { .. } => &mut self.syncs,
            Request::Close { .. } => &mut self.closes,
            Request::Seek { .. } => &mut self.seeks,
            Request::Read(..) => &mut self.reads,
            Request::ReadCurrent { .. } => &mut self.current_reads,
            Request::Sum { .. } => &mut self.sums,
            Request::Blocks { .. } => &mut self.blocks,
            Request::Manifest(_) => &mut self.manifests,
            Request::Lock(_) | Request::TestLock(_) => &mut self.locks,
            Request::HaveChunks { .. } => &mut self.offers,
        };
        *counter += 1;
    }
}
