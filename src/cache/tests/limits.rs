//! Disk usage of a cache, and its choice of content to keep.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

/// Runs `work` while another thread measures the disk usage; returns the maximum.
fn watched(directory: &Path, work: impl FnOnce()) -> u64 {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(disk_bytes(directory), Ordering::Relaxed);
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    most.into_inner().max(disk_bytes(directory))
}

#[test]
fn twelve_times_the_size_goes_through_within_the_size() {
    let directory = tempfile::tempdir().unwrap();
    let size_bytes = 4 << 20;
    let cache = open(directory.path(), size_bytes, 1 << 18);
    let most = watched(directory.path(), || {
        for number in 0..12 * 64 {
            cache.insert(chunk(number, 65_536));
            if number % 16 == 15 {
                assert!(cache.flush());
            }
        }
    });
    assert!(most <= size_bytes, "{most}");
    assert!(most >= size_bytes / 2, "{most}");
    let stats = cache.stats();
    assert_eq!((stats.dropped, stats.corrupt), (0, 0));
    assert!(stats.evicted_bytes >= 10 * size_bytes && stats.bytes <= size_bytes);
    assert!(cache.load(chunk(12 * 64 - 1, 65_536).hash()).is_some());
    assert!(cache.load(chunk(0, 65_536).hash()).is_none());
}

#[test]
fn the_hot_set_survives_a_scan_of_four_caches() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    let hot: Vec<VerifiedChunk> = (0..40).map(|number| chunk(number, 5000)).collect();
    for chunk in &hot {
        insert(&cache, chunk);
    }
    cache.record_hash(&file_key(1), ChunkIndex(5), hot[5].hash());
    cache.flush_file(&file_key(1));
    let mut lost = 0;
    for number in 0..800 {
        insert(&cache, &chunk(1000 + number, 5000));
        // Each hot chunk is used every 80 cold ones, and about 100 of those fit beside the hot set.
        let hot = &hot[number as usize / 2 % hot.len()];
        lost += usize::from(cache.load(hot.hash()).is_none());
    }
    assert_eq!(lost, 0);
    assert!(cache.stats().evicted_bytes > 3 << 20);
    assert!((1000..1100).all(|number| !cache.contains(chunk(number, 5000).hash())));
    drop(cache);
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    assert!(hot.iter().all(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)));
}

#[test]
fn many_short_mounts_do_not_leave_many_segments() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..30 {
        insert(&open(directory.path(), 1 << 20, 1 << 16), &chunk(number, 1000));
        assert_eq!(segments(directory.path()).len(), 1);
    }
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    assert!((0..30).all(|number| cache.load(chunk(number, 1000).hash()).is_some()));
}

#[test]
fn a_smaller_size_holds_from_the_next_start_on() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    (0..250).for_each(|number| insert(&cache, &chunk(number, 4000)));
    assert!(disk_bytes(directory.path()) > 3 << 18);
    drop(cache);
    let cache = open(directory.path(), 1 << 18, 1 << 16);
    assert!(disk_bytes(directory.path()) <= 1 << 18);
    assert!(cache.load(chunk(249, 4000).hash()).is_some());
    assert!(cache.load(chunk(0, 4000).hash()).is_none());
}

#[test]
fn a_chunk_too_large_for_a_segment_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 14, 1 << 13);
    insert(&cache, &chunk(1, 4096));
    assert_eq!((cache.stats().dropped, cache.stats().segments), (1, 0));
    insert(&cache, &chunk(2, 3800));
    assert_eq!((cache.stats().dropped, cache.stats().entries), (1, 1));
}

#[test]
fn impossible_sizes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = |size, segment_bytes| {
        DiskCache::open(&CacheConfig { segment_bytes, ..config(directory.path(), size, 0) })
    };
    assert!(matches!(open(1 << 20, None), Err(CacheError::TooSmall { least_bytes: 8_388_608, .. })));
    assert!(matches!(open(1 << 20, Some(100)), Err(CacheError::SegmentSize { .. })));
    assert!(matches!(open(1 << 20, Some(1 << 20)), Err(CacheError::TooSmall { .. })));
    assert!(!directory.path().join("cache").exists());
    assert!(open(1 << 23, None).is_ok());
}

#[test]
fn inserts_beyond_the_queue_are_dropped_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 28, 1 << 24);
    let chunks: Vec<VerifiedChunk> = (0..400).map(|number| chunk(number, 1 << 18)).collect();
    for chunk in &chunks {
        cache.insert(chunk.clone());
    }
    let stats = cache.stats();
    assert_eq!(stats.inserts + stats.dropped, 400);
    assert!(stats.inserts >= 60);
    // Accepted chunks are found at every moment: queued, in flight, or written.
    let found = chunks.iter().filter(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)).count() as u64;
    assert_eq!(found, stats.inserts);
    assert!(cache.flush());
}
