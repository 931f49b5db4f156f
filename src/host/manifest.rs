//! The hashes of a range of chunks: by them a client finds what it holds already, under whatever name.

use std::sync::Arc;

use super::ahead::{ReadAhead, check_version};
use super::answer::malformed;
use super::content;
use super::context::ClientContext;
use crate::chunk::ChunkHash;
use crate::proto::{MANIFEST_CHUNKS_MAX, ManifestRequest, Reply, WireError};

/// Answers with the hashes of the chunks that are asked for; what is not known is read. Dropping the future gives up.
///
/// Who may ask is who may read: the file is opened as for its content.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    request: ManifestRequest,
) -> Result<Reply, WireError> {
    if request.chunks.count > MANIFEST_CHUNKS_MAX {
        return Err(malformed(format!("a manifest of more than {MANIFEST_CHUNKS_MAX} chunks")));
    }
    let version = request.version;
    let file = content::open(context, request.node, version).await?;
    let chunks = request.chunks.clamp_to(version.size);
    let ranges = chunks.iter().map(move |index| index.bytes_in(version.size));
    let hash = |bytes: bytes::Bytes| ChunkHash::of(&bytes);
    let mut parts = ReadAhead::new(Arc::clone(context), Arc::clone(&file), version, ranges, hash);
    let mut hashes = Vec::with_capacity(chunks.count as usize);
    while let Some(part) = parts.next().await {
        hashes.push(part?.content);
    }
    check_version(&file, version).await?;
    Ok(Reply::Manifest { computed: hashes.len() as u32, hashes })
}
