//! The first bytes of a large file, asked for while the file is still being opened: one round trip less before its reader
//! sees anything.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::{FetchError, Fetcher, FileContent};
use crate::chunk::ByteRange;
use crate::client::Lane;

/// How much of a file is asked for with its opening, in bytes: the most that a first small read is answered with.
const FIRST_BYTES: u64 = 64 * 1024;

/// Openings whose bytes may be held at a time: 2 MiB of them, whatever is opened and never read.
pub(super) const FIRST_PIECES_MAX: usize = 32;

/// The beginning of a file, under way or here. Dropping it gives it up.
#[derive(Debug)]
pub struct FirstPiece {
    content: FileContent,
    piece: ByteRange,
    task: JoinHandle<Result<Bytes, FetchError>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for FirstPiece {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FirstPiece {
    /// The bytes of `range`, if they are part of this piece. An error that has lain here for a while says nothing of the
    /// link as it is now; one that comes while it is waited for does.
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
    /// Asks for the beginning of a file that is being opened, unless its chunks are here. `None` where enough files are
    /// being opened already.
    pub fn first_piece(&self, content: &FileContent) -> Option<FirstPiece> {
        let place = Arc::clone(&self.first_places).try_acquire_owned().ok()?;
        let this = self.this.upgrade()?;
        let (content, piece) = (*content, ByteRange::new(0, FIRST_BYTES).clamp_to(content.version.size));
        let task = self.runtime.spawn(async move {
            if this.has_chunks(&content, piece).await {
                return this.read_chunks(&content, piece).await;
            }
            this.read_piece(&content, piece, Lane::Demand).await
        });
        Some(FirstPiece { content, piece, task, _place: place })
    }
}
