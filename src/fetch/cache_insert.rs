//! Insertion of fetched chunks into the disk cache, with a bounded wait for room.
//!
//! A disk may be slower than the link. The cache drops chunks that it has no room for, so read-ahead at the
//! speed of the link would fill memory and lose most of its chunks. A request therefore ends, and frees its
//! slot for the next one, only when the cache has taken its chunks or the wait is over:
//! [`INSERT_WAIT_MAX`], or [`INSERT_WAIT_FAST_MAX`] if the disk is nearly as fast as the link. Readers get
//! their bytes before that. The waiting bytes are bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fetcher, FileContent};
use crate::chunk::{ChunkIndex, VerifiedChunk};

/// Longest wait of the chunks of one request for the disk. The cache drops the remaining ones, because a
/// disk slower than the link must not slow down reading. A wait of 200 ms made one read of 512 MiB over 1
/// Gbit/s and 50 ms as slow as the disk, 17 MB/s.
const INSERT_WAIT_MAX: Duration = Duration::from_millis(20);

/// Longest wait for a disk of at least [`FAST_BYTES_PER_SECOND`]. In that time it takes 64 MiB, more than
/// all requests may hold.
const INSERT_WAIT_FAST_MAX: Duration = Duration::from_millis(300);

/// Write rate in bytes per second from which a disk may delay the link. Reads are then at least this fast,
/// twice the rate of a link of 1 Gbit/s. On a faster link everything read is still cached.
const FAST_BYTES_PER_SECOND: u64 = 250_000_000;

/// Most bytes of all requests that wait for the disk. From half of it on, new requests wait too
/// ([`Fetcher::wait_for_disk`]). Otherwise a pause of the disk would make every reader accumulate bytes:
/// sixteen readers 100 MiB in 200 ms.
const PENDING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Time between two checks for room: 4 MiB at 2 GB/s.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Bytes of all requests that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct PendingInserts {
    bytes: AtomicUsize,
}

impl PendingInserts {
    /// Returns `true` if new requests might exceed the bound.
    fn is_half_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > PENDING_BYTES_MAX / 2
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > PENDING_BYTES_MAX
    }
}

impl Fetcher {
    /// Delays a new request while many bytes wait for a fast disk. Otherwise the cache would drop some of
    /// its chunks.
    pub(super) async fn wait_for_disk(&self) {
        let start = Instant::now();
        while self.pending_inserts.is_half_full()
            && self.has_fast_disk()
            && start.elapsed() < INSERT_WAIT_FAST_MAX
        {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Read each time, because a disk that stalls is no longer fast.
    fn has_fast_disk(&self) -> bool {
        self.cache.writes_bytes_per_second() >= FAST_BYTES_PER_SECOND
    }

    fn insert_wait_max(&self) -> Duration {
        if self.has_fast_disk() { INSERT_WAIT_FAST_MAX } else { INSERT_WAIT_MAX }
    }
}

/// Chunks of one request. Dropping it offers the waiting ones to the cache at once.
pub(super) struct CacheInserter<'a> {
    fetcher: &'a Fetcher,
    content: FileContent,
    waiting: VecDeque<(ChunkIndex, VerifiedChunk)>,
}

impl<'a> CacheInserter<'a> {
    pub(super) const fn new(fetcher: &'a Fetcher, content: FileContent) -> Self {
        Self { fetcher, content, waiting: VecDeque::new() }
    }

    /// Adds a chunk to insert.
    pub(super) fn insert(&mut self, index: ChunkIndex, chunk: VerifiedChunk) {
        self.fetcher.pending_inserts.bytes.fetch_add(chunk.bytes().len(), Ordering::Relaxed);
        self.waiting.push_back((index, chunk));
        while (!self.fetcher.cache.is_behind() || self.fetcher.pending_inserts.is_full())
            && self.insert_next()
        {}
    }

    /// Waits until all chunks are inserted, or the wait is over and the rest is offered at once.
    pub(super) async fn finish(mut self) {
        let start = Instant::now();
        while !self.waiting.is_empty() && start.elapsed() < self.fetcher.insert_wait_max() {
            if self.fetcher.cache.is_behind() {
                sleep(POLL_INTERVAL).await;
            } else {
                self.insert_next();
            }
        }
    }

    fn insert_next(&mut self) -> bool {
        let Some((index, chunk)) = self.waiting.pop_front() else { return false };
        self.fetcher.pending_inserts.bytes.fetch_sub(chunk.bytes().len(), Ordering::Relaxed);
        let hash = chunk.hash();
        self.fetcher.cache.insert(chunk);
        self.fetcher.record(&self.content, index, hash);
        true
    }
}

impl Drop for CacheInserter<'_> {
    fn drop(&mut self) {
        while self.insert_next() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use super::*;
    use crate::cache::{CacheStats, ChunkCache, FileKey};
    use crate::chunk::{CHUNK_BYTES, ChunkHash};
    use crate::client::memory::MemoryHost;
    use crate::fetch::FetchConfig;
    use crate::proto::{NodeId, Timestamp, Version};

    /// Cache without room for a while, which counts the forced inserts.
    struct Full {
        until: Instant,
        bytes_per_second: u64,
        forced: Mutex<usize>,
    }

    impl ChunkCache for Full {
        fn contains(&self, _: ChunkHash) -> bool {
            false
        }

        fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
            vec![None; hashes.len()]
        }

        fn insert(&self, _: VerifiedChunk) {
            *self.forced.lock().unwrap() += usize::from(self.is_behind());
        }

        fn known_hash(&self, _: &FileKey, _: ChunkIndex) -> Option<ChunkHash> {
            None
        }

        fn record_hash(&self, _: &FileKey, _: ChunkIndex, _: ChunkHash) {}

        fn flush_file(&self, _: &FileKey) {}

        fn is_behind(&self) -> bool {
            Instant::now() < self.until
        }

        fn writes_bytes_per_second(&self) -> u64 {
            self.bytes_per_second
        }

        fn flush(&self) -> bool {
            true
        }

        fn stats(&self) -> CacheStats {
            CacheStats::default()
        }
    }

