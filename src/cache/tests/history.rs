//! Random histories of one cache against a model that knows only the inserted chunks.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Insert { number: u32 },
    Read { first: u32, count: u32 },
    Record { file: u8, index: u64 },
    FlushFile { file: u8 },
    Reopen,
    Crash,
    Flip { segment: usize, at: u64, bit: u32 },
    Truncate { segment: usize, to: u64 },
    Foreign,
    Shrink,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..120u32).prop_map(|number| Step::Insert { number }),
        6 => (0..120u32, 1..6u32).prop_map(|(first, count)| Step::Read { first, count }),
        3 => (0..4u8, 0..520u64).prop_map(|(file, index)| Step::Record { file, index }),
        1 => (0..4u8).prop_map(|file| Step::FlushFile { file }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => (any::<usize>(), any::<u64>(), 0..8u32)
            .prop_map(|(segment, at, bit)| Step::Flip { segment, at, bit }),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(segment, to)| Step::Truncate { segment, to }),
        1 => Just(Step::Foreign),
        1 => Just(Step::Shrink),
    ]
}

const SEGMENT_BYTES: u64 = 16 * 1024;

struct World {
    directory: TempDir,
    cache: Option<DiskCache>,
    size_bytes: u64,
    /// Chunks inserted or found since the last damage, oldest first.
    recent: Vec<u32>,
    recorded: HashMap<(u8, u64), ChunkHash>,
    inserted: HashSet<u32>,
}

impl World {
    fn new(size_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cache = Some(open(directory.path(), size_bytes, SEGMENT_BYTES));
        let (recent, recorded, inserted) = Default::default();
        Self { directory, cache, size_bytes, recent, recorded, inserted }
    }

    fn cache(&self) -> &DiskCache {
        self.cache.as_ref().unwrap()
    }

    fn chunk(number: u32) -> VerifiedChunk {
        chunk(number, (number as usize * 577) % 7000)
    }

    fn reopen(&mut self) {
        self.cache = None;
        self.cache = Some(open(self.directory.path(), self.size_bytes, SEGMENT_BYTES));
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Insert { number } => {
                let before = self.cache().stats();
                insert(self.cache(), &Self::chunk(number));
                let after = self.cache().stats();
                assert_eq!(after.dropped, before.dropped);
                self.inserted.insert(number);
                // A known chunk keeps its old location, which may be damaged and not read since.
                if after.inserts > before.inserts {
                    self.recent.retain(|known| *known != number);
                    self.recent.push(number);
                }
            }
            Step::Read { first, count } => {
                let wanted: Vec<VerifiedChunk> = (first..first + count).map(Self::chunk).collect();
                let hashes: Vec<ChunkHash> = wanted.iter().map(VerifiedChunk::hash).collect();
                for (found, wanted) in self.cache().load_run(&hashes).into_iter().zip(wanted) {
                    assert!(found.is_none_or(|found| found == wanted));
                }
            }
            Step::Record { file, index } => {
                let hash = ChunkHash::of(&[file, index as u8, (index >> 8) as u8]);
                self.cache().record_hash(&file_key(file), ChunkIndex(index), hash);
                self.recorded.insert((file, index), hash);
                assert_eq!(self.cache().known_hash(&file_key(file), ChunkIndex(index)), Some(hash));
            }
            Step::FlushFile { file } => self.cache().flush_file(&file_key(file)),
            Step::Reopen => self.reopen(),
            Step::Crash => {
                assert!(self.cache().flush());
                let copy = crashed_copy(self.directory.path());
                self.cache = None;
                self.directory = copy;
                self.reopen();
            }
            Step::Flip { segment, at, bit } => self.damage(segment, |file, len| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at % len).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at % len).unwrap();
            }),
            Step::Truncate { segment, to } => {
                self.damage(segment, |file, len| file.set_len(to % len).unwrap());
            }
            Step::Foreign => {
                let segments = self.directory.path().join("cache/v1/segments");
                fs::write(segments.join("notes.txt"), "not ours").unwrap();
                fs::write(segments.join("0000000000000001.SEG"), "not ours").unwrap();
            }
            Step::Shrink => {
                self.size_bytes = (self.size_bytes - SEGMENT_BYTES).max(4 * SEGMENT_BYTES);
                self.recent.clear();
                self.reopen();
            }
        }
    }

    /// Damages a segment while the cache is closed.
    fn damage(&mut self, segment: usize, how: impl Fn(&fs::File, u64)) {
        assert!(self.cache().flush());
        let copy = crashed_copy(self.directory.path());
        self.cache = None;
        self.directory = copy;
        let paths = segments(self.directory.path());
        if let Some(path) = paths.get(segment % paths.len().max(1)) {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len();
            how(&file, len.max(1));
            self.recent.clear();
        }
        self.reopen();
    }

    fn check(&self) {
        assert!(self.cache().flush());
        let bytes = disk_bytes(self.directory.path());
        assert!(bytes <= self.size_bytes, "{bytes} of {}", self.size_bytes);
        assert_eq!(self.cache().stats().bytes, lengths(self.directory.path()));
        // The youngest records are in the current segment or the one before, however many records survive.
        let mut left = SEGMENT_BYTES / 4;
        for &number in self.recent.iter().rev() {
            let chunk = Self::chunk(number);
            left = match left.checked_sub(chunk.bytes().len() as u64 + 128) {
                Some(left) => left,
                None => break,
            };
            assert_eq!(self.cache().load(chunk.hash()), Some(chunk), "chunk {number}");
        }
        for (&(file, index), hash) in &self.recorded {
            let known = self.cache().known_hash(&file_key(file), ChunkIndex(index));
            assert!(known.is_none_or(|known| known == *hash));
        }
    }
}

fn lengths(directory: &Path) -> u64 {
    segments(directory).iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn never_wrong_bytes_never_over_size_and_recent_chunks_are_found(
        size in 4..12u64, steps in prop::collection::vec(step(), 1..90),
    ) {
        let mut world = World::new(size * SEGMENT_BYTES);
        for step in &steps {
            world.apply(step);
            world.check();
        }
        let found = world.inserted.iter().filter(|number| world.cache().contains(World::chunk(**number).hash()));
        let few = world.inserted.len() < 4;
        prop_assert!(few || found.count() > 0 || world.recent.is_empty());
    }
}
