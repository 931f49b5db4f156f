//! Pinned content stays in every process. Manual maintenance.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkRange;

const SEGMENT_BYTES: u64 = 16 * 1024;
const SIZE_BYTES: u64 = 20 * SEGMENT_BYTES;

/// Returns a file of one chunk: its key and content.
fn file(number: u32) -> (FileKey, VerifiedChunk) {
    (FileKey::from_bytes([number as u8; 32]), chunk(number, 1000 + number as usize * 37 % 3000))
}

/// Adds a file to the cache, as reading it would.
fn keep(cache: &DiskCache, number: u32) {
    let (key, content) = file(number);
    cache.record_hash(&key, ChunkIndex(0), content.hash());
    cache.insert(content);
    assert!(cache.flush());
}

fn add(pinning: &mut PinBuilder, number: u32) -> Result<(), PinError> {
    let (key, content) = file(number);
    pinning.add_chunks(&key, ChunkRange::new(ChunkIndex(0), 1))?;
    pinning.add_file(&key, content.bytes().len() as u64)
}

fn pin(
    cache: &DiskCache,
    name: &str,
    numbers: impl IntoIterator<Item = u32>,
) -> Result<PinSummary, PinError> {
    let mut pinning = cache.begin_pin(name)?;
    for number in numbers {
        keep(cache, number);
        add(&mut pinning, number)?;
    }
    pinning.finish()
}

/// Returns `true` if the cache has the whole file: its hash and its content.
fn has(cache: &DiskCache, number: u32) -> bool {
    let (key, content) = file(number);
    let hash = cache.known_hash(&key, ChunkIndex(0));
    hash.is_some_and(|hash| cache.load(hash) == Some(content))
}

/// Reads cold data of four times the size of the cache.
fn scan(cache: &DiskCache, seed: u32) {
    for number in 0..(4 * SIZE_BYTES / 3000) as u32 {
        insert(cache, &chunk(seed + number, 3000));
    }
}

fn with_suffix(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let is_it = |path: &PathBuf| path.extension().is_some_and(|kind| kind == suffix);
    segments(directory).into_iter().filter(is_it).collect()
}

fn root(directory: &Path) -> PathBuf {
    directory.join("cache")
}

#[test]
fn pinned_content_survives_scans_by_every_process_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    let other = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    (0..80).for_each(|number| keep(&cache, number));
    let summary = pin(&cache, "nas:/media", 0..40).unwrap();
    assert_eq!((summary.name.as_str(), summary.files), ("nas:/media", 40));
    assert_eq!(summary.bytes, (0..40).map(|number| file(number).1.bytes().len() as u64).sum::<u64>());
    scan(&other, 1000);
    scan(&cache, 2000);
    assert!((0..40).all(|number| has(&cache, number)));
    assert!((40..80).all(|number| !has(&cache, number)), "unpinned content is evicted");
    assert!(other.refresh() && (0..40).all(|number| has(&other, number)));
    assert!(disk_bytes(directory.path()) <= SIZE_BYTES);
    drop((cache, other));
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    scan(&cache, 3000);
    assert!((0..40).all(|number| has(&cache, number)));
    assert_eq!(pins(&root(directory.path())).unwrap().0, [summary]);
    assert_eq!(cache.stats().corrupt, 0);
}

#[test]
fn a_pinned_file_of_many_chunks_keeps_all_its_pages() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 16 << 20, 1 << 20);
    let (key, chunks) = (file_key(1), 600);
    let all: Vec<VerifiedChunk> = (0..chunks).map(|number| chunk(number, 4000)).collect();
    for (index, chunk) in all.iter().enumerate() {
        cache.record_hash(&key, ChunkIndex(index as u64), chunk.hash());
        cache.insert(chunk.clone());
    }
    let mut pinning = cache.begin_pin("file").unwrap();
    pinning.add_chunks(&key, ChunkRange::new(ChunkIndex(0), u64::from(chunks))).unwrap();
    pinning.add_file(&key, u64::from(chunks) * crate::chunk::CHUNK_BYTES).unwrap();
    pinning.finish().unwrap();
    assert!(cache.flush());
    (0..12_000).for_each(|number| cache.insert(chunk(10_000 + number, 6000)));
    assert!(cache.flush() && cache.stats().evicted_bytes > 0);
    drop(cache);
    let cache = open(directory.path(), 16 << 20, 1 << 20);
    for (index, chunk) in all.iter().enumerate() {
        assert_eq!(cache.known_hash(&key, ChunkIndex(index as u64)), Some(chunk.hash()));
        assert_eq!(cache.load(chunk.hash()).as_ref(), Some(chunk));
    }
}

