//! A disk cache that holds a file, and a host that has the same file under another name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cache::{CacheStats, ChunkCache, FileKey};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::memory::{Counters, MemoryHost, Stage};
use crate::client::{CallError, CallFuture, Client, ContentPart, Lane, LinkState, ListPart};
use crate::fetch::tests::{MIB, content, disk_cache, range, read, read_in_calls, settle};
use crate::fetch::{FetchConfig, Fetcher, FileContent};
use crate::proto::{Attributes, ErrorCode, NodeId, ReadRequest, Reply, Request, WireError};

/// Deadline of operations that are immediate, on a busy machine.
const GENEROUS: Duration = Duration::from_secs(60);

const SIZE: u64 = 20 * MIB + 5;

/// A host with two equal files and a different one, and a cache with the first.
struct Copies {
    host: MemoryHost,
    cache: Arc<dyn ChunkCache>,
    _folder: tempfile::TempDir,
}

impl Copies {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = MemoryHost::new();
        host.create_generated("f", SIZE, 1);
        host.create_generated("g", SIZE, 1);
        host.create_generated("other", SIZE, 2);
        let cache: Arc<dyn ChunkCache> = disk_cache(&folder.path().join("cache"));
        let copies = Self { host, cache, _folder: folder };
        copies.read("f", 0).await;
        assert!(copies.cache.flush());
        copies.host.reset_counters();
        copies
    }

    fn fetcher(&self) -> Arc<Fetcher> {
        Fetcher::new(self.host.client(), Arc::clone(&self.cache), FetchConfig::default())
    }

    /// Reads a file as a fresh mount does, once it knows `hashes` hashes. Returns the counters of the host.
    async fn read(&self, name: &str, hashes: u64) -> Counters {
        let (fetcher, content) = (self.fetcher(), content(&self.host, name).await);
        self.host.reset_counters();
        fetcher.probe_open(&content);
        // A host in a debug build takes its time.
        until(|| fetcher.statistics().manifest_chunks >= hashes).await;
        let got = read_in_calls(Arc::clone(&fetcher), content, 1, u64::MAX).await;
        assert_eq!(got, blake3::hash(&self.host.content(name)), "{name}");
        fetcher.flush_hashes(&content);
        self.host.counters()
    }
}

