//! Mutations of the index on disk: whatever the file becomes, it gives hashes that were noted for that very chunk of that very
//! version, or none; and it can be used afterwards.
//!
//! Each runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib host::index::fuzz -- --nocapture` runs each for ten minutes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use super::slot::{IndexKey, SLOT_BYTES};
use super::*;
use crate::chunk::CHUNK_BYTES;
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate, mutate_in_place, take_block};

const NOW: Timestamp = Timestamp(100_000_000_000);
const OWN_KEY: [u8; 32] = [3; 32];
const FOREIGN_KEY: [u8; 32] = [4; 32];
const FRESH_KEY: [u8; 32] = [5; 32];
const HEAD_BYTES: usize = 4096;
const CHUNKS: u64 = 130;

/// Versions of a few files, some of the same one.
fn file(number: usize) -> FileVersion {
    let node = NodeId { device: 1, inode: number as u64 / 2, birth_ns: 7 };
    let mtime = Timestamp(number as i64 % 2);
    let version = Version { size: CHUNKS * CHUNK_BYTES, mtime, ctime: Timestamp(0) };
    FileVersion { node, version, trust: Trust::Full }
}

const FILES: usize = 12;

/// Everything that was ever noted: of which file, at which place (`None`: the sum).
type Noted = HashSet<(usize, Option<u64>, ChunkHash)>;

fn open(folder: &Path, key: [u8; 32], sets: u64) -> HashIndex {
    HashIndex::over(Some(Table::open_with(&folder.join(INDEX_FILE), key, sets).unwrap()))
}

/// Notes some hashes, unlike all others, and writes them.
fn note_some(index: &HashIndex, noted: &mut Noted, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(40) {
        let (of, hash) = (numbers.below(FILES), ChunkHash::of(&numbers.next().to_le_bytes()));
        let at = (numbers.below(8) > 0).then(|| numbers.below(CHUNKS as usize) as u64);
        match at {
            Some(at) => index.note(file(of), NOW, ChunkIndex(at), hash),
            None => index.note_sum(file(of), NOW, hash),
        }
        noted.insert((of, at, hash));
    }
    index.flush();
}

fn check(index: &HashIndex, noted: &Noted) {
    for of in 0..FILES {
        let found = index.hashes(file(of), ChunkRange::new(ChunkIndex(0), CHUNKS));
        for (at, found) in found.into_iter().enumerate() {
            assert!(found.is_none_or(|hash| noted.contains(&(of, Some(at as u64), hash))), "never noted");
        }
        assert!(index.sum(file(of)).is_none_or(|sum| noted.contains(&(of, None, sum))), "never noted");
    }
}

/// What lies on the disk instead of `bytes`. `others` are an older state, and the file of another host.
fn damage(bytes: &mut Vec<u8>, others: [&[u8]; 2], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let other = others[numbers.below(2)];
        let own = bytes.clone();
        match numbers.below(9) {
            0 => mutate(bytes, numbers),
            1 if bytes.len() > HEAD_BYTES => mutate_in_place(&mut bytes[HEAD_BYTES..], numbers),
            2 => take_block(bytes, other, (HEAD_BYTES, SLOT_BYTES), numbers),
            3 => take_block(bytes, other, (HEAD_BYTES, 4 * SLOT_BYTES), numbers),
            4 => take_block(bytes, other, (0, [512, 4096][numbers.below(2)]), numbers),
            5 => take_block(bytes, &own, (HEAD_BYTES, SLOT_BYTES), numbers),
            6 => bytes.truncate(numbers.below(own.len())),
            7 => bytes.resize(own.len() + numbers.below(30_000), numbers.next() as u8),
            _ if bytes.len() >= HEAD_BYTES && other.len() >= HEAD_BYTES => {
                bytes[..HEAD_BYTES].copy_from_slice(&other[..HEAD_BYTES]);
            }
            _ => {}
        }
    }
}