#[test]
fn four_fifths_can_be_pinned_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    let refused = pin(&cache, "all", 0..250);
    assert!(
        matches!(refused, Err(PinError::TooMuch { most, .. }) if most == SIZE_BYTES / 10 * 8),
        "{refused:?}"
    );
    assert!(refused.unwrap_err().to_string().contains("cache_size"));
    assert!(with_suffix(directory.path(), "pin").is_empty(), "the unfinished pin is released");
    assert_eq!(pins(&root(directory.path())).unwrap(), (Vec::new(), 0));
    let pinning = cache.begin_pin("large").unwrap();
    assert!(pinning.check_capacity(SIZE_BYTES / 2).is_ok());
    assert!(matches!(pinning.check_capacity(SIZE_BYTES), Err(PinError::TooMuch { .. })));
    drop(pinning);
    // A process with a smaller cache in the same place keeps to its size, and does not remove pinned
    // content.
    pin(&cache, "half", 0..60).unwrap();
    let smaller = open(directory.path(), 2 * SEGMENT_BYTES, SEGMENT_BYTES);
    scan(&smaller, 1000);
    assert!(smaller.stats().dropped > 0);
    assert!((0..60).all(|number| has(&smaller, number)));
}

#[test]
fn a_pin_that_was_not_finished_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    let mut pinning = cache.begin_pin("half").unwrap();
    for number in 0..60 {
        keep(&cache, number);
        add(&mut pinning, number).unwrap();
    }
    assert!(matches!(cache.begin_pin("second"), Err(PinError::Busy)));
    assert!(with_suffix(directory.path(), "pin").len() > 2);
    let crashed = crashed_copy(directory.path());
    drop(pinning);
    assert!(with_suffix(directory.path(), "pin").is_empty());
    assert!((0..60).all(|number| has(&cache, number)), "it is cached all the same");
    // After a crash, the next `gc` or pin releases the content.
    let after = open(crashed.path(), SIZE_BYTES, SEGMENT_BYTES);
    assert!(!with_suffix(crashed.path(), "pin").is_empty());
    assert!(gc(&root(crashed.path()), None).unwrap().unpinned > 2);
    assert!(with_suffix(crashed.path(), "pin").is_empty());
    scan(&after, 1000);
    assert!((0..60).all(|number| !has(&after, number)));
}

#[test]
fn unpinned_content_is_evicted_unless_another_pin_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    pin(&cache, "first", 0..30).unwrap();
    let before = with_suffix(directory.path(), "pin").len();
    pin(&cache, "second", 10..20).unwrap();
    assert_eq!(with_suffix(directory.path(), "pin").len(), before, "pinned content is not copied again");
    let root = root(directory.path());
    let missing = unpin(&root, "third").unwrap_err();
    assert!(missing.to_string().contains("third") && missing.to_string().contains("cache stat"));
    assert_eq!(unpin(&root, "first").unwrap().name, "first");
    scan(&cache, 1000);
    assert!((10..20).all(|number| has(&cache, number)));
    unpin(&root, "second").unwrap();
    assert!(with_suffix(directory.path(), "pin").is_empty());
    scan(&cache, 2000);
    assert!((0..30).all(|number| !has(&cache, number)));
}

