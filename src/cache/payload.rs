//! Reading payloads: through the page cache or around it.
//!
//! What lies in the page cache comes from there. What does not is read around it the first time and through it from
//! the second time on: to fill the page cache costs up to twenty times the processor time of a direct read and pays only for what
//! is read again, and a slow disk must not be asked for the same bytes each time.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use nix::sys::uio::preadv;

use super::directory::Directory;
use super::index::Location;
use super::record::{BLOCK_BYTES, HEADER_BYTES, SegmentId, record_bytes};
use super::spare::{Lent, Spares};
use crate::io::AlignedBuffer;
use crate::io::sys::is_cached;

/// Bytes between two payloads in a row: padding, a gap and a header.
const BETWEEN_BYTES_MAX: usize = (HEADER_BYTES + BLOCK_BYTES) as usize;

/// Fewest bytes that are read around the page cache: for less, what the kernel reads ahead is worth more. Its readahead
/// is 128 KiB nearly everywhere.
const DIRECT_BYTES_MIN: u64 = 128 * 1024;

/// Whether what is read will be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing says so.
    Once,
    /// It was read before.
    Again,
}

/// A segment that is open for reading.
#[derive(Debug)]
pub(super) struct SegmentFile {
    id: SegmentId,
    buffered: Arc<File>,
    /// Opened when it is needed first; `None` where that does not work.
    direct: OnceLock<Option<File>>,
}

impl SegmentFile {
    /// Reads from `file`, which is segment `id`.
    pub(super) const fn new(id: SegmentId, file: Arc<File>) -> Self {
        Self { id, buffered: file, direct: OnceLock::new() }
    }

    /// The file as it is read through the page cache.
    pub(super) fn buffered(&self) -> &File {
        &self.buffered
    }

    /// The payloads of records that lie in a row, with one system call; `None` for each that the file does not hold.
    pub(super) fn payloads(
        &self,
        directory: &Directory,
        spares: &Arc<Spares>,
        run: &[Location],
        reading: Reading,
    ) -> Vec<Option<Bytes>> {
        if let Some(file) = self.direct_for(directory, run, reading) {
            match read_direct(file, spares, run) {
                Ok(Some(payloads)) => return payloads.into_iter().map(Some).collect(),
                // Fewer bytes than there should be: the page cache gives what there is.
                Ok(None) => {}
                Err(error) => directory.direct.note(&error),
            }
        }
        read_buffered(&self.buffered, run)
    }

    /// The file to read `run` from around the page cache; `None` where that would not pay or does not work.
    fn direct_for(&self, directory: &Directory, run: &[Location], reading: Reading) -> Option<&File> {
        let (first, last) = (run.first()?, run.last()?);
        let len = last.payload_end() - first.payload_start();
        if reading == Reading::Again || len < DIRECT_BYTES_MIN || directory.direct.is_refused() {
            return None;
        }
        // Where the kernel cannot say, it is not.
        if is_cached(self.buffered.as_fd(), first.payload_start(), len).unwrap_or(false) {
            return None;
        }
        self.direct.get_or_init(|| directory.open_direct(self.id)).as_ref()
    }
}

/// Whether the record at `second` lies right behind the one at `first`, or behind a gap.
pub(super) fn are_neighbours(first: &Location, second: &Location) -> bool {
    let end = u64::from(first.offset) + record_bytes(first.len);
    first.segment == second.segment && (end..end + u64::from(BLOCK_BYTES)).contains(&second.offset.into())
}

/// The blocks that hold one payload: which of the file, and how many of them the payload before has, too, or how many lie
/// between.
struct Blocks {
    start: u64,
    shared_bytes: usize,
    hole_bytes: usize,
    buffer: Lent,
}