#[test]
fn whole_files() {
    fuzz("hash indexes", |numbers| {
        let [own, foreign] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (sets, path) = (1 + numbers.below(3) as u64, own.path().join(INDEX_FILE));
        let mut noted: HashMap<[u8; 32], Noted> = HashMap::new();
        let others = open(foreign.path(), FOREIGN_KEY, 1 + numbers.below(3) as u64);
        note_some(&others, noted.entry(FOREIGN_KEY).or_default(), numbers);
        drop(others);
        let index = open(own.path(), OWN_KEY, sets);
        note_some(&index, noted.entry(OWN_KEY).or_default(), numbers);
        let older = fs::read(&path).unwrap();
        note_some(&index, noted.entry(OWN_KEY).or_default(), numbers);
        check(&index, &noted[&OWN_KEY]);

        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes, [&older, &fs::read(foreign.path().join(INDEX_FILE)).unwrap()], numbers);
        fs::write(&path, &bytes).unwrap();
        // The daemon may be at work meanwhile; it has its key in memory.
        check(&index, &noted[&OWN_KEY]);
        if numbers.below(3) == 0 {
            note_some(&index, noted.entry(OWN_KEY).or_default(), numbers);
            check(&index, &noted[&OWN_KEY]);
        }
        drop(index);

        for _ in 0..2 {
            let index = open(own.path(), FRESH_KEY, sets);
            // Whose notes these are is what the head says; one that is damaged is made anew.
            let key: [u8; 32] = fs::read(&path).unwrap()[16..48].try_into().unwrap();
            assert!([OWN_KEY, FOREIGN_KEY, FRESH_KEY].contains(&key), "a head that nobody wrote");
            let noted = noted.entry(key).or_default();
            check(&index, noted);
            note_some(&index, noted, numbers);
            check(&index, noted);
            let fresh = ChunkHash::of(&numbers.next().to_le_bytes());
            index.note(file(0), NOW, ChunkIndex(1), fresh);
            noted.insert((0, Some(1), fresh));
            index.flush();
            assert!(lock(&index.pending).is_empty());
            let known = |index: &HashIndex| index.hashes(file(0), ChunkRange::new(ChunkIndex(1), 1))[0];
            assert_eq!(known(&index), Some(fresh), "it cannot be used any more");
            assert!(fs::metadata(&path).unwrap().len() <= index.bytes_max(), "it is longer than its bound");
            drop(index);
            assert_eq!(known(&open(own.path(), FRESH_KEY, sets)), Some(fresh), "it is not kept any more");
        }
    });
}

/// Whatever the fields of a slot say: its checksum is right.
#[test]
fn slots_that_bear_the_right_checksum() {
    fuzz("index slots", |numbers| {
        let key = IndexKey::new(OWN_KEY);
        let mut stretch = Stretch::default();
        for _ in 0..numbers.below(STRETCH_CHUNKS as usize) {
            stretch.set(numbers.below(STRETCH_CHUNKS as usize), ChunkHash::of(&numbers.next().to_le_bytes()));
        }
        stretch.sum = (numbers.below(2) == 0).then(|| ChunkHash::of(&numbers.next().to_le_bytes()));
        let (id, _) = file(numbers.below(FILES)).stretch(ChunkIndex(0));
        let tag = key.tag(&id);
        let mut slot = key.encode(&tag, numbers.next(), &stretch);
        assert_eq!(key.decode(&tag, &slot).as_ref(), Some(&stretch));
        // Most of what there is to be read lies in front of the hashes.
        let end = [128, SLOT_BYTES][numbers.below(2)];
        mutate_in_place(&mut slot[16..end], numbers);
        key.seal(&mut slot);
        let tag: [u8; 16] = slot[16..32].try_into().unwrap();
        let (decoded, seconds) = (key.decode(&tag, &slot).unwrap(), key.written_seconds(&slot).unwrap());
        assert_eq!(key.decode(&tag, &key.encode(&tag, seconds, &decoded)), Some(decoded.clone()));
        assert!(decoded.get(STRETCH_CHUNKS as usize).is_none());

        // However late or early it says that it was written, in a table it does no harm.
        let folder = tempfile::tempdir().unwrap();
        let index = open(folder.path(), OWN_KEY, 1);
        let path = folder.path().join(INDEX_FILE);
        let mut bytes = fs::read(&path).unwrap();
        for _ in 0..numbers.below(5) {
            bytes.extend_from_slice(&slot);
        }
        fs::write(&path, bytes).unwrap();
        let fresh = ChunkHash::of(&numbers.next().to_le_bytes());
        let number = numbers.below(FILES);
        index.note(file(number), NOW, ChunkIndex(127), fresh);
        index.flush();
        let found = index.hashes(file(number), ChunkRange::new(ChunkIndex(127), 1));
        assert_eq!(found, [Some(fresh)]);
    });
}