#[test]
fn pinning_again_replaces_and_compaction_frees_space() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    pin(&cache, "folder", 0..60).unwrap();
    pin(&cache, "folder", (0..60).step_by(4)).unwrap();
    let root = root(directory.path());
    let (list, bytes) = pins(&root).unwrap();
    assert_eq!((list.len(), list[0].files), (1, 15));
    let collected = gc(&root, Some(SIZE_BYTES)).unwrap();
    assert!(collected.unpinned >= 5, "{collected:?}");
    let (list, gathered) = pins(&root).unwrap();
    assert!(list.len() == 1 && gathered * 2 <= bytes, "{bytes} {gathered}");
    scan(&cache, 1000);
    assert!((0..60).all(|number| has(&cache, number) == (number % 4 == 0)));
}

#[test]
fn damage_in_pinned_content_is_reported_and_repaired_by_pinning_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    pin(&cache, "folder", 0..20).unwrap();
    scan(&cache, 1000);
    drop(cache);
    let path = with_suffix(directory.path(), "pin").remove(0);
    fs::File::options().write(true).open(&path).unwrap().write_all_at(&[1, 2, 3], 64 + 64 + 100).unwrap();
    let read_only = DiskCache::open_read_only(&root(directory.path())).unwrap();
    let mut told = Vec::new();
    let verified = read_only.verify(|_, damaged| {
        told.extend_from_slice(damaged);
        true
    });
    assert_eq!((verified.bad, told.len()), (1, 1));
    assert_eq!(told[0].file, path.file_name().unwrap().to_str().unwrap());
    assert_eq!(told[0].offset, 128);
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    assert_eq!((0..20).filter(|number| !has(&cache, *number)).count(), 1);
    pin(&cache, "folder", 0..20).unwrap();
    drop(cache);
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    scan(&cache, 2000);
    assert!((0..20).all(|number| has(&cache, number)));
}

#[test]
fn lost_content_cannot_be_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    let mut pinning = cache.begin_pin("name").unwrap();
    assert!(matches!(add(&mut pinning, 1), Err(PinError::Missing)));
    let (key, content) = file(1);
    cache.record_hash(&key, ChunkIndex(0), content.hash());
    assert!(matches!(add(&mut pinning, 1), Err(PinError::Missing)));
    assert!(matches!(cache.begin_pin(&"n".repeat(10_000)), Err(PinError::NameTooLong)));
    assert!(matches!(NoCache.begin_pin("name"), Err(PinError::NoCache)));
}

#[test]
fn a_damaged_or_foreign_pin_is_none_and_breaks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    pin(&cache, "one", 0..5).unwrap();
    pin(&cache, "two", 5..10).unwrap();
    let folder = root(directory.path()).join("v1/pins");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    fs::File::options().write(true).open(&paths[0]).unwrap().write_all_at(b"xx", 50).unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    fs::write(folder.join("0000.pin"), "short").unwrap();
    let (list, _) = pins(&root(directory.path())).unwrap();
    assert_eq!(list.len(), 1);
    pin(&cache, "three", 10..12).unwrap();
    scan(&cache, 1000);
    let kept = if list[0].name == "one" { 0..5 } else { 5..10 };
    assert!(kept.chain(10..12).all(|number| has(&cache, number)));
    assert!(folder.join("notes.txt").exists());
}

#[test]
fn clearing_leaves_pinned_content_unless_asked() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    pin(&cache, "one", 0..5).unwrap();
    (10..20).for_each(|number| keep(&cache, number));
    assert!(clear(&root(directory.path()), false).unwrap() > 0);
    assert!(cache.refresh());
    assert!((0..5).all(|number| has(&cache, number)) && (10..20).all(|number| !has(&cache, number)));
    assert!(clear(&root(directory.path()), true).unwrap() > 0);
    assert!(segments(directory.path()).is_empty());
    assert_eq!(pins(&root(directory.path())).unwrap(), (Vec::new(), 0));
    insert(&cache, &chunk(1, 100));
}

