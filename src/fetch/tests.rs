//! The fetcher over a host in memory: right bytes, one request a chunk, bounds, failures and cancellation.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use bytes::Bytes;

use super::*;
use crate::cache::{CacheConfig, DiskCache, FileKey, NoCache};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkIndex};
use crate::client::memory::{MemoryHost, Stage};
use crate::client::{CallError, Lane};
use crate::prefetch::{Demand, Limits, Prefetcher};
use crate::proto::{ErrorCode, Request, WireError};

const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;

const fn stream(handle: u64) -> StreamId {
    StreamId { handle, cursor: 0 }
}

fn fetcher(host: &MemoryHost) -> Arc<Fetcher> {
    Fetcher::new(host.client(), Arc::new(NoCache), FetchConfig::default())
}

/// Returns the current content of a file in the root. The host knows its node from then on.
pub(super) async fn content(host: &MemoryHost, name: &str) -> FileContent {
    let attributes = host.client().lookup(host.root_node(), name.as_bytes()).await.unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{:?} {:?}", attributes.node, attributes.version()).as_bytes());
    FileContent {
        node: attributes.node,
        version: attributes.version(),
        key: FileKey::from_bytes(*hasher.finalize().as_bytes()),
        history: FileKey::from_bytes(*blake3::hash(name.as_bytes()).as_bytes()),
        settled: attributes.is_settled(),
        epoch: 0,
    }
}

pub(super) const fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len)
}

pub(super) async fn read(
    fetcher: &Fetcher,
    content: &FileContent,
    range: ByteRange,
) -> Result<Bytes, FetchError> {
    fetcher.read(content, range, Demand::Chunks(range.chunks())).await
}

fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read(..))
}

/// Lets all runnable tasks run.
pub(super) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bytes_match_the_host_from_every_source() {
    let host = MemoryHost::new();
    host.create_generated("file", 3 * MIB + 777, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    let size = content.version.size;
    let ranges =
        [(0, 1), (0, size), (CHUNK_BYTES - 1, 2), (size - 5, 100), (MIB, MIB), (5000, 4096), (size, 9)];
    for (offset, len) in ranges {
        let right = host.content_at("file", offset, len);
        let asked = range(offset, len);
        assert_eq!(read(&fetcher, &content, asked).await.unwrap(), right);
        assert_eq!(fetcher.read_memory(&content, asked).unwrap_or_default(), right);
    }
    assert_eq!(host.counters().chunks, 13, "each chunk once");
}

#[tokio::test]
async fn a_short_link_has_few_requests_in_flight_and_a_long_one_many() {
    for (rtt_ms, bytes_per_second, expected) in [(0, 1 << 30, 4), (50, 125_000_000, 15), (50, 0, 20)] {
        let host = MemoryHost::new();
        host.create_generated("file", 20 * MIB, 1);
        host.set_link(Duration::from_millis(rtt_ms), bytes_per_second);
        let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
        host.hold(|request, _| is_read(request));
        fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 80), stream(1));
        settle().await;
        assert_eq!(fetcher.statistics().ahead_requests, expected, "{rtt_ms} ms");
    }
}

#[tokio::test]
async fn a_piece_costs_its_bytes_and_whole_chunks_serve_it_too() {
    let host = MemoryHost::new();
    host.create_generated("file", 3 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    let (asked, piece) = (range(CHUNK_BYTES - 100, 200), range(CHUNK_BYTES - 4096, 8192));
    let bytes = fetcher.read(&content, asked, Demand::Piece(piece)).await.unwrap();
    assert_eq!(bytes, host.content_at("file", CHUNK_BYTES - 100, 200));
    assert_eq!((host.counters().pieces, host.counters().content_bytes), (1, 8192));
    assert_eq!(fetcher.statistics().host_bytes, 8192);
    assert!(fetcher.read_memory(&content, asked).is_none());

    read(&fetcher, &content, range(0, 2 * CHUNK_BYTES)).await.unwrap();
    let bytes = fetcher.read(&content, asked, Demand::Piece(piece)).await.unwrap();
    assert_eq!(bytes, host.content_at("file", CHUNK_BYTES - 100, 200));
    assert_eq!(host.counters().pieces, 1);
}

#[tokio::test]
async fn readers_of_one_chunk_share_its_request() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    let readers: Vec<_> = (0..8)
        .map(|i| {
            let fetcher = Arc::clone(&fetcher);
            tokio::spawn(async move { read(&fetcher, &content, range(i * 1000, 1000)).await })
        })
        .collect();
    host.until(|host| host.held().len() == 1).await;
    settle().await;
    assert_eq!(host.counters().reads, 1);
    host.release_all();
    for (i, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap().unwrap(), host.content_at("file", i as u64 * 1000, 1000));
    }
    assert_eq!(host.counters().chunks, 1);
}

