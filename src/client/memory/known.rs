//! (P) Chunks that the model host has in its files, for clients that write them again.

use std::collections::HashMap;

use super::answer::regular;
use super::tree::{Body, Tree};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkHash};
use crate::proto::{BootId, KnownChunk, NodeId, Reply, WireError, WriteAt, Written};

/// Largest file that is searched, in bytes. The model hashes everything again for each request.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Tree {
    /// Tells for each chunk if it is in some file, at another place than the one to be written.
    pub(super) fn have(&self, id: NodeId, offset: u64, chunks: &[ChunkHash]) -> Vec<bool> {
        let own = ByteRange::new(offset, chunks.len() as u64 * CHUNK_BYTES);
        let all = self.whole_chunks(|at, place| at != id || own.intersect(place).is_none());
        chunks.iter().map(|hash| all.contains_key(hash)).collect()
    }

    /// Writes the chunks that are known. The model accepts the parts of a file in any order.
    pub(super) fn write_known(
        &mut self,
        id: NodeId,
        offset: u64,
        chunks: &[ChunkHash],
        boot: BootId,
    ) -> Result<Reply, WireError> {
        regular(self.node(id)?)?;
        let all = self.whole_chunks(|_, _| true);
        let (mut taken, mut len) = (Vec::with_capacity(chunks.len()), 0);
        for (number, hash) in chunks.iter().enumerate() {
            let found = all.get(hash);
            if let Some(bytes) = found {
                self.put(id, WriteAt::Offset(offset + number as u64 * CHUNK_BYTES), bytes, boot)?;
                len += CHUNK_BYTES;
            }
            taken.push(if found.is_some() { KnownChunk::Written } else { KnownChunk::Missing });
        }
        let written = Written { offset, len, attributes: self.get_attributes(id)?, boot };
        Ok(Reply::Taken { written, chunks: taken })
    }

    fn whole_chunks(&self, counts: impl Fn(NodeId, ByteRange) -> bool) -> HashMap<ChunkHash, Vec<u8>> {
        let mut all = HashMap::new();
        for (id, node) in &self.nodes {
            let Body::File(content) = &node.body else { continue };
            let whole = content.size().min(FILE_BYTES_MAX) / CHUNK_BYTES;
            let places = (0..whole).map(|number| ByteRange::new(number * CHUNK_BYTES, CHUNK_BYTES));
            for place in places.filter(|place| counts(*id, *place)) {
                let bytes = content.read(place.offset, place.len);
                all.insert(ChunkHash::of(&bytes), bytes);
            }
        }
        all
    }
}
