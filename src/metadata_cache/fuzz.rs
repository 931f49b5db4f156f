//! Mutated metadata records: their bytes, the keys that lead to them, and the files of the cache that holds
//! them. A read returns only content that was recorded for that very subject, or nothing. Content recorded
//! afterwards is found.
//!
//! Each test runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib metadata_cache::fuzz --
//! --nocapture` runs each for ten minutes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{
    self, BODY_BYTES_MAX, Body, SeenActsAs, SeenLink, SeenListing, SeenName, SeenNode, SeenStatistics,
    Subject,
};
use super::*;
use crate::cache::{CacheConfig, CacheStats, DiskCache, FileKey};
use crate::chunk::testing::fuzz::{Numbers, files_below, fuzz, mutate, take_block};
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, VerifiedChunk};
use crate::proto::testing::attributes;
use crate::proto::{FileKind, FsStatistics, Timestamp};

const NODES: usize = 6;
const NAMES: usize = 5;
const WAIT: Duration = Duration::from_secs(20);

fn node(number: usize) -> NodeId {
    NodeId { device: 1, inode: number as u64, birth_ns: 1 }
}

fn name(number: usize) -> Vec<u8> {
    format!("name-{number}").into_bytes()
}

fn some_attributes(numbers: &mut Numbers) -> Attributes {
    let kind = [FileKind::Regular, FileKind::Directory, FileKind::Symlink][numbers.below(3)];
    let found = attributes(numbers.below(NODES) as u64, kind);
    Attributes { node: node(found.node.inode as usize), size: numbers.next(), ..found }
}

/// Returns a listing. One in forty is too long for the head of its record.
fn some_entries(numbers: &mut Numbers) -> Vec<DirectoryEntry> {
    let mut entries: Vec<_> = (0..NAMES).map(name).collect();
    entries.truncate(numbers.below(NAMES + 1));
    if numbers.below(40) == 0 {
        let count = [400, 1500][numbers.below(2)];
        entries.extend((0..count).map(|number| format!("{number:0>200}").into_bytes()));
    }
    let with_attributes = |name| DirectoryEntry { name, attributes: some_attributes(numbers) };
    entries.into_iter().map(with_attributes).collect()
}

fn some_record(numbers: &mut Numbers) -> MetadataRecord {
    let of = node(numbers.below(NODES));
    match numbers.below(9) {
        0 => MetadataRecord::Root(name(numbers.below(2)), some_attributes(numbers)),
        1 | 2 => MetadataRecord::Node(some_attributes(numbers)),
        3 | 4 => {
            let found = (numbers.below(4) > 0).then(|| some_attributes(numbers));
            MetadataRecord::Name(of, name(numbers.below(NAMES)), found)
        }
        5 | 6 => MetadataRecord::Listing(of, some_entries(numbers)),
        7 => MetadataRecord::Link(of, name(numbers.below(1000))),
        _ if numbers.below(2) == 0 => MetadataRecord::Statistics(statistics(numbers)),
        _ => MetadataRecord::ActsAs(ActingUser { uid: numbers.next() as u32, gid: numbers.next() as u32 }),
    }
}

fn statistics(numbers: &mut Numbers) -> FsStatistics {
    FsStatistics {
        block_bytes: 4096,
        blocks: numbers.next(),
        blocks_free: 3,
        blocks_available: 2,
        inodes: numbers.next(),
        inodes_free: 1,
        name_bytes_max: 255,
    }
}

/// Everything that was recorded under one scope.
#[derive(Default)]
struct Recorded {
    roots: HashMap<Vec<u8>, Vec<Attributes>>,
    /// Each has a unique size, which identifies it.
    nodes: HashMap<NodeId, HashMap<u64, Attributes>>,
    names: HashMap<(NodeId, Vec<u8>), Vec<Option<NodeId>>>,
    listings: HashMap<NodeId, Vec<HashMap<Vec<u8>, NodeId>>>,
    links: HashMap<NodeId, Vec<Vec<u8>>>,
    statistics: Vec<FsStatistics>,
    users: Vec<ActingUser>,
}