#[tokio::test]
async fn reading_ahead_makes_reads_hits() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 100), stream(1));
    host.until(|host| host.counters().chunks == 16).await;
    settle().await;
    let statistics = fetcher.statistics();
    assert_eq!((statistics.inflight_chunks, statistics.ahead_queued), (0, 0));
    assert_eq!(statistics.unread_bytes, statistics.memory_bytes);
    let whole = fetcher.read_memory(&content, range(0, 4 * MIB)).unwrap();
    assert_eq!(whole, host.content("file"));
    assert_eq!(host.counters().reads, 4, "a mebibyte a request");
    assert_eq!((fetcher.statistics().unread_bytes, fetcher.statistics().hits_memory), (0, 1));
}

#[tokio::test]
async fn demands_travel_before_read_ahead() {
    let host = MemoryHost::new();
    host.create_generated("file", 16 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(8), 4), stream(1));
    let asked = [
        (range(0, 10), Demand::Chunks(ChunkRange::new(ChunkIndex(0), 1))),
        (range(MIB, 10), Demand::Piece(range(MIB, 4096))),
    ];
    for (range, demand) in asked {
        let fetcher = Arc::clone(&fetcher);
        tokio::spawn(async move { fetcher.read(&content, range, demand).await });
    }
    host.until(|host| host.held().len() == 3).await;
    for (request, _) in host.held() {
        let Request::Read(read, lane) = request else { unreachable!("only reads are held") };
        let is_ahead = read.range.offset == 2 * MIB;
        assert_eq!(lane, if is_ahead { Lane::Ahead } else { Lane::Demand });
    }
}

#[tokio::test]
async fn cancelled_read_ahead_is_not_sent() {
    let host = MemoryHost::new();
    host.create_generated("file", 64 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 16), stream(1));
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(8), 16), stream(2));
    host.until(|host| host.held().len() == 6).await;
    // A reader waits in the first run of the cancelled read-ahead.
    let reader = {
        let fetcher = Arc::clone(&fetcher);
        tokio::spawn(async move { read(&fetcher, &content, range(0, 10)).await })
    };
    settle().await;
    fetcher.cancel(stream(1));
    host.until(|host| host.counters().cancelled == 1).await;
    let mut left: Vec<u64> = host
        .held()
        .iter()
        .map(|(request, _)| match request {
            Request::Read(read, _) => read.range.offset / MIB,
            _ => unreachable!("only reads are held"),
        })
        .collect();
    left.sort_unstable();
    assert_eq!(left, [0, 2, 3, 4, 5], "runs that a reader or another stream wants go on");
    host.release_all();
    assert_eq!(reader.await.unwrap().unwrap(), host.content_at("file", 0, 10));
    fetcher.cancel_handle(2);
    settle().await;
    assert_eq!(fetcher.statistics().inflight_bytes, 0);
}

#[tokio::test]
async fn a_reader_that_gives_up_leaves_nothing_behind() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    let reader = {
        let fetcher = Arc::clone(&fetcher);
        tokio::spawn(async move { read(&fetcher, &content, range(0, 2 * MIB)).await })
    };
    host.until(|host| host.held().len() == 2).await;
    reader.abort();
    host.until(|host| host.counters().cancelled == 2).await;
    assert_eq!(fetcher.statistics().inflight_chunks, 0);
    host.release_all();
    // The chunk is requested again.
    assert_eq!(read(&fetcher, &content, range(0, 10)).await.unwrap(), host.content_at("file", 0, 10));
}

