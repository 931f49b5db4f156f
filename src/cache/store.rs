//! [`DiskCache`]: the cache on disk. It answers readers and feeds the writer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::direct::DirectIo;
use super::directory::Directory;
use super::error::{CacheError, PinError};
use super::eviction::Form;
use super::index::Location;
use super::manifest::{DirtyPage, FileKey, Lookup, ManifestPage, PageId};
use super::payload::Access;
use super::pinning::PinBuilder;
use super::queue::{Item, Payload, Pushed};
use super::record::{BLOCK_BYTES, HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX, Secret, footer_bytes, stored_bytes};
use super::recovery::recover;
use super::shared::{Bounds, Counters, RecordRef, Shared, Verified};
use super::writer::Writer;
use super::{CacheStats, ChunkCache};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

/// Smallest and largest default size of a segment, in bytes. Eviction works on whole segments, and 1/32 of
/// the cache keeps it fine-grained. A chunk is too large a part of a segment below 4 MiB. Nothing improves
/// above 64 MiB.
const SEGMENT_BYTES: (u64, u64) = (4 * 1024 * 1024, 64 * 1024 * 1024);
const SEGMENTS: u64 = 32;

/// Segment sizes that work at all, in bytes.
const SEGMENT_BYTES_POSSIBLE: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

/// Deadline of [`ChunkCache::flush`]. A slow disk takes a second for 16 MiB.
pub(super) const FLUSH_WAIT: Duration = Duration::from_secs(10);

/// Time that an unmount waits for the writer to finish its segment. The next start recovers an unfinished
/// segment.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Settings of a cache.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Path of the directory, which is created if missing. Processes of one user may share it.
    pub directory: PathBuf,
    /// Most bytes that the segments take on disk, for all processes together.
    pub size_bytes: u64,
    /// Share of the file system, 0 to 1, that the cache leaves free.
    pub min_free_ratio: f64,
    /// Largest size of a segment in whole blocks of 4 KiB. The default is 1/32 of the cache, between 4 MiB
    /// and 64 MiB.
    pub segment_bytes: Option<u64>,
}

impl CacheConfig {
    fn bounds(&self) -> Result<Bounds, CacheError> {
        let chosen = (self.size_bytes / SEGMENTS).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1);
        let segment_bytes = self.segment_bytes.unwrap_or(chosen);
        // Files take whole blocks. Another size would exceed its bound on disk.
        let segment_bytes = segment_bytes - segment_bytes % u64::from(BLOCK_BYTES);
        if !SEGMENT_BYTES_POSSIBLE.contains(&segment_bytes) {
            return Err(CacheError::SegmentSize { segment_bytes });
        }
        // One segment is written while another is evicted.
        let least_bytes = 2 * segment_bytes;
        if self.size_bytes < least_bytes {
            return Err(CacheError::TooSmall { size_bytes: self.size_bytes, least_bytes });
        }
        let min_free_ratio = self.min_free_ratio.clamp(0.0, 1.0);
        Ok(Bounds { size_bytes: self.size_bytes, segment_bytes: segment_bytes as u32, min_free_ratio })
    }
}

/// State of the directory of an open cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectoryState {
    /// Unchanged since it was opened.
    Good,
    /// Deleted, or replaced by another directory.
    Gone,
    /// Read-only when it was opened, and writable now.
    BecameWritable,
}

