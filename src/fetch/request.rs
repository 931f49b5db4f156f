//! Task that fetches a run of chunks: from the disk cache as far as possible, the rest from the host in one
//! request.
//!
//! If the cache has chunks of an earlier version at these places, the request names their hashes. A touched
//! or partly edited file then costs only the changed chunks. The task waits a moment for hashes in flight
//! (`hashes`).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::cache_insert::CacheInserter;
use super::inflight::RequestId;
use super::read::bad_answer;
use super::scheduler::Start;
use super::{Failed, FetchError, Fetcher, FileContent};
use crate::cache::{ChunkCache, FileKey};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, ContentPart, Lane};
use crate::proto::{DELTA_BYTES_MAX, ReadRequest};

/// Fetches the chunks of a request until all are there, it fails, or it is cancelled.
pub(super) async fn run(mut ending: Ending, start: Start, cancelled: oneshot::Receiver<()>) {
    ending.is_running = true;
    tokio::select! {
        // Cancelled: dropping the other branch drops its stream, which resets it.
        _ = cancelled => {}
        result = fetch(&ending.fetcher, &start) => ending.error = result.err(),
    }
}

/// Ends a request when dropped, so that its waiters are notified in any case.
pub(super) struct Ending {
    fetcher: Arc<Fetcher>,
    request: RequestId,
    error: Option<FetchError>,
    is_running: bool,
}

impl Ending {
    /// Creates the guard for the task. If it is dropped before the task runs, the runtime is shutting down.
    pub(super) fn new(fetcher: Arc<Fetcher>, request: RequestId) -> Self {
        Self { fetcher, request, error: Some(CallError::Closed.into()), is_running: false }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.fetcher.end(self.request, self.error.take(), self.is_running);
    }
}

/// Source of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Disk,
    Host,
}

async fn fetch(fetcher: &Arc<Fetcher>, start: &Start) -> Result<(), FetchError> {
    fetcher.wait_for_hashes(start).await;
    let link = fetcher.client.link();
    let delta = fetcher.deltas.searched(&start.content, link.bytes_per_second);
    let held = load(fetcher, start, delta.is_none()).await;
    let mut missing = start.chunks.iter().filter(|index| !held.delivered.contains_key(index));
    let Some(first) = missing.next() else { return Ok(()) };
    let last = missing.next_back().unwrap_or(first);
    let range = ChunkRange::new(first, last.0 - first.0 + 1);
    match delta {
        Some(delta)
            if held.earlier.is_empty()
                && range.bytes_in(start.content.version.size).len <= DELTA_BYTES_MAX =>
        {
            let brought = fetcher.fetch_moved(&delta, &start.content, range, start.lane()).await?;
            insert_moved(fetcher, start, brought).await
        }
        _ => request_from_host(fetcher, start, range, held).await,
    }
}

/// Delivers rebuilt chunks and inserts them into the cache.
async fn insert_moved(
    fetcher: &Arc<Fetcher>,
    start: &Start,
    chunks: Vec<(ChunkIndex, VerifiedChunk)>,
) -> Result<(), FetchError> {
    let mut inserter = CacheInserter::new(fetcher, start.content);
    for (index, chunk) in chunks {
        fetcher.deliver(start, index, &chunk, Source::Host)?;
        inserter.insert(index, chunk);
    }
    inserter.finish().await;
    Ok(())
}

impl Start {
    const fn lane(&self) -> Lane {
        if self.is_ahead { Lane::Ahead } else { Lane::Demand }
    }
}

/// Chunks of a request that the disk cache has.
#[derive(Default)]
struct Held {
    /// Chunks of this version, already delivered.
    delivered: BTreeMap<ChunkIndex, ChunkHash>,
    /// Chunks that the file probably has at these places, from an earlier version or from this one before
    /// it settled. The host must confirm them.
    earlier: BTreeMap<ChunkIndex, VerifiedChunk>,
}

impl Held {
    /// Returns the hashes by position in `range`; empty if there are none.
    fn known(&self, range: ChunkRange) -> Vec<Option<ChunkHash>> {
        if self.delivered.is_empty() && self.earlier.is_empty() {
            return Vec::new();
        }
        let known_of = |index: ChunkIndex| {
            self.delivered.get(&index).copied().or_else(|| Some(self.earlier.get(&index)?.hash()))
        };
        range.iter().map(known_of).collect()
    }
}

/// Delivers the cached chunks of this version, and loads those of the earlier one to ask about them.
async fn load(fetcher: &Arc<Fetcher>, start: &Start, with_earlier: bool) -> Held {
    if certainly_holds_nothing(&*fetcher.cache, start, with_earlier) {
        // The switch to another thread would take longer than read-ahead can wait on a fast link.
        return Held::default();
    }
    let this = Arc::clone(fetcher);
    let (content, chunks) = (start.content, start.chunks);
    let load = move || {
        // Chunks recorded for an unsettled version may be of another content, so the host must confirm
        // them.
        let now = content.settled.then(|| load_known(&*this.cache, &content.key, chunks.iter()));
        let current = now.unwrap_or_default();
        let missing = chunks.iter().filter(|index| !current.contains_key(index));
        let mut guessed = load_known(&*this.cache, &content.guess_key(), missing);
        if with_earlier {
            let is_missing =
                |index: &ChunkIndex| !current.contains_key(index) && !guessed.contains_key(index);
            let missing: Vec<_> = chunks.iter().filter(is_missing).collect();
            guessed.extend(load_known(&*this.cache, &content.history, missing.into_iter()));
        }
        if !guessed.is_empty() {
            this.deltas.of(&content).load_earlier(&*this.cache, &content);
        }
        (current, guessed)
    };
    // A join error means that the runtime is shutting down.
    let (current, earlier) = fetcher.runtime.spawn_blocking(load).await.unwrap_or_default();
    let mut held = Held { delivered: BTreeMap::new(), earlier };
    for (index, chunk) in current {
        // A chunk of another length was recorded for another version and is skipped.
        if fetcher.deliver(start, index, &chunk, Source::Disk).is_ok() {
            held.delivered.insert(index, chunk.hash());
        }
    }
    held
}

