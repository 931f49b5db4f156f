//! What programs write here is kept for whoever reads it here again.
//!
//! It is noted under the file, not under a version of it: whether the file still has it the host says when it is read (`request`), so
//! nothing depends on who else writes.

use bytes::Bytes;

use super::Fetcher;
use crate::cache::FileKey;
use crate::chunk::{ChunkIndex, VerifiedChunk};

impl Fetcher {
    /// Whether what is written is kept: where there is a cache, and the processor is not missed sooner than the link.
    pub fn keeps_written(&self) -> bool {
        self.cache.is_writable() && !self.client.link().sends_fast()
    }

    /// Keeps what was written as chunk `index` of the file that is called `history` in the cache, if there is room for it now. Hashes, and
    /// does no I/O.
    pub fn keep_written(&self, history: &FileKey, index: ChunkIndex, content: Bytes) {
        if self.cache.is_behind() {
            return;
        }
        let chunk = VerifiedChunk::compute(content);
        let hash = chunk.hash();
        self.cache.insert(chunk);
        self.cache.record_hash(history, index, hash);
    }
}