impl Recorded {
    fn add(&mut self, record: &MetadataRecord) {
        let mut said = |seen: &Attributes| {
            self.nodes.entry(seen.node).or_default().insert(seen.size, *seen);
        };
        match record {
            MetadataRecord::Root(path, seen) => self.roots.entry(path.clone()).or_default().push(*seen),
            MetadataRecord::Node(seen) => said(seen),
            MetadataRecord::Name(parent, name, found) => {
                found.iter().for_each(&mut said);
                let names = self.names.entry((*parent, name.clone())).or_default();
                names.push(found.map(|seen| seen.node));
            }
            MetadataRecord::Listing(directory, entries) => {
                for entry in entries {
                    said(&entry.attributes);
                }
                let names = entries.iter().map(|entry| (entry.name.clone(), entry.attributes.node));
                self.listings.entry(*directory).or_default().push(names.collect());
            }
            MetadataRecord::Link(node, target) => self.links.entry(*node).or_default().push(target.clone()),
            MetadataRecord::Statistics(seen) => self.statistics.push(*seen),
            MetadataRecord::ActsAs(user) => self.users.push(*user),
        }
    }

    /// Returns `true` if these attributes were recorded, for a node to which this name may have led.
    fn may_be(&self, parent: NodeId, name: &[u8], seen: &Attributes) -> bool {
        let alone = self.names.get(&(parent, name.to_vec())).into_iter().flatten();
        let listed = self.listings.get(&parent).into_iter().flatten();
        let mut led_to =
            alone.filter_map(|node| *node).chain(listed.filter_map(|all| all.get(name).copied()));
        led_to.any(|node| node == seen.node) && self.was_seen(seen)
    }

    fn was_seen(&self, seen: &Attributes) -> bool {
        self.nodes.get(&seen.node).is_some_and(|said| said.get(&seen.size) == Some(seen))
    }

    fn was_gone(&self, parent: NodeId, name: &[u8]) -> bool {
        self.names.get(&(parent, name.to_vec())).is_some_and(|said| said.contains(&None))
    }

    fn check(&self, records: &Records) {
        for number in 0..NODES {
            let of = node(number);
            assert!(records.node(of).is_none_or(|seen| seen.node == of && self.was_seen(&seen)));
            assert!(records.link(of).is_none_or(|seen| self.links[&of].contains(&seen)));
            for name in (0..NAMES).map(name) {
                self.check_name(of, &name, records.name(of, &name));
            }
            if let Some(listing) = records.listing(of) {
                self.check_listing(of, &listing);
            }
        }
        for path in (0..2).map(name) {
            assert!(records.root(&path).is_none_or(|seen| self.roots[&path].contains(&seen.value)));
        }
        assert!(records.statistics().is_none_or(|seen| self.statistics.contains(&seen)));
        assert!(records.acts_as().is_none_or(|user| self.users.contains(&user)));
    }

    fn check_name(&self, parent: NodeId, name: &[u8], found: Option<SeenName>) {
        let listings = || self.listings.get(&parent).into_iter().flatten();
        match found.map(|seen| seen.value) {
            Some(Some(seen)) => assert!(self.may_be(parent, name, &seen), "the name never led there"),
            Some(None) => {
                let was_unlisted = listings().any(|listing| !listing.contains_key(name));
                assert!(was_unlisted || self.was_gone(parent, name), "the name was always there");
            }
            None => {}
        }
    }

    fn check_listing(&self, of: NodeId, listing: &[DirectoryEntry]) {
        let found: HashMap<&[u8], NodeId> =
            listing.iter().map(|entry| (entry.name.as_slice(), entry.attributes.node)).collect();
        assert_eq!(found.len(), listing.len(), "a name comes twice");
        for entry in listing {
            assert!(self.may_be(of, &entry.name, &entry.attributes), "the entry was never in the listing");
        }
        let is_all_of = |said: &HashMap<Vec<u8>, NodeId>| {
            said.keys().all(|name| found.contains_key(name.as_slice()) || self.was_gone(of, name))
        };
        assert!(self.listings[&of].iter().any(is_all_of), "an entry is missing");
    }
}

