//! The disk cache beside a plain `pread` of the same bytes: filling it, reading it back with proof, opening a large
//! one.
//!
//! What is read the first time comes from the disk, around the page cache; from the third time on it comes out of the page
//! cache, and this measures what the cache adds to a copy. The directory is made where `TMPDIR` points, which should be a disk
//! and not a tmpfs.

use std::fs::{self, File};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tempfile::TempDir;
use wormhole::cache::{CacheConfig, ChunkCache, DiskCache};
use wormhole::chunk::{CHUNK_BYTES, ChunkHash, VerifiedChunk};

const FILE_BYTES: u64 = 1 << 30;
const CHUNKS: u64 = FILE_BYTES / CHUNK_BYTES;

/// As many records as 100 GB of full chunks have, in as many segments; the payloads are small to keep the disk small.
const RECORDS: u32 = 400_000;
const RECORDS_PER_SEGMENT: u64 = 250;

fn open(directory: &Path, segment_bytes: Option<u64>) -> DiskCache {
    let config = CacheConfig {
        directory: directory.join("cache"),
        size_bytes: 4 * FILE_BYTES,
        min_free_ratio: 0.0,
        segment_bytes,
    };
    DiskCache::open(&config).expect("open the cache")
}

fn file_chunks() -> Vec<VerifiedChunk> {
    let chunk = |number: u64| {
        let mut bytes = vec![number as u8; CHUNK_BYTES as usize];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        VerifiedChunk::compute(Bytes::from(bytes))
    };
    (0..CHUNKS).map(chunk).collect()
}

/// Inserts without ever overrunning the queue.
fn fill(cache: &DiskCache, chunks: &[VerifiedChunk]) {
    for some in chunks.chunks(32) {
        for chunk in some {
            cache.insert(chunk.clone());
        }
        assert!(cache.flush());
    }
    assert_eq!(cache.stats().dropped, 0);
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("cache/v1/segments")).expect("list the segments");
    entries.map(|entry| entry.expect("list the segments").path()).collect()
}

/// One pass over all segments in pieces of a chunk; with `hash` also what proving them costs.
fn read_plain(directory: &Path, hash: bool) {
    for path in segments(directory) {
        let file = File::open(path).expect("open a segment");
        let len = file.metadata().expect("look at a segment").len();
        for at in (0..len / CHUNK_BYTES).map(|number| number * CHUNK_BYTES) {
            let mut buffer = vec![0; CHUNK_BYTES as usize];
            file.read_exact_at(&mut buffer, at).expect("read a segment");
            if hash {
                black_box(blake3::hash(&buffer));
            }
            black_box(buffer);
        }
    }
}

/// One pass over all segments as a reply from the store goes: proved, and handed to the kernel, which a file in memory stands for.
/// `mapped`: from pages of the segment in our address space; otherwise from a buffer that they are read into.
fn reply(directory: &Path, sink: &File, mapped: bool) {
    for path in segments(directory) {
        let file = File::open(path).expect("open a segment");
        let len = file.metadata().expect("look at a segment").len() / CHUNK_BYTES * CHUNK_BYTES;
        let answer = |bytes: &[u8]| {
            black_box(blake3::hash(bytes));
            sink.write_all_at(bytes, 0).expect("hand over");
        };
        let Some(bytes) = NonZeroUsize::new(len as usize) else { continue };
        if mapped {
            // SAFETY: nobody writes to or shortens the files of this benchmark while they are mapped.
            let pages = unsafe {
                let pages = mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0);
                std::slice::from_raw_parts(pages.expect("map a segment").cast::<u8>().as_ptr(), bytes.get())
            };
            pages.chunks(CHUNK_BYTES as usize).for_each(answer);
            // SAFETY: the slice is not used any more.
            unsafe { munmap(NonNull::from(pages).cast(), bytes.get()) }.expect("give the mapping back");
        } else {
            let mut buffer = vec![0; CHUNK_BYTES as usize];
            for at in (0..len).step_by(CHUNK_BYTES as usize) {
                file.read_exact_at(&mut buffer, at).expect("read a segment");
                answer(&buffer);
            }
        }
    }
}

/// Says how many CPU seconds the process used for `work`: on a busy machine a steadier figure than the time on the
/// clock.
fn metered<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("ask for the CPU time");
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    };
    let before = used();
    let result = work();
    println!("{name}: {:.3} CPU seconds", used() - before);
    result
}

fn read_cached(cache: &DiskCache, hashes: &[ChunkHash], run: usize) {
    for some in hashes.chunks(run) {
        assert!(black_box(cache.load_run(some)).iter().all(Option::is_some));
    }
}

