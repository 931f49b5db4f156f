//! State shared by readers and the writer: the index, the open files, the counters. Reads and verifies
//! records.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tracing::warn;

use super::directory::Directory;
use super::eviction::Form;
use super::index::{Index, Location};
use super::manifest::{ManifestPage, ManifestTable};
use super::payload::{Access, SegmentFile, are_neighbours};
use super::queue::Queue;
use super::record::{Key, Kind, Secret, SegmentId};
use crate::chunk::{CHUNK_BYTES, ChunkHash, RunSlice, VerifiedChunk};
use crate::io::{ContentBuffers, RUN_BUFFER_BYTES};

/// Most segment files kept open for reading. A stream needs one. 64 serve many streams and are far from the
/// usual limit of 1,024 descriptors.
const OPEN_FILES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Most records shorter than a full chunk that one system call reads.
const RUN_RECORDS_MAX: usize = 16;
/// Most full chunks that one system call reads: the chunks of one run buffer.
const RUN_CHUNKS: usize = RUN_BUFFER_BYTES / CHUNK_BYTES as usize;

/// Limits of a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most bytes of all segments.
    pub(super) size_bytes: u64,
    /// Most bytes of one segment.
    pub(super) segment_bytes: u32,
    /// Share of the file system that stays free.
    pub(super) min_free_ratio: f64,
}

/// Counters since the cache was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) inserts: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) evicted_bytes: AtomicU64,
}

impl Counters {
    /// Adds `count` to one of the counters.
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Record to read: its key, kind and location.
pub(super) type RecordRef = (Key, Kind, Location);

/// Payload that passed verification.
#[derive(Debug)]
pub(super) enum Verified {
    /// A chunk.
    Chunk(VerifiedChunk),
    /// Manifest page and its encoded bytes.
    Manifest(ManifestPage, Bytes),
}

/// State shared by readers and the writer.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: Directory,
    pub(super) secret: Secret,
    pub(super) bounds: Bounds,
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    index: Mutex<Index>,
    manifests: Mutex<ManifestTable>,
    files: Mutex<LruCache<SegmentId, Arc<SegmentFile>>>,
    /// Buffers into which runs of payloads are read.
    buffers: Arc<ContentBuffers>,
    warned_corrupt: AtomicBool,
    /// Reason why no new record is accepted at the moment.
    refusal: Mutex<Option<String>>,
}

impl Shared {
    /// Creates the shared state.
    pub(super) fn new(directory: Directory, secret: Secret, bounds: Bounds, index: Index) -> Self {
        Self {
            directory,
            secret,
            bounds,
            queue: Queue::default(),
            counters: Counters::default(),
            index: Mutex::new(index),
            manifests: Mutex::default(),
            files: Mutex::new(LruCache::new(OPEN_FILES_MAX)),
            buffers: ContentBuffers::shared(),
            warned_corrupt: AtomicBool::new(false),
            refusal: Mutex::default(),
        }
    }

    /// Locks the index. The lock is never held during I/O.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the reason why no new record is accepted. The writer sets it and `status` reads it.
    pub(super) fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the manifest pages in memory. The lock is never held during I/O.
    pub(super) fn manifests(&self) -> MutexGuard<'_, ManifestTable> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, LruCache<SegmentId, Arc<SegmentFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the file of `segment`, and opens it if necessary.
    pub(super) fn file(&self, segment: SegmentId) -> io::Result<Arc<SegmentFile>> {
        if let Some(file) = self.files().get(&segment) {
            return Ok(Arc::clone(file));
        }
        Ok(self.keep_file(segment, Arc::new(self.directory.open_segment(segment)?)))
    }

    /// Keeps `file` open for readers.
    pub(super) fn keep_file(&self, segment: SegmentId, file: Arc<File>) -> Arc<SegmentFile> {
        let file = Arc::new(SegmentFile::new(segment, file));
        self.files().put(segment, Arc::clone(&file));
        file
    }