#[tokio::test]
async fn all_waiters_get_the_error_and_may_retry() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.set_errors(|request| is_read(request).then(|| WireError::new(ErrorCode::Busy, "later")));
    let (left, right) =
        tokio::join!(read(&fetcher, &content, range(0, 10)), read(&fetcher, &content, range(5, MIB)));
    let busy = FetchError::Call(CallError::Host(WireError::new(ErrorCode::Busy, "later")));
    assert_eq!((left.unwrap_err(), right.unwrap_err()), (busy.clone(), busy));
    assert_eq!(fetcher.statistics().inflight_chunks, 0);
    host.set_errors(|_| None);
    assert_eq!(read(&fetcher, &content, range(0, 10)).await.unwrap(), host.content_at("file", 0, 10));
}

#[tokio::test]
async fn a_reader_that_joined_a_failed_read_ahead_retries() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 4), stream(1));
    host.until(|host| host.held().len() == 1).await;
    let reader = {
        let fetcher = Arc::clone(&fetcher);
        tokio::spawn(async move { read(&fetcher, &content, range(0, 10)).await })
    };
    settle().await;
    // The first request fails, later ones succeed.
    let failed = std::sync::atomic::AtomicBool::new(false);
    host.set_errors(move |_| {
        let first = !failed.swap(true, std::sync::atomic::Ordering::Relaxed);
        first.then(|| WireError::new(ErrorCode::Busy, "later"))
    });
    host.release_all();
    assert_eq!(reader.await.unwrap().unwrap(), host.content_at("file", 0, 10));
    assert_eq!(host.counters().reads, 2);
    assert_eq!(fetcher.statistics().failed_requests, 1);
}

#[tokio::test]
async fn a_changed_version_and_a_forgotten_node_are_reported() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, old) = (fetcher(&host), content(&host, "file").await);
    read(&fetcher, &old, range(0, 10)).await.unwrap();
    host.write("file", 100, b"changed");
    assert_eq!(read(&fetcher, &old, range(MIB, 10)).await, Err(FetchError::VersionChanged));
    let piece = Demand::Piece(range(2 * MIB, 4096));
    assert_eq!(fetcher.read(&old, range(2 * MIB, 10), piece).await, Err(FetchError::VersionChanged));
    let new = content(&host, "file").await;
    assert!(fetcher.read_memory(&new, range(0, 10)).is_none(), "bytes of the old version");
    assert_eq!(read(&fetcher, &new, range(90, 30)).await.unwrap(), host.content_at("file", 90, 30));
    host.restart();
    assert_eq!(read(&fetcher, &new, range(MIB, 10)).await, Err(FetchError::UnknownNode));
}

#[tokio::test]
async fn content_read_before_settling_is_not_used_afterwards() {
    let host = MemoryHost::new();
    host.create_generated("file", MIB, 1);
    host.write("file", 0, b"young");
    let (fetcher, young) = (fetcher(&host), content(&host, "file").await);
    assert!(!young.settled);
    read(&fetcher, &young, range(0, 10)).await.unwrap();
    assert!(fetcher.read_memory(&young, range(0, 10)).is_some());
    host.advance(Duration::from_secs(3));
    let settled = content(&host, "file").await;
    assert!(settled.settled && settled.key == young.key);
    assert!(fetcher.read_memory(&settled, range(0, 10)).is_none());
}

pub(super) fn disk_cache(directory: &std::path::Path) -> Arc<DiskCache> {
    let config = CacheConfig {
        directory: directory.to_owned(),
        size_bytes: 64 * MIB,
        min_free_ratio: 0.0,
        segment_bytes: None,
    };
    Arc::new(DiskCache::open(&config).unwrap())
}

#[tokio::test]
async fn a_reader_that_joined_a_read_ahead_waits_for_one_deadline() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let content = content(&host, "file").await;
    let fetcher = fetcher(&host);
    host.set_deadline(Duration::from_millis(50));
    host.set_connected(false);
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 4), stream(1));
    let error = read(&fetcher, &content, range(0, MIB)).await.unwrap_err();
    assert!(matches!(error, FetchError::Call(CallError::TimedOut(_))), "{error}");
    assert_eq!(host.counters().reads, 1);
}

