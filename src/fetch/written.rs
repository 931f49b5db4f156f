//! Keeps written content in the disk cache for later reads on this client.
//!
//! It is recorded for the file regardless of its version. The host confirms on a read that the file still
//! has it (`request`), so other writers do no harm.

use bytes::Bytes;

use super::Fetcher;
use crate::cache::FileKey;
use crate::chunk::{ChunkIndex, VerifiedChunk};

impl Fetcher {
    /// Returns `true` if written content is kept: there is a cache, and the link is slower than the
    /// processor.
    pub fn keeps_written(&self) -> bool {
        self.cache.is_writable() && !self.client.link().sends_fast()
    }

    /// Keeps chunk `index` of the written file `history`, if the cache has room for it now. Hashes the
    /// chunk and does no I/O.
    pub fn insert_written(&self, history: &FileKey, index: ChunkIndex, content: Bytes) {
        if self.cache.is_behind() {
            return;
        }
        let chunk = VerifiedChunk::compute(content);
        let hash = chunk.hash();
        self.cache.insert(chunk);
        self.cache.record_hash(history, index, hash);
    }
}
