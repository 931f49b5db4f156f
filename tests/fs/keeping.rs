//! What was written here is read here again without being sent back, as long as the host still has it.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wormhole::cache::{CacheConfig, DiskCache};
use wormhole::chunk::CHUNK_BYTES;
use wormhole::client::memory::MemoryHost;
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{FileSystem, FsConfig, Inode};
use wormhole::proto::Trust;

use super::changing::create;
use super::{FLEETING, LASTING, World};

/// A mount with a disk cache of its own.
fn world(host: MemoryHost) -> (World, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = CacheConfig {
        directory: directory.path().to_owned(),
        size_bytes: 64 << 20,
        min_free_ratio: 0.0,
        segment_bytes: Some(1 << 20),
    };
    let cache = Arc::new(DiskCache::open(&config).unwrap());
    let fetcher = Fetcher::new(host.client(), cache as _, FetchConfig::default());
    let config = FsConfig { freshness: FLEETING, read_only: false, ..FsConfig::default() };
    let fs = FileSystem::new(host.client(), Arc::clone(&fetcher), config);
    (World { host, fs, fetcher }, directory)
}

impl World {
    async fn write_whole(&self, name: &str, content: &[u8]) {
        let (_, opened) = self.fs.create(Inode::ROOT, name.as_bytes(), create(true)).await.unwrap();
        for (number, part) in content.chunks(1 << 20).enumerate() {
            self.write(opened.handle, (number as u64) << 20, part).await.unwrap();
        }
        self.fs.flush(opened.handle).await.unwrap();
        self.fs.release(opened.handle).await.unwrap();
        // So that the next change can be told from this one; it does not lie still yet.
        self.host.advance(Duration::from_millis(50));
    }

    /// How many bytes the host sends for reading it all, which must be as on the host.
    async fn costs(&self, name: &str) -> u64 {
        let before = self.host.counters().content_bytes;
        let opened = self.open(name).await;
        let content = self.host.content(name);
        for (number, part) in content.chunks(1 << 20).enumerate() {
            let read = self.read(opened.handle, (number as u64) << 20, part.len() as u64).await.unwrap();
            assert!(read == part, "{name}: the {number}th MiB is another one");
        }
        self.fs.release(opened.handle).await.unwrap();
        self.host.counters().content_bytes - before
    }
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let host = MemoryHost::new();
    host.create_generated("noise", len as u64, seed.into());
    host.content("noise")
}

#[tokio::test]
async fn what_was_written_is_not_sent_back_right_away_and_later_and_under_another_version() {
    let (world, _directory) = world(MemoryHost::new());
    let sizes = [("small", 5000), ("chunk", CHUNK_BYTES as usize), ("large", (3 << 20) + 77)];
    for (seed, (name, len)) in sizes.into_iter().enumerate() {
        world.write_whole(name, &noise(len, seed as u8)).await;
        assert_eq!(world.costs(name).await, 0, "{name}");
    }
    // What lies still is kept under its version, too.
    world.host.advance(Duration::from_secs(10));
    for (name, _) in sizes {
        assert_eq!(world.costs(name).await, 0, "{name}");
    }
    // Somebody changes one byte of what was written here.
    world.host.write("large", 2 << 20, "!");
    world.host.advance(Duration::from_secs(10));
    assert_eq!(world.costs("large").await, CHUNK_BYTES);
}

#[tokio::test]
async fn on_a_fast_link_and_behind_who_writes_at_the_same_time_the_host_is_believed() {
    let host = MemoryHost::new();
    let (world, _directory) = world(host.clone());
    world.write_whole("f", &noise(2 << 20, 1)).await;
    host.write("f", 0, "another one was here");
    host.write("f", 1 << 20, "and here");
    host.advance(Duration::from_millis(50));
    assert_eq!(world.costs("f").await, 2 * CHUNK_BYTES);
    host.set_upload(400_000_000, 1 << 20);
    world.write_whole("fast", &noise(2 << 20, 2)).await;
    assert_eq!(world.costs("fast").await, 2 << 20);
}