    fn content(size: u64) -> FileContent {
        let version = Version { size, mtime: Timestamp(0), ctime: Timestamp(0) };
        let node = NodeId { device: 1, inode: 1, birth_ns: 0 };
        let (key, history) = (FileKey::from_bytes([1; 32]), FileKey::from_bytes([2; 32]));
        FileContent { node, version, key, history, settled: true, epoch: 0 }
    }

    fn fetcher(cache: &Arc<Full>) -> Arc<Fetcher> {
        Fetcher::new(MemoryHost::new().client(), Arc::clone(cache) as Arc<_>, FetchConfig::default())
    }

    /// Inserts two chunks into a cache that has room after `wait`. Returns the number of forced inserts and
    /// the time taken.
    async fn keep_two(bytes_per_second: u64, wait: Duration) -> (usize, Duration) {
        let start = Instant::now();
        let cache = Arc::new(Full { until: start + wait, bytes_per_second, forced: Mutex::new(0) });
        let fetcher = fetcher(&cache);
        let mut inserter = CacheInserter::new(&fetcher, content(2));
        for index in 0..2 {
            inserter.insert(ChunkIndex(index), VerifiedChunk::compute(Bytes::from(vec![index as u8])));
        }
        inserter.finish().await;
        (*cache.forced.lock().unwrap(), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_disk_is_waited_for_and_a_slow_one_is_not() {
        let wait = INSERT_WAIT_FAST_MAX / 2;
        let (forced, took) = keep_two(FAST_BYTES_PER_SECOND, wait).await;
        assert!(forced == 0 && took >= wait, "{forced} {took:?}");
        let (forced, took) = keep_two(FAST_BYTES_PER_SECOND - 1, Duration::from_secs(3600)).await;
        assert!(forced == 2 && took < INSERT_WAIT_FAST_MAX, "{forced} {took:?}");
        let (forced, took) = keep_two(FAST_BYTES_PER_SECOND, Duration::from_secs(3600)).await;
        assert!(forced == 2 && took >= INSERT_WAIT_FAST_MAX, "{forced} {took:?}");
    }

    #[tokio::test]
    async fn pending_inserts_are_bounded() {
        const CHUNKS: usize = 5;
        let cache = Arc::new(Full {
            until: Instant::now() + Duration::from_secs(3600),
            bytes_per_second: FAST_BYTES_PER_SECOND,
            forced: Mutex::new(0),
        });
        let (fetcher, chunk) = (fetcher(&cache), VerifiedChunk::compute(vec![1; 1 << 18].into()));
        let forced = || *cache.forced.lock().unwrap();
        let mut requests = Vec::new();
        while requests.len() * CHUNKS * chunk.bytes().len() <= 2 * PENDING_BYTES_MAX {
            let mut inserter = CacheInserter::new(&fetcher, content(CHUNKS as u64 * CHUNK_BYTES));
            (0..CHUNKS as u64).for_each(|index| inserter.insert(ChunkIndex(index), chunk.clone()));
            requests.push(inserter);
        }
        let waiting = requests.len() * CHUNKS - forced();
        assert_eq!(waiting, PENDING_BYTES_MAX / chunk.bytes().len());
        drop(requests);
        assert_eq!(fetcher.pending_inserts.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_waits_with_a_fast_disk_and_not_with_a_slow_one() {
        const LONG: Duration = Duration::from_secs(3600);
        for (bytes_per_second, least, most) in [
            (FAST_BYTES_PER_SECOND, INSERT_WAIT_FAST_MAX, LONG),
            (FAST_BYTES_PER_SECOND - 1, Duration::ZERO, INSERT_WAIT_FAST_MAX),
        ] {
            let cache =
                Arc::new(Full { until: Instant::now() + LONG, bytes_per_second, forced: Mutex::new(0) });
            let host = MemoryHost::new();
            host.create_generated("file", 2 * CHUNK_BYTES, 1);
            let fetcher = Fetcher::new(host.client(), Arc::clone(&cache) as Arc<_>, FetchConfig::default());
            let file = crate::fetch::tests::content(&host, "file").await;
            for (index, waiting, least, most) in
                [(0, PENDING_BYTES_MAX / 2 + 1, least, most), (1, 0, Duration::ZERO, INSERT_WAIT_FAST_MAX)]
            {
                fetcher.pending_inserts.bytes.fetch_add(waiting, Ordering::Relaxed);
                let start = Instant::now();
                fetcher.read_chunks(&file, ChunkIndex(index).bytes_in(file.version.size)).await.unwrap();
                let took = start.elapsed();
                fetcher.pending_inserts.bytes.fetch_sub(waiting, Ordering::Relaxed);
                assert!(took >= least && took < most, "{took:?} with {waiting} bytes at {bytes_per_second}");
            }
        }
    }
}
