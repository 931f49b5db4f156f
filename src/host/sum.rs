//! The BLAKE3 of a whole file, which then need not be transferred to be compared, nor read a second time.

use std::sync::Arc;

use super::ahead::ReadAhead;
use super::attributes::now;
use super::context::ClientContext;
use super::index::FileVersion;
use crate::chunk::{ByteRange, FileHasher};
use crate::proto::{NodeId, Reply, WireError};

/// Hashes a file front to back. Gives up where the file changes meanwhile; dropping the future gives up, too.
pub(super) async fn serve(context: &Arc<ClientContext>, node: NodeId) -> Result<Reply, WireError> {
    let (file, version) = context
        .blocking(move |session| {
            let file = session.file(node)?;
            let version = file.version()?;
            Ok((file, version))
        })
        .await?;
    let (of, observed) = (FileVersion::of(node, version), now());
    let index = Arc::clone(&context.index);
    if let Some(hash) = context.blocking(move |_| Ok(index.sum(of))).await? {
        context.counters().index_hits.add(1);
        return Ok(Reply::Sum { hash, version });
    }
    let _place = context.budget.place_for_hashing().await;
    let chunks = ByteRange::new(0, version.size).chunks();
    let ranges = chunks.iter().map(move |index| index.bytes_in(version.size));
    let mut parts = ReadAhead::new(Arc::clone(context), file, version, ranges, |bytes| bytes);
    let mut hasher = FileHasher::default();
    while let Some(part) = parts.next().await {
        hasher.update(&part?.content);
        // Hashing alone never waits; others want the thread.
        tokio::task::consume_budget().await;
    }
    let hash = hasher.finish();
    context.index.note_sum(of, observed, hash);
    context.counters().index_misses.add(1);
    Ok(Reply::Sum { hash, version })
}
