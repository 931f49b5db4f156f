//! Where a chunk comes from: memory, a request under way, the disk cache, the host; in this order.
//!
//! A [`Fetcher`] serves all open files of a mount. A chunk is under way at most once, whoever wants it; whether it comes
//! from the disk or from the host is decided by the task that brings it. What came is kept in memory within one
//! budget, which also covers what is under way, and on disk: under its version where that is settled, else as a guess.
//!
//! In reading order: [`content`] (names), [`memory`], [`inflight`], [`queue`] (tables), [`ledger`] (the tables under one
//! budget), [`manifests`] (which hashes to ask for): pure. [`request`]: the task that brings chunks. [`hashes`]: the one that
//! learns which of them the disk has under another name. [`delta`]: what an earlier version had elsewhere. [`read`]: those who
//! wait. [`warm`]: what is brought for later. [`written`]: what is kept of what was written here.

mod content;
mod delta;
mod error;
mod first;
mod hashes;
#[cfg(test)]
mod hostile;
mod inflight;
mod keeping;
mod ledger;
mod manifests;
mod memory;
mod queue;
mod read;
mod request;
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
use crate::chunk::{ChunkRange, Laid};
use crate::client::Client;
use crate::prefetch::in_flight_limit;
use crate::proto::READ_CHUNKS_MAX;
pub use content::{FileContent, OwnerId};
use delta::Deltas;
pub use error::FetchError;
use first::FIRST_PIECES_MAX;
pub use first::FirstPiece;
use inflight::RequestId;
use ledger::{Budget, Ledger, Start};
use manifests::Manifests;
use request::Ending;
use statistics::Counters;
pub use statistics::FetchStatistics;
pub use warm::{WARM_RUN_CHUNKS, Warmed};

/// How much a [`Fetcher`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchConfig {
    /// Chunks in memory and under way, of all files together, in bytes.
    ///
    /// 96 MiB: a 10 Gbit/s link over 50 ms holds 62 MB, and a quarter is left for what is read again.
    pub memory_bytes: u64,
    /// Chunks in one request to the host, 1 to [`READ_CHUNKS_MAX`]. 4 make 1 MiB: 8 ms of a 1 Gbit/s link, many round trips of a local one.
    pub request_chunks: u64,
    /// Requests under way ahead of their readers; 0 turns reading ahead off. 64 of 1 MiB fill a 10 Gbit/s link over 50 ms.
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
            // A quarter stays for what was read: a chunk is read in several calls, and by several readers.
            ahead_bytes_max: self.memory_bytes / 4 * 3,
            // Memory that is used again soon is still in the processor's cache, and a system that must find more first is slow.
            passed_bytes_max: self.memory_bytes / 8,
            ahead_requests_max: self.ahead_requests_max,
            request_chunks: self.request_chunks.clamp(1, READ_CHUNKS_MAX),
        }
    }
}

/// Brings the content of files. Cheap to share; all methods may be called from any thread.
pub struct Fetcher {
    client: Arc<dyn Client>,
    cache: Arc<dyn ChunkCache>,
    runtime: Handle,
    this: Weak<Self>,
    state: Mutex<State>,
    /// Places for beginnings of files that are being opened.
    first_places: Arc<Semaphore>,
    deltas: Deltas,
    /// Whenever a question for hashes has ended.
    hashes_came: Notify,
    /// Whether people read, to whom warm-up gives way.
    people: warm::People,
    waiting: keeping::Waiting,
}

/// Who waits for a chunk.
type Waiter = oneshot::Sender<Result<Laid, Failed>>;

/// Why a chunk did not come.
#[derive(Debug, Clone)]
struct Failed {
    error: FetchError,
    /// The request was made ahead of its readers; one that joined may ask anew.
    was_ahead: bool,
}

struct State {
    ledger: Ledger<Waiter>,
    /// Dropping the sender ends the request's task, and so its stream.
    running: HashMap<RequestId, oneshot::Sender<()>>,
    manifests: Manifests,
    counters: Counters,
}

impl State {
    /// Makes requests cancellable; each must be launched.
    fn register(&mut self, starts: Vec<Start>) -> Vec<Launch> {
        let launch = |start: Start| {
            let (cancel, cancelled) = oneshot::channel();
            self.running.insert(start.request, cancel);
            Launch { start, cancelled }
        };
        starts.into_iter().map(launch).collect()
    }