/// Cache on disk. Dropping it writes the queued records within a deadline and finishes the segment.
#[derive(Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl DiskCache {
    /// Opens the cache in `config.directory`. Reads the footers of its segments, not their content. Blocks
    /// on the disk.
    pub fn open(config: &CacheConfig) -> Result<Self, CacheError> {
        Self::open_with(config, DirectIo::Auto)
    }

    pub(super) fn open_with(config: &CacheConfig, direct: DirectIo) -> Result<Self, CacheError> {
        let bounds = config.bounds()?;
        let (directory, secret) = Directory::open(&config.directory, direct)?;
        let lock = if directory.read_only { None } else { Some(directory.lock()?) };
        let index = recover(&directory, &secret, lock.as_ref())?;
        let shared = Arc::new(Shared::new(directory, secret, bounds, index));
        if let Some(lock) = lock {
            // The size may be smaller than at the last start.
            let listed = shared.directory.list().map_err(CacheError::io("list", &config.directory))?;
            let reclaimed = shared.reclaim(&lock, &listed, 0);
            let reclaimed = reclaimed.map_err(CacheError::io("make room in", &config.directory))?;
            reclaimed.evicted.iter().for_each(|&segment| shared.forget_segment(segment));
        }
        Self::start(shared, &config.directory)
    }

    /// Opens a cache that only reads `directory`.
    pub(super) fn reading(directory: Directory, secret: Secret) -> Result<Self, CacheError> {
        let index = recover(&directory, &secret, None)?;
        let root = directory.path(0, Form::Sealed);
        // Nothing is written, so no bound applies.
        let bounds = Bounds { size_bytes: u64::MAX, segment_bytes: 0, min_free_ratio: 0.0 };
        Self::start(Arc::new(Shared::new(directory, secret, bounds, index)), &root)
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Checks the state of the directory, which other processes can change. Blocks on the disk.
    pub(super) fn state(&self) -> DirectoryState {
        self.shared.directory.state()
    }

    fn start(shared: Arc<Shared>, root: &Path) -> Result<Self, CacheError> {
        let writer = Writer::new(Arc::clone(&shared));
        let thread = thread::Builder::new().name("wormhole-cache".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(CacheError::io("start the writer of", root))?;
        Ok(Self { shared, writer: Some(thread) })
    }

    /// Picks up the changes of other processes at once. This happens by itself at most once a second after
    /// misses. Returns `true` if it was done within some seconds.
    pub fn refresh(&self) -> bool {
        self.shared.queue.refresh_now(Instant::now() + FLUSH_WAIT)
    }

    /// Returns `true` if a payload of `len` bytes fits into one segment beside the survivors of an
    /// eviction.
    fn fits(&self, len: usize) -> bool {
        let half = u64::from(self.shared.bounds.segment_bytes / 2);
        let overhead = u64::from(HEADER_BYTES) + footer_bytes(0);
        len <= PAYLOAD_BYTES_MAX as usize && stored_bytes(len as u32) + overhead <= half
    }

    /// Looks again for a chunk that was not at its indexed location. It may have moved, or still wait in
    /// the queue.
    fn load_again(&self, hash: ChunkHash, tried: Option<Location>) -> Option<VerifiedChunk> {
        let key = *hash.as_bytes();
        if let Some(Payload::Chunk(chunk)) = self.shared.queue.get(&key, Kind::Chunk) {
            return Some(chunk);
        }
        let at = self.shared.index().peek(&key, Kind::Chunk).filter(|at| Some(*at) != tried)?;
        self.shared.read(&[(key, Kind::Chunk, at)], Access::First).pop()?.and_then(into_chunk)
    }
}

impl ChunkCache for DiskCache {
    fn contains(&self, hash: ChunkHash) -> bool {
        let key = hash.as_bytes();
        let found = self.shared.index().contains(key, Kind::Chunk)
            || self.shared.queue.get(key, Kind::Chunk).is_some();
        if !found {
            self.shared.queue.want_refresh();
        }
        found
    }

    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
        let (reading, places): (_, Vec<Option<Location>>) = {
            let mut index = self.shared.index();
            let again = hashes.iter().all(|hash| index.was_used(hash.as_bytes()));
            let places = hashes.iter().map(|hash| index.find(hash.as_bytes(), Kind::Chunk));
            (if again { Access::Repeated } else { Access::First }, places.collect())
        };
        let placed = hashes.iter().zip(&places);
        let wanted: Vec<RecordRef> =
            placed.filter_map(|(hash, at)| Some((*hash.as_bytes(), Kind::Chunk, (*at)?))).collect();
        let mut read = self.shared.read(&wanted, reading).into_iter();
        let chunks: Vec<Option<VerifiedChunk>> = hashes
            .iter()
            .zip(places)
            .map(|(hash, at)| {
                let chunk = at.and_then(|_| read.next().flatten().and_then(into_chunk));
                chunk.or_else(|| self.load_again(*hash, at))
            })
            .collect();
        let hits = chunks.iter().flatten().count();
        Counters::add(&self.shared.counters.hits, hits as u64);
        Counters::add(&self.shared.counters.misses, (hashes.len() - hits) as u64);
        if hits < hashes.len() {
            self.shared.queue.want_refresh();
        }
        chunks
    }

    fn insert(&self, chunk: VerifiedChunk) {
        let key = *chunk.hash().as_bytes();
        if self.shared.directory.read_only || !self.fits(chunk.bytes().len()) {
            Counters::add(&self.shared.counters.dropped, 1);
        } else if !self.shared.index().contains(&key, Kind::Chunk) {
            push(&self.shared, Item { key, payload: Payload::Chunk(chunk) });
        }
    }

    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash> {
        known_hash(&self.shared, file, index)
    }

    fn knows_none(&self, file: &FileKey, chunks: ChunkRange) -> bool {
        chunks.iter().all(|index| cannot_know(&self.shared, file, index))
    }

    fn record_hash(&self, file: &FileKey, index: ChunkIndex, hash: ChunkHash) {
        let (id, slot) = PageId::of(*file, index);
        let due = self.shared.manifests().record(id, slot, hash);
        push_pages(&self.shared, due);
    }

    fn flush_file(&self, file: &FileKey) {
        let due = self.shared.manifests().take_dirty_of(*file);
        push_pages(&self.shared, due);
    }

    fn is_behind(&self) -> bool {
        self.shared.queue.is_behind()
    }

    fn writes_bytes_per_second(&self) -> u64 {
        self.shared.queue.bytes_per_second()
    }

    fn flush(&self) -> bool {
        let deadline = Instant::now() + FLUSH_WAIT;
        let drained = self.shared.queue.drain(deadline);
        let due = self.shared.manifests().take_dirty();
        push_pages(&self.shared, due);
        drained && self.shared.queue.drain(deadline)
    }

    fn is_writable(&self) -> bool {
        !self.shared.directory.read_only
    }

    fn problem(&self) -> Option<String> {
        if self.shared.directory.read_only {
            return Some("its directory cannot be written; the cache is read-only".to_owned());
        }
        self.shared.refusal().clone()
    }

    fn begin_pin(&self, name: &str) -> Result<PinBuilder, PinError> {
        PinBuilder::begin(Arc::clone(&self.shared), name)
    }

    fn stats(&self) -> CacheStats {
        let index = self.shared.index();
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            entries: index.len() as u64,
            bytes: index.bytes(),
            segments: index.segments().len() as u64,
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            corrupt: get(&counters.corrupt),
            inserts: get(&counters.inserts),
            dropped: get(&counters.dropped),
            evicted_bytes: get(&counters.evicted_bytes),
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        let due = self.shared.manifests().take_dirty();
        push_pages(&self.shared, due);
        let stopped = self.shared.queue.stop(Instant::now() + STOP_WAIT);
        // A writer that hangs on a dead disk is left behind, because an unmount must end.
        if let Some(writer) = self.writer.take().filter(|_| stopped) {
            let _ = writer.join();
        }
    }
}

