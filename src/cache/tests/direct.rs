//! Direct I/O: partial blocks, file systems that refuse it, crashes between blocks.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::super::record::{gap_bytes, record_bytes};
use super::*;
use crate::chunk::CHUNK_BYTES;
use crate::io::alloc_aligned;
use crate::io::sys::is_cached;

const BLOCK_BYTES: u64 = 4096;

fn open_as(directory: &Path, direct: DirectIo) -> DiskCache {
    DiskCache::open_with(&config(directory, 1 << 20, 1 << 16), direct).unwrap()
}

fn found(cache: &DiskCache, chunks: &[VerifiedChunk]) -> usize {
    chunks.iter().filter(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)).count()
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn the_last_block_is_padded_with_zeroes() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_as(directory.path(), DirectIo::Always);
    let mut records_end = 64;
    for number in 0..60 {
        // First many records, then few: the buffer content of the first batch must not follow the second.
        let some: Vec<VerifiedChunk> =
            (0..if number % 2 == 0 { 9 } else { 1 }).map(|n| chunk(100 * number + n, 64)).collect();
        for chunk in &some {
            cache.insert(chunk.clone());
        }
        assert!(cache.flush());
        records_end += 128 * some.len() as u64;
        let path = segments(directory.path()).pop().unwrap();
        assert_eq!(len(&path), records_end.next_multiple_of(BLOCK_BYTES), "written in whole blocks");
        assert!(fs::read(&path).unwrap()[records_end as usize..].iter().all(|&byte| byte == 0));
        let after = open(crashed_copy(directory.path()).path(), 1 << 20, 1 << 16);
        assert_eq!(after.stats().entries, cache.stats().entries);
    }
    drop(cache);
    let path = segments(directory.path()).pop().unwrap();
    assert_eq!(len(&path), records_end + 300 * 44 + 32, "finished in its true length");
}

#[test]
fn another_process_finds_records_added_to_a_known_block() {
    let directory = tempfile::tempdir().unwrap();
    let first = open_as(directory.path(), DirectIo::Always);
    let second = open(directory.path(), 1 << 20, 1 << 16);
    let mut lens = Vec::new();
    for number in 0..40 {
        let one = chunk(number, 64);
        insert(&first, &one);
        assert!(second.refresh());
        assert_eq!(second.load(one.hash()), Some(one), "chunk {number}");
        lens.push(len(&segments(directory.path())[0]));
    }
    lens.dedup();
    assert_eq!(lens, [BLOCK_BYTES, 2 * BLOCK_BYTES]);
    assert_eq!((first.stats().corrupt, second.stats().corrupt), (0, 0));
}

#[test]
fn a_segment_changes_its_write_mode_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let chunks: Vec<VerifiedChunk> = (0..40).map(|number| chunk(number, 700)).collect();
    let ways = [DirectIo::Always, DirectIo::Never, DirectIo::RefusesToWrite].into_iter().cycle();
    for (some, way) in chunks.chunks(4).zip(ways) {
        let cache = open_as(directory.path(), way);
        for chunk in some {
            insert(&cache, chunk);
        }
    }
    assert_eq!(segments(directory.path()).len(), 1);
    let cache = open(directory.path(), 1 << 20, 1 << 16);
    assert_eq!((found(&cache, &chunks), cache.stats().corrupt), (40, 0));
}

#[test]
fn a_file_system_that_refuses_is_read_and_written_through_the_page_cache() {
    for way in [DirectIo::RefusesToOpen, DirectIo::RefusesToWrite] {
        let directory = tempfile::tempdir().unwrap();
        let chunks: Vec<VerifiedChunk> = (0..40).map(|number| chunk(number, 3000)).collect();
        let cache = open_as(directory.path(), way);
        for chunk in &chunks {
            insert(&cache, chunk);
        }
        assert_eq!((found(&cache, &chunks), cache.stats().dropped), (40, 0));
        let last = segments(directory.path()).pop().unwrap();
        assert_ne!(len(&last) % BLOCK_BYTES, 0, "not in whole blocks");
        drop(cache);
        assert_eq!(found(&open_as(directory.path(), way), &chunks), 40);
    }
}