/// Two exports in one cache, and the records of each.
struct Exports<'a> {
    cache: Arc<dyn ChunkCache>,
    told: &'a mut [Recorded; 2],
}

impl Exports<'_> {
    fn records(&self, number: usize) -> Records {
        Records::new(Arc::clone(&self.cache), Scope::new(&[number as u8; 32], "export"))
    }

    fn check(&self) {
        (0..2).for_each(|number| self.told[number].check(&self.records(number)));
    }

    fn record_some(&mut self, record_writers: &[RecordWriter; 2], numbers: &mut Numbers) {
        for _ in 0..=numbers.below(14) {
            let (export, record) = (numbers.below(2), some_record(numbers));
            self.told[export].add(&record);
            record_writers[export].take(record);
        }
        assert!(record_writers.iter().all(|record_writer| record_writer.flush(WAIT)));
    }

    fn record_writers(&self) -> [RecordWriter; 2] {
        [0, 1].map(|number| RecordWriter::new(self.records(number)).unwrap())
    }

    /// Checks that a new record is found afterwards.
    fn check_use(&mut self, record_writers: &[RecordWriter; 2], numbers: &mut Numbers) {
        let (export, of) = (numbers.below(2), node(numbers.below(NODES)));
        let records = self.records(export);
        let mut record = |record: MetadataRecord| {
            self.told[export].add(&record);
            record_writers[export].take(record);
            assert!(record_writers[export].flush(WAIT));
        };
        let entries = some_entries(numbers);
        record(MetadataRecord::Listing(of, entries.clone()));
        let names = |entries: &[DirectoryEntry]| {
            entries.iter().map(|entry| (entry.name.clone(), entry.attributes.node)).collect::<Vec<_>>()
        };
        assert_eq!(records.listing(of).map(|found| names(&found)), Some(names(&entries)));
        let seen = some_attributes(numbers);
        record(MetadataRecord::Name(of, name(0), Some(seen)));
        assert_eq!(records.name(of, &name(0)).map(|found| found.value), Some(Some(seen)));
    }
}

/// Cache in memory whose content can be moved and lost. As on a disk, a chunk always matches its hash.
#[derive(Default)]
struct DamagedCache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    chunks: HashMap<ChunkHash, VerifiedChunk>,
    known: HashMap<FileKey, ChunkHash>,
    /// Every recorded hash, in order.
    history: Vec<(FileKey, ChunkHash)>,
    /// Every chunk stored, in order.
    hashes: Vec<ChunkHash>,
    /// Most bytes loaded in one call.
    loaded_bytes_max: usize,
}

impl DamagedCache {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, bytes: Vec<u8>) -> ChunkHash {
        let chunk = VerifiedChunk::compute(bytes.into());
        self.insert(chunk.clone());
        chunk.hash()
    }

    /// Loses chunks, or makes keys lead to another record, an older head, a part, or a truncated or
    /// extended head.
    fn damage(&self, numbers: &mut Numbers) {
        for _ in 0..=numbers.below(6) {
            let (key, own, other) = self.some_known(numbers);
            let mut head = self.load(own).map_or(Vec::new(), |head| head.bytes().to_vec());
            match numbers.below(6) {
                0 => {
                    let any = self.some_chunk(numbers);
                    self.kept().chunks.remove(&any);
                }
                1 => drop(self.kept().known.remove(&key)),
                2 => self.record_hash(&key, ChunkIndex(0), [own, other][numbers.below(2)]),
                3 => self.record_hash(&key, ChunkIndex(0), self.some_chunk(numbers)),
                4 => {
                    head.truncate(numbers.below(head.len()));
                    let cut = self.keep(head);
                    self.record_hash(&key, ChunkIndex(0), cut);
                }
                _ => {
                    head.resize(head.len() + 1 + numbers.below(300), numbers.next() as u8);
                    let longer = self.keep(head);
                    self.record_hash(&key, ChunkIndex(0), longer);
                }
            }
        }
    }

    /// Makes keys lead to heads forged with knowledge of the format.
    fn forge(&self, numbers: &mut Numbers) {
        let (key, own, other) = self.some_known(numbers);
        let forged = if numbers.below(2) == 0 {
            let mut head = self.load(own).map_or(Vec::new(), |head| head.bytes().to_vec());
            mutate(&mut head, numbers);
            head
        } else {
            let part = if numbers.below(2) == 0 { self.keep(vec![1; CHUNK_BYTES as usize]) } else { other };
            let count = [1, 2, 256, 257, 8000][numbers.below(5)];
            postcard::to_stdvec(&(1_u16, key.as_bytes(), Body::Parts(vec![part; count]))).unwrap()
        };
        let forged = self.keep(forged);
        self.record_hash(&key, ChunkIndex(0), forged);
    }

    /// Returns a key, a chunk to which it leads or led, and a chunk of another key.
    fn some_known(&self, numbers: &mut Numbers) -> (FileKey, ChunkHash, ChunkHash) {
        let kept = self.kept();
        let (key, own) = kept.history[numbers.below(kept.history.len())];
        (key, own, kept.history[numbers.below(kept.history.len())].1)
    }

    fn some_chunk(&self, numbers: &mut Numbers) -> ChunkHash {
        let kept = self.kept();
        kept.hashes[numbers.below(kept.hashes.len())]
    }
}