fn is_manifest(request: &Request) -> bool {
    matches!(request, Request::Manifest(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_not_sent() {
    let copies = Copies::new().await;
    let counters = copies.read("g", SIZE.div_ceil(CHUNK_BYTES)).await;
    assert!(counters.chunks == 0 && counters.manifests >= 2, "{counters:?}");
    let again = copies.read("g", 0).await;
    assert_eq!((again.chunks, again.manifests), (0, 0), "from then on it is known by its version");
    let counters = copies.read("other", 16).await;
    assert_eq!(counters.chunks, SIZE.div_ceil(CHUNK_BYTES));
    assert!(counters.manifests <= 3, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_not_sent_to_warm_the_cache_with_it() {
    let copies = Copies::new().await;
    let chunks = SIZE.div_ceil(CHUNK_BYTES);
    for (name, sent, requests) in [("g", 0, 2..=9), ("other", SIZE, 2..=4)] {
        let (fetcher, content) = (copies.fetcher(), content(&copies.host, name).await);
        copies.host.reset_counters();
        let (mut host_bytes, mut cached_bytes) = (0, 0);
        for first in (0..chunks).step_by(4) {
            let run = ChunkRange::new(ChunkIndex(first), 4.min(chunks - first));
            let warmed = fetcher.warm(&content, run).await.unwrap();
            (host_bytes, cached_bytes) = (host_bytes + warmed.host_bytes, cached_bytes + warmed.cached_bytes);
        }
        assert_eq!((host_bytes, cached_bytes), (sent, SIZE - sent), "{name}");
        let asked = copies.host.counters().manifests;
        assert!(requests.contains(&asked), "{asked} requests about {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_chunks_are_counted() {
    let copies = Copies::new().await;
    let (fetcher, content) = (copies.fetcher(), content(&copies.host, "g").await);
    fetcher.probe_open(&content);
    read_in_calls(Arc::clone(&fetcher), content, 1, u64::MAX).await;
    let statistics = fetcher.statistics();
    assert!(statistics.manifest_chunks >= 60, "{statistics:?}");
    assert_eq!(statistics.manifest_chunks_held, statistics.manifest_chunks, "{statistics:?}");
}

#[tokio::test]
async fn an_empty_cache_sends_no_hash_requests() {
    let host = MemoryHost::new();
    host.create_generated("f", SIZE, 1);
    let folder = tempfile::tempdir().unwrap();
    let fetcher =
        Fetcher::new(host.client(), disk_cache(&folder.path().join("cache")) as _, FetchConfig::default());
    fetcher.probe_open(&content(&host, "f").await);
    settle().await;
    assert_eq!(host.counters().manifests, 0);
}

/// Opens `g` while its hashes are held back, as on a host that computes them slowly.
async fn opened_while_held_back() -> (Copies, Arc<Fetcher>, FileContent) {
    let copies = Copies::new().await;
    let (fetcher, content) = (copies.fetcher(), content(&copies.host, "g").await);
    copies.host.hold(|request, stage| is_manifest(request) && stage == Stage::Arrived);
    fetcher.probe_open(&content);
    copies.host.until(|host| host.held().len() == 2).await;
    (copies, fetcher, content)
}

#[tokio::test]
async fn a_program_waits_for_hashes_a_moment_at_most() {
    let (copies, fetcher, content) = opened_while_held_back().await;
    let bytes = read(&fetcher, &content, range(0, 1000)).await.unwrap();
    assert_eq!(bytes, copies.host.content_at("g", 0, 1000));
    assert_eq!((copies.host.counters().chunks, copies.host.held().len()), (1, 2));
    // The hashes never come, so waiting for them would never end.
    let bytes = timeout(GENEROUS, read(&fetcher, &content, range(MIB, MIB))).await.unwrap().unwrap();
    assert_eq!(bytes, copies.host.content_at("g", MIB, MIB));
    assert_eq!(copies.host.held().len(), 2);
}

#[tokio::test]
async fn a_read_ahead_waits_for_hashes_but_not_for_ever() {
    let (copies, fetcher, content) = opened_while_held_back().await;
    let stream = crate::fetch::StreamId { handle: 1, cursor: 0 };
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(4), 4), stream);
    settle().await;
    assert_eq!(copies.host.counters().reads, 0);
    timeout(GENEROUS, copies.host.until(|host| host.counters().chunks == 4)).await.unwrap();

    let (copies, fetcher, content) = opened_while_held_back().await;
    fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(4), 4), stream);
    copies.host.release_all();
    let bytes = read(&fetcher, &content, range(MIB, MIB)).await.unwrap();
    assert_eq!(bytes, copies.host.content_at("g", MIB, MIB));
    assert_eq!((copies.host.counters().reads, fetcher.statistics().hits_disk), (0, 4));
}

#[tokio::test]
async fn a_host_without_hash_requests_is_asked_once() {
    let copies = Copies::new().await;
    copies.host.set_errors(|request| is_manifest(request).then(|| WireError::new(ErrorCode::Malformed, "")));
    let fetcher = copies.fetcher();
    for name in ["g", "other"] {
        let content = content(&copies.host, name).await;
        fetcher.probe_open(&content);
        settle().await;
        read_in_calls(Arc::clone(&fetcher), content, 1, u64::MAX).await;
    }
    assert!(copies.host.counters().manifests <= 2, "both of the first opening");
}

#[tokio::test]
async fn a_file_that_changes_during_the_request_is_read_as_it_is() {
    let copies = Copies::new().await;
    let (fetcher, old) = (copies.fetcher(), content(&copies.host, "g").await);
    copies.host.write("g", 0, b"new");
    copies.host.advance(Duration::from_secs(10));
    fetcher.probe_open(&old);
    settle().await;
    let new = content(&copies.host, "g").await;
    fetcher.probe_open(&new);
    let got = read_in_calls(Arc::clone(&fetcher), new, 1, u64::MAX).await;
    assert_eq!(got, blake3::hash(&copies.host.content("g")));
}

/// A host that claims for every chunk a hash that the cache happens to hold.
struct Liar {
    host: MemoryHost,
    hash: ChunkHash,
    count: usize,
    heard: AtomicU64,
}

impl Client for Liar {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        let Request::Manifest(asked) = request else { return Client::call(&self.host, request, lane) };
        let count = if self.count == 0 { asked.chunks.count as usize } else { self.count };
        let hashes = vec![self.hash; count];
        self.heard.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(Reply::Manifest { hashes, computed: 0 }) })
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        self.host.list(node)
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        self.host.read(request, lane)
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        self.host.read_current(node, range)
    }

    fn root(&self) -> Attributes {
        self.host.root()
    }

    fn link(&self) -> LinkState {
        self.host.link()
    }
}