    /// Starts what may be read ahead now.
    fn admit(&mut self) -> Vec<Launch> {
        if self.ledger.queued_runs() == 0 {
            return Vec::new();
        }
        let starts = self.ledger.admit();
        self.register(starts)
    }
}

/// A request whose task is to be started.
struct Launch {
    start: Start,
    cancelled: oneshot::Receiver<()>,
}

impl Fetcher {
    /// A fetcher over a client and a cache. To be called in a tokio runtime, on which its requests run.
    pub fn new(client: Arc<dyn Client>, cache: Arc<dyn ChunkCache>, config: FetchConfig) -> Arc<Self> {
        let state = State {
            ledger: Ledger::new(config.budget()),
            running: HashMap::new(),
            manifests: Manifests::new(),
            counters: Counters::default(),
        };
        let runtime = Handle::current();
        Arc::new_cyclic(|this| Self {
            client,
            cache,
            runtime,
            this: this.clone(),
            state: Mutex::new(state),
            first_places: Arc::new(Semaphore::new(FIRST_PIECES_MAX)),
            deltas: Deltas::default(),
            hashes_came: Notify::new(),
            people: warm::People::default(),
            waiting: keeping::Waiting::default(),
        })
    }

    /// Has chunks brought that will probably be read by `owner` next: queued, forgotten, bounded. Returns at once.
    pub fn ahead(&self, content: &FileContent, range: ChunkRange, owner: OwnerId) {
        self.people.want();
        self.ask_hashes_beyond(content, range);
        let link = self.client.link();
        let launches = self.with_state(|state| {
            state.ledger.limit_in_flight(in_flight_limit(link.rtt, link.bytes_per_second));
            state.ledger.ahead(content, range, owner);
            state.admit()
        });
        self.launch(launches);
    }

    /// A reader that runs through the content has passed these chunks and will hardly come back to them.
    pub fn pass(&self, content: &FileContent, chunks: ChunkRange) {
        self.with_state(|state| state.ledger.pass(content, chunks));
    }

    /// The owner does not want what was asked for it: drops what is queued, and ends requests that nobody else waits for.
    pub fn cancel(&self, owner: OwnerId) {
        self.cancel_if(|other| other == owner);
    }

    /// The same for all runs through an open file, because it is closed.
    pub fn cancel_handle(&self, handle: u64) {
        self.cancel_if(|owner| owner.handle == handle);
    }

    /// Lets the disk cache write down which chunks this content has, because it was closed. Returns at once.
    pub fn remember(&self, content: &FileContent) {
        self.cache.flush_file(&content.disk_key());
        self.cache.flush_file(&content.history);
    }

    /// How much each of those who read ahead now may have ahead of it, in bytes: its share of the budget.
    pub fn share_bytes(&self) -> u64 {
        self.with_state(|state| state.ledger.share_bytes())
    }

    /// What is held and what was done.
    pub fn statistics(&self) -> FetchStatistics {
        self.with_state(|state| {
            let (ledger, counters) = (&state.ledger, &state.counters);
            FetchStatistics {
                memory_bytes: ledger.memory().bytes(),
                memory_chunks: ledger.memory().chunks() as u64,
                unread_bytes: ledger.memory().unread_bytes(),
                inflight_chunks: ledger.inflight().chunks() as u64,
                inflight_bytes: ledger.inflight().bytes(),
                ahead_requests: ledger.inflight().ahead_requests() as u64,
                ahead_queued: ledger.queued_runs() as u64,
                ahead_wasted_chunks: ledger.memory().wasted_chunks(),
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

    fn cancel_if(&self, gives_up: impl Fn(OwnerId) -> bool) {
        let (ended, launches) = self.with_state(|state| {
            let unwanted = state.ledger.cancel(gives_up);
            let ended: Vec<_> = unwanted.iter().filter_map(|id| state.running.remove(id)).collect();
            (ended, state.admit())
        });
        drop(ended);
        self.launch(launches);
    }

    /// Works on the state; buffers that were evicted meanwhile are freed after the lock is.
    fn with_state<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let (result, evicted) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut state);
            (result, state.ledger.take_evicted())
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