/// Implements [`ChunkCache::known_hash`].
pub(super) fn known_hash(shared: &Shared, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash> {
    let (id, slot) = PageId::of(*file, index);
    match shared.manifests().lookup(id, slot) {
        Lookup::Known(hash) => return Some(hash),
        Lookup::Unknown => return None,
        Lookup::AskDisk => {}
    }
    let page = read_page(shared, id)?;
    let evicted = shared.manifests().join(id, &page);
    push_pages(shared, evicted.into_iter().collect());
    page.get(slot)
}

/// Returns `true` if neither memory nor disk can know the hash of chunk `index` of this file version.
fn cannot_know(shared: &Shared, file: &FileKey, index: ChunkIndex) -> bool {
    let (id, slot) = PageId::of(*file, index);
    let found = shared.manifests().lookup(id, slot);
    match found {
        Lookup::Known(_) => false,
        Lookup::Unknown => true,
        Lookup::AskDisk => {
            let key = id.key();
            shared.queue.get(&key, Kind::Manifest).is_none() && !shared.index().contains(&key, Kind::Manifest)
        }
    }
}

fn read_page(shared: &Shared, id: PageId) -> Option<ManifestPage> {
    let key = id.key();
    if let Some(Payload::Manifest(page)) = shared.queue.get(&key, Kind::Manifest) {
        return Some(Arc::unwrap_or_clone(page));
    }
    let at = shared.index().find(&key, Kind::Manifest)?;
    match shared.read(&[(key, Kind::Manifest, at)], Access::Repeated).pop()?? {
        Verified::Manifest(page, _) => Some(page),
        Verified::Chunk(_) => None,
    }
}

fn push(shared: &Shared, item: Item) {
    match shared.queue.push(item) {
        Pushed::Accepted => Counters::add(&shared.counters.inserts, 1),
        Pushed::Duplicate => {}
        Pushed::Refused => Counters::add(&shared.counters.dropped, 1),
    }
}

fn push_pages(shared: &Shared, pages: Vec<DirtyPage>) {
    if shared.directory.read_only {
        return;
    }
    for (id, page) in pages {
        push(shared, Item { key: id.key(), payload: Payload::Manifest(page) });
    }
}

fn into_chunk(verified: Verified) -> Option<VerifiedChunk> {
    match verified {
        Verified::Chunk(chunk) => Some(chunk),
        Verified::Manifest(..) => None,
    }
}