#[tokio::test]
async fn the_disk_spares_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let cache = disk_cache(&directory.path().join("cache"));
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB + 5, 1);
    let content = content(&host, "file").await;
    let first = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    let right = host.content("file");
    assert_eq!(read(&first, &content, range(0, 5 * MIB)).await.unwrap(), right);
    assert!(cache.flush());
    host.reset_counters();

    let second = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    second.read_ahead(&content, ChunkRange::new(ChunkIndex(4), 8), stream(1));
    assert_eq!(read(&second, &content, range(0, 5 * MIB)).await.unwrap(), right);
    let third = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    let piece = Demand::Piece(range(MIB, 4096));
    assert_eq!(third.read(&content, range(MIB, 10), piece).await.unwrap(), right[MIB as usize..][..10]);
    assert_eq!(host.counters().requests(), 0);
    assert_eq!((second.statistics().hits_disk, third.statistics().hits_disk), (17, 1));
}

#[tokio::test]
async fn cached_chunks_are_not_sent_with_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let cache = disk_cache(&directory.path().join("cache"));
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let content = content(&host, "file").await;
    let first = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    read(&first, &content, range(CHUNK_BYTES, 10)).await.unwrap();
    assert!(cache.flush());
    host.reset_counters();
    let second = Fetcher::new(host.client(), cache as _, FetchConfig::default());
    assert_eq!(read(&second, &content, range(0, MIB)).await.unwrap(), host.content_at("file", 0, MIB));
    let counters = host.counters();
    assert_eq!((counters.reads, counters.chunks, counters.same), (1, 3, 1));
}

#[tokio::test]
async fn only_changed_chunks_of_a_file_are_sent() {
    let directory = tempfile::tempdir().unwrap();
    let cache = disk_cache(&directory.path().join("cache"));
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB + 5, 1);
    let old = content(&host, "file").await;
    let before = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    read(&before, &old, range(0, 5 * MIB)).await.unwrap();
    before.flush_hashes(&old);
    assert!(cache.flush());

    // Three edits in one hour: in place, at the end, and one that changes nothing.
    let edits: [(u64, &[u8], u64); 3] =
        [(2 * MIB + 7, b"in place", 1), (4 * MIB + 5, b"more", 1), (0, b"", 0)];
    for (offset, bytes, chunks_sent) in edits {
        host.write("file", offset, bytes);
        host.advance(Duration::from_secs(3600));
        let new = content(&host, "file").await;
        assert!(new.settled && new.key != old.key && new.history == old.history);
        host.reset_counters();
        // Each edit gets a fresh run of the mount.
        let fetcher = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
        assert_eq!(read(&fetcher, &new, range(0, 5 * MIB)).await.unwrap(), host.content("file"));
        let counters = host.counters();
        assert_eq!((counters.chunks, counters.same), (chunks_sent, 17 - chunks_sent), "{offset}");
        fetcher.flush_hashes(&new);
        assert!(cache.flush());
        host.reset_counters();
        let again = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
        assert_eq!(read(&again, &new, range(0, 5 * MIB)).await.unwrap(), host.content("file"));
        assert_eq!(host.counters().requests(), 0, "from then on it is known by its version");
    }
}

#[tokio::test]
async fn cached_content_of_an_unsettled_file_is_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let cache = disk_cache(&directory.path().join("cache"));
    let host = MemoryHost::new();
    host.create_generated("file", MIB, 1);
    host.write("file", 0, b"young");
    let fetcher = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    let young = content(&host, "file").await;
    read(&fetcher, &young, range(0, MIB)).await.unwrap();
    assert!(cache.flush());
    assert!(cache.known_hash(&young.key, ChunkIndex(0)).is_none(), "it is not proved by the version");
    let again = Fetcher::new(host.client(), Arc::clone(&cache) as _, FetchConfig::default());
    host.write_unnoticed("file", 300 * KIB, b"within the same tick");
    let before = host.counters();
    assert_eq!(read(&again, &young, range(0, MIB)).await.unwrap(), host.content("file"));
    let after = host.counters();
    assert_eq!(after.reads - before.reads, 1);
    assert_eq!(after.content_bytes - before.content_bytes, CHUNK_BYTES, "all but one chunk were the same");
}

