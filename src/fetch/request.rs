//! The task that brings a run of chunks: from the disk cache what is there, the rest from the host in one request.
//!
//! Where the cache has what an earlier version of the file had at these places, the host is told its hashes: a file that
//! was touched, or edited here and there, costs the wire what is new. It waits a moment for hashes that are under way
//! (`hashes`).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::inflight::RequestId;
use super::keeping::Keeping;
use super::ledger::Start;
use super::read::bad_answer;
use super::{Failed, FetchError, Fetcher, FileContent};
use crate::cache::{ChunkCache, FileKey};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, ContentPart, Lane};
use crate::proto::{DELTA_BYTES_MAX, ReadRequest};

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
            let brought = fetcher.bring_moved(&delta, &start.content, range, start.lane()).await?;
            keep_moved(fetcher, start, brought).await
        }
        _ => ask_host(fetcher, start, range, held).await,
    }
}

/// Delivers chunks that were put together, and keeps them.
async fn keep_moved(
    fetcher: &Arc<Fetcher>,
    start: &Start,
    chunks: Vec<(ChunkIndex, VerifiedChunk)>,
) -> Result<(), FetchError> {
    let mut keeping = Keeping::new(fetcher, start.content);
    for (index, chunk) in chunks {
        fetcher.deliver(start, index, &chunk, Source::Host)?;
        keeping.keep(index, chunk);
    }
    keeping.finish().await;
    Ok(())
}

impl Start {
    const fn lane(&self) -> Lane {
        if self.is_ahead { Lane::Ahead } else { Lane::Demand }
    }
}

/// What the disk cache has of a request.
#[derive(Default)]
struct Held {
    /// Chunks of this version, which have been delivered.
    delivered: BTreeMap<ChunkIndex, ChunkHash>,
    /// Chunks that the file probably has in their places: it had them in this version before that was settled, or in an earlier
    /// one. Whether it has them the host must say.
    earlier: BTreeMap<ChunkIndex, VerifiedChunk>,
}

impl Held {
    /// By position in `range`; empty where nothing is held.
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

/// Delivers what the disk cache has of this version, and loads what it has of the one before, to ask about it.
async fn load(fetcher: &Arc<Fetcher>, start: &Start, asks_about_earlier: bool) -> Held {
    if holds_nothing(&*fetcher.cache, start, asks_about_earlier) {
        // Another thread and back would take longer than what is asked ahead can wait on a fast link.
        return Held::default();
    }
    let this = Arc::clone(fetcher);
    let (content, chunks) = (start.content, start.chunks);
    let load = move || {
        // What is noted under a version that is not settled is of another content perhaps, and asked about.
        let now = content.settled.then(|| load_known(&*this.cache, &content.key, chunks.iter()));
        let current = now.unwrap_or_default();
        let missing = chunks.iter().filter(|index| !current.contains_key(index));
        let mut guessed = load_known(&*this.cache, &content.guess_key(), missing);
        if asks_about_earlier {
            let is_missing =
                |index: &ChunkIndex| !current.contains_key(index) && !guessed.contains_key(index);
            let missing: Vec<_> = chunks.iter().filter(is_missing).collect();
            guessed.extend(load_known(&*this.cache, &content.history, missing.into_iter()));
        }
        if !guessed.is_empty() {
            this.deltas.of(&content).remember(&*this.cache, &content);
        }
        (current, guessed)
    };
    // A task that cannot be joined means that the runtime is shutting down.
    let (current, earlier) = fetcher.runtime.spawn_blocking(load).await.unwrap_or_default();
    let mut held = Held { delivered: BTreeMap::new(), earlier };
    for (index, chunk) in current {
        // A chunk of another length was recorded for another version: not what is wanted.
        if fetcher.deliver(start, index, &chunk, Source::Disk).is_ok() {
            held.delivered.insert(index, chunk.hash());
        }
    }
    held
}

/// Whether the disk cache has nothing of a request, as is known without asking the disk.
fn holds_nothing(cache: &dyn ChunkCache, start: &Start, asks_about_earlier: bool) -> bool {
    let Start { content, chunks, .. } = start;
    (!content.settled || cache.knows_none(&content.key, *chunks))
        && cache.knows_none(&content.guess_key(), *chunks)
        && (!asks_about_earlier || cache.knows_none(&content.history, *chunks))
}

/// The chunks at these places of a file, as far as the cache knows and has them. Blocks on the disk.
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

/// Asks the host for a range of chunks; those that are held already need not be sent again.
async fn ask_host(
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
    let mut keeping = Keeping::new(fetcher, start.content);
    let mut parts = fetcher.client.read(request, start.lane());
    while let Some(part) = parts.recv().await {
        match part? {
            ContentPart::Chunk { index, chunk } if range.contains(index) => {
                if held.earlier.remove(&index).is_some() {
                    compared(false);
                }
                fetcher.deliver(start, index, &chunk, Source::Host)?;
                keeping.keep(index, chunk);
            }
            ContentPart::Same { index } if held.delivered.contains_key(&index) => {}
            ContentPart::Same { index } => {
                let same = held.earlier.remove(&index);
                let chunk = same.ok_or_else(|| bad_answer("content that is not held called known"))?;
                fetcher.deliver(start, index, &chunk, Source::Disk)?;
                fetcher.record(content, index, chunk.hash());
                compared(true);
            }
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
    /// Takes note of what the file has at a place, in this version and, for the next one, at all.
    pub(super) fn record(&self, content: &FileContent, index: ChunkIndex, hash: ChunkHash) {
        self.cache.record_hash(&content.disk_key(), index, hash);
        self.cache.record_hash(&content.history, index, hash);
    }

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
        let (delivery, launches) = self.with_state(|state| {
            match source {
                Source::Disk => state.counters.hits_disk += 1,
                Source::Host => {
                    state.counters.host_chunks += 1;
                    state.counters.host_bytes += chunk.bytes().len() as u64;
                }
            }
            let delivery = state.ledger.deliver(start.request, content.chunk(index), chunk.laid());
            (delivery, state.admit())
        });
        self.launch(launches);
        for waiter in delivery.into_iter().flat_map(|delivery| delivery.waiters) {
            // Whoever has gone meanwhile does not mind.
            let _ = waiter.send(Ok(chunk.laid().clone()));
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
