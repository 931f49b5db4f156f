//! Fetches chunks from the first source that has them: memory, a request in flight, the disk cache, the
//! host.
//!
//! A [`Fetcher`] serves all open files of a mount. A chunk is in flight at most once for all readers. The
//! task that fetches it decides between disk and host. A fetched chunk is kept in memory, within one budget
//! that also covers the chunks in flight, and on disk: under its version if that is settled, otherwise as a
//! guess.
//!
//! Reading order, first the files without I/O: [`content`] (identities), [`memory_cache`], [`inflight`],
//! [`queue`] (tables), [`scheduler`] (the tables under one budget), [`hash_probe`] (policy of hash
//! requests). [`request`] holds the task that fetches chunks, and [`hashes`] the task that requests hashes.
//! [`delta`] reuses moved content of an earlier version. [`cache_insert`] inserts into the disk cache.
//! [`read`] serves the readers, [`open_prefetch`] the opens, [`warm`] the warm-up. [`written`] keeps
//! written content.

mod cache_insert;
mod content;
mod delta;
mod error;
mod hash_probe;
mod hashes;
#[cfg(test)]
mod hostile;
mod inflight;
mod memory_cache;
mod open_prefetch;
mod queue;
mod read;
mod request;
mod scheduler;
mod statistics;
#[cfg(test)]
mod tests;
mod warm;
mod written;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::cache::ChunkCache;
use crate::chunk::{ChunkRange, RunSlice};
use crate::client::Client;
use crate::prefetch::in_flight_limit;
use crate::proto::READ_CHUNKS_MAX;
pub use content::{FileContent, StreamId};
use delta::Deltas;
pub use error::FetchError;
use hash_probe::HashProbe;
use inflight::RequestId;
use open_prefetch::OPEN_PREFETCHES_MAX;
pub use open_prefetch::OpenPrefetch;
use request::Ending;
use scheduler::{Budget, FetchScheduler, Start};
use statistics::Counters;
pub use statistics::FetchStatistics;
pub use warm::{WARM_RUN_CHUNKS, Warmed};

/// Limits of a [`Fetcher`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchConfig {
    /// Most bytes of chunks in memory and in flight, for all files together.
    ///
    /// 96 MiB: a 10 Gbit/s link over 50 ms holds 62 MB, and a quarter is left for content that is read
    /// again.
    pub memory_bytes: u64,
    /// Chunks in one request to the host, 1 to [`READ_CHUNKS_MAX`]. 4 make 1 MiB: 8 ms of a 1 Gbit/s link,
    /// many round trips of a local one.
    pub request_chunks: u64,
    /// Most read-ahead requests in flight; 0 disables read-ahead. 64 of 1 MiB fill a 10 Gbit/s link over 50
    /// ms.
    pub ahead_requests_max: usize,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self { memory_bytes: 96 * 1024 * 1024, request_chunks: 4, ahead_requests_max: 64 }
    }
}

impl FetchConfig {
    fn budget(self) -> Budget {
        Budget {
            memory_bytes: self.memory_bytes,
            // A quarter stays for chunks that were read: a chunk is read in several calls, and by several
            // readers.
            ahead_bytes_max: self.memory_bytes / 4 * 3,
            // Memory that is reused soon is still in the processor's cache, and fresh memory is slow to
            // get.
            consumed_bytes_max: self.memory_bytes / 8,
            ahead_requests_max: self.ahead_requests_max,
            request_chunks: self.request_chunks.clamp(1, READ_CHUNKS_MAX),
        }
    }
}

/// Fetches the content of files. Cheap to share; all methods may be called from any thread.
pub struct Fetcher {
    client: Arc<dyn Client>,
    cache: Arc<dyn ChunkCache>,
    runtime: Handle,
    this: Weak<Self>,
    state: Mutex<State>,
    /// Slots for prefetches of files that are being opened.
    open_prefetch_slots: Arc<Semaphore>,
    deltas: Deltas,
    /// Notified at the end of every hash request.
    hash_request_ended: Notify,
    /// Activity of programs, to which warm-up gives way.
    foreground: warm::ForegroundActivity,
    pending_inserts: cache_insert::PendingInserts,
}

/// Sender that notifies a waiter for a chunk.
type Waiter = oneshot::Sender<Result<RunSlice, Failed>>;

/// Failure to fetch a chunk.
#[derive(Debug, Clone)]
struct Failed {
    error: FetchError,
    /// True for a read-ahead. A reader that joined it may retry.
    was_ahead: bool,
}

struct State {
    scheduler: FetchScheduler<Waiter>,
    /// Dropping the sender ends the task of the request, and with it its stream.
    running: HashMap<RequestId, oneshot::Sender<()>>,
    hash_probe: HashProbe,
    counters: Counters,
}

impl State {
    /// Makes requests cancellable. Each must be launched.
    fn register(&mut self, starts: Vec<Start>) -> Vec<Launch> {
        let launch = |start: Start| {
            let (cancel, cancelled) = oneshot::channel();
            self.running.insert(start.request, cancel);
            Launch { start, cancelled }
        };
        starts.into_iter().map(launch).collect()
    }

