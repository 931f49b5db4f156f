//! The content-defined blocks of a range, for a client that has an earlier version of the file.

use std::sync::Arc;

use super::ahead::{ReadAhead, check_version};
use super::answer::malformed;
use super::content::open;
use super::context::ClientContext;
use crate::chunk::{BLOCK_BYTES_MAX, BLOCK_LEAD_BYTES, ByteRange, cut_blocks};
use crate::proto::{DELTA_BYTES_MAX, Errno, NodeId, Reply, Version, WireError};

/// Reads the range and cuts it. What lies before it is read, too, so that the cuts are those of the whole file, and what lies behind
/// it, so that the last block is whole.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    node: NodeId,
    version: Version,
    range: ByteRange,
) -> Result<Reply, WireError> {
    if range.len > DELTA_BYTES_MAX || range.offset.checked_add(range.len).is_none() {
        return Err(malformed(format!("blocks of more than {DELTA_BYTES_MAX} bytes")));
    }
    // What is read is held until it is cut: a few at a time.
    let _place = context.budget.place_for_hashing().await;
    let file = open(context, node, version).await?;
    let offset = range.offset.saturating_sub(BLOCK_LEAD_BYTES);
    let read =
        ByteRange::new(offset, range.end().saturating_add(BLOCK_BYTES_MAX) - offset).clamp_to(version.size);
    let ranges = read.chunks().iter().filter_map(move |index| index.bytes_in(version.size).intersect(read));
    let mut parts = ReadAhead::new(Arc::clone(context), Arc::clone(&file), version, ranges, |bytes| bytes);
    let mut bytes = Vec::with_capacity(read.len as usize);
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part?.content);
    }
    let cut = tokio::task::spawn_blocking(move || cut_blocks(offset, &bytes)).await;
    let blocks = cut.map_err(|_| WireError::system(Errno::EIO))?;
    check_version(context, &file, version).await?;
    let needed = blocks.into_iter().filter(|block| block.range.intersect(range).is_some());
    let needed: Vec<_> = needed.collect();
    let offset = needed.first().map_or(range.offset, |first| first.range.offset);
    let blocks = needed.into_iter().map(|block| (block.range.len as u32, block.hash)).collect();
    Ok(Reply::Blocks { offset, blocks })
}
