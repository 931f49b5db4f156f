//! Finds moved content, so that it is not transferred again. The host sends the content-defined blocks of a
//! range, and blocks of the earlier version come from the disk cache, wherever they were.
//!
//! Chunks are first compared at their old places (`request`). Several changed chunks in a row mean that
//! bytes were inserted or removed, so everything behind them has moved. Only then are blocks requested. A
//! rebuilt range is verified: each block against the hash that the host sent.

mod window;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::BytesMut;
use lru::LruCache;
use tokio::task::JoinSet;

use self::window::{MOVED_BYTES_MAX, Plan, SearchDecision, Window, chunks_of, windows_near};
use super::read::bad_answer;
use super::{FetchError, Fetcher, FileContent};
use crate::cache::{ChunkCache, FileKey};
use crate::chunk::{
    Block, ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk, cut_blocks,
};
use crate::client::{CallError, FAST_BYTES_PER_SECOND, Lane};
use crate::proto::{DELTA_BYTES_MAX, Reply, Request};

/// Most files whose differences from the earlier version are tracked.
const FILES_MAX: NonZero<usize> = NonZero::new(64).expect("not 0");

/// Most windows of one file with known blocks: 256 MiB of the file, 100 kB of memory each.
const WINDOWS_MAX: NonZero<usize> = NonZero::new(16).expect("not 0");

/// Most parts of one request that are fetched in parallel.
const PARTS_INFLIGHT_MAX: usize = 8;

/// Files that are searched for moved content, with the state of their earlier versions.
#[derive(Debug)]
pub(super) struct Deltas {
    files: Mutex<LruCache<FileKey, Arc<FileDelta>>>,
}

impl Default for Deltas {
    fn default() -> Self {
        Self { files: Mutex::new(LruCache::new(FILES_MAX)) }
    }
}

/// Differences of one content from the version before it.
#[derive(Debug)]
pub(super) struct FileDelta {
    decision: Mutex<SearchDecision>,
    /// Chunk hashes of the earlier version, copied before those of the new version replace them.
    earlier: OnceLock<Vec<Option<ChunkHash>>>,
    windows: Mutex<LruCache<u64, Arc<OnceLock<Window>>>>,
}

impl FileDelta {
    fn new() -> Self {
        let windows = Mutex::new(LruCache::new(WINDOWS_MAX));
        Self { decision: Mutex::default(), earlier: OnceLock::new(), windows }
    }

    /// Copies the cached hashes of the earlier version, once. Blocks on the disk.
    pub(super) fn load_earlier(&self, cache: &dyn ChunkCache, content: &FileContent) {
        self.earlier.get_or_init(|| {
            // The earlier version may have been longer.
            let chunks = ByteRange::new(0, content.version.size.saturating_add(MOVED_BYTES_MAX)).chunks();
            chunks.iter().map(|index| cache.known_hash(&content.history, index)).collect()
        });
    }

    /// Records the comparison of a chunk with the earlier one at its place.
    pub(super) fn compared(&self, is_same: bool) {
        self.decision(|decision| decision.compared(is_same));
    }