#[tokio::test]
async fn a_host_that_lies_about_hashes_is_not_believed() {
    const LAST: u64 = SIZE / CHUNK_BYTES * CHUNK_BYTES;
    // The hash of the last chunk for all chunks; too many hashes; too few.
    for (from, count) in [(LAST, 0), (0, 17), (0, 1)] {
        let copies = Copies::new().await;
        let hash = ChunkHash::of(&copies.host.content_at("f", from, CHUNK_BYTES));
        assert!(copies.cache.contains(hash));
        let heard = AtomicU64::new(0);
        let liar = Arc::new(Liar { host: copies.host.clone(), hash, count, heard });
        let fetcher = Fetcher::new(Arc::clone(&liar) as _, Arc::clone(&copies.cache), FetchConfig::default());
        let content = content(&copies.host, "other").await;
        fetcher.probe_open(&content);
        until(|| liar.heard.load(Ordering::SeqCst) >= 2).await;
        settle().await;
        // All chunks but the last, for which the first lie has the right length.
        let right = copies.host.content_at("other", 0, LAST);
        assert_eq!(read(&fetcher, &content, range(0, LAST)).await.unwrap(), right);
    }
}

/// Waits for an event that must come.
async fn until(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "timed out after a minute");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn chunks_that_left_the_cache_since_come_from_the_host() {
    let copies = Copies::new().await;
    let content = content(&copies.host, "g").await;
    let gone = Arc::new(AtomicBool::new(false));
    let cache = Arc::new(Forgetful { inner: Arc::clone(&copies.cache), gone: Arc::clone(&gone) });
    let fetcher = Fetcher::new(copies.host.client(), cache, FetchConfig::default());
    fetcher.probe_open(&content);
    copies.host.until(|host| host.counters().manifests > 2).await;
    gone.store(true, Ordering::SeqCst);
    let got = read_in_calls(Arc::clone(&fetcher), content, 1, u64::MAX).await;
    assert_eq!(got, blake3::hash(&copies.host.content("g")));
    assert_eq!(copies.host.counters().chunks, SIZE.div_ceil(CHUNK_BYTES));
}

/// A cache that claims chunks that it cannot load any more.
struct Forgetful {
    inner: Arc<dyn ChunkCache>,
    gone: Arc<AtomicBool>,
}

impl ChunkCache for Forgetful {
    fn contains(&self, hash: ChunkHash) -> bool {
        self.inner.contains(hash)
    }

    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
        if self.gone.load(Ordering::SeqCst) {
            return vec![None; hashes.len()];
        }
        self.inner.load_run(hashes)
    }

    fn insert(&self, chunk: VerifiedChunk) {
        self.inner.insert(chunk);
    }

    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash> {
        self.inner.known_hash(file, index)
    }

    fn record_hash(&self, file: &FileKey, index: ChunkIndex, hash: ChunkHash) {
        self.inner.record_hash(file, index, hash);
    }

    fn flush_file(&self, file: &FileKey) {
        self.inner.flush_file(file);
    }

    fn is_behind(&self) -> bool {
        self.inner.is_behind()
    }

    fn writes_bytes_per_second(&self) -> u64 {
        self.inner.writes_bytes_per_second()
    }

    fn flush(&self) -> bool {
        self.inner.flush()
    }

    fn stats(&self) -> CacheStats {
        self.inner.stats()
    }
}
