//! Moved content comes from the cache: tests over a host in memory and a cache on disk.

use super::*;
use crate::cache::{CacheConfig, DiskCache};
use crate::chunk::testing::noise;
use crate::client::memory::MemoryHost;
use crate::fetch::FetchConfig;
use crate::prefetch::Demand;

const MIB: u64 = 1024 * 1024;

struct World {
    host: MemoryHost,
    fetcher: Arc<Fetcher>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (host, folder) = (MemoryHost::new(), tempfile::tempdir().unwrap());
        let config = CacheConfig {
            directory: folder.path().join("cache"),
            size_bytes: 64 * MIB,
            min_free_ratio: 0.0,
            segment_bytes: None,
        };
        let cache = Arc::new(DiskCache::open(&config).unwrap());
        let fetcher = Fetcher::new(host.client(), cache, FetchConfig::default());
        Self { host, fetcher, _folder: folder }
    }

    /// Reads a whole file whose content is `bytes`, its version `number`.
    async fn read(&self, number: u8, bytes: &[u8]) {
        let client = self.host.client();
        let attributes = client.lookup(self.host.root_node(), b"file").await.unwrap();
        let content = FileContent {
            node: attributes.node,
            version: attributes.version(),
            key: FileKey::from_bytes([number; 32]),
            history: FileKey::from_bytes([255; 32]),
            settled: true,
            epoch: 0,
        };
        for offset in (0..bytes.len() as u64).step_by(MIB as usize) {
            let range = ByteRange::new(offset, MIB).clamp_to(bytes.len() as u64);
            let read = self.fetcher.read(&content, range, Demand::Chunks(range.chunks())).await.unwrap();
            assert!(read == bytes[offset as usize..range.end() as usize], "at {offset}");
        }
        assert!(self.fetcher.cache.flush());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inserted_and_removed_bytes_cost_little_and_content_is_right() {
    let world = World::new();
    let first = noise(1, (12 * MIB + 777) as usize);
    world.host.create_file("file", &first);
    world.read(1, &first).await;
    let second = [b"x".as_slice(), &first].concat();
    world.host.write("file", 0, &second);
    let before = world.host.counters();
    world.read(2, &second).await;
    let after = world.host.counters();
    let transferred = after.content_bytes - before.content_bytes;
    assert!(after.blocks > before.blocks);
    assert!(transferred < 2 * MIB, "{transferred} bytes for one byte in front");
    assert!(world.fetcher.statistics().moved_bytes > 10 * MIB);

    // An edit in the middle, and a removed part.
    let third = [&second[..3_000_000], &noise(2, 100_000), &second[3_300_000..]].concat();
    world.host.write("file", 0, &third);
    let before = world.host.counters();
    world.read(3, &third).await;
    let transferred = world.host.counters().content_bytes - before.content_bytes;
    assert!(transferred < 3 * MIB, "{transferred}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_content_is_searched_only_for_a_while() {
    let world = World::new();
    let first = noise(1, (16 * MIB) as usize);
    world.host.create_file("file", &first);
    world.read(1, &first).await;
    let second = noise(2, (16 * MIB) as usize);
    world.host.write("file", 0, &second);
    world.read(2, &second).await;
    let asked = world.host.counters().blocks;
    assert!((1..=9).contains(&asked), "{asked}");
    assert_eq!(world.fetcher.statistics().moved_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_in_place_needs_no_blocks() {
    let world = World::new();
    let first = noise(1, (8 * MIB) as usize);
    world.host.create_file("file", &first);
    world.read(1, &first).await;
    let mut second = first;
    second[4_000_000..4_001_000].fill(0);
    world.host.write("file", 0, &second);
    let before = world.host.counters();
    world.read(2, &second).await;
    let after = world.host.counters();
    assert_eq!((after.blocks, after.content_bytes - before.content_bytes), (0, CHUNK_BYTES));
}
