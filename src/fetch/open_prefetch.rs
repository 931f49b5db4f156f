//! Prefetch of the first bytes of a large file during its open. It saves the first reader a round trip.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::{FetchError, Fetcher, FileContent};
use crate::chunk::ByteRange;
use crate::client::Lane;

/// Bytes prefetched during an open: the longest answer to a first small read.
const OPEN_PREFETCH_BYTES: u64 = 64 * 1024;

/// Most prefetches held at a time: 2 MiB, however many files are opened and never read.
pub(super) const OPEN_PREFETCHES_MAX: usize = 32;

/// Beginning of a file, in flight or complete. Dropping it cancels the request.
#[derive(Debug)]
pub struct OpenPrefetch {
    content: FileContent,
    piece: ByteRange,
    task: JoinHandle<Result<Bytes, FetchError>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenPrefetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OpenPrefetch {
    /// Returns the bytes of `range` if they are part of the prefetch. An error that arrives during this
    /// call is returned. An older error is ignored, because it tells nothing about the link now.
    pub async fn read(
        mut self,
        content: &FileContent,
        range: ByteRange,
    ) -> Result<Option<Bytes>, FetchError> {
        let range = range.clamp_to(content.version.size);
        if self.content != *content || !self.piece.contains(range) {
            return Ok(None);
        }
        let is_old = self.task.is_finished();
        match (&mut self.task).await {
            Ok(Ok(bytes)) => {
                let start = (range.offset - self.piece.offset) as usize;
                Ok(Some(bytes.slice(start..start + range.len as usize)))
            }
            Ok(Err(error)) if !is_old => Err(error),
            _ => Ok(None),
        }
    }
}

impl Fetcher {
    /// Requests the beginning of a file that is being opened, unless its chunks are cached. Returns `None`
    /// if too many prefetches are held.
    pub fn open_prefetch(&self, content: &FileContent) -> Option<OpenPrefetch> {
        let place = Arc::clone(&self.open_prefetch_slots).try_acquire_owned().ok()?;
        let this = self.this.upgrade()?;
        let (content, piece) =
            (*content, ByteRange::new(0, OPEN_PREFETCH_BYTES).clamp_to(content.version.size));
        let task = self.runtime.spawn(async move {
            if this.has_chunks(&content, piece).await {
                return this.read_chunks(&content, piece).await;
            }
            this.read_piece(&content, piece, Lane::Demand).await
        });
        Some(OpenPrefetch { content, piece, task, _place: place })
    }
}
