//! Mutated files of every format in a cache directory. They are read without a crash, within their bounds,
//! and never accepted as content that was not written.
//!
//! Each test runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib cache::tests::fuzz -- --nocapture`
//! runs each for ten minutes. A failure names its seed, and `WORMHOLE_FUZZ_SEED` repeats it.

use super::super::manifest::ManifestPage;
use super::super::pins::Pin;
use super::super::record::{Covers, Entry, HEADER_BYTES, Key, Kind, Secret, TRAILER_BYTES, decode_trailer};
use super::super::segment::read_records;
use super::*;
use crate::chunk::ChunkRange;
use crate::chunk::testing::fuzz::{Numbers, files_below, fuzz, mutate, mutate_in_place};

const SECRET: Secret = Secret::new([7; 32]);

fn key(number: usize) -> Key {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// Returns the bytes of a sealed segment, its records, and their end.
fn segment(numbers: &mut Numbers) -> (Vec<u8>, Vec<Entry>, usize) {
    let mut bytes = SECRET.encode_segment(1).to_vec();
    let mut entries = Vec::new();
    for number in 0..numbers.below(12) {
        let payload = vec![number as u8; numbers.below(700)];
        let kind = if numbers.below(4) == 0 { Kind::Manifest } else { Kind::Chunk };
        let entry = Entry { key: key(number), kind, offset: bytes.len() as u32, len: payload.len() as u32 };
        bytes.extend_from_slice(&SECRET.encode_record(kind, &entry.key, entry.len));
        bytes.extend_from_slice(&payload);
        bytes.resize(entry.end() as usize, 0);
        entries.push(entry);
    }
    let end = bytes.len();
    let footer = SECRET.encode_footer(1, end as u32, &entries);
    bytes.extend_from_slice(&footer);
    (bytes, entries, end)
}

#[test]
fn segments() {
    fuzz("segments", |numbers| {
        let (mut bytes, entries, _) = segment(numbers);
        mutate(&mut bytes, numbers);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::open(&path).unwrap();
        for sealed in [true, false] {
            let from = if numbers.below(3) == 0 { numbers.below(bytes.len()) as u32 } else { 0 };
            let read = read_records(&file, &SECRET, 1, from, sealed).unwrap();
            // Invented headers and footers are rejected. Copies of valid ones may be accepted.
            for entry in &read.entries {
                let written = entries.iter().find(|written| written.key == entry.key).unwrap();
                assert_eq!((written.kind, written.len), (entry.kind, entry.len));
                assert!(entry.end() <= bytes.len() as u64);
            }
        }
    });
}

#[test]
fn footers_that_bear_the_right_checksum() {
    fuzz("footers", |numbers| {
        let (bytes, _, end) = segment(numbers);
        let mut footer = bytes[end..].to_vec();
        let trailer_start = footer.len() - TRAILER_BYTES as usize;
        // The fields may say anything: the checksum is valid, and the size of the file fits.
        mutate_in_place(&mut footer[..trailer_start + 16], numbers);
        let (entries, end) = footer.split_at_mut(trailer_start);
        let mac = SECRET.mac(Covers::Footer, &[&1_u64.to_le_bytes(), entries, &end[..16]]);
        end[16..].copy_from_slice(&mac);
        let offset = u64::from(u32::from_le_bytes(end[8..12].try_into().unwrap()));
        let Some(trailer) = decode_trailer(offset + footer.len() as u64, &footer[trailer_start..]) else {
            return;
        };
        for entry in SECRET.decode_footer(1, trailer, &footer).into_iter().flatten() {
            assert!(entry.offset >= HEADER_BYTES && entry.end() <= offset && entry.len <= 1 << 18);
        }
    });
}

#[test]
fn manifest_pages() {
    fuzz("manifest pages", |numbers| {
        let mut page = ManifestPage::default();
        for _ in 0..numbers.below(60) {
            page.set(numbers.below(256), ChunkHash::from_bytes(key(numbers.below(1000))));
        }
        let mut bytes = page.encode(&SECRET, &key(1));
        mutate(&mut bytes, numbers);
        let found = ManifestPage::decode(&SECRET, &key(1), &bytes);
        assert!(found.is_none_or(|found| found == page));
        // The same with a valid checksum.
        if bytes.len() >= 16 {
            let mac = SECRET.mac(Covers::Page, &[&key(1), &bytes[16..]]);
            bytes[..16].copy_from_slice(&mac);
            if let Some(found) = ManifestPage::decode(&SECRET, &key(1), &bytes) {
                assert_eq!(found.encode(&SECRET, &key(1)), bytes);
                assert!(found.get(256).is_none());
            }
        }
    });
}

#[test]
fn pins_files() {
    fuzz("pins", |numbers| {
        let mut keys: Vec<Key> = (0..numbers.below(20)).map(key).collect();
        keys.sort_unstable();
        let name = "nas:/media/".to_owned() + &"x".repeat(numbers.below(40));
        let (files, size) = (numbers.next(), numbers.next());
        let pin = Pin { name, files, bytes: size, made_at: numbers.next(), keys };
        let mut bytes = pin.encode(&SECRET);
        mutate(&mut bytes, numbers);
        assert!(Pin::decode(&SECRET, &bytes).is_none_or(|found| found == pin));
        if let Some(body) = bytes.len().checked_sub(16) {
            let mac = SECRET.mac(Covers::Pins, &[&bytes[..body]]);
            bytes[body..].copy_from_slice(&mac);
            if let Some(found) = Pin::decode(&SECRET, &bytes) {
                assert_eq!(found.encode(&SECRET), bytes);
                assert!(found.keys.is_sorted());
            }
        }
    });
}

/// Mutates any file of a whole cache, secret and tag included. The cache opens or returns an error, and
/// serves only inserted content.
#[test]
fn whole_directories() {
    fuzz("directories", |numbers| {
        let directory = tempfile::tempdir().unwrap();
        let chunks: Vec<VerifiedChunk> =
            (0..12).map(|number| chunk(number, 500 + number as usize * 90)).collect();
        let cache = open(directory.path(), 1 << 18, 1 << 13);
        for (index, chunk) in chunks.iter().enumerate() {
            cache.record_hash(&file_key(1), ChunkIndex(index as u64), chunk.hash());
            cache.insert(chunk.clone());
        }
        assert!(cache.flush());
        let mut pinning = cache.begin_pin("pin").unwrap();
        pinning.add_chunks(&file_key(1), ChunkRange::new(ChunkIndex(0), 4)).unwrap();
        pinning.finish().unwrap();
        drop(cache);
        for _ in 0..=numbers.below(3) {
            let files = files_below(&directory.path().join("cache"));
            let path = &files[numbers.below(files.len())];
            let mut bytes = fs::read(path).unwrap();
            mutate(&mut bytes, numbers);
            fs::write(path, &bytes).unwrap();
            if numbers.below(4) == 0 && path.extension().is_some() {
                let endings = ["open", "seg", "pin", "new"];
                let ending = endings[numbers.below(endings.len())];
                fs::rename(path, path.with_extension(ending)).unwrap();
            }
        }
        let config = config(directory.path(), 1 << 18, 1 << 13);
        let Ok(cache) = DiskCache::open_with(&config, direct_io()) else { return };
        for chunk in &chunks {
            assert!(cache.load(chunk.hash()).is_none_or(|found| found == *chunk));
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let known = cache.known_hash(&file_key(1), ChunkIndex(index as u64));
            assert!(known.is_none_or(|known| known == chunk.hash()));
        }
        let fresh = chunk(99, 700);
        insert(&cache, &fresh);
        assert_eq!(cache.load(fresh.hash()), Some(fresh));
        let _ = pins(&config.directory);
        let _ = unpin(&config.directory, "pin");
        drop(gc(&config.directory, None));
        assert!(disk_bytes(directory.path()) <= 1 << 18);
    });
}