/// Reads a run around the page cache, each payload into a buffer of its own: they are kept and dropped one by one.
/// `None` where the file ends before the run does.
fn read_direct(file: &File, spares: &Arc<Spares>, run: &[Location]) -> io::Result<Option<Vec<Bytes>>> {
    let block = u64::from(BLOCK_BYTES);
    let mut parts: Vec<Blocks> = Vec::with_capacity(run.len());
    let mut read_end = None;
    for at in run {
        let (start, end) = (at.payload_start() / block * block, at.payload_end().next_multiple_of(block));
        let before = read_end.unwrap_or(start);
        let (shared, hole) = (before.saturating_sub(start), start.saturating_sub(before));
        let (shared_bytes, hole_bytes) = (shared as usize, hole as usize);
        parts.push(Blocks { start, shared_bytes, hole_bytes, buffer: spares.lend((end - start) as usize) });
        read_end = Some(end);
    }
    let Some((first, last)) = parts.first().zip(run.last()) else { return Ok(Some(Vec::new())) };
    let (start, wanted) = (first.start, last.payload_end() - first.start);
    let mut holes = AlignedBuffer::zeroed(parts.iter().map(|part| part.hole_bytes).sum());
    let (mut holes, mut slices) = (&mut holes[..], Vec::with_capacity(2 * parts.len()));
    for part in &mut parts {
        let (hole, rest) = holes.split_at_mut(part.hole_bytes);
        holes = rest;
        slices.extend((!hole.is_empty()).then(|| IoSliceMut::new(hole)));
        slices.push(IoSliceMut::new(&mut part.buffer[part.shared_bytes..]));
    }
    if (preadv(file, &mut slices, start as i64)? as u64) < wanted {
        return Ok(None);
    }
    for number in 1..parts.len() {
        let (before, behind) = parts.split_at_mut(number);
        let (from, to) = (&before[number - 1].buffer, &mut behind[0]);
        to.buffer[..to.shared_bytes].copy_from_slice(&from[from.len() - to.shared_bytes..]);
    }
    let payloads = parts.into_iter().zip(run).map(|(part, at)| {
        let from = (at.payload_start() - part.start) as usize;
        Bytes::from_owner(part.buffer).slice(from..from + at.len as usize)
    });
    Ok(Some(payloads.collect()))
}

fn read_buffered(file: &File, run: &[Location]) -> Vec<Option<Bytes>> {
    let mut payloads: Vec<Vec<u8>> = run.iter().map(|at| vec![0; at.len as usize]).collect();
    let Some(first) = run.first() else { return Vec::new() };
    let read_end = first.payload_start() + fill(file, run, &mut payloads, first.payload_start());
    let complete = payloads.into_iter().zip(run).map(|(mut payload, at)| {
        // A call may return less than was asked for; what is missing is asked for again, one by one.
        let is_whole =
            at.payload_end() <= read_end || file.read_exact_at(&mut payload, at.payload_start()).is_ok();
        is_whole.then(|| payload.into())
    });
    complete.collect()
}

/// Fills `payloads` from `start` on. Returns how many bytes of the file were read, gaps included.
fn fill(file: &File, run: &[Location], payloads: &mut [Vec<u8>], start: u64) -> u64 {
    let mut between = vec![0; run.len() * BETWEEN_BYTES_MAX];
    let mut slices = Vec::with_capacity(2 * run.len());
    let mut end = start;
    for ((at, payload), between) in run.iter().zip(payloads).zip(between.chunks_mut(BETWEEN_BYTES_MAX)) {
        slices.push(IoSliceMut::new(&mut between[..(at.payload_start() - end) as usize]));
        slices.push(IoSliceMut::new(payload));
        end = at.payload_end();
    }
    preadv(file, &mut slices, start as i64).map_or(0, |read| read as u64)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use proptest::prelude::*;

    use super::super::record::{PAYLOAD_BYTES_MAX, gap_bytes};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn around_the_page_cache_lie_the_same_bytes(
            first in 0..200u32,
            lens in prop::collection::vec(prop_oneof![0..300u32, 3900..4300u32, 0..=PAYLOAD_BYTES_MAX, Just(PAYLOAD_BYTES_MAX)], 1..9),
            missing in prop_oneof![Just(0u64), 1..9000u64],
            // Segments of before there were gaps are read, too.
            has_gaps: bool,
        ) {
            let mut offset = HEADER_BYTES * first;
            let run: Vec<Location> = lens.iter().map(|&len| {
                offset += if has_gaps { gap_bytes(offset, len) } else { 0 };
                let at = Location { segment: 1, offset, len };
                offset += record_bytes(len) as u32;
                at
            }).collect();
            let file_bytes = run.last().unwrap().payload_end().saturating_sub(missing);
            let content: Vec<u8> =
                (0..file_bytes as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("segment");
            std::fs::write(&path, &content).unwrap();
            let buffered = File::open(&path).unwrap();
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
            let expected = read_buffered(&buffered, &run);
            let spares = Arc::new(Spares::default());
            // What was in a buffer before must not be seen.
            (0..9).map(|_| spares.lend(PAYLOAD_BYTES_MAX as usize)).collect::<Vec<_>>().iter_mut().for_each(|old| old.fill(0xee));
            let found = read_direct(direct.as_ref().unwrap_or(&buffered), &spares, &run).unwrap();
            prop_assert_eq!(found.is_some(), missing == 0);
            for (at, payload) in run.iter().zip(&expected) {
                let range = at.payload_start() as usize..at.payload_end() as usize;
                prop_assert_eq!(payload.as_deref(), content.get(range));
            }
            if let Some(found) = found {
                prop_assert_eq!(found.into_iter().map(Some).collect::<Vec<_>>(), expected);
            }
        }
    }
}
