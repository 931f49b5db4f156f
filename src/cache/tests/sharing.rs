//! Several caches on one directory at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

const SEGMENT_BYTES: u64 = 16 * 1024;

#[test]
fn one_process_finds_the_records_of_another_in_open_and_sealed_segments() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), 1 << 20, 1 << 16);
    let second = open(directory.path(), 1 << 20, 1 << 16);
    let chunks: Vec<VerifiedChunk> = (0..40).map(|number| chunk(number, 4000)).collect();
    for some in chunks.chunks(5) {
        for chunk in some {
            insert(&first, chunk);
        }
        assert!(second.refresh());
        assert!(some.iter().all(|chunk| second.load(chunk.hash()).as_ref() == Some(chunk)));
    }
    assert_eq!(second.stats().segments, first.stats().segments);
    let one = chunk(100, 4000);
    insert(&second, &one);
    drop(first);
    let third = open(directory.path(), 1 << 20, 1 << 16);
    assert!(third.load(one.hash()).is_some());
    assert!(second.refresh());
    assert!(chunks.iter().all(|chunk| second.load(chunk.hash()).as_ref() == Some(chunk)));
    assert_eq!(second.stats().corrupt, 0);
}

#[test]
fn a_miss_makes_the_writer_refresh() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), 1 << 20, 1 << 16);
    let second = open(directory.path(), 1 << 20, 1 << 16);
    let one = chunk(1, 4000);
    insert(&first, &one);
    while second.load(one.hash()).is_none() {
        thread::yield_now();
    }
}

#[test]
fn a_chunk_that_another_evicted_is_a_miss_and_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), 4 * SEGMENT_BYTES, SEGMENT_BYTES);
    (0..8).for_each(|number| insert(&first, &chunk(number, 3000)));
    drop(first);
    let first = open(directory.path(), 4 * SEGMENT_BYTES, SEGMENT_BYTES);
    let second = open(directory.path(), 4 * SEGMENT_BYTES, SEGMENT_BYTES);
    assert!(second.contains(chunk(0, 3000).hash()));
    (100..140).for_each(|number| insert(&first, &chunk(number, 3000)));
    assert_eq!(second.load(chunk(0, 3000).hash()), None);
    assert_eq!(second.stats().corrupt, 0);
}

#[test]
fn the_segment_of_a_living_process_is_never_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), 4 * SEGMENT_BYTES, SEGMENT_BYTES);
    let second = open(directory.path(), 4 * SEGMENT_BYTES, SEGMENT_BYTES);
    let one = chunk(1, 3000);
    insert(&first, &one);
    let open_segment = segments(directory.path()).remove(0);
    (100..200).for_each(|number| insert(&second, &chunk(number, 3000)));
    assert!(second.stats().evicted_bytes > 0);
    assert!(open_segment.exists());
    assert_eq!(first.load(one.hash()), Some(one));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn two_caches_keep_the_size_together_and_never_give_wrong_bytes(
        size in 4..10u64, steps in prop::collection::vec((0..7u8, 0..2usize, 0..100u32), 1..120),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let size_bytes = size * SEGMENT_BYTES;
        let open = || open(directory.path(), size_bytes, SEGMENT_BYTES);
        let mut caches = [open(), open()];
        for (what, which, number) in steps {
            let wanted = chunk(number, (number as usize * 577) % 7000);
            match what {
                0 => drop(std::mem::replace(&mut caches[which], open())),
                1 => {
                    // Otherwise it may report records that the other one evicted.
                    prop_assert!(caches[which].refresh());
                    insert(&caches[which], &wanted);
                    prop_assert!(caches[1 - which].refresh());
                    prop_assert_eq!(caches[1 - which].load(wanted.hash()), Some(wanted));
                }
                2 | 3 => {
                    let found = caches[which].load(wanted.hash());
                    prop_assert!(found.is_none_or(|found| found == wanted));
                }
                _ => insert(&caches[which], &wanted),
            }
            prop_assert!(disk_bytes(directory.path()) <= size_bytes);
            prop_assert_eq!(caches[0].stats().corrupt + caches[1].stats().corrupt, 0);
        }
    }
}

#[test]
fn threads_on_two_caches_get_right_bytes_within_the_size() {
    let directory = tempfile::tempdir().unwrap();
    let size_bytes = 16 * SEGMENT_BYTES;
    let caches = [(); 2].map(|()| open(directory.path(), size_bytes, SEGMENT_BYTES));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(disk_bytes(directory.path()) <= size_bytes);
            }
        });
        let workers: Vec<_> = (0..4u32)
            .map(|worker| {
                let cache = &caches[worker as usize % 2];
                scope.spawn(move || {
                    for turn in 0..600u32 {
                        let wanted = chunk((turn * (7 + worker) + turn / 50) % 150, 2500);
                        match cache.load(wanted.hash()) {
                            Some(found) => assert_eq!(found, wanted),
                            None => cache.insert(wanted),
                        }
                        if turn % 64 == worker {
                            assert!(cache.flush());
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    assert!(caches.iter().all(|cache| cache.flush() && cache.stats().corrupt == 0));
    assert!(caches.iter().all(|cache| cache.stats().hits > 0 && cache.stats().evicted_bytes > 0));
}
