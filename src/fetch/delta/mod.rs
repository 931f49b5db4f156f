//! What moved within a file is not transferred again: the host tells the content-defined blocks of a range, and those that the
//! earlier version had, wherever it had them, are taken from the disk cache.
//!
//! Chunks are compared in their places first (`request`). Where several in a row differ something was put in or taken
//! out, and everything behind it has moved; only then are blocks asked for. What is put together so is proved twice: each
//! block against the hash that the host sent, and what a program reads is what these blocks are.

mod window;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::BytesMut;
use lru::LruCache;
use tokio::task::JoinSet;

use self::window::{MOVED_BYTES_MAX, Plan, Trial, Window, chunks_of, windows_near};
use super::read::bad_answer;
use super::{FetchError, Fetcher, FileContent};
use crate::cache::{ChunkCache, FileKey};
use crate::chunk::{
    Block, ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk, cut_blocks,
};
use crate::client::{CallError, FAST_BYTES_PER_SECOND, Lane};
use crate::proto::{DELTA_BYTES_MAX, Reply, Request};

/// Files of which it is known how they differ from what they were.
const FILES_MAX: NonZero<usize> = NonZero::new(64).expect("not 0");

/// Windows of one file whose blocks are known: 256 MiB of it, for 100 kB each.
const WINDOWS_MAX: NonZero<usize> = NonZero::new(16).expect("not 0");

/// Parts of one request that are asked of the host at a time.
const PARTS_INFLIGHT_MAX: usize = 8;

/// Which files are looked through, and what is known of their earlier versions.
#[derive(Debug)]
pub(super) struct Deltas {
    files: Mutex<LruCache<FileKey, Arc<FileDelta>>>,
}

impl Default for Deltas {
    fn default() -> Self {
        Self { files: Mutex::new(LruCache::new(FILES_MAX)) }
    }
}

/// One content beside the version before it.
#[derive(Debug)]
pub(super) struct FileDelta {
    trial: Mutex<Trial>,
    /// The chunks of the earlier version, taken down before the new version's took their places.
    earlier: OnceLock<Vec<Option<ChunkHash>>>,
    windows: Mutex<LruCache<u64, Arc<OnceLock<Window>>>>,
}

impl FileDelta {
    fn new() -> Self {
        let windows = Mutex::new(LruCache::new(WINDOWS_MAX));
        Self { trial: Mutex::default(), earlier: OnceLock::new(), windows }
    }

    /// Takes down what the cache knows of the earlier version, once. Blocks on the disk.
    pub(super) fn remember(&self, cache: &dyn ChunkCache, content: &FileContent) {
        self.earlier.get_or_init(|| {
            // What was taken out may have been longer than what is left.
            let chunks = ByteRange::new(0, content.version.size.saturating_add(MOVED_BYTES_MAX)).chunks();
            chunks.iter().map(|index| cache.known_hash(&content.history, index)).collect()
        });
    }

    /// One more chunk was compared with what the file had in its place.
    pub(super) fn compared(&self, is_same: bool) {
        self.trial(|trial| trial.compared(is_same));
    }

    fn trial<T>(&self, work: impl FnOnce(&mut Trial) -> T) -> T {
        work(&mut self.trial.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn earlier_hash(&self, index: ChunkIndex) -> Option<ChunkHash> {
        self.earlier.get()?.get(usize::try_from(index.0).ok()?).copied().flatten()
    }

    /// The blocks of one window of the earlier version. Blocks on the disk.
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
            // What is gone meanwhile ends a run: what lies behind it is cut by itself.
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

    /// The bytes of a place in the earlier version, out of its chunks.
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

    /// Puts together what the earlier version had of `wanted`. Blocks on the disk.
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
        // What could not be loaded is missing after all.
        let plan = Plan::new(wanted, blocks, |block| proved.get(&block.range.offset).copied());
        built.missing = plan.missing;
        built
    }
}

/// A range of the new version under construction, chunk by chunk.
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

    /// Puts bytes where they belong; what lies outside of the range falls away.
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
    /// What is known of a content's difference from the version before it.
    pub(super) fn of(&self, content: &FileContent) -> Arc<FileDelta> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(files.get_or_insert(content.key, || Arc::new(FileDelta::new())))
    }

    /// The same, where it pays to look for what moved over a link of that rate.
    pub(super) fn searched(&self, content: &FileContent, bytes_per_second: u64) -> Option<Arc<FileDelta>> {
        if bytes_per_second > FAST_BYTES_PER_SECOND {
            return None;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let delta = files.get(&content.key)?;
        delta.trial(|trial| trial.is_on()).then(|| Arc::clone(delta))
    }
}

impl Fetcher {
    /// The chunks of a range, put together from what the earlier version had and what only the host has.
    pub(super) async fn bring_moved(
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
        delta.trial(|trial| trial.searched(wanted.len, wanted.len - missing_bytes));
        self.with_state(|state| state.counters.moved_bytes += wanted.len - missing_bytes);
        self.bring_parts(content, missing, lane, &mut built).await?;
        let verified = built.chunks.into_iter().map(|bytes| VerifiedChunk::compute(bytes.freeze()));
        Ok(chunks.iter().zip(verified).collect())
    }

    /// The blocks of a range and what sticks out of it, as the host has them.
    async fn blocks_of(&self, content: &FileContent, wanted: ByteRange) -> Result<Vec<Block>, FetchError> {
        let request = Request::Blocks { node: content.node, version: content.version, range: wanted };
        self.with_state(|state| state.counters.host_requests += 1);
        let Reply::Blocks { offset, blocks } = self.client.call(request, Lane::Metadata).await? else {
            return Err(bad_answer("something else than the blocks that were asked for"));
        };
        let mut at = offset;
        let placed = blocks.into_iter().map(|(len, hash)| {
            let range = ByteRange::new(at, len.into());
            at = range.end();
            Block { range, hash }
        });
        let placed: Vec<Block> = placed.collect();
        let covers = offset <= wanted.offset && at >= wanted.end() && wanted.len <= DELTA_BYTES_MAX;
        if covers { Ok(placed) } else { Err(bad_answer("blocks that leave something out")) }
    }

    async fn bring_parts(
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
