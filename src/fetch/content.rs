//! Identities of a file content, of its chunks, and of the streams that read ahead in it. Pure: values
//! only.

use crate::cache::FileKey;
use crate::chunk::{ChunkIndex, ChunkRange};
use crate::proto::{NodeId, Version};

/// Content of a file in one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileContent {
    /// Node of the file.
    pub node: NodeId,
    /// Version of the file. Its size is the size of the content.
    pub version: Version,
    /// Cache key of this content, derived from the host key, the node and the version.
    pub key: FileKey,
    /// Cache key of the file regardless of its version. Content under it must be confirmed by the host.
    pub history: FileKey,
    /// True if the version identifies a single content. Otherwise cached content under it is a guess, which
    /// the host confirms by hash. Content read before the version settled is not used afterwards.
    pub settled: bool,
    /// Number of the open for which this content stays the same; 0 if the version proves it.
    pub epoch: u64,
}

impl FileContent {
    /// Returns a settled file of `chunks` whole chunks, different for each `file`.
    #[cfg(test)]
    pub(super) fn sample(file: u8, chunks: u64) -> Self {
        use crate::chunk::CHUNK_BYTES;
        use crate::proto::Timestamp;
        Self {
            node: NodeId { device: 1, inode: u64::from(file), birth_ns: 0 },
            version: Version { size: chunks * CHUNK_BYTES, mtime: Timestamp(0), ctime: Timestamp(0) },
            key: FileKey::from_bytes([file; 32]),
            history: FileKey::from_bytes([!file; 32]),
            settled: true,
            epoch: 0,
        }
    }

    /// Returns the cache key of content read before this version settled, which this version probably has.
    pub(super) fn guess_key(&self) -> FileKey {
        const CONTEXT: &str = "wormhole 2026-11 content that one version of one file probably has";
        FileKey::from_bytes(blake3::derive_key(CONTEXT, self.key.as_bytes()))
    }

    /// Returns the cache key under which to record chunks that are read now.
    pub fn disk_key(&self) -> FileKey {
        if self.settled { self.key } else { self.guess_key() }
    }

    pub(super) const fn chunk(&self, index: ChunkIndex) -> ChunkKey {
        ChunkKey { file: self.key, settled: self.settled, epoch: self.epoch, index }
    }

    /// Returns the length of a chunk in bytes; 0 behind the end of the file.
    pub(super) const fn chunk_bytes(&self, index: ChunkIndex) -> u64 {
        index.bytes_in(self.version.size).len
    }

    /// Returns the part of `chunks` that lies in the file.
    pub(super) fn clamp(&self, chunks: ChunkRange) -> ChunkRange {
        chunks.bytes_in(self.version.size).chunks()
    }
}

/// Key of one chunk of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChunkKey {
    pub(super) file: FileKey,
    pub(super) settled: bool,
    pub(super) epoch: u64,
    pub(super) index: ChunkIndex,
}

/// Identity of a stream: one sequential run of reads through an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Number of the open file, unique within this [`super::Fetcher`].
    pub handle: u64,
    /// Number of the run through it.
    pub cursor: u64,
}

/// Cuts `chunks` at multiples of `step` chunks.
pub(super) fn cut(chunks: ChunkRange, step: u64) -> impl Iterator<Item = ChunkRange> {
    let all = chunks.as_range();
    let mut at = all.start;
    std::iter::from_fn(move || {
        let end = (at / step + 1).saturating_mul(step).min(all.end);
        let part = ChunkRange::new(ChunkIndex(at), end.checked_sub(at)?);
        at = end;
        (part.count > 0).then_some(part)
    })
}

/// Groups ascending `indices` into runs of neighbours, cut at multiples of `step` chunks.
pub(super) fn runs(indices: impl IntoIterator<Item = ChunkIndex>, step: u64) -> Vec<ChunkRange> {
    let mut runs: Vec<ChunkRange> = Vec::new();
    for index in indices {
        match runs.last_mut() {
            Some(run) if run.as_range().end == index.0 && index.0 % step != 0 => run.count += 1,
            _ => runs.push(ChunkRange::new(index, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(runs: impl IntoIterator<Item = ChunkRange>) -> Vec<(u64, u64)> {
        runs.into_iter().map(|run| (run.first.0, run.count)).collect()
    }

    #[test]
    fn ranges_are_cut_at_steps() {
        let range = |first, count| ChunkRange::new(ChunkIndex(first), count);
        assert_eq!(pairs(cut(range(3, 7), 4)), [(3, 1), (4, 4), (8, 2)]);
        assert_eq!(pairs(cut(range(8, 4), 4)), [(8, 4)]);
        assert_eq!(pairs(cut(range(8, 0), 4)), []);
    }

    #[test]
    fn neighbours_form_runs() {
        let indices = [2, 3, 4, 5, 7, 9, 10].map(ChunkIndex);
        assert_eq!(pairs(runs(indices, 4)), [(2, 2), (4, 2), (7, 1), (9, 2)]);
    }
}
