//! Warm-up: fetches content into the disk cache for later use, past memory, with the lowest priority.
//!
//! A run of chunks goes from the host to the cache and is not kept in memory. Its stream has the lowest
//! priority and takes the spare capacity of the link. The bytes in flight are little more than the link
//! holds. While programs read, hardly any new run starts, because bytes in flight cannot be overtaken.
//! Warm-up waits for the disk however slow it is, because it must not drop chunks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::read::bad_answer;
use super::{FetchError, Fetcher, FileContent};
use crate::cache::ChunkCache;
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, ContentPart, Lane};
use crate::proto::ReadRequest;

/// Most chunks of one run: 1 MiB. Several runs are requested in parallel.
pub const WARM_RUN_CHUNKS: u64 = 4;

/// Most runs in flight: 16 MiB, which fill 1 Gbit/s over 100 ms.
const RUNS_MAX: u64 = 16;

/// Runs in flight while the rate of the link is unknown.
const RUNS_WITHOUT_RATE: u64 = 4;

/// Time without demands after which programs count as idle. A player or a copy requests content more often.
const IDLE_AFTER: Duration = Duration::from_millis(300);

/// Longest wait for idle programs. A film of two hours must not stop a warm-up.
const IDLE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest wait of one chunk for the disk. A disk that accepts nothing for so long is broken.
const DISK_WAIT_MAX: Duration = Duration::from_secs(60);

/// Time between two checks for room.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Time of the last demand of a program that memory did not serve.
#[derive(Default)]
pub(super) struct ForegroundActivity {
    last: Mutex<Option<Instant>>,
}

impl ForegroundActivity {
    /// Records a demand.
    pub(super) fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_idle(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() >= IDLE_AFTER)
    }
}

/// Sources of the bytes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warmed {
    /// Cached before.
    pub cached_bytes: u64,
    /// Cached under another version, and confirmed by the host.
    pub same_bytes: u64,
    /// Sent by the host.
    pub host_bytes: u64,
}

/// Known hashes of a run before the host is asked.
struct KnownHashes {
    /// Hash by position, with `true` if it is of this version.
    hashes: Vec<Option<(ChunkHash, bool)>>,
}

impl Fetcher {
    /// Returns the disk cache.
    pub fn cache(&self) -> &Arc<dyn ChunkCache> {
        &self.cache
    }

    /// Returns the most runs that may be in flight: twice what the link holds, so that it is never idle and
    /// programs never wait long.
    pub fn warm_runs_max(&self) -> usize {
        let link = self.client.link();
        let held_bytes = link.bytes_per_second as f64 * link.rtt.as_secs_f64();
        let runs = (2.0 * held_bytes / (WARM_RUN_CHUNKS * CHUNK_BYTES) as f64).ceil() as u64 + 1;
        if link.bytes_per_second == 0 { RUNS_WITHOUT_RATE as usize } else { runs.min(RUNS_MAX) as usize }
    }