    fn decision<T>(&self, work: impl FnOnce(&mut SearchDecision) -> T) -> T {
        work(&mut self.decision.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn earlier_hash(&self, index: ChunkIndex) -> Option<ChunkHash> {
        self.earlier.get()?.get(usize::try_from(index.0).ok()?).copied().flatten()
    }

    /// Returns the blocks of one window of the earlier version. Blocks on the disk.
    fn window(&self, cache: &dyn ChunkCache, number: u64) -> Arc<OnceLock<Window>> {
        let window = {
            let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(windows.get_or_insert(number, Arc::default))
        };
        window.get_or_init(|| Window::new(self.blocks_of(cache, chunks_of(number))));
        window
    }

    fn blocks_of(&self, cache: &dyn ChunkCache, chunks: ChunkRange) -> Vec<Block> {
        let known: Vec<(ChunkIndex, ChunkHash)> =
            chunks.iter().filter_map(|index| Some((index, self.earlier_hash(index)?))).collect();
        let mut blocks = Vec::new();
        for run in known.chunk_by(|one, next| one.0.0 + 1 == next.0.0) {
            let hashes: Vec<ChunkHash> = run.iter().map(|(_, hash)| *hash).collect();
            // A chunk that left the cache ends a run. The chunks behind it are cut on their own.
            let (mut start, mut bytes) = (run[0].0.offset(), Vec::new());
            for ((index, _), chunk) in run.iter().zip(cache.load_run(&hashes)) {
                if let Some(chunk) = chunk {
                    bytes.extend_from_slice(chunk.bytes());
                } else {
                    blocks.extend(cut_blocks(start, &bytes));
                    (start, bytes) = (index.offset() + CHUNK_BYTES, Vec::new());
                }
            }
            blocks.extend(cut_blocks(start, &bytes));
        }
        blocks
    }

    /// Returns the bytes of a range of the earlier version from its loaded chunks.
    fn bytes_at(&self, place: ByteRange, loaded: &BTreeMap<ChunkHash, VerifiedChunk>) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(place.len as usize);
        for index in place.chunks().iter() {
            let chunk = loaded.get(&self.earlier_hash(index)?)?.bytes();
            let part = place.intersect(ByteRange::new(index.offset(), chunk.len() as u64))?;
            let from = (part.offset - index.offset()) as usize;
            bytes.extend_from_slice(&chunk[from..from + part.len as usize]);
        }
        (bytes.len() as u64 == place.len).then_some(bytes)
    }

    /// Builds the part of `wanted` that the earlier version has. Blocks on the disk.
    fn build(&self, cache: &dyn ChunkCache, wanted: ByteRange, blocks: &[Block]) -> Built {
        let windows: Vec<_> = windows_near(wanted).map(|number| self.window(cache, number)).collect();
        let find = |block: &Block| windows.iter().find_map(|window| window.get()?.find(block));
        let first = Plan::new(wanted, blocks, find);
        let mut hashes: Vec<ChunkHash> = first
            .found
            .iter()
            .flat_map(|(_, place)| place.chunks().iter())
            .filter_map(|index| self.earlier_hash(index))
            .collect();
        hashes.sort_unstable_by_key(|hash| *hash.as_bytes());
        hashes.dedup();
        let loaded = hashes.iter().copied().zip(cache.load_run(&hashes));
        let loaded: BTreeMap<_, _> = loaded.filter_map(|(hash, chunk)| Some((hash, chunk?))).collect();
        let mut built = Built::new(wanted);
        let mut proved = BTreeMap::new();
        for (block, place) in &first.found {
            let bytes = self.bytes_at(*place, &loaded).filter(|bytes| ChunkHash::of(bytes) == block.hash);
            if let Some(bytes) = bytes {
                built.put(block.range.offset, &bytes);
                proved.insert(block.range.offset, *place);
            }
        }
        // Blocks that could not be loaded are missing after all.
        let plan = Plan::new(wanted, blocks, |block| proved.get(&block.range.offset).copied());
        built.missing = plan.missing;
        built
    }
}

/// Range of the new version under construction, chunk by chunk.
#[derive(Debug)]
struct Built {
    wanted: ByteRange,
    chunks: Vec<BytesMut>,
    missing: Vec<ByteRange>,
}

impl Built {
    fn new(wanted: ByteRange) -> Self {
        let chunk = |index: ChunkIndex| {
            let part = wanted.intersect(ByteRange::new(index.offset(), CHUNK_BYTES));
            BytesMut::zeroed(part.map_or(0, |part| part.len as usize))
        };
        Self { wanted, chunks: wanted.chunks().iter().map(chunk).collect(), missing: Vec::new() }
    }

    /// Copies bytes to their place; bytes outside the range are dropped.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let Some(part) = self.wanted.intersect(ByteRange::new(offset, bytes.len() as u64)) else { return };
        for index in part.chunks().iter() {
            let Some(here) = part.intersect(ByteRange::new(index.offset(), CHUNK_BYTES)) else { continue };
            let number = (index.0 - self.wanted.chunks().first.0) as usize;
            let (to, from) = ((here.offset - index.offset()) as usize, (here.offset - offset) as usize);
            let len = here.len as usize;
            self.chunks[number][to..to + len].copy_from_slice(&bytes[from..from + len]);
        }
    }
}