#[test]
fn sizes_that_are_no_whole_blocks_hold_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let (size_bytes, segment_bytes) = (60_001, 9_999);
    let config = config(directory.path(), size_bytes, segment_bytes);
    let cache = DiskCache::open_with(&config, DirectIo::Always).unwrap();
    let mut most = 0;
    for number in 0..300 {
        insert(&cache, &chunk(number, 1 + number as usize * 577 % 3500));
        most = most.max(disk_bytes(directory.path()));
        assert!(most <= size_bytes, "{most} after {number}");
    }
    assert!(most > size_bytes - 2 * segment_bytes, "{most}");
    assert_eq!((cache.stats().dropped, cache.stats().corrupt), (0, 0));
}

/// Returns a crashed cache with `chunks` in its open segment, and the ends of their records.
fn crashed(lens: &[usize]) -> (TempDir, Vec<VerifiedChunk>, Vec<u64>) {
    let directory = tempfile::tempdir().unwrap();
    let cache = open_as(directory.path(), DirectIo::Always);
    let chunks: Vec<VerifiedChunk> = lens.iter().zip(0..).map(|(&len, number)| chunk(number, len)).collect();
    for chunk in &chunks {
        cache.insert(chunk.clone());
    }
    assert!(cache.flush());
    let mut end = 64;
    let ends = lens.iter().map(|len| {
        end += 64 + len.next_multiple_of(64) as u64;
        end
    });
    (crashed_copy(directory.path()), chunks, ends.collect())
}

const LENS: [usize; 8] = [3000, 64, 9000, 4032, 4096, 100, 12_000, 700];

#[test]
fn a_crash_between_any_two_blocks_keeps_the_records_before() {
    let (directory, chunks, ends) = crashed(&LENS);
    let whole = len(&segments(directory.path())[0]);
    for cut in (0..=whole).step_by(512) {
        let copy = crashed_copy(directory.path());
        let path = segments(copy.path()).remove(0);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let after = open(copy.path(), 1 << 20, 1 << 16);
        let whole_records = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!((found(&after, &chunks), after.stats().corrupt), (whole_records, 0), "cut at {cut}");
        for chunk in &chunks {
            insert(&after, chunk);
        }
        assert_eq!(found(&after, &chunks), chunks.len());
        drop(after);
        assert_eq!(found(&open(copy.path(), 1 << 20, 1 << 16), &chunks), chunks.len());
    }
}

/// Returns a full chunk whose memory is aligned for direct I/O, or not.
fn full_chunk(number: u32, aligned: bool) -> VerifiedChunk {
    let mut bytes = alloc_aligned(CHUNK_BYTES as usize + 1);
    bytes.extend_from_slice(&[0][usize::from(aligned)..]);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.resize(CHUNK_BYTES as usize + usize::from(!aligned), number as u8);
    VerifiedChunk::compute(bytes.freeze().slice(usize::from(!aligned)..))
}

#[test]
fn full_chunks_begin_blocks_at_any_memory_address_and_gaps_survive_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let open_large = |directory: &Path| open(directory, 1 << 24, 1 << 22);
    let cache = open_large(directory.path());
    let (mut chunks, mut ends, mut end) = (Vec::new(), Vec::new(), 64);
    for (number, len) in
        [100, 1 << 18, 1 << 18, 4096, 1 << 18, 3904, 1 << 18, 1 << 18].into_iter().enumerate()
    {
        let is_full = len == CHUNK_BYTES as u32;
        let number = number as u32;
        chunks.push(if is_full {
            full_chunk(number, !number.is_multiple_of(3))
        } else {
            chunk(number, len as usize)
        });
        end += gap_bytes(end, len) + record_bytes(len) as u32;
        assert!(!is_full || end.is_multiple_of(4096));
        ends.push(u64::from(end));
        cache.insert(chunks.last().unwrap().clone());
        // Also covers a piece that begins inside a block, and a piece with several records.
        assert!(number.is_multiple_of(2) || cache.flush());
    }
    let crash = crashed_copy(directory.path());
    assert_eq!(found(&open_large(crashed_copy(directory.path()).path()), &chunks), chunks.len());
    let cuts = ends.iter().flat_map(|end| [end - 1, *end, end + 64, end + 4032, end + 4096, end + 9000]);
    for cut in cuts {
        let copy = crashed_copy(crash.path());
        let path = segments(copy.path()).remove(0);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let after = open_large(copy.path());
        let whole = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!((found(&after, &chunks), after.stats().corrupt), (whole, 0), "cut at {cut}");
        for chunk in &chunks {
            insert(&after, chunk);
        }
        drop(after);
        assert_eq!(found(&open_large(copy.path()), &chunks), chunks.len(), "cut at {cut}");
    }
}