impl ChunkCache for DamagedCache {
    fn contains(&self, hash: ChunkHash) -> bool {
        self.kept().chunks.contains_key(&hash)
    }

    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
        let mut kept = self.kept();
        let found: Vec<_> = hashes.iter().map(|hash| kept.chunks.get(hash).cloned()).collect();
        let bytes = found.iter().flatten().map(|chunk| chunk.bytes().len()).sum();
        kept.loaded_bytes_max = kept.loaded_bytes_max.max(bytes);
        found
    }

    fn insert(&self, chunk: VerifiedChunk) {
        let mut kept = self.kept();
        kept.hashes.push(chunk.hash());
        kept.chunks.insert(chunk.hash(), chunk);
    }

    fn known_hash(&self, file: &FileKey, _: ChunkIndex) -> Option<ChunkHash> {
        self.kept().known.get(file).copied()
    }

    fn record_hash(&self, file: &FileKey, _: ChunkIndex, hash: ChunkHash) {
        let mut kept = self.kept();
        kept.history.push((*file, hash));
        kept.known.insert(*file, hash);
    }

    fn flush_file(&self, _: &FileKey) {}

    fn is_behind(&self) -> bool {
        false
    }

    fn writes_bytes_per_second(&self) -> u64 {
        0
    }

    fn flush(&self) -> bool {
        true
    }

    fn stats(&self) -> CacheStats {
        CacheStats::default()
    }
}

/// Decodes bytes and checks that encoding the result gives the same meaning.
fn decode<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let value = record::decode_body::<T>(bytes)?;
    let again = postcard::to_stdvec(&value).unwrap();
    assert_eq!(record::decode_body::<T>(&again).as_ref(), Some(&value));
    Some(value)
}

fn decode_as_everything(bytes: &[u8]) {
    decode::<SeenNode>(bytes);
    decode::<SeenName>(bytes);
    decode::<SeenLink>(bytes);
    decode::<SeenStatistics>(bytes);
    decode::<SeenActsAs>(bytes);
    if let Some(listing) = decode::<SeenListing>(bytes) {
        let taken = listing.value.capacity() * size_of::<DirectoryEntry>();
        assert!(taken <= (64 * bytes.len()).max(2 << 20), "{taken} bytes of memory for {}", bytes.len());
    }
}

