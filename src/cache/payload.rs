//! Reads payloads, buffered or with direct I/O.
//!
//! Data in the page cache is read from there. Other data is read with direct I/O the first time, and
//! through the page cache from the second time on. Filling the page cache takes up to twenty times the
//! processor time of a direct read, which pays only for data that is read again. A slow disk should not
//! read the same bytes each time.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use nix::sys::uio::preadv;

use super::directory::Directory;
use super::index::Location;
use super::record::{BLOCK_BYTES, SegmentId, record_bytes};
use crate::chunk::RunSlice;
use crate::io::sys::is_cached;
use crate::io::{AlignedBuffer, ContentBuffers};

/// Shortest direct read in bytes. Below it the readahead of the kernel is worth more, which is 128 KiB
/// nearly everywhere.
const DIRECT_BYTES_MIN: u64 = 128 * 1024;

/// Expectation that data will be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Not read before.
    First,
    /// Read before.
    Repeated,
}

/// Segment that is open for reading.
#[derive(Debug)]
pub(super) struct SegmentFile {
    id: SegmentId,
    buffered: Arc<File>,
    /// Opened on first use; `None` if direct I/O does not work.
    direct: OnceLock<Option<File>>,
}

impl SegmentFile {
    /// Creates a reader of `file`, which is segment `id`.
    pub(super) const fn new(id: SegmentId, file: Arc<File>) -> Self {
        Self { id, buffered: file, direct: OnceLock::new() }
    }

    /// Returns the file for buffered reads.
    pub(super) fn buffered(&self) -> &File {
        &self.buffered
    }

    /// Returns the payloads of adjacent records with one system call; `None` for each that the file does
    /// not hold.
    pub(super) fn payloads(
        &self,
        directory: &Directory,
        buffers: &Arc<ContentBuffers>,
        run: &[Location],
        reading: Access,
    ) -> Vec<Option<RunSlice>> {
        if let Some(file) = self.direct_for(directory, run, reading) {
            match read_direct(file, buffers, run) {
                Ok(Some(payloads)) => return payloads.into_iter().map(Some).collect(),
                // The file is shorter than expected. A buffered read returns the part that exists.
                Ok(None) => {}
                Err(error) => directory.direct.note(&error),
            }
        }
        read_buffered(&self.buffered, buffers, run)
    }

    /// Returns the file for a direct read of `run`; `None` if that would not pay or does not work.
    fn direct_for(&self, directory: &Directory, run: &[Location], reading: Access) -> Option<&File> {
        let (first, last) = (run.first()?, run.last()?);
        let len = last.payload_end() - first.payload_start();
        if reading == Access::Repeated || len < DIRECT_BYTES_MIN || directory.direct.is_refused() {
            return None;
        }
        // If the kernel cannot tell, the data counts as not cached.
        if is_cached(self.buffered.as_fd(), first.payload_start(), len).unwrap_or(false) {
            return None;
        }
        self.direct.get_or_init(|| directory.open_direct(self.id)).as_ref()
    }
}

/// Returns `true` if the record at `second` follows the one at `first`, directly or after a gap.
pub(super) fn are_neighbours(first: &Location, second: &Location) -> bool {
    let end = u64::from(first.offset) + record_bytes(first.len);
    first.segment == second.segment && (end..end + u64::from(BLOCK_BYTES)).contains(&second.offset.into())
}

/// Place of one payload in a run buffer, with the blocks around it.
struct Part {
    /// Range of its blocks in the buffer, in bytes.
    blocks: Range<usize>,
    /// Range of the payload in the buffer.
    payload: Range<usize>,
    /// Number of leading bytes that the part before reads, too.
    shared_bytes: usize,
    /// Number of bytes between the part before and this one.
    hole_bytes: usize,
}

/// Plans a buffer in which the payloads of a run, read in whole blocks, are adjacent.
fn plan(run: &[Location], block: u64) -> Vec<Part> {
    let (mut read_end, mut buffer_end) = (None, 0);
    let parts = run.iter().map(|at| {
        let (start, end) = (at.payload_start() / block * block, at.payload_end().next_multiple_of(block));
        let before = read_end.replace(end).unwrap_or(start);
        let blocks = buffer_end..buffer_end + (end - start) as usize;
        buffer_end = blocks.end;
        let payload_start = blocks.start + (at.payload_start() - start) as usize;
        Part {
            blocks,
            payload: payload_start..payload_start + at.len as usize,
            shared_bytes: before.saturating_sub(start) as usize,
            hole_bytes: start.saturating_sub(before) as usize,
        }
    });
    parts.collect()
}

/// Buffer filled with a run.
struct Filled {
    buffer: BytesMut,
    parts: Vec<Part>,
    /// End of the bytes read from the file.
    read_end: u64,
}