#[test]
fn gc_removes_only_garbage() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    (0..60).for_each(|number| keep(&cache, number));
    drop(cache);
    // The same records again, under a higher number.
    let root = root(directory.path());
    let oldest = segments(directory.path()).remove(0);
    let two = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    fs::rename(&oldest, directory.path().join("aside")).unwrap();
    assert!(two.refresh());
    (0..60).for_each(|number| keep(&two, number));
    drop(two);
    fs::rename(directory.path().join("aside"), &oldest).unwrap();
    for (name, age) in [("tag.1-0.new", 7200), ("tag.2-0.new", 60)] {
        let file = fs::File::create(root.join("v1").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
    }
    let collected = gc(&root, None).unwrap();
    assert_eq!((collected.shadowed, collected.leftovers, collected.unpinned), (1, 1, 0));
    assert!(collected.before_bytes > collected.after_bytes && !oldest.exists());
    assert!(root.join("v1/tag.2-0.new").exists());
    let cache = DiskCache::open_read_only(&root).unwrap();
    assert!((0..60).all(|number| has(&cache, number)));
    drop(cache);
    let collected = gc(&root, Some(8 << 20)).unwrap();
    assert_eq!(collected.before_bytes, collected.after_bytes);
}

#[test]
fn a_read_only_cache_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(DiskCache::open_read_only(directory.path()), Err(CacheError::NotACache { .. })));
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    let cache = open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
    (0..60).for_each(|number| keep(&cache, number));
    let before = segments(directory.path());
    let read_only = DiskCache::open_read_only(&root(directory.path())).unwrap();
    assert!((0..60).all(|number| has(&read_only, number)));
    read_only.insert(chunk(1000, 1000));
    assert!(read_only.flush() && read_only.stats().dropped == 1);
    assert!(matches!(read_only.begin_pin("name"), Err(PinError::ReadOnly)));
    drop(read_only);
    assert_eq!(segments(directory.path()), before);
}

#[derive(Debug, Clone)]
enum Step {
    Keep(usize, u32),
    Pin(usize, u8, Vec<u32>),
    Unpin(u8),
    Reopen(usize),
    Crash,
    Gc,
}

fn step() -> impl Strategy<Value = Step> {
    let cache = 0..2usize;
    prop_oneof![
        12 => (cache.clone(), 0..200u32).prop_map(|(cache, number)| Step::Keep(cache, number)),
        3 => (cache.clone(), 0..4u8, prop::collection::vec(0..200u32, 0..12))
            .prop_map(|(cache, name, numbers)| Step::Pin(cache, name, numbers)),
        1 => (0..4u8).prop_map(Step::Unpin),
        1 => cache.prop_map(Step::Reopen),
        1 => Just(Step::Crash),
        1 => Just(Step::Gc),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Two caches in one directory: at every moment both have all pinned content, within the size.
    #[test]
    fn pins_hold_in_every_history(steps in prop::collection::vec(step(), 1..80)) {
        let mut directory = tempfile::tempdir().unwrap();
        let open_one = |directory: &TempDir| open(directory.path(), SIZE_BYTES, SEGMENT_BYTES);
        let mut caches = [open_one(&directory), open_one(&directory)];
        let mut pinned: std::collections::BTreeMap<u8, Vec<u32>> = std::collections::BTreeMap::new();
        for step in steps {
            match step {
                Step::Keep(cache, number) => keep(&caches[cache], number),
                Step::Pin(cache, name, numbers) => {
                    let made = pin(&caches[cache], &name.to_string(), numbers.iter().copied());
                    match made {
                        Ok(_) => drop(pinned.insert(name, numbers)),
                        Err(PinError::TooMuch { .. }) => {}
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
                Step::Unpin(name) => {
                    let had = pinned.remove(&name).is_some();
                    prop_assert_eq!(unpin(&root(directory.path()), &name.to_string()).is_ok(), had);
                }
                Step::Reopen(cache) => drop(std::mem::replace(&mut caches[cache], open_one(&directory))),
                Step::Crash => {
                    let copy = crashed_copy(directory.path());
                    caches = [open_one(&copy), open_one(&copy)];
                    directory = copy;
                }
                Step::Gc => drop(gc(&root(directory.path()), None).unwrap()),
            }
            prop_assert!(disk_bytes(directory.path()) <= SIZE_BYTES);
            for cache in &caches {
                prop_assert!(cache.refresh());
                for number in pinned.values().flatten() {
                    prop_assert!(has(cache, *number), "{number} is pinned");
                }
                prop_assert_eq!(cache.stats().corrupt, 0);
            }
        }
    }
}
