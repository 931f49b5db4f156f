//! Reads of whole chunks or pieces, and their cancellation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::content::ChunkKey;
use super::inflight::WaiterId;
use super::scheduler::Part;
use super::{Failed, FetchError, Fetcher, FileContent};
use crate::cache::FileKey;
use crate::chunk::{ByteRange, ChunkIndex, ChunkRange, RunSlice};
use crate::client::{CallError, ContentPart, Lane};
use crate::prefetch::Demand;
use crate::proto::ReadRequest;

impl Fetcher {
    /// Returns the bytes of `range`, cut at the end of the file, if all of them are in memory. Neither
    /// waits nor blocks.
    ///
    /// Within one chunk, and across chunks that share a buffer, the result shares the buffer; otherwise it
    /// copies once.
    pub fn read_memory(&self, content: &FileContent, range: ByteRange) -> Option<Bytes> {
        let range = range.clamp_to(content.version.size);
        let chunks = range.chunks();
        let (found, launches) = self.with_state(|state| {
            let keys = chunks.iter().map(|index| content.chunk(index));
            let found: Vec<RunSlice> = keys.map(|key| state.scheduler.get(&key)).collect::<Option<_>>()?;
            state.counters.hits_memory += 1;
            Some((found, state.admit()))
        })?;
        self.launch(launches);
        Some(join(&found, chunks, range))
    }