#[test]
fn heads_and_bodies() {
    fuzz("record heads and bodies", |numbers| {
        let (of, at) = (node(numbers.below(NODES)), Timestamp(numbers.next() as i64));
        let scope = Scope::new(&[1; 32], "export");
        let [key, other] =
            [Subject::Listing(of), Subject::Name(of, b"listing")].map(|subject| subject.key(scope));
        let listing = SeenListing { at, value: some_entries(numbers) };
        let chunks = record::encode(&key, &listing).unwrap();
        let (mut head, mut body) = (chunks[0].to_vec(), postcard::to_stdvec(&listing).unwrap());
        assert!(record::decode_head(&key, &head).is_some() && record::decode_head(&other, &head).is_none());
        let longer = |bytes: &[u8]| [bytes, &[0]].concat();
        assert!(record::decode_head(&key, &head[..numbers.below(head.len())]).is_none());
        assert!(record::decode_head(&key, &longer(&head)).is_none(), "trailing bytes");
        assert_eq!(record::decode_body::<SeenListing>(&body[..numbers.below(body.len())]), None);
        assert_eq!(record::decode_body::<SeenListing>(&longer(&body)), None);
        mutate(&mut head, numbers);
        match record::decode_head(&key, &head) {
            Some(Body::Here(body)) => decode_as_everything(&body),
            Some(Body::Parts(parts)) => assert!(parts.len() * CHUNK_BYTES as usize <= BODY_BYTES_MAX),
            None => {}
        }
        mutate(&mut body, numbers);
        decode_as_everything(&body);
    });
}

#[test]
fn keys_that_lead_elsewhere() {
    fuzz("records that lead elsewhere", |numbers| {
        let (damaged, mut told) =
            (Arc::new(DamagedCache::default()), [Recorded::default(), Recorded::default()]);
        let mut exports = Exports { cache: Arc::clone(&damaged) as _, told: &mut told };
        let mut record_writers = exports.record_writers();
        exports.record_some(&record_writers, numbers);
        exports.record_some(&record_writers, numbers);
        exports.check();
        // Includes readers that cache the last listing.
        let records = [0, 1].map(|number| exports.records(number));
        for _ in 0..3 {
            damaged.damage(numbers);
            exports.check();
            (0..2).for_each(|number| exports.told[number].check(&records[number]));
        }
        if numbers.below(2) == 0 {
            record_writers = exports.record_writers();
        }
        exports.record_some(&record_writers, numbers);
        exports.check();
        exports.check_use(&record_writers, numbers);
        if numbers.below(30) > 0 {
            return;
        }
        (0..3).for_each(|_| damaged.forge(numbers));
        // Forged heads may say anything: the read stays within its bounds.
        for records in &records {
            for of in (0..NODES).map(node) {
                let _ = (records.node(of), records.link(of), records.name(of, &name(1)), records.listing(of));
            }
            let _ = (records.root(&name(0)), records.acts_as(), records.statistics());
        }
        assert!(damaged.kept().loaded_bytes_max <= BODY_BYTES_MAX, "{}", damaged.kept().loaded_bytes_max);
    });
}

/// Changes some files of a cache: at random, or to an older state of one of them.
fn damage_files(directory: &Path, older: &HashMap<PathBuf, Vec<u8>>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let files = files_below(directory);
        let [path, other] = [0, 1].map(|_| &files[numbers.below(files.len())]);
        let mut bytes = fs::read(path).unwrap();
        let before = older.get(path).or_else(|| older.get(other));
        match numbers.below(4) {
            0 => {
                take_block(
                    &mut bytes,
                    &fs::read(other).unwrap(),
                    (0, [512, 4096][numbers.below(2)]),
                    numbers,
                );
            }
            1 => before.into_iter().for_each(|before| take_block(&mut bytes, before, (0, 4096), numbers)),
            2 => bytes = before.unwrap_or(&bytes).clone(),
            _ => mutate(&mut bytes, numbers),
        }
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn damaged_files() {
    fuzz("records in damaged files", |numbers| {
        let directory = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            directory: directory.path().join("cache"),
            size_bytes: 16 << 20,
            min_free_ratio: 0.0,
            segment_bytes: Some(1 << 20),
        };
        let mut told = [Recorded::default(), Recorded::default()];
        let mut older = HashMap::new();
        for round in 0..2 {
            let mut exports = Exports { cache: Arc::new(DiskCache::open(&config).unwrap()), told: &mut told };
            exports.record_some(&exports.record_writers(), numbers);
            exports.check();
            assert!(exports.cache.flush());
            if round == 0 {
                let files = files_below(directory.path()).into_iter();
                older = files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
            }
        }
        damage_files(directory.path(), &older, numbers);
        for _ in 0..2 {
            let Ok(cache) = DiskCache::open(&config) else { return };
            let mut exports = Exports { cache: Arc::new(cache), told: &mut told };
            exports.check();
            let record_writers = exports.record_writers();
            exports.record_some(&record_writers, numbers);
            exports.check();
            exports.check_use(&record_writers, numbers);
            assert!(exports.cache.flush());
        }
    });
}

