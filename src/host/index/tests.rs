//! The index against a twin in memory, over damage and restarts; and hashing ahead.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::chunk::CHUNK_BYTES;

const SECOND_NS: i64 = 1_000_000_000;
const NOW: Timestamp = Timestamp(100 * SECOND_NS);

fn file(inode: u64, chunks: u64) -> FileVersion {
    let node = NodeId { device: 1, inode, birth_ns: 7 };
    let version = Version { size: chunks * CHUNK_BYTES, mtime: Timestamp(0), ctime: Timestamp(0) };
    FileVersion { node, version, trust: Trust::Full }
}

fn hash(of: u64) -> ChunkHash {
    ChunkHash::of(&of.to_le_bytes())
}

fn all(count: u64) -> ChunkRange {
    ChunkRange::new(ChunkIndex(0), count)
}

fn small(folder: &Path, sets: u64) -> HashIndex {
    HashIndex::over(Some(Table::open_with(&folder.join(INDEX_FILE), [3; 32], sets).unwrap()))
}

#[test]
fn what_was_noted_is_known_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let index = HashIndex::open(folder.path());
    (0..200).for_each(|at| index.note(file(1, 300), NOW, ChunkIndex(at), hash(at)));
    index.note_sum(file(1, 300), NOW, hash(9));
    let check = |index: &HashIndex| {
        let found = index.hashes(file(1, 300), all(300));
        let right: Vec<_> = (0..300).map(|at| (at < 200).then(|| hash(at))).collect();
        assert_eq!(found, right);
        assert_eq!(index.sum(file(1, 300)), Some(hash(9)));
        let mut other = file(1, 300);
        other.version.ctime = Timestamp(1);
        assert_eq!((index.hashes(other, all(1)), index.sum(other)), (vec![None], None));
    };
    check(&index);
    index.flush();
    check(&index);
    drop(index);
    let index = HashIndex::open(folder.path());
    check(&index);
    index.note(file(1, 300), NOW, ChunkIndex(5), hash(1000));
    index.flush();
    assert_eq!(index.hashes(file(1, 300), all(6)).last(), Some(&Some(hash(1000))), "the last one holds");
    let found = fs::metadata(folder.path().join(INDEX_FILE)).unwrap();
    assert_eq!(found.mode() & 0o777, 0o600);
    assert!(index.bytes() > 0 && index.bytes() <= index.bytes_max());
}

#[test]
fn young_small_and_weak_files_are_not_taken_note_of() {
    let folder = tempfile::tempdir().unwrap();
    let index = HashIndex::open(folder.path());
    let young = FileVersion {
        version: Version { ctime: Timestamp(NOW.0 - 2 * SECOND_NS + 1), ..file(1, 300).version },
        ..file(1, 300)
    };
    let weak = FileVersion { trust: Trust::Weak, ..file(3, 300) };
    for file in [young, file(2, 3), weak] {
        index.note(file, NOW, ChunkIndex(0), hash(0));
        index.note_sum(file, NOW, hash(0));
        assert_eq!((index.hashes(file, all(1)), index.sum(file)), (vec![None], None));
    }
    index.note(young, Timestamp(NOW.0 + 1), ChunkIndex(0), hash(0));
    assert_eq!(index.hashes(young, all(1)), [Some(hash(0))], "a nanosecond later it is old enough");
}

#[test]
fn a_second_daemon_goes_without() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (HashIndex::open(folder.path()), HashIndex::open(folder.path()));
    for index in [&first, &second] {
        index.note(file(1, 300), NOW, ChunkIndex(0), hash(0));
        index.flush();
    }
    assert_eq!(first.hashes(file(1, 300), all(1)), [Some(hash(0))]);
    assert_eq!((second.hashes(file(1, 300), all(1)), second.bytes_max()), (vec![None], 0));
    first.close();
    assert_eq!(HashIndex::open(folder.path()).hashes(file(1, 300), all(1)), [Some(hash(0))]);
    first.note(file(1, 300), NOW, ChunkIndex(1), hash(1));
    first.flush();
    assert_eq!(HashIndex::open(folder.path()).hashes(file(1, 300), all(2))[1], None, "it is another's now");
}