    /// Returns the bytes of `range`, cut at the end of the file, from any source. `demand` selects an exact
    /// piece or whole chunks, and must cover the range. Dropping the call ends requests without another
    /// waiter.
    pub async fn read(
        &self,
        content: &FileContent,
        range: ByteRange,
        demand: Demand,
    ) -> Result<Bytes, FetchError> {
        let range = range.clamp_to(content.version.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(bytes) = self.read_memory(content, range) {
            return Ok(bytes);
        }
        match demand {
            Demand::Piece(piece) if piece.contains(range) && !self.has_chunks(content, range).await => {
                let bytes =
                    self.read_piece(content, piece.clamp_to(content.version.size), Lane::Demand).await?;
                let start = (range.offset - piece.offset) as usize;
                Ok(bytes.slice(start..start + range.len as usize))
            }
            _ => self.read_chunks(content, range).await,
        }
    }

    pub(super) async fn read_chunks(
        &self,
        content: &FileContent,
        range: ByteRange,
    ) -> Result<Bytes, FetchError> {
        self.foreground.note();
        let chunks = range.chunks();
        let began = Instant::now();
        let parts = match self.wait_for_chunks(content, chunks).await {
            // The failed request was a read-ahead, perhaps an old one, perhaps from a time when the link
            // was bad.
            Err(Failed { was_ahead: true, error: FetchError::Call(error) })
                if may_retry(&error, began.elapsed()) =>
            {
                self.wait_for_chunks(content, chunks).await
            }
            result => result,
        };
        let parts = parts.map_err(|failed| failed.error)?;
        Ok(join(&parts, chunks, range))
    }

    async fn wait_for_chunks(
        &self,
        content: &FileContent,
        chunks: ChunkRange,
    ) -> Result<Vec<RunSlice>, Failed> {
        let mut receivers = VecDeque::new();
        let (parts, launches) = self.with_state(|state| {
            let (parts, starts) = state.scheduler.demand(content, chunks, || {
                let (sender, receiver) = oneshot::channel();
                receivers.push_back(receiver);
                sender
            });
            (parts, state.register(starts))
        });
        let mut leave = LeaveOnDrop { fetcher: self, waits: &parts };
        self.launch(launches);
        let mut found = Vec::with_capacity(parts.len());
        for part in &parts {
            found.push(match part {
                Part::Here(chunk) => chunk.clone(),
                Part::Waits(..) => {
                    let receiver = receivers.pop_front().expect("every waiting part has a receiver");
                    receiver.await.unwrap_or_else(|_| Err(Failed::closed()))?
                }
            });
        }
        leave.waits = &[];
        Ok(found)
    }

    /// Returns `true` if all chunks of the range are in memory, in flight or probably on disk, so that no
    /// piece is needed.
    pub(super) async fn has_chunks(&self, content: &FileContent, range: ByteRange) -> bool {
        let content = *content;
        let missing: Vec<ChunkIndex> = self.with_state(|state| {
            range.chunks().iter().filter(|index| !state.scheduler.has(&content.chunk(*index))).collect()
        });
        if missing.is_empty() {
            return true;
        }
        let cache = Arc::clone(&self.cache);
        let on_disk = move || {
            let guess_key = content.guess_key();
            let keys = [content.settled.then_some(&content.key), Some(&guess_key)];
            let holds =
                |key: &FileKey, index| cache.known_hash(key, index).is_some_and(|hash| cache.contains(hash));
            missing.iter().all(|index| keys.iter().flatten().any(|key| holds(key, *index)))
        };
        self.runtime.spawn_blocking(on_disk).await.unwrap_or(false)
    }

    pub(super) async fn read_piece(
        &self,
        content: &FileContent,
        piece: ByteRange,
        lane: Lane,
    ) -> Result<Bytes, FetchError> {
        let request = ReadRequest {
            node: content.node,
            version: content.version,
            range: piece,
            whole_chunks: false,
            known: Vec::new(),
        };
        self.foreground.note();
        self.with_state(|state| state.counters.host_requests += 1);
        let mut parts = self.client.read(request, lane);
        let mut found = None;
        while let Some(part) = parts.recv().await {
            match part? {
                ContentPart::Piece { offset, bytes }
                    if offset == piece.offset && bytes.len() as u64 == piece.len =>
                {
                    found = Some(bytes);
                }
                ContentPart::End { .. } => {
                    let bytes = found.ok_or_else(|| bad_answer("an answer without the requested piece"))?;
                    self.with_state(|state| {
                        state.counters.host_pieces += 1;
                        state.counters.host_bytes += bytes.len() as u64;
                    });
                    return Ok(bytes);
                }
                _ => return Err(bad_answer("an unexpected answer to a request for a piece")),
            }
        }
        Err(CallError::Closed.into())
    }

    fn leave(&self, waits: impl Iterator<Item = (ChunkKey, WaiterId)>) {
        let (ended, launches) = self.with_state(|state| {
            let unwanted: Vec<_> = waits.filter_map(|(key, id)| state.scheduler.leave(&key, id)).collect();
            let ended: Vec<_> = unwanted.iter().filter_map(|id| state.running.remove(id)).collect();
            (ended, state.admit())
        });
        drop(ended);
        self.launch(launches);
    }
}

/// Returns `true` if a reader that joined a failed request may make one of its own after this wait. It may
/// not if that would go far beyond the deadline.
fn may_retry(error: &CallError, waited: Duration) -> bool {
    const OF_DEADLINE: u32 = 10;
    match error {
        CallError::TimedOut(deadline) => waited < *deadline / OF_DEADLINE,
        CallError::Offline => false,
        _ => true,
    }
}

impl Failed {
    pub(super) const fn closed() -> Self {
        Self { error: FetchError::Call(CallError::Closed), was_ahead: false }
    }
}

pub(super) fn bad_answer(what: &str) -> FetchError {
    FetchError::Call(CallError::BadAnswer(what.to_owned()))
}

/// Removes the waiters of a reader that goes away before it is served.
struct LeaveOnDrop<'a> {
    fetcher: &'a Fetcher,
    waits: &'a [Part],
}

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        let waits = self.waits.iter().filter_map(|part| match part {
            Part::Waits(key, id) => Some((*key, *id)),
            Part::Here(_) => None,
        });
        if !self.waits.is_empty() {
            self.fetcher.leave(waits);
        }
    }
}

/// Joins the bytes of `range` from the chunks that hold them.
fn join(parts: &[RunSlice], chunks: ChunkRange, range: ByteRange) -> Bytes {
    RunSlice::join(parts, (range.offset - chunks.first.offset()) as usize, range.len as usize)
}
