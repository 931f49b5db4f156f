//! Warm-up over the model host and a real disk cache: what is brought, in which order of urgency, and how it ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::mpsc;
use wormhole::cache::{CacheConfig, ChunkCache, DiskCache, pins};
use wormhole::chunk::{ByteRange, CHUNK_BYTES};
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::client::{CallError, CallFuture, Client, ContentPart, Lane, LinkState, ListPart};
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{FileSystem, FsConfig, Inode, Lookup, OpenRequest, WarmJob, WarmProgress};
use wormhole::proto::{Attributes, Errno, ErrorCode, NodeId, ReadRequest, Reply, Request, WireError};

const MIB: u64 = 1 << 20;

/// Takes note of the lanes in which content is asked for.
struct Watched {
    inner: Arc<dyn Client>,
    lanes: Mutex<Vec<Lane>>,
}

impl Client for Watched {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        self.inner.call(request, lane)
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        self.inner.list(node)
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        self.lanes.lock().unwrap().push(lane);
        self.inner.read(request, lane)
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        self.inner.read_current(node, range)
    }

    fn root(&self) -> Attributes {
        self.inner.root()
    }

    fn link(&self) -> LinkState {
        self.inner.link()
    }
}

struct World {
    host: MemoryHost,
    client: Arc<Watched>,
    fetcher: Arc<Fetcher>,
    fs: Arc<FileSystem>,
    cache: Arc<DiskCache>,
    directory: TempDir,
}

impl World {
    fn new(host: MemoryHost) -> Self {
        // What is there lies still.
        host.advance(Duration::from_secs(10));
        let directory = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            directory: directory.path().to_owned(),
            size_bytes: 64 * MIB,
            min_free_ratio: 0.0,
            segment_bytes: Some(MIB),
        };
        let cache = Arc::new(DiskCache::open(&config).unwrap());
        let client = Arc::new(Watched { inner: host.client(), lanes: Mutex::default() });
        let fetcher = Fetcher::new(Arc::clone(&client) as _, Arc::clone(&cache) as _, FetchConfig::default());
        let config = FsConfig { source: "nas:/media".to_owned(), ..FsConfig::default() };
        let fs = FileSystem::new(Arc::clone(&client) as _, Arc::clone(&fetcher), config);
        Self { host, client, fetcher, fs, cache, directory }
    }

    fn begin(&self, path: &str) -> WarmJob {
        self.fs.warm(path.as_bytes().to_vec(), None)
    }

    async fn warm(&self, path: &str) -> WarmProgress {
        end(&self.begin(path)).await
    }

    async fn pin(&self, path: &str) -> WarmProgress {
        end(&self.fs.warm(path.as_bytes().to_vec(), Some(self.fs.source_of(path.as_bytes())))).await
    }
}