#[test]
fn memory_is_bounded_while_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let index = HashIndex::open(folder.path());
    for inode in 0..2 * PENDING_MAX as u64 {
        index.note(file(inode, 4), NOW, ChunkIndex(0), hash(inode));
    }
    assert_eq!(lock(&index.pending).len(), PENDING_MAX);
    index.flush();
    assert_eq!(lock(&index.pending).len(), 0);
}

#[test]
fn a_full_table_stays_in_its_bound_and_keeps_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open_with(&folder.path().join(INDEX_FILE), [3; 32], 8).unwrap();
    let stretch = |of: u64| {
        let mut stretch = Stretch::default();
        stretch.set(0, hash(of));
        stretch
    };
    let id = |inode| file(inode, 300).stretch(ChunkIndex(0)).0;
    for inode in 0..1000 {
        assert!(table.write(&id(inode), &stretch(inode), inode).unwrap());
        assert!(!table.write(&id(inode), &stretch(inode), inode).unwrap(), "no news are not written");
        assert_eq!(table.read(&id(inode)), Some(stretch(inode)));
    }
    let kept: Vec<u64> = (0..1000).filter(|inode| table.read(&id(*inode)).is_some()).collect();
    assert_eq!(kept.len(), 32, "all slots are used");
    assert!(kept[0] > 800, "{kept:?}");
    assert!(table.bytes() <= table.bytes_max(), "{} of {}", table.bytes(), table.bytes_max());
    assert!(fs::metadata(folder.path().join(INDEX_FILE)).unwrap().len() <= table.bytes_max());
}

#[test]
fn what_stands_behind_the_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let index = small(folder.path(), 2);
    index.note(file(1, 300), NOW, ChunkIndex(0), hash(0));
    index.flush();
    drop(index);
    let path = folder.path().join(INDEX_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(1 << 20, 1);
    fs::write(&path, bytes).unwrap();
    let index = small(folder.path(), 2);
    assert!(index.bytes() <= index.bytes_max(), "{} of {}", index.bytes(), index.bytes_max());
    assert_eq!(index.hashes(file(1, 300), all(1)), [Some(hash(0))]);
}

#[test]
fn a_million_hashes_are_opened_at_once() {
    const STRETCHES: u64 = 1_000_000 / STRETCH_CHUNKS;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(INDEX_FILE);
    let table = Table::open(&path, [3; 32]).unwrap();
    let mut full = Stretch::default();
    (0..STRETCH_CHUNKS as usize).for_each(|at| full.set(at, hash(at as u64)));
    let id = |number| file(number, 300).stretch(ChunkIndex(0)).0;
    for number in 0..STRETCHES {
        table.write(&id(number), &full, number).unwrap();
    }
    drop(table);
    let began = std::time::Instant::now();
    let table = Table::open(&path, [4; 32]).unwrap();
    let opened = began.elapsed();
    let found = (0..STRETCHES).filter(|number| table.read(&id(*number)).is_some()).count() as u64;
    eprintln!(
        "opened in {opened:?}, {found} of {STRETCHES} stretches in {:?}",
        began.elapsed().saturating_sub(opened)
    );
    assert!(opened < Duration::from_millis(200), "{opened:?}");
    assert!(found * 1000 >= STRETCHES * 999, "{found} of {STRETCHES}");
}

#[derive(Debug, Clone)]
enum Step {
    Note { file: u64, at: u64, of: u64 },
    Sum { file: u64, of: u64 },
    Flush,
    Restart,
    Kill,
    Flip { at: usize, bit: u8 },
    Cut { at: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..12u64, 0..200u64, any::<u64>()).prop_map(|(file, at, of)| Step::Note { file, at, of }),
        1 => (0..12u64, any::<u64>()).prop_map(|(file, of)| Step::Sum { file, of }),
        2 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Step::Flip { at, bit }),
        1 => any::<usize>().prop_map(|at| Step::Cut { at }),
    ]
}