    /// Closes every file without a reader, because an unlinked segment takes space until its last
    /// descriptor is closed. Also frees the unused buffers.
    pub(super) fn close_files(&self) {
        self.files().clear();
        self.buffers.clear();
    }

    /// Forgets a segment, its records and its file.
    pub(super) fn forget_segment(&self, segment: SegmentId) {
        self.index().remove_segment(segment);
        self.files().pop(&segment);
    }

    /// Reads and verifies records. One system call reads records that are adjacent on disk. A missing or
    /// damaged record gives `None` and is forgotten.
    pub(super) fn read(&self, wanted: &[RecordRef], reading: Access) -> Vec<Option<Verified>> {
        let mut results = Vec::with_capacity(wanted.len());
        for run in runs(wanted) {
            results.extend(self.read_run(run, reading));
        }
        results
    }

    fn read_run(&self, run: &[RecordRef], reading: Access) -> Vec<Option<Verified>> {
        let places: Vec<Location> = run.iter().map(|(.., at)| *at).collect();
        let Some(first) = places.first() else { return Vec::new() };
        let payloads = match self.file(first.segment) {
            Ok(file) => file.payloads(&self.directory, &self.buffers, &places, reading),
            Err(error) => {
                let evicted = error.kind() == ErrorKind::NotFound;
                for wanted in run {
                    self.forget(wanted, evicted);
                }
                return run.iter().map(|_| None).collect();
            }
        };
        let verified = payloads.into_iter().zip(run).map(|(payload, wanted)| {
            let verified = payload.and_then(|payload| self.verify(wanted.0, wanted.1, payload));
            if verified.is_none() {
                self.forget(wanted, false);
            }
            verified
        });
        verified.collect()
    }

    fn verify(&self, key: Key, kind: Kind, payload: RunSlice) -> Option<Verified> {
        match kind {
            Kind::Chunk => {
                VerifiedChunk::verify(ChunkHash::from_bytes(key), payload).ok().map(Verified::Chunk)
            }
            Kind::Manifest => {
                let page = ManifestPage::decode(&self.secret, &key, payload.bytes())?;
                Some(Verified::Manifest(page, payload.bytes().clone()))
            }
        }
    }

    /// Forgets a record that could not be read. Damage is counted; eviction by another process is not
    /// damage.
    fn forget(&self, (key, _, at): &RecordRef, evicted: bool) {
        let form = {
            let mut index = self.index();
            if !index.remove_at(key, *at) || evicted {
                return;
            }
            index.segments().get(&at.segment).map_or(Form::Sealed, |segment| segment.form)
        };
        Counters::add(&self.counters.corrupt, 1);
        if !self.warned_corrupt.swap(true, Ordering::Relaxed) {
            let path = self.directory.path(at.segment, form);
            warn!("{} is damaged at byte {}; the lost content is fetched again", path.display(), at.offset);
        }
    }
}

/// Cuts `wanted` into runs that are adjacent on disk.
fn runs(wanted: &[RecordRef]) -> impl Iterator<Item = &[RecordRef]> {
    let neighbours = wanted.chunk_by(|(.., first), (.., second)| are_neighbours(first, second));
    neighbours.flat_map(cut)
}

/// Cuts adjacent records into the parts that one system call reads: as many full chunks as fill a buffer,
/// or one of them, or a group of shorter records.
fn cut(mut run: &[RecordRef]) -> impl Iterator<Item = &[RecordRef]> {
    let is_full = |(.., at): &&RecordRef| at.len == CHUNK_BYTES as u32;
    std::iter::from_fn(move || {
        let records = match run.iter().take_while(is_full).take(RUN_CHUNKS).count() {
            0 => run.iter().take_while(|wanted| !is_full(wanted)).take(RUN_RECORDS_MAX).count(),
            RUN_CHUNKS => RUN_CHUNKS,
            _ => 1,
        };
        let (now, later) = run.split_at(records);
        run = later;
        (!now.is_empty()).then_some(now)
    })
}
