//! The hashes of a range of chunks: by them a client finds what it holds already, under whatever name.

use std::sync::Arc;

use super::ahead::{ReadAhead, check_version};
use super::answer::malformed;
use super::attributes::now;
use super::content;
use super::context::ClientContext;
use super::index::FileVersion;
use super::tree::Handle;
use crate::chunk::{ChunkHash, ChunkIndex};
use crate::proto::{Errno, MANIFEST_CHUNKS_MAX, ManifestRequest, Reply, WireError};

/// Answers with the hashes of the chunks that are asked for; what the index does not have is read. Dropping the future gives up.
///
/// Who may ask is who may read: the file is opened as for its content.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    request: ManifestRequest,
) -> Result<Reply, WireError> {
    if request.chunks.count > MANIFEST_CHUNKS_MAX {
        return Err(malformed(format!("a manifest of more than {MANIFEST_CHUNKS_MAX} chunks")));
    }
    let file = content::open(context, request.node, request.version).await?;
    let version = FileVersion::of(request.node, request.version);
    let chunks = request.chunks.clamp_to(request.version.size);
    let index = Arc::clone(&context.index);
    let mut hashes = context.blocking(move |_| Ok(index.hashes(version, chunks))).await?;
    let missing: Vec<ChunkIndex> =
        chunks.iter().zip(&hashes).filter(|(_, hash)| hash.is_none()).map(|(index, _)| index).collect();
    let computed = missing.len();
    let _place = if missing.is_empty() { None } else { context.budget.place_for_hashing().await };
    let mut fresh = compute(context, &file, version, missing).await?.into_iter();
    for hash in hashes.iter_mut().filter(|hash| hash.is_none()) {
        *hash = fresh.next();
    }
    context.counters().index_hits.add((hashes.len() - computed) as u64);
    context.counters().index_misses.add(computed as u64);
    let hashes: Vec<ChunkHash> =
        hashes.into_iter().collect::<Option<_>>().ok_or(WireError::system(Errno::EIO))?;
    for (index, hash) in chunks.iter().zip(&hashes) {
        content::note_place(context, request.node, (index, index.bytes_in(request.version.size)), *hash);
    }
    Ok(Reply::Manifest { hashes, computed: computed as u32 })
}

/// Reads chunks and hashes them, in their order.
async fn compute(
    context: &Arc<ClientContext>,
    file: &Arc<Handle>,
    of: FileVersion,
    chunks: Vec<ChunkIndex>,
) -> Result<Vec<ChunkHash>, WireError> {
    let (version, observed) = (of.version, now());
    let ranges = chunks.clone().into_iter().map(move |index| index.bytes_in(version.size));
    let hash = |bytes: bytes::Bytes| ChunkHash::of(&bytes);
    let mut parts = ReadAhead::new(Arc::clone(context), Arc::clone(file), version, ranges, hash);
    let mut hashes = Vec::with_capacity(chunks.len());
    for index in chunks {
        let Some(part) = parts.next().await else { break };
        let hash = part?.content;
        context.index.note(of, observed, index, hash);
        hashes.push(hash);
    }
    check_version(context, file, version).await?;
    Ok(hashes)
}