/// Everything that was ever noted: a file's version has one content, so what comes back must be among it.
#[derive(Default)]
struct Twin {
    hashes: HashMap<(u64, u64), Vec<ChunkHash>>,
    sums: HashMap<u64, Vec<ChunkHash>>,
    /// What must come back, as nothing was lost since.
    newest: HashMap<(u64, u64), ChunkHash>,
    flushed: HashMap<(u64, u64), ChunkHash>,
    may_have_lost: bool,
}

fn damage(path: &Path, step: &Step) {
    let mut bytes = fs::read(path).unwrap();
    match *step {
        Step::Flip { at, bit } if !bytes.is_empty() => {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        Step::Cut { at } => bytes.truncate(at % (bytes.len() + 1)),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_is_a_miss_or_right(steps in prop::collection::vec(step(), 1..60)) {
        // More slots than are needed, so that nothing gives way.
        const SETS: u64 = 64;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(INDEX_FILE);
        let (mut index, mut twin) = (small(folder.path(), SETS), Twin::default());
        for step in steps {
            match step {
                Step::Note { file: inode, at, of } => {
                    index.note(file(inode, 200), NOW, ChunkIndex(at), hash(of));
                    twin.hashes.entry((inode, at)).or_default().push(hash(of));
                    twin.newest.insert((inode, at), hash(of));
                }
                Step::Sum { file: inode, of } => {
                    index.note_sum(file(inode, 200), NOW, hash(of));
                    twin.sums.entry(inode).or_default().push(hash(of));
                }
                Step::Flush => {
                    index.flush();
                    twin.flushed = twin.newest.clone();
                }
                Step::Restart => {
                    index.flush();
                    twin.flushed = twin.newest.clone();
                    drop(index);
                    index = small(folder.path(), SETS);
                }
                Step::Kill => {
                    drop(index);
                    index = small(folder.path(), SETS);
                    twin.newest = twin.flushed.clone();
                }
                Step::Flip { .. } | Step::Cut { .. } => {
                    damage(&path, &step);
                    twin.may_have_lost = true;
                }
            }
            for inode in 0..12 {
                let found = index.hashes(file(inode, 200), all(200));
                for (at, found) in found.iter().enumerate() {
                    let at = (inode, at as u64);
                    let is_right = found.is_none_or(|found| twin.hashes.get(&at).is_some_and(|of| of.contains(&found)));
                    prop_assert!(is_right, "a hash that was never noted");
                    prop_assert!(twin.may_have_lost || found.as_ref() == twin.newest.get(&at), "it was lost");
                }
                let sum = index.sum(file(inode, 200));
                prop_assert!(sum.is_none_or(|sum| twin.sums[&inode].contains(&sum)));
            }
        }
    }
}

#[test]
fn everything_is_hashed_ahead_once() {
    let folder = tempfile::tempdir().unwrap();
    let (export, state) = (folder.path().join("export"), folder.path().join("state"));
    fs::create_dir_all(export.join("below/more")).unwrap();
    fs::create_dir(&state).unwrap();
    let content: Vec<u8> = (0..700_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(export.join("below/more/large"), &content).unwrap();
    fs::write(export.join("small"), "small").unwrap();
    std::os::unix::fs::symlink("/", export.join("link")).unwrap();
    let index = Arc::new(HashIndex::open(&state));
    let build = || {
        let progress = Arc::new(Progress::default());
        let (own, counters) = (Arc::clone(&index), Arc::default());
        let builder =
            Builder { roots: vec![export.clone()], index: own, counters, progress: Arc::clone(&progress) };
        builder.start().unwrap();
        while progress.is_running() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((progress.total_bytes(), progress.done_bytes()), (2_800_000, 2_800_000));
        let found = crate::host::attributes::of_open(
            fs::File::open(export.join("below/more/large")).unwrap().as_fd(),
        );
        let found = found.unwrap();
        index.hashes(FileVersion::of(found.node, found.version()), all(11))
    };
    assert_eq!(build(), [None; 11], "it is too young");
    thread::sleep(Duration::from_nanos(Version::SETTLE_NS.unsigned_abs()));
    let right: Vec<_> =
        content.chunks(CHUNK_BYTES as usize).map(|chunk| Some(ChunkHash::of(chunk))).collect();
    assert_eq!(build(), right);
    assert_eq!(build(), right);
}