#[test]
fn a_block_that_was_never_written_costs_at_most_the_records_from_it_on() {
    let (directory, chunks, ends) = crashed(&LENS);
    let whole = len(&segments(directory.path())[0]);
    for block in 0..whole / BLOCK_BYTES {
        let copy = crashed_copy(directory.path());
        let path = segments(copy.path()).remove(0);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; BLOCK_BYTES as usize], block * BLOCK_BYTES).unwrap();
        let after = open(copy.path(), 1 << 20, 1 << 16);
        let before = ends.iter().filter(|&&end| end <= block * BLOCK_BYTES).count();
        assert!(found(&after, &chunks) >= before, "block {block}");
        for chunk in &chunks {
            insert(&after, chunk);
        }
        assert_eq!(found(&after, &chunks), chunks.len());
    }
}

#[test]
fn only_repeated_reads_fill_the_page_cache() {
    // The files lie beside the test binary: on a tmpfs everything is in the page cache.
    let directory = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let config = config(directory.path(), 1 << 24, 1 << 22);
    let cache = DiskCache::open_with(&config, DirectIo::Always).unwrap();
    let chunks: Vec<VerifiedChunk> = (0..4).map(|number| chunk(number, 1 << 18)).collect();
    let hashes: Vec<ChunkHash> = chunks.iter().map(VerifiedChunk::hash).collect();
    for chunk in &chunks {
        insert(&cache, chunk);
    }
    let file = File::open(segments(directory.path()).remove(0)).unwrap();
    // The header before the first payload is not read.
    let is_cached = || is_cached(file.as_fd(), 4096, 1 << 20);
    if is_cached() != Ok(false) {
        eprintln!("SKIPPED: needs direct I/O and Linux 6.5");
        return;
    }
    for expected in [false, true, true] {
        let loaded: Vec<_> = cache.load_run(&hashes).into_iter().flatten().collect();
        assert_eq!(loaded, chunks);
        assert_eq!(is_cached(), Ok(expected));
    }
}

#[test]
fn cheaply_buffered_data_is_read_again_from_memory() {
    let is_cached_after_write = |direct| {
        // The files lie beside the test binary: on a tmpfs everything is in the page cache.
        let directory = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let cache = open_as(directory.path(), direct);
        insert(&cache, &chunk(1, 30_000));
        let file = File::open(&segments(directory.path())[0]).unwrap();
        is_cached(file.as_fd(), 4096, 16_384)
    };
    if is_cached_after_write(DirectIo::Always) != Ok(false) {
        eprintln!("SKIPPED: needs direct I/O and Linux 6.5");
        return;
    }
    assert_eq!(is_cached_after_write(DirectIo::Auto), Ok(true));
}

#[test]
fn more_records_than_the_kernel_takes_at_once_are_written_all_the_same() {
    for way in [DirectIo::Always, DirectIo::Never] {
        let directory = tempfile::tempdir().unwrap();
        let chunks: Vec<VerifiedChunk> = (0..3000).map(|number| chunk(number, 33)).collect();
        let cache = open_as(directory.path(), way);
        for chunk in &chunks {
            cache.insert(chunk.clone());
        }
        assert!(cache.flush());
        assert_eq!((found(&cache, &chunks), cache.stats().dropped), (3000, 0), "{way:?}");
    }
}
