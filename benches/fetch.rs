//! The way of a chunk through the fetcher, without network and kernel: how much of the budget it takes itself.
//!
//! `cargo bench --bench fetch`. `from_memory` is a hit answered in place. `sequential_instant` streams from a client that
//! has every chunk ready, so it is the fetcher and the prefetcher alone, with the copy that joins chunks;
//! `sequential_host` streams from the model host, which makes and hashes the bytes as it goes, behind one lock;
//! `sequential_disk` reads again what the disk cache holds (from the kernel's page cache, each chunk hashed).

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use wormhole::cache::{CacheConfig, ChunkCache, DiskCache, FileKey, NoCache};
use wormhole::chunk::{ByteRange, CHUNK_BYTES, VerifiedChunk};
use wormhole::client::memory::MemoryHost;
use wormhole::client::{CallError, CallFuture, Client, ContentPart, Lane, LinkState, ListPart};
use wormhole::fetch::{FetchConfig, Fetcher, FileContent, StreamId};
use wormhole::prefetch::{Demand, Limits, Prefetcher, window_limit};
use wormhole::proto::{Attributes, NodeId, ReadRequest, Reply, Request, Timestamp};

const MIB: u64 = 1024 * 1024;

/// Bytes of a file that is streamed: large against every window and buffer.
const FILE_BYTES: u64 = 1024 * MIB;

/// Bytes of one read call: what `cp` uses.
const READ_BYTES: u64 = MIB;

/// A client that has every chunk ready; they are all the same one.
struct Instantly(VerifiedChunk);

impl Client for Instantly {
    fn call(&self, _: Request, _: Lane) -> CallFuture<Reply> {
        Box::pin(async { Err(CallError::Closed) })
    }

    fn list(&self, _: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        mpsc::channel(1).1
    }

    fn read(&self, request: ReadRequest, _: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        let chunks = request.range.chunks();
        let (parts, receiver) = mpsc::channel(chunks.count as usize + 1);
        let all = chunks.iter().map(|index| ContentPart::Chunk { index, chunk: self.0.clone() });
        for part in all.chain([ContentPart::End { observed: Timestamp(0) }]) {
            parts.try_send(Ok(part)).expect("there is room for all of it");
        }
        receiver
    }

    fn read_current(&self, _: NodeId, _: ByteRange) -> CallFuture<Bytes> {
        unreachable!("no file changes")
    }

    fn root(&self) -> Attributes {
        unreachable!("nobody asks for the root")
    }

    fn link(&self) -> LinkState {
        LinkState {
            connected: true,
            silent: std::time::Duration::ZERO,
            rtt: std::time::Duration::ZERO,
            bytes_per_second: 0,
            sent_bytes_per_second: 0,
            window_bytes: 0,
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().expect("a runtime can be built")
}

fn file(runtime: &Runtime, host: &MemoryHost, size: u64) -> FileContent {
    host.create_generated("file", size, 1);
    let client = host.client();
    let attributes =
        runtime.block_on(client.lookup(host.root_node(), b"file")).expect("the file was just made");
    FileContent {
        node: attributes.node,
        version: attributes.version(),
        key: FileKey::from_bytes([1; 32]),
        history: FileKey::from_bytes([2; 32]),
        epoch: 0,
        settled: true,
    }
}

/// Reads the whole file as `fs` does.
async fn stream(fetcher: &Fetcher, content: &FileContent, handle: u64) {
    let mut prefetcher = Prefetcher::new();
    for offset in (0..content.version.size).step_by(READ_BYTES as usize) {
        let range = ByteRange::new(offset, READ_BYTES);
        let share = fetcher.share_bytes();
        let limits = Limits { window_bytes_max: window_limit(share, std::time::Duration::from_millis(1), 0) };
        let plan = prefetcher.on_read(Instant::now(), range, content.version.size, limits);
        if let Some(ahead) = plan.ahead {
            fetcher.read_ahead(content, ahead.range, StreamId { handle, cursor: ahead.cursor.0 });
        }
        let bytes = fetcher.read(content, range, plan.demand).await.expect("the host in memory answers");
        assert_eq!(bytes.len() as u64, READ_BYTES);
    }
    fetcher.cancel_handle(handle);
}

fn from_memory(criterion: &mut Criterion) {
    let (runtime, host) = (runtime(), MemoryHost::new());
    let content = file(&runtime, &host, 8 * MIB);
    let _entered = runtime.enter();
    let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), FetchConfig::default());
    let whole = ByteRange::new(0, 8 * MIB);
    runtime.block_on(fetcher.read(&content, whole, Demand::Chunks(whole.chunks()))).expect("it answers");
    let mut group = criterion.benchmark_group("fetch/from_memory");
    for (name, range) in [
        ("4KiB", ByteRange::new(5 * MIB, 4096)),
        ("128KiB", ByteRange::new(5 * MIB, 128 * 1024)),
        ("1MiB", ByteRange::new(5 * MIB, MIB)),
    ] {
        group.throughput(Throughput::Bytes(range.len));
        group.bench_function(name, |bencher| bencher.iter(|| fetcher.read_memory(&content, range)));
    }
    group.finish();
}

fn sequential(criterion: &mut Criterion) {
    let (runtime, host) = (runtime(), MemoryHost::new());
    let content = file(&runtime, &host, FILE_BYTES);
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("fetch");
    group.sample_size(10).throughput(Throughput::Bytes(FILE_BYTES));

    let instantly = Arc::new(Instantly(VerifiedChunk::compute(Bytes::from(vec![7; CHUNK_BYTES as usize]))));
    group.bench_function("sequential_instant", |bencher| {
        bencher.iter(|| {
            let client = Arc::clone(&instantly);
            let fetcher = Fetcher::new(client, Arc::new(NoCache), FetchConfig::default());
            runtime.block_on(stream(&fetcher, &content, 1));
        });
    });

    group.bench_function("sequential_host", |bencher| {
        bencher.iter(|| {
            let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), FetchConfig::default());
            runtime.block_on(stream(&fetcher, &content, 1));
        });
    });

    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let config = CacheConfig {
        directory: directory.path().join("cache"),
        size_bytes: 4 * FILE_BYTES,
        min_free_ratio: 0.0,
        segment_bytes: None,
    };
    let cache: Arc<dyn ChunkCache> = Arc::new(DiskCache::open(&config).expect("the cache can be opened"));
    // The cache may drop what it cannot write in time: what it has after a few rounds is what is measured.
    for _ in 0..4 {
        let fetcher = Fetcher::new(host.client(), Arc::clone(&cache), FetchConfig::default());
        runtime.block_on(stream(&fetcher, &content, 1));
        cache.flush();
    }
    group.bench_function("sequential_disk", |bencher| {
        bencher.iter(|| {
            let fetcher = Fetcher::new(host.client(), Arc::clone(&cache), FetchConfig::default());
            runtime.block_on(stream(&fetcher, &content, 1));
        });
    });
    group.finish();
}

criterion_group!(benches, from_memory, sequential);
criterion_main!(benches);