impl Filled {
    fn into_payloads(self, buffers: &Arc<ContentBuffers>) -> impl Iterator<Item = RunSlice> {
        let content = buffers.freeze(self.buffer);
        self.parts.into_iter().map(move |part| RunSlice::part(&content, part.payload))
    }
}

/// Reads a run in whole blocks into one buffer with adjacent payloads. Bytes that the file lacks stay
/// unchanged.
fn fill(file: &File, buffers: &ContentBuffers, run: &[Location], block: u64) -> io::Result<Filled> {
    let parts = plan(run, block);
    let buffer_bytes = parts.last().map_or(0, |part| part.blocks.end);
    let mut buffer = buffers.alloc(buffer_bytes);
    buffer.resize(buffer_bytes, 0);
    let mut holes = AlignedBuffer::zeroed(parts.iter().map(|part| part.hole_bytes).sum());
    let (mut holes, mut rest, mut slices) =
        (&mut holes[..], &mut buffer[..], Vec::with_capacity(2 * parts.len()));
    for part in &parts {
        let (hole, other_holes) = holes.split_at_mut(part.hole_bytes);
        let (blocks, behind) = rest.split_at_mut(part.blocks.len());
        (holes, rest) = (other_holes, behind);
        slices.extend((!hole.is_empty()).then(|| IoSliceMut::new(hole)));
        slices.push(IoSliceMut::new(&mut blocks[part.shared_bytes..]));
    }
    let start = run.first().map_or(0, |first| first.payload_start() / block * block);
    let read_end = start + preadv(file, &mut slices, start as i64)? as u64;
    for part in &parts {
        let shared = part.blocks.start - part.shared_bytes..part.blocks.start;
        buffer.copy_within(shared, part.blocks.start);
    }
    Ok(Filled { buffer, parts, read_end })
}

/// Reads a run with direct I/O. Returns `None` if the file ends before the run does.
fn read_direct(
    file: &File,
    buffers: &Arc<ContentBuffers>,
    run: &[Location],
) -> io::Result<Option<Vec<RunSlice>>> {
    let filled = fill(file, buffers, run, u64::from(BLOCK_BYTES))?;
    let is_whole = run.last().is_none_or(|last| filled.read_end >= last.payload_end());
    Ok(is_whole.then(|| filled.into_payloads(buffers).collect()))
}

fn read_buffered(file: &File, buffers: &Arc<ContentBuffers>, run: &[Location]) -> Vec<Option<RunSlice>> {
    let Ok(mut filled) = fill(file, buffers, run, 1) else { return run.iter().map(|_| None).collect() };
    // A call may return less than was asked for. The missing payloads are read one by one.
    let whole = |(at, part): (&Location, &Part)| {
        let payload = &mut filled.buffer[part.payload.clone()];
        at.payload_end() <= filled.read_end || file.read_exact_at(payload, at.payload_start()).is_ok()
    };
    let whole: Vec<bool> = run.iter().zip(&filled.parts).map(whole).collect();
    let payloads = filled.into_payloads(buffers).zip(whole);
    payloads.map(|(payload, is_whole)| is_whole.then_some(payload)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use proptest::prelude::*;

    use super::super::record::{HEADER_BYTES, PAYLOAD_BYTES_MAX, gap_bytes};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn direct_and_buffered_reads_give_the_same_bytes(
            first in 0..200u32,
            mut lens in prop::collection::vec(prop_oneof![0..300u32, 3900..4300u32, 0..=PAYLOAD_BYTES_MAX, Just(PAYLOAD_BYTES_MAX)], 1..9),
            missing in prop_oneof![Just(0u64), 1..9000u64],
            // Segments from before gaps were introduced are read, too.
            has_gaps: bool,
        ) {
            // Shorter runs are not read with direct I/O.
            lens.push(DIRECT_BYTES_MIN as u32);
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
            let buffers = ContentBuffers::new();
            // The old content of a buffer must not be seen.
            let mut used = buffers.alloc(4 * PAYLOAD_BYTES_MAX as usize);
            used.resize(4 * PAYLOAD_BYTES_MAX as usize, 0xee);
            drop(buffers.freeze(used));
            let expected = read_buffered(&buffered, &buffers, &run);
            let found = read_direct(direct.as_ref().unwrap_or(&buffered), &buffers, &run).unwrap();
            prop_assert_eq!(found.is_some(), missing == 0);
            for (at, payload) in run.iter().zip(&expected) {
                let range = at.payload_start() as usize..at.payload_end() as usize;
                prop_assert_eq!(payload.as_ref().map(|payload| &payload.bytes()[..]), content.get(range));
            }
            if let Some(found) = found {
                prop_assert_eq!(found.into_iter().map(Some).collect::<Vec<_>>(), expected);
            }
        }
    }
}