impl Deltas {
    /// Returns the differences of a content from the version before it.
    pub(super) fn of(&self, content: &FileContent) -> Arc<FileDelta> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(files.get_or_insert(content.key, || Arc::new(FileDelta::new())))
    }

    /// Returns the same if searching for moved content pays over a link of this rate.
    pub(super) fn searched(&self, content: &FileContent, bytes_per_second: u64) -> Option<Arc<FileDelta>> {
        if bytes_per_second > FAST_BYTES_PER_SECOND {
            return None;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let delta = files.get(&content.key)?;
        delta.decision(|decision| decision.should_search()).then(|| Arc::clone(delta))
    }
}

impl Fetcher {
    /// Returns the chunks of a range, built from the earlier version and from the missing parts, which the
    /// host sends.
    pub(super) async fn fetch_moved(
        &self,
        delta: &Arc<FileDelta>,
        content: &FileContent,
        chunks: ChunkRange,
        lane: Lane,
    ) -> Result<Vec<(ChunkIndex, VerifiedChunk)>, FetchError> {
        let wanted = chunks.bytes_in(content.version.size);
        let blocks = self.blocks_of(content, wanted).await?;
        let (cache, builder) = (Arc::clone(&self.cache), Arc::clone(delta));
        let build = move || builder.build(&*cache, wanted, &blocks);
        let mut built = self.runtime.spawn_blocking(build).await.map_err(|_| closed())?;
        let missing = std::mem::take(&mut built.missing);
        let missing_bytes: u64 = missing.iter().map(|part| part.len).sum();
        delta.decision(|decision| decision.searched(wanted.len, wanted.len - missing_bytes));
        self.with_state(|state| state.counters.moved_bytes += wanted.len - missing_bytes);
        self.fetch_parts(content, missing, lane, &mut built).await?;
        let verified = built.chunks.into_iter().map(|bytes| VerifiedChunk::compute(bytes.freeze()));
        Ok(chunks.iter().zip(verified).collect())
    }

    /// Returns the blocks that cover a range, as the host has them.
    async fn blocks_of(&self, content: &FileContent, wanted: ByteRange) -> Result<Vec<Block>, FetchError> {
        let request = Request::Blocks { node: content.node, version: content.version, range: wanted };
        self.with_state(|state| state.counters.host_requests += 1);
        let Reply::Blocks { offset, blocks } = self.client.call(request, Lane::Metadata).await? else {
            return Err(bad_answer("an unexpected answer to a request for blocks"));
        };
        let mut at = offset;
        let placed = blocks.into_iter().map(|(len, hash)| {
            let range = ByteRange::new(at, len.into());
            at = range.end();
            Block { range, hash }
        });
        let placed: Vec<Block> = placed.collect();
        let covers = offset <= wanted.offset && at >= wanted.end() && wanted.len <= DELTA_BYTES_MAX;
        if covers { Ok(placed) } else { Err(bad_answer("blocks that do not cover the range")) }
    }

    async fn fetch_parts(
        &self,
        content: &FileContent,
        missing: Vec<ByteRange>,
        lane: Lane,
        built: &mut Built,
    ) -> Result<(), FetchError> {
        let Some(this) = self.this.upgrade() else { return Err(closed()) };
        let mut missing = missing.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < PARTS_INFLIGHT_MAX {
                let Some(part) = missing.next() else { break };
                let (fetcher, content) = (Arc::clone(&this), *content);
                running.spawn(async move { (part, fetcher.read_piece(&content, part, lane).await) });
            }
            let Some(ended) = running.join_next().await else { return Ok(()) };
            let (part, bytes) = ended.map_err(|_| closed())?;
            built.put(part.offset, &bytes?);
        }
    }
}

fn closed() -> FetchError {
    CallError::Closed.into()
}

#[cfg(test)]
mod tests;