/// Waits for the end, on the host's time and the disk's.
async fn end(job: &WarmJob) -> WarmProgress {
    loop {
        let progress = job.progress();
        if progress.is_done {
            return progress;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn tree() -> MemoryHost {
    let host = MemoryHost::new();
    for directory in ["a", "a/b", "c"] {
        host.create_dir(directory);
    }
    host.create_generated("a/large", 5 * MIB + 77, 1);
    host.create_generated("a/b/small", 1000, 2);
    host.create_file("c/empty", "");
    host.create_symlink("link", "a/large");
    host
}

const TREE_BYTES: u64 = 5 * MIB + 77 + 1000;

fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read(..))
}

#[tokio::test]
async fn a_tree_is_brought_once_behind_everything_else_and_past_memory() {
    let world = World::new(tree());
    let progress = world.warm("").await;
    assert_eq!((progress.files, progress.bytes, progress.host_bytes), (3, TREE_BYTES, TREE_BYTES));
    assert_eq!((progress.error, progress.failed, progress.skipped), (None, 0, 0));
    assert!(world.client.lanes.lock().unwrap().iter().all(|lane| *lane == Lane::Background));
    assert_eq!(world.fetcher.statistics().memory_bytes, 0);
    assert_eq!(world.fetcher.statistics().host_bytes, TREE_BYTES);
    let reads = world.host.counters().reads;
    let again = world.warm("a").await;
    assert_eq!((again.files, again.bytes, again.host_bytes), (2, TREE_BYTES, 0));
    assert_eq!(world.host.counters().reads, reads, "what is there is not asked about");
    // Another mount of the same cache finds it under the same keys.
    assert_eq!(world.cache.stats().dropped, 0);
}

#[tokio::test]
async fn only_so_much_is_under_way_and_nothing_when_it_is_dropped() {
    // Nothing is known, a link that holds 1.25 MB, one that holds 62 MB.
    for (rtt_ms, bytes_per_second, runs) in [(0, 0, 4), (50, 25_000_000, 4), (50, 1_250_000_000, 16)] {
        let host = MemoryHost::new();
        host.create_generated("file", 40 * MIB, 1);
        host.set_link(Duration::from_millis(rtt_ms), bytes_per_second);
        let world = World::new(host);
        world.host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
        let job = world.begin("file");
        world.host.until(|host| host.held().len() == runs).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(world.host.held().len(), runs);
        drop(job);
        world.host.until(|host| host.held().is_empty()).await;
    }
}

#[tokio::test]
async fn while_people_read_nothing_new_is_asked_for() {
    let host = MemoryHost::new();
    host.create_generated("file", 40 * MIB, 1);
    host.create_generated("film", 40 * MIB, 2);
    let world = World::new(host);
    let Lookup::Found(film) = world.fs.lookup(Inode::ROOT, b"film").await.unwrap() else { panic!() };
    let handle = world.fs.open(film.inode, OpenRequest::default()).await.unwrap().handle;
    let read = async |at: u64| world.fs.read(handle, ByteRange::new(at, 4096)).await.unwrap();
    read(0).await;
    let job = world.begin("file");
    let (mut last, mut longest) = (std::time::Instant::now(), Duration::ZERO);
    for turn in 1..20 {
        read(turn * 2 * MIB - 4096).await;
        longest = longest.max(last.elapsed());
        last = std::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let so_far = job.progress().bytes;
    // On a machine that is busy there may be a rest between two reads; a warm-up begins after 0.3 s of it.
    assert!(so_far == 0 || longest.max(last.elapsed()) > Duration::from_millis(200), "{so_far} {longest:?}");
    assert_eq!(end(&job).await.bytes, 40 * MIB);
}

#[tokio::test]
async fn one_that_was_cut_short_goes_on_where_it_was() {
    let host = MemoryHost::new();
    host.create_generated("file", 40 * MIB, 1);
    let world = World::new(host);
    // The last quarter does not come.
    world.host.hold(|request, stage| {
        matches!(request, Request::Read(read, _) if read.range.offset >= 30 * MIB) && stage == Stage::Arrived
    });
    let job = world.begin("file");
    while job.progress().bytes < 30 * MIB {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(job);
    world.host.hold(|_, _| false);
    world.host.release_all();
    let rest = world.warm("file").await;
    assert_eq!((rest.files, rest.bytes, rest.host_bytes), (1, 40 * MIB, 10 * MIB));
}

#[tokio::test]
async fn of_a_file_that_was_touched_nothing_is_sent_again() {
    let world = World::new(tree());
    world.warm("a/large").await;
    world.host.write("a/large", 0, world.host.content_at("a/large", 0, 1));
    world.host.advance(Duration::from_secs(10));
    let progress = world.warm("a/large").await;
    assert_eq!((progress.files, progress.bytes, progress.host_bytes), (1, 5 * MIB + 77, 0));
    world.host.write("a/large", CHUNK_BYTES, "edited");
    world.host.advance(Duration::from_secs(10));
    assert_eq!(world.warm("a/large").await.host_bytes, CHUNK_BYTES);
}

#[tokio::test]
async fn a_young_file_is_skipped_and_one_that_cannot_be_read_is_told() {
    let world = World::new(tree());
    world.host.create_generated("a/young", 10, 3);
    world.host.append("a/young", "more");
    let node = world.host.attributes_of("a/b").node;
    world.host.set_errors(move |request| {
        let denied = WireError::new(ErrorCode::System(Errno::EACCES), "");
        matches!(request, Request::ReadDirectory { node: asked } if *asked == node).then_some(denied)
    });
    let progress = world.warm("").await;
    assert_eq!((progress.files, progress.skipped, progress.failed), (2, 1, 1));
    assert!(progress.problems[0].starts_with("nas:/media/a/b: "), "{progress:?}");
    assert_eq!(progress.error, None);
    let nothing = world.warm("a/nothing").await;
    assert!(nothing.error.is_some() && nothing.files == 0);
    assert!(world.warm("link").await.error.unwrap().contains("neither a regular file"));
}

#[tokio::test]
async fn a_host_that_restarts_is_shown_the_way_again() {
    let world = World::new(tree());
    world.host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    let job = world.begin("");
    world.host.until(|host| !host.held().is_empty()).await;
    world.host.restart();
    world.host.hold(|_, _| false);
    world.host.release_all();
    let progress = end(&job).await;
    assert_eq!((progress.files, progress.failed, progress.error), (3, 0, None));
    assert_eq!(progress.bytes, TREE_BYTES);
}

#[tokio::test]
async fn a_host_that_is_gone_ends_it() {
    let world = World::new(tree());
    world.host.set_deadline(Duration::from_millis(50));
    world.host.hold(|request, stage| is_read(request) && stage == Stage::Arrived);
    let job = world.begin("");
    world.host.until(|host| !host.held().is_empty()).await;
    world.host.set_connected(false);
    let progress = end(&job).await;
    assert!(progress.error.unwrap().contains("did not answer"));
}

#[tokio::test]
async fn a_pin_holds_what_was_there_and_is_taken_back_when_it_fails() {
    let world = World::new(tree());
    let progress = world.pin("a").await;
    assert_eq!((progress.files, &progress.error), (2, &None));
    let (list, bytes) = pins(world.directory.path()).unwrap();
    assert_eq!((list[0].name.as_str(), list[0].files, list[0].bytes), ("nas:/media/a", 2, TREE_BYTES));
    assert!(bytes > TREE_BYTES);
    // A second one beside it, of which one file is too large.
    world.host.create_generated("c/huge", 80 * MIB, 3);
    world.host.advance(Duration::from_secs(10));
    let refused = world.pin("c").await;
    assert!(refused.error.as_ref().unwrap().contains("cache_size"), "{refused:?}");
    assert_eq!(refused.host_bytes, 0, "told before anything of it is sent");
    while world.cache.begin_pin("other").is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(pins(world.directory.path()).unwrap(), (list, bytes));
}

#[tokio::test]
async fn without_a_cache_nothing_is_sent_for_it() {
    let host = tree();
    let fetcher = Fetcher::new(host.client(), Arc::new(wormhole::cache::NoCache), FetchConfig::default());
    let fs = FileSystem::new(host.client(), fetcher, FsConfig::default());
    let progress = end(&fs.warm(Vec::new(), None)).await;
    assert!(progress.error.unwrap().contains("cannot be written"));
    assert_eq!(host.counters().reads, 0);
}
