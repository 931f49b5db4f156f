//! Tests of the whole cache on a real disk, and their shared helpers.

mod damage;
mod direct;
mod disk;
mod fuzz;
mod history;
mod limits;
mod pins;
mod sharing;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::direct::DirectIo;
use super::*;

/// Returns the configuration of a cache of `size_bytes` in segments of `segment_bytes`.
fn config(directory: &Path, size_bytes: u64, segment_bytes: u64) -> CacheConfig {
    let directory = directory.join("cache");
    CacheConfig { directory, size_bytes, min_free_ratio: 0.0, segment_bytes: Some(segment_bytes) }
}

fn open(directory: &Path, size_bytes: u64, segment_bytes: u64) -> DiskCache {
    DiskCache::open_with(&config(directory, size_bytes, segment_bytes), direct_io()).unwrap()
}

/// Returns the setting of direct I/O: these tests are compiled twice, see `cache/mod.rs`.
fn direct_io() -> DirectIo {
    if module_path!().contains("without_direct_io") { DirectIo::Never } else { DirectIo::Always }
}

/// Returns chunk `number` of `len` bytes (at least 4): always the same, and different from every other.
fn chunk(number: u32, len: usize) -> VerifiedChunk {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len.max(4) {
        bytes.extend_from_slice(&(number.wrapping_mul(2_654_435_761) ^ bytes.len() as u32).to_le_bytes());
    }
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes.truncate(len.max(4));
    VerifiedChunk::compute(Bytes::from(bytes))
}

fn insert(cache: &DiskCache, chunk: &VerifiedChunk) {
    cache.insert(chunk.clone());
    assert!(cache.flush());
}

fn file_key(number: u8) -> FileKey {
    FileKey::from_bytes([number; 32])
}

/// Returns the segment files, oldest first.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("cache/v1/segments")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| {
        path.extension().is_some_and(|kind| kind == "seg" || kind == "pin" || kind == "open")
    };
    let mut paths: Vec<PathBuf> = paths.filter(is_segment).collect();
    paths.sort();
    paths
}

/// Returns the disk usage of the segment files in bytes, as `du` counts it.
fn disk_bytes(directory: &Path) -> u64 {
    let paths = segments(directory);
    // A file that is evicted at this moment takes nothing.
    let metas = paths.iter().filter_map(|path| fs::metadata(path).ok());
    metas.map(|meta| (meta.blocks() * 512).max(meta.len())).sum()
}

/// Returns the directory as a crash at this moment leaves it: a copy without locks.
fn crashed_copy(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&directory.join("cache"), &copy.path().join("cache"));
    copy
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn inserted_chunks_are_found_even_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let chunks: Vec<VerifiedChunk> = (0..40).map(|n| chunk(n, 1000 + n as usize * 100)).collect();
    let hashes: Vec<ChunkHash> = chunks.iter().map(VerifiedChunk::hash).collect();
    for restart in 0..3 {
        let cache = open(directory.path(), 1 << 20, 1 << 16);
        if restart == 0 {
            assert!(cache.load(hashes[0]).is_none());
            for chunk in &chunks {
                cache.insert(chunk.clone());
            }
            assert!(cache.flush());
        }
        assert!(hashes.iter().all(|hash| cache.contains(*hash)));
        let mut wanted = hashes.clone();
        wanted.insert(7, ChunkHash::of(b"unknown"));
        let mut found = cache.load_run(&wanted);
        assert_eq!(found.remove(7), None);
        assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), chunks);
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.hits, stats.corrupt), (40, 40, 0));
        assert_eq!(stats.misses, if restart == 0 { 2 } else { 1 });
        assert_eq!(stats.inserts, if restart == 0 { 40 } else { 0 });
        assert!(segments(directory.path()).len() >= 2);
    }
}

#[test]
fn hashes_of_a_file_are_known_after_a_restart_and_pages_grow() {
    let directory = tempfile::tempdir().unwrap();
    let hash = |index: u64| ChunkHash::of(&index.to_le_bytes());
    for round in 0..3 {
        let cache = open(directory.path(), 1 << 20, 1 << 16);
        let known = |index| cache.known_hash(&file_key(1), ChunkIndex(index));
        let knows_none =
            |first, count| cache.knows_none(&file_key(1), ChunkRange::new(ChunkIndex(first), count));
        assert_eq!(knows_none(0, 600), round == 0, "round {round}, before the disk was asked");
        for index in 0..600 {
            assert_eq!(known(index), (index % 3 < round).then(|| hash(index)), "{index} {round}");
        }
        for index in (0..600).filter(|index| index % 3 == round) {
            cache.record_hash(&file_key(1), ChunkIndex(index), hash(index));
            assert_eq!(known(index), Some(hash(index)));
            assert!(!knows_none(index.saturating_sub(1), 2));
        }
        assert_eq!(knows_none(2, 1), round < 2, "round {round}, the others of its page being known");
        assert!(knows_none(600, 1000));
        cache.flush_file(&file_key(1));
        assert!(!knows_none(0, 1) && cache.flush() && !knows_none(0, 1));
        assert_eq!(cache.known_hash(&file_key(2), ChunkIndex(0)), None);
    }
}

#[test]
fn a_page_written_without_reading_the_old_one_is_merged_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let hash = |index: u64| ChunkHash::of(&index.to_le_bytes());
    for index in 0..4 {
        let cache = open(directory.path(), 1 << 20, 1 << 16);
        cache.record_hash(&file_key(1), ChunkIndex(index), hash(index));
        assert!(cache.flush());
        cache.record_hash(&file_key(1), ChunkIndex(10 + index), hash(10 + index));
    }
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    for index in (0..4).chain(10..14) {
        assert_eq!(cache.known_hash(&file_key(1), ChunkIndex(index)), Some(hash(index)));
    }
    assert_eq!(cache.stats().entries, 1);
}

#[tokio::test]
async fn async_code_loads_on_another_thread() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    let one = chunk(1, 5000);
    insert(&cache, &one);
    let cache: Arc<dyn ChunkCache> = Arc::new(cache);
    let wanted = vec![ChunkHash::of(b"unknown"), one.hash()];
    assert_eq!(load_async(&cache, wanted.clone()).await, [None, Some(one)]);
    let none: Arc<dyn ChunkCache> = Arc::new(NoCache);
    assert_eq!(load_async(&none, wanted).await, [None, None]);
    assert!(none.flush());
}
