//! Where a chunk comes from: cache, else a request under way, else the host.
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::chunk::{ByteRange, ChunkRange};
use crate::client::{CallError, Client, ContentPart, Lane};
use crate::prefetch::{CursorId, Demand};
use crate::proto::{NodeId, ReadRequest, Version};

/// x
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileContent {
    /// x
    pub node: NodeId,
    /// x
    pub version: Version,
    /// x
    pub key: [u8; 32],
    /// x
    pub settled: bool,
}

/// x
pub struct Fetcher {
    client: Arc<dyn Client>,
}

impl Fetcher {
    /// x
    pub fn new(client: Arc<dyn Client>) -> Self {
        Self { client }
    }
    /// x
    pub fn read_memory(&self, _content: &FileContent, _range: ByteRange) -> Option<Bytes> {
        None
    }
    /// x
    pub fn ahead(&self, _content: &FileContent, _owner: u64, _cursor: CursorId, _range: ChunkRange) {}
    /// x
    pub fn cancel(&self, _owner: u64, _cursor: CursorId) {}
    /// x
    pub fn share_bytes(&self) -> u64 {
        64 << 20
    }
    /// x
    pub async fn read(
        &self,
        content: &FileContent,
        _demand: Demand,
        range: ByteRange,
    ) -> Result<Bytes, CallError> {
        let request = ReadRequest {
            node: content.node,
            version: content.version,
            range,
            whole_chunks: true,
            known: Vec::new(),
        };
        let mut parts = self.client.read(request, Lane::Demand);
        let mut bytes = BytesMut::zeroed(range.len as usize);
        loop {
            match parts.recv().await.unwrap_or(Err(CallError::Closed))? {
                ContentPart::Chunk { index, chunk } => {
                    let at = ByteRange::new(index.offset(), chunk.bytes().len() as u64);
                    if let Some(both) = at.intersect(range) {
                        let from = (both.offset - at.offset) as usize;
                        let to = (both.offset - range.offset) as usize;
                        let len = both.len as usize;
                        bytes[to..to + len].copy_from_slice(&chunk.bytes()[from..from + len]);
                    }
                }
                ContentPart::End { .. } => return Ok(bytes.freeze()),
                _ => return Err(CallError::BadAnswer("no".into())),
            }
        }
    }
}