/// Returns `true` if the disk cache certainly has no chunk of a request. Does no I/O.
fn certainly_holds_nothing(cache: &dyn ChunkCache, start: &Start, with_earlier: bool) -> bool {
    let Start { content, chunks, .. } = start;
    (!content.settled || cache.knows_none(&content.key, *chunks))
        && cache.knows_none(&content.guess_key(), *chunks)
        && (!with_earlier || cache.knows_none(&content.history, *chunks))
}

/// Loads the chunks at these places of a file that the cache knows and has. Blocks on the disk.
fn load_known(
    cache: &dyn ChunkCache,
    file: &FileKey,
    chunks: impl Iterator<Item = ChunkIndex>,
) -> BTreeMap<ChunkIndex, VerifiedChunk> {
    let (indices, hashes): (Vec<_>, Vec<_>) =
        chunks.filter_map(|index| Some((index, cache.known_hash(file, index)?))).unzip();
    if hashes.is_empty() {
        return BTreeMap::new();
    }
    let loaded = cache.load_run(&hashes);
    indices.into_iter().zip(loaded).filter_map(|(index, chunk)| Some((index, chunk?))).collect()
}

/// Requests a range of chunks from the host. Chunks that are held need not be sent again.
async fn request_from_host(
    fetcher: &Arc<Fetcher>,
    start: &Start,
    range: ChunkRange,
    mut held: Held,
) -> Result<(), FetchError> {
    let content = &start.content;
    let request = ReadRequest {
        node: content.node,
        version: content.version,
        range: range.bytes_in(content.version.size),
        whole_chunks: true,
        known: held.known(range),
    };
    fetcher.wait_for_disk().await;
    fetcher.with_state(|state| state.counters.host_requests += 1);
    let delta = (!held.earlier.is_empty()).then(|| fetcher.deltas.of(content));
    let compared = |is_same| delta.iter().for_each(|delta| delta.compared(is_same));
    let mut inserter = CacheInserter::new(fetcher, start.content);
    let mut parts = fetcher.client.read(request, start.lane());
    while let Some(part) = parts.recv().await {
        match part? {
            ContentPart::Chunk { index, chunk } if range.contains(index) => {
                if held.earlier.remove(&index).is_some() {
                    compared(false);
                }
                fetcher.deliver(start, index, &chunk, Source::Host)?;
                inserter.insert(index, chunk);
            }
            ContentPart::Same { index } if held.delivered.contains_key(&index) => {}
            ContentPart::Same { index } => {
                let same = held.earlier.remove(&index);
                let chunk = same
                    .ok_or_else(|| bad_answer("the host confirmed a chunk that the client does not hold"))?;
                fetcher.deliver(start, index, &chunk, Source::Disk)?;
                fetcher.record(content, index, chunk.hash());
                compared(true);
            }
            ContentPart::End { .. } => {
                inserter.finish().await;
                return Ok(());
            }
            _ => return Err(bad_answer("content that was not requested")),
        }
    }
    Err(CallError::Closed.into())
}

impl Fetcher {
    /// Records the hash of a chunk, for this version and for the history of the file.
    pub(super) fn record(&self, content: &FileContent, index: ChunkIndex, hash: ChunkHash) {
        self.cache.record_hash(&content.disk_key(), index, hash);
        self.cache.record_hash(&content.history, index, hash);
    }

    /// Adds a chunk to memory and notifies its waiters.
    fn deliver(
        &self,
        start: &Start,
        index: ChunkIndex,
        chunk: &VerifiedChunk,
        source: Source,
    ) -> Result<(), FetchError> {
        let content = &start.content;
        if chunk.bytes().len() as u64 != content.chunk_bytes(index) {
            return Err(bad_answer("a chunk of the wrong length"));
        }
        let (delivery, launches) = self.with_state(|state| {
            match source {
                Source::Disk => state.counters.hits_disk += 1,
                Source::Host => {
                    state.counters.host_chunks += 1;
                    state.counters.host_bytes += chunk.bytes().len() as u64;
                }
            }
            let delivery = state.scheduler.deliver(start.request, content.chunk(index), chunk.run_slice());
            (delivery, state.admit())
        });
        self.launch(launches);
        for waiter in delivery.into_iter().flat_map(|delivery| delivery.waiters) {
            // A waiter that is gone needs no notification.
            let _ = waiter.send(Ok(chunk.run_slice().clone()));
        }
        Ok(())
    }

    /// Ends a request: notifies its remaining waiters of the failure, and admits other requests if tasks
    /// still run.
    fn end(&self, request: RequestId, error: Option<FetchError>, may_start: bool) {
        let (failure, launches) = self.with_state(|state| {
            state.running.remove(&request);
            let failure = state.scheduler.end(request);
            state.counters.failed_requests += u64::from(failure.is_some());
            (failure, if may_start { state.admit() } else { Vec::new() })
        });
        if let Some(failure) = failure {
            let error = error.unwrap_or_else(|| bad_answer("fewer chunks than requested"));
            for waiter in failure.waiters {
                let _ = waiter.send(Err(Failed { error: error.clone(), was_ahead: failure.was_ahead }));
            }
        }
        self.launch(launches);
    }
}