#[tokio::test]
async fn what_was_read_of_a_young_file_is_not_sent_again_under_any_name() {
    let host = MemoryHost::new();
    let (world, _directory) = world(host.clone());
    let sizes = [("small", 5000), ("large", (3 << 20) + 77)];
    for (seed, (name, len)) in sizes.into_iter().enumerate() {
        let content = noise(len, seed as u8);
        host.replace(name, &content);
        host.advance(Duration::from_millis(50));
        assert!(!host.attributes_of(name).is_settled());
        assert_eq!(world.costs(name).await, len as u64, "{name}");
        assert_eq!(world.costs(name).await, 0, "{name} again");
        host.replace(format!("{name}, another"), &content);
        host.advance(Duration::from_millis(50));
        // The hashes of small files are not asked for ahead.
        let expected = if len < 1 << 20 { len as u64 } else { 0 };
        assert_eq!(world.costs(&format!("{name}, another")).await, expected, "{name}");
        host.write(name, 0, "!");
        host.advance(Duration::from_millis(50));
        assert_eq!(world.costs(name).await, CHUNK_BYTES.min(len as u64), "{name} with one byte changed");
    }
    host.advance(Duration::from_secs(10));
    for (name, _) in sizes {
        assert!(host.attributes_of(name).is_settled());
        assert_eq!(world.costs(name).await, 0, "{name} that lies still");
    }
}

#[tokio::test]
async fn where_numbers_prove_nothing_the_host_confirms_what_is_kept() {
    let host = MemoryHost::new();
    host.set_trust(Trust::Weak);
    let (world, _directory) = world(host.clone());
    for (name, len) in [("small", 5000), ("large", (3 << 20) + 77)] {
        host.create_file(name, noise(len, 1));
        assert_eq!(world.costs(name).await, len as u64, "{name}");
        assert_eq!(world.costs(name).await, 0, "{name} again");
        let before = host.attributes_of(name);
        host.write_unnoticed(name, len as u64 - 10, "changed");
        assert_eq!(host.attributes_of(name).version(), before.version());
        let last = (len as u64 - 1) % CHUNK_BYTES + 1;
        assert_eq!(world.costs(name).await, last, "{name}, of which the last chunk is another one");
        assert_eq!(world.costs(name).await, 0, "{name} in its new state");
    }
}

#[tokio::test]
async fn a_file_whose_numbers_prove_nothing_is_read_anew_by_whoever_opens_it() {
    let host = MemoryHost::new();
    host.set_trust(Trust::Weak);
    host.create_file("f", noise(2 << 20, 1));
    let world = World::new(host.clone(), LASTING);
    let first = world.open("f").await;
    assert_eq!(world.read(first.handle, 0, 5).await.unwrap(), host.content_at("f", 0, 5));
    assert!(first.mode.is_direct && !first.mode.keeps_pages, "nor does the kernel keep it");
    host.write_unnoticed("f", 0, "other");
    let second = world.open("f").await;
    assert_eq!(world.read(second.handle, 0, 5).await.unwrap(), b"other");
    assert_eq!(
        world.read(first.handle, 0, 5).await.unwrap(),
        b"other",
        "nobody sees the old one after the new one"
    );
}

const TEN_SECONDS_NS: i64 = 10_000_000_000;

#[tokio::test]
async fn stamps_of_a_clock_that_is_off_settle_nothing() {
    for ahead_ns in [-TEN_SECONDS_NS, TEN_SECONDS_NS] {
        let host = MemoryHost::new();
        host.set_trust(Trust::Weak);
        host.set_stamps_ahead(ahead_ns);
        // As coarse as those of many network file systems: changes within a second look alike.
        host.set_clock_granularity(Duration::from_secs(1));
        let (world, _directory) = world(host.clone());
        let len = (1 << 20) + 77;
        host.replace("f", noise(len, 1));
        for seed in 2..6 {
            // Each time the right bytes are read, which is checked.
            world.costs("f").await;
            host.write("f", 0, noise(len, seed));
            assert!(!host.attributes_of("f").is_settled());
        }
        world.costs("f").await;
        host.advance(Duration::from_secs(60));
        assert_eq!(world.costs("f").await, 0, "the host confirms what lies still");
    }
}

#[tokio::test]
async fn a_host_whose_clock_was_set_back_is_cached_all_the_same() {
    let host = MemoryHost::new();
    let (world, _directory) = world(host.clone());
    let len = (1 << 20) + 77;
    host.set_stamps_ahead(TEN_SECONDS_NS);
    host.replace("f", noise(len, 1));
    // From here on the stamps are the host's own again, and those of before lie in the future.
    host.set_stamps_ahead(0);
    assert!(host.attributes_of("f").is_settled());
    assert_eq!(world.costs("f").await, len as u64);
    assert_eq!(world.costs("f").await, 0);
    host.write("f", 0, noise(len, 2));
    host.advance(Duration::from_millis(50));
    assert_eq!(world.costs("f").await, len as u64, "a change shows, though its stamps are older");
}
