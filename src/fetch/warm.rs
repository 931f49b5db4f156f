//! Bringing content into the disk cache for later, on nobody's behalf now: past memory, and behind everything that
//! somebody waits for.
//!
//! A run of chunks goes from the host to the cache and is forgotten. Its stream has the lowest priority, so it takes what
//! the link has left, and what is under way at a time is little more than the link holds. While people read, hardly anything
//! new is asked for: what is on its way already cannot be overtaken. It waits for the disk however slow that is, because a warm-up that drops chunks is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::read::bad_answer;
use super::{FetchError, Fetcher, FileContent};
use crate::cache::ChunkCache;
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, ContentPart, Lane};
use crate::proto::ReadRequest;

/// Most chunks of one run: 1 MiB. More runs are asked for at once where there is more.
pub const WARM_RUN_CHUNKS: u64 = 4;

/// Most runs under way: 16 MiB, which fill 1 Gbit/s over 100 ms.
const RUNS_MAX: u64 = 16;

/// So many are under way where nothing is known of the link yet.
const RUNS_AT_FIRST: u64 = 4;

/// People are at rest when nobody has asked for content for so long. Somebody who watches or copies asks more often.
const REST: Duration = Duration::from_millis(300);

/// What waits for people to rest goes on after so long all the same: a film of two hours shall not end a warm-up.
const REST_WAIT: Duration = Duration::from_secs(5);

/// How long one chunk may wait for the disk: one that takes nothing for so long is broken.
const ROOM_WAIT: Duration = Duration::from_secs(60);

/// How often to look whether there is room.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// When people last wanted content that was not at hand.
#[derive(Default)]
pub(super) struct People {
    last: Mutex<Option<Instant>>,
}

impl People {
    /// Somebody wants something now.
    pub(super) fn want(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn rest(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() >= REST)
    }
}

/// Where the bytes of a run were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warmed {
    /// In the cache before.
    pub cached_bytes: u64,
    /// Taken from the host's word that they are what the cache has under another version.
    pub same_bytes: u64,
    /// Sent by the host.
    pub host_bytes: u64,
}

/// What is known of the chunks of a run before the host is asked.
struct Known {
    /// By position: the hash, and whether it is of this version.
    hashes: Vec<Option<(ChunkHash, bool)>>,
}

impl Fetcher {
    /// The disk cache.
    pub fn cache(&self) -> &Arc<dyn ChunkCache> {
        &self.cache
    }

    /// How many runs may be under way: twice what the link holds, so that it is never idle and others never wait long.
    pub fn warm_runs_max(&self) -> usize {
        let link = self.client.link();
        let held_bytes = link.bytes_per_second as f64 * link.rtt.as_secs_f64();
        let runs = (2.0 * held_bytes / (WARM_RUN_CHUNKS * CHUNK_BYTES) as f64).ceil() as u64 + 1;
        if link.bytes_per_second == 0 { RUNS_AT_FIRST as usize } else { runs.min(RUNS_MAX) as usize }
    }

    /// Waits until people rest, some seconds at most.
    pub async fn rest(&self) {
        let deadline = Instant::now() + REST_WAIT;
        let is_busy = || !self.people.rest() || self.with_state(|state| state.ledger.inflight().chunks() > 0);
        while is_busy() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Has the disk cache hold a run of chunks of a content. Dropping the call ends the request.
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
            // What the cache had of an earlier version was evicted between the question and the answer.
            known = self.known_of(content, run, !may_offer).await;
        }
        Err(bad_answer("content that is not held called known"))
    }

    /// What is known of a run, with what an earlier version had if `with_earlier`.
    async fn known_of(&self, content: &FileContent, run: ChunkRange, with_earlier: bool) -> Known {
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
            Known { hashes: run.iter().map(known).collect() }
        };
        let nothing = || Known { hashes: vec![None; run.count as usize] };
        // A task that cannot be joined means that the runtime is shutting down.
        self.runtime.spawn_blocking(look).await.unwrap_or_else(|_| nothing())
    }

    /// Asks the host for what the cache lacks of this version. Says whether the cache has been given all of it.
    async fn warm_once(
        &self,
        content: &FileContent,
        run: ChunkRange,
        known: &Known,
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
                        return Err(bad_answer("a chunk of another length than the file has there"));
                    }
                    warmed.host_bytes += bytes(index);
                    self.keep_patiently(content, index, chunk).await?;
                }
                ContentPart::Same { index } if missing.contains(index) => match hash_of(index) {
                    Some((_, true)) => {}
                    Some((hash, false)) if self.cache.contains(hash) => {
                        warmed.same_bytes += bytes(index);
                        self.record(content, index, hash);
                    }
                    Some(_) => is_whole = false,
                    None => return Err(bad_answer("content that is not held called known")),
                },
                ContentPart::End { .. } => return Ok((warmed, is_whole)),
                _ => return Err(bad_answer("content that was not asked for")),
            }
        }
        Err(CallError::Closed.into())
    }

    async fn keep_patiently(
        &self,
        content: &FileContent,
        index: ChunkIndex,
        chunk: VerifiedChunk,
    ) -> Result<(), FetchError> {
        let deadline = Instant::now() + ROOM_WAIT;
        while self.cache.is_behind() {
            if Instant::now() >= deadline {
                return Err(CallError::TimedOut(ROOM_WAIT).into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
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

    /// How many bytes of a content the disk cache has; `None` where counting took longer than `within`. Blocks on the disk.
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
