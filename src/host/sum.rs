//! The BLAKE3 of a whole file, which then need not be transferred to be compared.

use std::sync::Arc;

use super::ahead::{Plain, ReadAhead};
use super::context::ClientContext;
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
    let chunks = ByteRange::new(0, version.size).chunks();
    let ranges = chunks.iter().map(move |index| index.bytes_in(version.size));
    let mut parts = ReadAhead::new(Arc::clone(context), file, version, ranges, Plain);
    let mut hasher = FileHasher::default();
    while let Some(part) = parts.next().await {
        hasher.update(&part?.content);
        // Hashing alone never waits; others want the thread.
        tokio::task::consume_budget().await;
    }
    Ok(Reply::Sum { hash: hasher.finish(), version })
}