/// Reads a file as `fs` does, in calls of 128 KiB.
pub(super) async fn read_in_calls(
    fetcher: Arc<Fetcher>,
    content: FileContent,
    handle: u64,
    most: u64,
) -> blake3::Hash {
    let (mut prefetcher, mut hasher) = (Prefetcher::new(), blake3::Hasher::new());
    for offset in (0..content.version.size).step_by(128 * KIB as usize) {
        let asked = range(offset, 128 * KIB);
        let limits = Limits { window_bytes_max: fetcher.share_bytes() };
        let plan = prefetcher.on_read(std::time::Instant::now(), asked, content.version.size, limits);
        if let Some(ahead) = plan.ahead {
            fetcher.read_ahead(&content, ahead.range, StreamId { handle, cursor: ahead.cursor.0 });
        }
        hasher.update(&fetcher.read(&content, asked, plan.demand).await.unwrap());
        let statistics = fetcher.statistics();
        assert!(statistics.memory_bytes + statistics.inflight_bytes <= most, "{statistics:?}");
    }
    fetcher.cancel_handle(handle);
    hasher.finalize()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_readers_share_one_budget() {
    let host = MemoryHost::new();
    let config = FetchConfig { memory_bytes: 16 * MIB, ..FetchConfig::default() };
    let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), config);
    let size = 12 * MIB + 12_345;
    let mut readers = Vec::new();
    for i in 0..16 {
        let name = format!("file{i}");
        host.create_generated(&name, size, i);
        let content = content(&host, &name).await;
        // Demands are at most one chunk a reader. They may exceed the budget while memory is empty.
        readers.push(tokio::spawn(read_in_calls(Arc::clone(&fetcher), content, i, 16 * MIB + 4 * MIB)));
    }
    for (i, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap(), blake3::hash(&host.content(format!("file{i}"))));
    }
    settle().await;
    let statistics = fetcher.statistics();
    assert_eq!((statistics.inflight_bytes, statistics.ahead_queued, statistics.unread_bytes), (0, 0, 0));
    assert!(statistics.memory_bytes <= 16 * MIB);
    // Few chunks are fetched twice.
    assert!(host.counters().chunks <= 16 * size.div_ceil(CHUNK_BYTES) * 11 / 10, "{:?}", host.counters());
}

#[tokio::test]
async fn a_closed_host_ends_all_waits() {
    let host = MemoryHost::new();
    host.create_generated("file", 4 * MIB, 1);
    let (fetcher, content) = (fetcher(&host), content(&host, "file").await);
    host.close();
    assert_eq!(read(&fetcher, &content, range(0, 10)).await, Err(CallError::Closed.into()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]
    #[test]
    fn random_reads_give_the_right_bytes(
        size in 0..3 * MIB,
        reads in prop::collection::vec((0..3 * MIB, 0..MIB + 1, any::<bool>(), 0..12u64), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let host = MemoryHost::new();
            host.create_generated("file", size, 3);
            let right = host.content("file");
            // Room for five chunks, so that many are evicted.
            let config = FetchConfig { memory_bytes: 5 * CHUNK_BYTES, ..FetchConfig::default() };
            let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), config);
            let content = content(&host, "file").await;
            for (offset, len, whole, ahead) in reads {
                fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(ahead), 3), stream(ahead % 3));
                let (len, asked) = if whole { (len, range(offset, len)) } else { (len % 5000, range(offset, len % 5000)) };
                let demand = if whole { Demand::Chunks(asked.chunks()) } else { Demand::Piece(asked) };
                let bytes = fetcher.read(&content, asked, demand).await.unwrap();
                let start = (offset as usize).min(right.len());
                let end = ((offset + len) as usize).min(right.len());
                assert_eq!(bytes, right[start..end]);
            }
            for handle in 0..3 {
                fetcher.cancel_handle(handle);
            }
            settle().await;
            assert_eq!(fetcher.statistics().inflight_bytes, 0);
        });
    }
}