    /// Returns the read-ahead that may start now.
    fn admit(&mut self) -> Vec<Launch> {
        if self.scheduler.queued_runs() == 0 {
            return Vec::new();
        }
        let starts = self.scheduler.admit();
        self.register(starts)
    }
}

/// Request whose task is to be started.
struct Launch {
    start: Start,
    cancelled: oneshot::Receiver<()>,
}

impl Fetcher {
    /// Creates a fetcher over a client and a cache. Call it in a tokio runtime, on which its requests run.
    pub fn new(client: Arc<dyn Client>, cache: Arc<dyn ChunkCache>, config: FetchConfig) -> Arc<Self> {
        let state = State {
            scheduler: FetchScheduler::new(config.budget()),
            running: HashMap::new(),
            hash_probe: HashProbe::new(),
            counters: Counters::default(),
        };
        let runtime = Handle::current();
        Arc::new_cyclic(|this| Self {
            client,
            cache,
            runtime,
            this: this.clone(),
            state: Mutex::new(state),
            open_prefetch_slots: Arc::new(Semaphore::new(OPEN_PREFETCHES_MAX)),
            deltas: Deltas::default(),
            hash_request_ended: Notify::new(),
            foreground: warm::ForegroundActivity::default(),
            pending_inserts: cache_insert::PendingInserts::default(),
        })
    }

    /// Queues chunks that `stream` will probably read next. The queue is bounded. Returns at once.
    pub fn read_ahead(&self, content: &FileContent, range: ChunkRange, stream: StreamId) {
        self.foreground.note();
        self.request_hashes_beyond(content, range);
        let link = self.client.link();
        let launches = self.with_state(|state| {
            state.scheduler.limit_in_flight(in_flight_limit(link.rtt, link.bytes_per_second));
            state.scheduler.read_ahead(content, range, stream);
            state.admit()
        });
        self.launch(launches);
    }

    /// Marks chunks that a sequential reader has consumed and will hardly read again.
    pub fn mark_consumed(&self, content: &FileContent, chunks: ChunkRange) {
        self.with_state(|state| state.scheduler.mark_consumed(content, chunks));
    }

    /// Cancels the read-ahead of a stream: drops its queue, and ends requests without another waiter.
    pub fn cancel(&self, stream: StreamId) {
        self.cancel_if(|other| other == stream);
    }

    /// Cancels all streams of an open file, because it is closed.
    pub fn cancel_handle(&self, handle: u64) {
        self.cancel_if(|stream| stream.handle == handle);
    }

    /// Lets the disk cache write the hashes of this content, because it was closed. Returns at once.
    pub fn flush_hashes(&self, content: &FileContent) {
        self.cache.flush_file(&content.disk_key());
        self.cache.flush_file(&content.history);
    }

    /// Returns the bytes that each active stream may read ahead: its share of the budget.
    pub fn share_bytes(&self) -> u64 {
        self.with_state(|state| state.scheduler.share_bytes())
    }

    /// Returns the counters and the current usage.
    pub fn statistics(&self) -> FetchStatistics {
        self.with_state(|state| {
            let (scheduler, counters) = (&state.scheduler, &state.counters);
            FetchStatistics {
                memory_bytes: scheduler.memory().bytes(),
                memory_chunks: scheduler.memory().chunks() as u64,
                unread_bytes: scheduler.memory().unread_bytes(),
                inflight_chunks: scheduler.inflight().chunks() as u64,
                inflight_bytes: scheduler.inflight().bytes(),
                ahead_requests: scheduler.inflight().ahead_requests() as u64,
                ahead_queued: scheduler.queued_runs() as u64,
                ahead_wasted_chunks: scheduler.memory().wasted_chunks(),
                hits_memory: counters.hits_memory,
                hits_disk: counters.hits_disk,
                host_chunks: counters.host_chunks,
                host_pieces: counters.host_pieces,
                host_bytes: counters.host_bytes,
                moved_bytes: counters.moved_bytes,
                host_requests: counters.host_requests,
                failed_requests: counters.failed_requests,
                manifest_chunks: counters.manifest_chunks,
                manifest_chunks_held: counters.manifest_chunks_held,
            }
        })
    }

    fn cancel_if(&self, gives_up: impl Fn(StreamId) -> bool) {
        let (ended, launches) = self.with_state(|state| {
            let unwanted = state.scheduler.cancel(gives_up);
            let ended: Vec<_> = unwanted.iter().filter_map(|id| state.running.remove(id)).collect();
            (ended, state.admit())
        });
        drop(ended);
        self.launch(launches);
    }

    /// Runs `work` on the locked state. Evicted buffers are freed after the lock is released.
    fn with_state<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let (result, evicted) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut state);
            (result, state.scheduler.take_evicted())
        };
        drop(evicted);
        result
    }

    /// Starts the tasks of requests.
    fn launch(&self, launches: Vec<Launch>) {
        if launches.is_empty() {
            return;
        }
        let Some(this) = self.this.upgrade() else { return };
        for Launch { start, cancelled } in launches {
            let ending = Ending::new(Arc::clone(&this), start.request);
            self.runtime.spawn(request::run(ending, start, cancelled));
        }
    }
}