fn insert(c: &mut Criterion) {
    let chunks = file_chunks();
    let mut group = c.benchmark_group("insert");
    group.sample_size(10).throughput(Throughput::Bytes(FILE_BYTES));
    group.bench_function("1 GiB", |bencher| {
        bencher.iter_custom(|count| {
            (0..count).fold(Duration::ZERO, |sum, _| {
                let directory = TempDir::new().expect("make a directory");
                let cache = open(directory.path(), None);
                let start = Instant::now();
                fill(&cache, &chunks);
                sum + start.elapsed()
            })
        });
    });
    // After the others: memory that was never touched costs a virtual machine several times more.
    let directory = TempDir::new().expect("make a directory");
    let cache = open(directory.path(), None);
    metered("insert 1 GiB", || fill(&cache, &chunks));
}

fn load(c: &mut Criterion) {
    let directory = TempDir::new().expect("make a directory");
    let hashes: Vec<ChunkHash> = {
        let chunks = file_chunks();
        fill(&open(directory.path(), None), &chunks);
        chunks.iter().map(VerifiedChunk::hash).collect()
    };
    for run in [1, 4, 16] {
        // What was just opened was never read.
        let cache = open(directory.path(), None);
        metered(&format!("load 1 GiB from the disk in runs of {run}"), || read_cached(&cache, &hashes, run));
    }
    let cache = open(directory.path(), None);
    for what in ["from the disk", "once more, into the page cache", "out of the page cache"] {
        metered(&format!("load 1 GiB in runs of 4, {what}"), || read_cached(&cache, &hashes, 4));
    }
    metered("plain pread of 1 GiB", || read_plain(directory.path(), false));
    metered("plain pread and hash of 1 GiB", || read_plain(directory.path(), true));
    let mut group = c.benchmark_group("load");
    group.sample_size(10).throughput(Throughput::Bytes(FILE_BYTES));
    group.bench_function("one by one", |bencher| bencher.iter(|| read_cached(&cache, &hashes, 1)));
    group.bench_function("runs of 4", |bencher| bencher.iter(|| read_cached(&cache, &hashes, 4)));
    group.bench_function("runs of 16", |bencher| bencher.iter(|| read_cached(&cache, &hashes, 16)));
    group.bench_function("plain pread", |bencher| bencher.iter(|| read_plain(directory.path(), false)));
    group.bench_function("plain pread and hash", |bencher| {
        bencher.iter(|| read_plain(directory.path(), true));
    });
    let sink = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
    for (name, mapped) in [("pread, proof and reply", false), ("mmap, proof and reply", true)] {
        metered(&format!("{name} of 1 GiB"), || reply(directory.path(), &sink, mapped));
        group.bench_function(name, |bencher| bencher.iter(|| reply(directory.path(), &sink, mapped)));
    }
}

/// All of a cache proved, as `wormhole cache verify` does, beside BLAKE3 alone over as many bytes in memory.
fn verify(c: &mut Criterion) {
    let directory = TempDir::new().expect("make a directory");
    let chunks = file_chunks();
    fill(&open(directory.path(), None), &chunks);
    let cache = DiskCache::open_read_only(&directory.path().join("cache")).expect("look at the cache");
    let verify = |cache: &DiskCache| {
        let verified = cache.verify(|_, _| true);
        assert!(verified.bad == 0 && verified.bytes >= FILE_BYTES);
    };
    metered("verify 1 GiB, from the disk", || verify(&cache));
    let mut group = c.benchmark_group("verify");
    group.sample_size(10).throughput(Throughput::Bytes(FILE_BYTES));
    group.bench_function("1 GiB", |bencher| bencher.iter(|| verify(&cache)));
    let hash_all = || {
        for chunk in &chunks {
            assert_eq!(blake3::hash(chunk.bytes()), *black_box(chunk.hash().as_bytes()));
        }
    };
    group.bench_function("BLAKE3 of 1 GiB in memory", |bencher| bencher.iter(hash_all));
}

fn start(c: &mut Criterion) {
    let directory = TempDir::new().expect("make a directory");
    // Payload 64, header 64, entry in the footer 44; header and trailer of the segment 96.
    let segment_bytes = Some(RECORDS_PER_SEGMENT * (64 + 64 + 44) + 96);
    let cache = open(directory.path(), segment_bytes);
    let payload = |number: u32| Bytes::from([number.to_le_bytes(); 16].concat());
    for number in 0..RECORDS {
        cache.insert(VerifiedChunk::compute(payload(number)));
        if number % 20_000 == 0 {
            assert!(cache.flush());
        }
    }
    drop(cache);
    let opened = metered("open", || open(directory.path(), segment_bytes)).stats();
    assert_eq!(opened.entries, u64::from(RECORDS));
    let mut group = c.benchmark_group("open");
    group.sample_size(20);
    group.bench_function(format!("{RECORDS} records, {} segments", opened.segments), |bencher| {
        bencher.iter_with_large_drop(|| open(directory.path(), segment_bytes));
    });
}

criterion_group!(benches, insert, load, verify, start);
criterion_main!(benches);
