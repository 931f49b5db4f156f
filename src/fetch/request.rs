//! The task that brings a run of chunks: from the disk cache what is there, the rest from the host in one request.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::inflight::RequestId;
use super::keeping::Keeping;
use super::ledger::Start;
use super::read::bad_answer;
use super::{Failed, FetchError, Fetcher};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, ContentPart, Lane};
use crate::proto::ReadRequest;

/// Brings the chunks of a request, until all are there, it fails, or nobody wants it any more.
pub(super) async fn run(mut ending: Ending, start: Start, cancelled: oneshot::Receiver<()>) {
    ending.is_running = true;
    tokio::select! {
        // Nobody wants it: leaving the other branch drops its stream, which resets it.
        _ = cancelled => {}
        result = bring(&ending.fetcher, &start) => ending.error = result.err(),
    }
}

/// Whatever becomes of a request's task, those who wait are told.
pub(super) struct Ending {
    fetcher: Arc<Fetcher>,
    request: RequestId,
    error: Option<FetchError>,
    is_running: bool,
}

impl Ending {
    /// To be given to the task. If that is dropped before it runs, the runtime is shutting down.
    pub(super) fn new(fetcher: Arc<Fetcher>, request: RequestId) -> Self {
        Self { fetcher, request, error: Some(CallError::Closed.into()), is_running: false }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.fetcher.end(self.request, self.error.take(), self.is_running);
    }
}

/// Where a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Disk,
    Host,
}

async fn bring(fetcher: &Arc<Fetcher>, start: &Start) -> Result<(), FetchError> {
    let held = if start.content.settled { load(fetcher, start).await } else { Vec::new() };
    let is_held = |index: &ChunkIndex| held.iter().any(|(held, _)| held == index);
    let mut missing = start.chunks.iter().filter(|index| !is_held(index));
    let Some(first) = missing.next() else { return Ok(()) };
    let last = missing.next_back().unwrap_or(first);
    ask_host(fetcher, start, ChunkRange::new(first, last.0 - first.0 + 1), &held).await
}

/// Delivers what the disk cache has of the request. Says which chunks that was.
async fn load(fetcher: &Arc<Fetcher>, start: &Start) -> Vec<(ChunkIndex, ChunkHash)> {
    let cache = Arc::clone(&fetcher.cache);
    let (key, chunks) = (start.content.key, start.chunks);
    let load = move || {
        let known: Vec<(ChunkIndex, ChunkHash)> =
            chunks.iter().filter_map(|index| Some((index, cache.known_hash(&key, index)?))).collect();
        if known.is_empty() {
            return Vec::new();
        }
        let hashes: Vec<ChunkHash> = known.iter().map(|(_, hash)| *hash).collect();
        let loaded = cache.load_run(&hashes);
        known.into_iter().zip(loaded).filter_map(|((index, _), chunk)| Some((index, chunk?))).collect()
    };
    // A task that cannot be joined means that the runtime is shutting down.
    let found: Vec<(ChunkIndex, VerifiedChunk)> =
        fetcher.runtime.spawn_blocking(load).await.unwrap_or_default();
    let mut held = Vec::with_capacity(found.len());
    for (index, chunk) in found {
        let hash = chunk.hash();
        // A chunk of another length was recorded for another version: not what is wanted.
        if fetcher.deliver(start, index, &chunk, Source::Disk).is_ok() {
            held.push((index, hash));
        }
    }
    held
}

/// Asks the host for a range of chunks; those that are `held` already need not be sent again.
async fn ask_host(
    fetcher: &Arc<Fetcher>,
    start: &Start,
    range: ChunkRange,
    held: &[(ChunkIndex, ChunkHash)],
) -> Result<(), FetchError> {
    let content = &start.content;
    let known_of = |index| held.iter().find(|(held, _)| *held == index).map(|(_, hash)| *hash);
    let known = if held.is_empty() { Vec::new() } else { range.iter().map(known_of).collect() };
    let request = ReadRequest {
        node: content.node,
        version: content.version,
        range: range.bytes_in(content.version.size),
        whole_chunks: true,
        known,
    };
    fetcher.with_state(|state| state.counters.host_requests += 1);
    let lane = if start.is_ahead { Lane::Ahead } else { Lane::Demand };
    let mut keeping = Keeping::new(fetcher, start.content);
    let mut parts = fetcher.client.read(request, lane);
    while let Some(part) = parts.recv().await {
        match part? {
            ContentPart::Chunk { index, chunk } if range.contains(index) => {
                fetcher.deliver(start, index, &chunk, Source::Host)?;
                keeping.keep(index, chunk);
            }
            ContentPart::Same { index } if known_of(index).is_some() => {}
            ContentPart::End { .. } => {
                keeping.finish().await;
                return Ok(());
            }
            _ => return Err(bad_answer("content that was not asked for")),
        }
    }
    Err(CallError::Closed.into())
}

impl Fetcher {
    /// Hands a chunk to memory and to those who wait.
    fn deliver(
        &self,
        start: &Start,
        index: ChunkIndex,
        chunk: &VerifiedChunk,
        source: Source,
    ) -> Result<(), FetchError> {
        let content = &start.content;
        if chunk.bytes().len() as u64 != content.chunk_bytes(index) {
            return Err(bad_answer("a chunk of another length than the file has there"));
        }
        let delivery = self.with_state(|state| {
            match source {
                Source::Disk => state.counters.hits_disk += 1,
                Source::Host => {
                    state.counters.host_chunks += 1;
                    state.counters.host_bytes += chunk.bytes().len() as u64;
                }
            }
            state.ledger.deliver(start.request, content.chunk(index), chunk.bytes())
        });
        for waiter in delivery.into_iter().flat_map(|delivery| delivery.waiters) {
            // Whoever has gone meanwhile does not mind.
            let _ = waiter.send(Ok(chunk.bytes().clone()));
        }
        Ok(())
    }

    /// Ends a request: those who still wait are told why in vain, and others may start where tasks still run.
    fn end(&self, request: RequestId, error: Option<FetchError>, may_start: bool) {
        let (failure, launches) = self.with_state(|state| {
            state.running.remove(&request);
            let failure = state.ledger.end(request);
            state.counters.failed_requests += u64::from(failure.is_some());
            (failure, if may_start { state.admit() } else { Vec::new() })
        });
        if let Some(failure) = failure {
            let error = error.unwrap_or_else(|| bad_answer("fewer chunks than were asked for"));
            for waiter in failure.waiters {
                let _ = waiter.send(Err(Failed { error: error.clone(), was_ahead: failure.was_ahead }));
            }
        }
        self.launch(launches);
    }
}
