//! Flipped bits, truncated files and crashes: each costs only the records that it hit.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::super::manifest::PageId;
use super::super::record::{Entry, Kind, Secret};
use super::*;

fn filled(directory: &Path, count: u32) -> (DiskCache, Vec<VerifiedChunk>) {
    let cache = open(directory, 1 << 20, 1 << 16);
    let chunks: Vec<VerifiedChunk> = (0..count).map(|number| chunk(number, 3000)).collect();
    for chunk in &chunks {
        cache.insert(chunk.clone());
    }
    assert!(cache.flush());
    (cache, chunks)
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn found(cache: &DiskCache, chunks: &[VerifiedChunk]) -> usize {
    chunks.iter().filter(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)).count()
}

#[test]
fn a_flipped_byte_is_a_miss_counted_once_and_mended_by_the_next_insert() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 10);
    flip(&segments(directory.path())[0], 200);
    assert_eq!(cache.load(chunks[0].hash()), None);
    assert_eq!(cache.load(chunks[0].hash()), None);
    assert_eq!(found(&cache, &chunks), 9);
    assert_eq!(cache.stats().corrupt, 1);
    insert(&cache, &chunks[0]);
    assert_eq!(found(&cache, &chunks), 10);
    drop(cache);
    assert_eq!(found(&open(directory.path(), 1 << 20, 1 << 16), &chunks), 10);
}

#[test]
fn a_damaged_footer_is_made_up_for_by_walking() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 10);
    drop(cache);
    let path = &segments(directory.path())[0];
    flip(path, fs::metadata(path).unwrap().len() - 40);
    assert_eq!(found(&open(directory.path(), 1 << 20, 1 << 16), &chunks), 10);
}

#[test]
fn a_segment_cut_in_a_record_keeps_the_records_before() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 10);
    let copy = crashed_copy(directory.path());
    let path = &segments(copy.path())[0];
    assert_eq!(path.extension().unwrap(), "open");
    OpenOptions::new().write(true).open(path).unwrap().set_len(64 + 3 * 3136 + 100).unwrap();
    let after = open(copy.path(), 1 << 20, 1 << 16);
    assert!(segments(copy.path()).iter().all(|path| path.extension().unwrap() == "seg"));
    assert_eq!(found(&after, &chunks), 3);
    assert_eq!(after.stats().corrupt, 0);
    // Lost chunks are inserted again, behind the remaining records.
    for chunk in &chunks {
        insert(&after, chunk);
    }
    assert_eq!(found(&after, &chunks), 10);
    drop((cache, after));
    assert_eq!(found(&open(copy.path(), 1 << 20, 1 << 16), &chunks), 10);
}

#[test]
fn payloads_that_look_like_records_are_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    let forged_secret = Secret::new([0; 32]);
    let key = PageId::of(file_key(9), ChunkIndex(0)).0.key();
    let entry = Entry { key, kind: Kind::Manifest, offset: 64, len: 100 };
    let mut payload = vec![0; 2984 - 2 * 64];
    payload.extend_from_slice(&forged_secret.encode_record(entry.kind, &key, 100));
    payload.extend_from_slice(&forged_secret.encode_footer(1, 64 + 64 + 2984, &[entry]));
    insert(&cache, &VerifiedChunk::compute(payload.into()));
    let copy = crashed_copy(directory.path());
    let path = &segments(copy.path())[0];
    fs::rename(path, path.with_extension("seg")).unwrap();
    let after = open(copy.path(), 1 << 20, 1 << 16);
    assert_eq!(after.known_hash(&file_key(9), ChunkIndex(0)), None);
    assert_eq!(after.stats().entries, 1);
}

#[test]
fn verify_finds_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 50);
    cache.record_hash(&file_key(1), ChunkIndex(0), ChunkHash::of(b"x"));
    assert!(cache.flush());
    let mut reports = 0;
    let clean = cache.verify(|_, _| {
        reports += 1;
        true
    });
    assert_eq!((clean.records, clean.records_total, clean.bad), (51, 51, 0));
    assert_eq!(reports, 4);
    flip(&segments(directory.path())[0], 64 + 64 + 10);
    flip(&segments(directory.path())[1], 64 + 64 + 10);
    assert_eq!(cache.verify(|_, _| true).bad, 2);
    let again = cache.verify(|_, _| true);
    assert_eq!((again.records_total, again.bad), (49, 0));
    assert_eq!(cache.verify(|_, _| false).records, 16);
    assert_eq!(found(&cache, &chunks), 48);
}

#[test]
fn a_cache_without_its_secret_is_reset() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 10);
    drop(cache);
    for damaged in ["", "wormhole cache 2\n00\n", "\u{0}"] {
        fs::write(directory.path().join("cache/v1/format"), damaged).unwrap();
        let cache = open(directory.path(), 1 << 20, 1 << 16);
        assert_eq!(found(&cache, &chunks), 0);
        for chunk in &chunks {
            insert(&cache, chunk);
        }
        drop(cache);
        assert_eq!(found(&open(directory.path(), 1 << 20, 1 << 16), &chunks), 10);
    }
}

#[test]
fn a_directory_that_is_not_a_cache_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("cache");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis.txt"), "years of work").unwrap();
    let opened = DiskCache::open(&config(directory.path(), 1 << 20, 1 << 16));
    assert!(matches!(opened, Err(CacheError::NotACache { .. })));
    assert!(matches!(clear(&home, true), Err(PinError::Cache(CacheError::NotACache { .. }))));
    fs::write(home.join("CACHEDIR.TAG"), "Signature: something else").unwrap();
    assert!(matches!(clear(&home, true), Err(PinError::Cache(CacheError::NotACache { .. }))));
    assert_eq!(fs::read_dir(&home).unwrap().count(), 2);
}

#[test]
fn clearing_removes_segments_and_nothing_else_also_under_a_running_cache() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, chunks) = filled(directory.path(), 50);
    let foreign = directory.path().join("cache/v1/segments/notes.txt");
    fs::write(&foreign, "not ours").unwrap();
    let before = disk_bytes(directory.path());
    let freed = clear(&directory.path().join("cache"), true).unwrap();
    assert!(freed > 50 * 3000 && freed <= before);
    assert!(segments(directory.path()).is_empty() && foreign.exists());
    assert!(cache.refresh());
    assert_eq!(found(&cache, &chunks), 0);
    assert_eq!((cache.stats().segments, cache.stats().corrupt), (0, 0));
    for chunk in &chunks {
        insert(&cache, chunk);
    }
    assert_eq!(found(&cache, &chunks), 50);
}