fn one_export() -> (Arc<DamagedCache>, Records, RecordWriter) {
    let damaged = Arc::new(DamagedCache::default());
    let records = Records::new(Arc::clone(&damaged) as _, Scope::new(&[1; 32], "export"));
    let record_writer = RecordWriter::new(records.clone()).unwrap();
    (damaged, records, record_writer)
}

fn write_all(record_writer: &RecordWriter, records: impl IntoIterator<Item = MetadataRecord>) {
    records.into_iter().for_each(|record| record_writer.take(record));
    assert!(record_writer.flush(WAIT));
}

fn entry(number: usize) -> DirectoryEntry {
    DirectoryEntry { name: name(number), attributes: attributes(number as u64, FileKind::Regular) }
}

#[test]
fn a_listing_is_not_taken_for_that_of_another_directory() {
    let (damaged, records, record_writer) = one_export();
    write_all(&record_writer, [MetadataRecord::Listing(node(1), vec![entry(3)])]);
    assert!(records.name(node(1), &name(3)).unwrap().value.is_some());
    let [one, other] = [1, 2].map(|of| Subject::Listing(node(of)).key(Scope::new(&[1; 32], "export")));
    let head = damaged.known_hash(&one, ChunkIndex(0)).unwrap();
    damaged.record_hash(&other, ChunkIndex(0), head);
    assert_eq!(records.name(node(2), &name(3)), None);
}

#[test]
fn a_name_that_came_back_is_found() {
    let (_, records, record_writer) = one_export();
    let of = node(9);
    let named = |number| MetadataRecord::Name(of, name(number), Some(entry(number).attributes));
    let is_there = |number| records.name(of, &name(number)).map(|seen| seen.value.is_some());
    write_all(&record_writer, [named(3), MetadataRecord::Listing(of, vec![entry(4)])]);
    assert_eq!((is_there(3), is_there(4)), (Some(false), Some(true)), "the listing came later");
    write_all(&record_writer, [named(3)]);
    assert_eq!(is_there(3), Some(true), "it was looked up since");
    // The other way round: removed by name, then listed as before.
    write_all(&record_writer, [MetadataRecord::Name(of, name(4), None)]);
    assert_eq!(is_there(4), Some(false));
    write_all(&record_writer, [MetadataRecord::Listing(of, vec![entry(4)])]);
    assert_eq!((is_there(3), is_there(4)), (Some(false), Some(true)), "it was listed since");
}

#[test]
fn a_listing_with_evicted_parts_is_written_again() {
    let (damaged, records, record_writer) = one_export();
    let long: Vec<_> =
        (0..1500).map(|number| DirectoryEntry { name: vec![b'x'; number], ..entry(1) }).collect();
    let listing = || MetadataRecord::Listing(node(9), long.clone());
    write_all(&record_writer, [listing()]);
    let head =
        damaged.known_hash(&Subject::Listing(node(9)).key(Scope::new(&[1; 32], "export")), ChunkIndex(0));
    damaged.kept().chunks.retain(|hash, _| Some(*hash) == head);
    assert_eq!(records.listing(node(9)), None);
    write_all(&record_writer, [listing()]);
    assert_eq!(records.listing(node(9)).map(|found| found.len()), Some(1500));
    damaged.kept().known.clear();
    write_all(&record_writer, [listing()]);
    assert_eq!(records.listing(node(9)).map(|found| found.len()), Some(1500), "its key was evicted");
}