    /// Waits until programs are idle, some seconds at most.
    pub async fn wait_until_idle(&self) {
        let deadline = Instant::now() + IDLE_WAIT_MAX;
        let is_busy =
            || !self.foreground.is_idle() || self.with_state(|state| state.scheduler.inflight().chunks() > 0);
        while is_busy() && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Brings a run of chunks of a content into the disk cache. Dropping the call ends the request.
    pub async fn warm(&self, content: &FileContent, run: ChunkRange) -> Result<Warmed, FetchError> {
        let mut known = self.known_of(content, run, true).await;
        if known.hashes.iter().any(|known| !matches!(known, Some((_, true)))) {
            // The cache may hold it under another name.
            self.learn_hashes(content, run).await;
            known = self.known_of(content, run, true).await;
        }
        for may_offer in [true, false] {
            let (warmed, is_whole) = self.warm_once(content, run, &known).await?;
            if is_whole {
                return Ok(warmed);
            }
            // A chunk of an earlier version was evicted between question and answer.
            known = self.known_of(content, run, !may_offer).await;
        }
        Err(bad_answer("the host confirmed a chunk that the client does not hold"))
    }

    /// Returns the known hashes of a run; those of an earlier version only `with_earlier`.
    async fn known_of(&self, content: &FileContent, run: ChunkRange, with_earlier: bool) -> KnownHashes {
        let (cache, content) = (Arc::clone(&self.cache), *content);
        let look = move || {
            let held = |file, index| cache.known_hash(file, index).filter(|hash| cache.contains(*hash));
            let guess_key = content.guess_key();
            let known = |index| {
                let current = content.settled.then(|| held(&content.key, index)).flatten();
                let guessed = || held(&guess_key, index).or_else(|| held(&content.history, index));
                let guessed = || guessed().filter(|_| with_earlier).map(|hash| (hash, false));
                current.map(|hash| (hash, true)).or_else(guessed)
            };
            KnownHashes { hashes: run.iter().map(known).collect() }
        };
        let nothing = || KnownHashes { hashes: vec![None; run.count as usize] };
        // A join error means that the runtime is shutting down.
        self.runtime.spawn_blocking(look).await.unwrap_or_else(|_| nothing())
    }

    /// Requests the chunks of this version that the cache lacks. Returns `true` if the cache was given all
    /// of them.
    async fn warm_once(
        &self,
        content: &FileContent,
        run: ChunkRange,
        known: &KnownHashes,
    ) -> Result<(Warmed, bool), FetchError> {
        let bytes = |index: ChunkIndex| content.chunk_bytes(index);
        let mut warmed = Warmed::default();
        let mut missing: Option<ChunkRange> = None;
        for (index, known) in run.iter().zip(&known.hashes) {
            if matches!(known, Some((_, true))) {
                warmed.cached_bytes += bytes(index);
            } else {
                let first = missing.map_or(index, |missing| missing.first);
                missing = Some(ChunkRange::new(first, index.0 - first.0 + 1));
            }
        }
        let Some(missing) = missing else { return Ok((warmed, true)) };
        let hash_of = |index: ChunkIndex| known.hashes[(index.0 - run.first.0) as usize];
        let request = ReadRequest {
            node: content.node,
            version: content.version,
            range: missing.bytes_in(content.version.size),
            whole_chunks: true,
            known: missing.iter().map(|index| hash_of(index).map(|(hash, _)| hash)).collect(),
        };
        self.with_state(|state| state.counters.host_requests += 1);
        let mut is_whole = true;
        let mut parts = self.client.read(request, Lane::Background);
        while let Some(part) = parts.recv().await {
            match part? {
                ContentPart::Chunk { index, chunk } if missing.contains(index) => {
                    if chunk.bytes().len() as u64 != bytes(index) {
                        return Err(bad_answer("a chunk of the wrong length"));
                    }
                    warmed.host_bytes += bytes(index);
                    self.insert_waiting(content, index, chunk).await?;
                }
                ContentPart::Same { index } if missing.contains(index) => match hash_of(index) {
                    Some((_, true)) => {}
                    Some((hash, false)) if self.cache.contains(hash) => {
                        warmed.same_bytes += bytes(index);
                        self.record(content, index, hash);
                    }
                    Some(_) => is_whole = false,
                    None => {
                        return Err(bad_answer("the host confirmed a chunk that the client does not hold"));
                    }
                },
                ContentPart::End { .. } => return Ok((warmed, is_whole)),
                _ => return Err(bad_answer("content that was not requested")),
            }
        }
        Err(CallError::Closed.into())
    }

    async fn insert_waiting(
        &self,
        content: &FileContent,
        index: ChunkIndex,
        chunk: VerifiedChunk,
    ) -> Result<(), FetchError> {
        let deadline = Instant::now() + DISK_WAIT_MAX;
        while self.cache.is_behind() {
            if Instant::now() >= deadline {
                return Err(CallError::TimedOut(DISK_WAIT_MAX).into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.with_state(|state| {
            state.counters.host_chunks += 1;
            state.counters.host_bytes += chunk.bytes().len() as u64;
        });
        let hash = chunk.hash();
        self.cache.insert(chunk);
        self.record(content, index, hash);
        Ok(())
    }

    /// Returns the cached bytes of a content; `None` if counting took longer than `within`. Blocks on the
    /// disk.
    pub fn cached_bytes(&self, content: &FileContent, within: Duration) -> Option<u64> {
        let deadline = Instant::now() + within;
        let all = ChunkRange::new(ChunkIndex(0), u64::MAX / CHUNK_BYTES);
        let mut bytes = 0;
        let key = content.disk_key();
        for index in content.clamp(all).iter() {
            if index.0 % 256 == 0 && Instant::now() >= deadline {
                return None;
            }
            let hash = self.cache.known_hash(&key, index);
            if hash.is_some_and(|hash| self.cache.contains(hash)) {
                bytes += content.chunk_bytes(index);
            }
        }
        Some(bytes)
    }
}
