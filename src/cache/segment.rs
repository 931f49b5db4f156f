//! One segment file: appending to it, finishing it, reading it.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::uio::{preadv, pwritev};

use super::directory::{Directory, DirectoryLock};
use super::index::Location;
use super::record::{
    Entry, HEADER_BYTES, Key, Kind, Secret, SegmentId, TRAILER_BYTES, decode_trailer, footer_bytes,
    record_bytes, stored_bytes,
};

/// Most records in one system call: three pieces each (header, payload, padding), and the kernel takes 1024.
const RECORDS_PER_WRITE: usize = 300;

/// How much is read from the end of a finished segment at once, in bytes: the footer of 370 records, which is more
/// than a segment of 64 MiB has of full chunks.
const TAIL_BYTES: u64 = 16 * 1024;

/// Bytes between two payloads in a row: padding and a header.
const GAP_BYTES_MAX: usize = 2 * HEADER_BYTES as usize;

/// A record to be appended.
pub(super) type Record = (Kind, Key, Bytes);

/// A segment that this process appends to. The file is locked as long as it is open.
#[derive(Debug)]
pub(super) struct OpenSegment {
    /// Its number.
    pub(super) id: SegmentId,
    /// Its file.
    pub(super) file: Arc<File>,
    /// End of its records, in bytes.
    pub(super) end: u32,
    entries: Vec<Entry>,
    capacity_bytes: u32,
}

impl OpenSegment {
    /// Makes segment `id`, of at most `capacity_bytes` with its footer.
    pub(super) fn create(
        directory: &Directory,
        lock: &DirectoryLock,
        secret: &Secret,
        id: SegmentId,
        capacity_bytes: u32,
    ) -> io::Result<Self> {
        let file = directory.create_segment(lock, id)?;
        if let Err(error) = file.write_all_at(&secret.encode_segment(id), 0) {
            // An empty segment would only take a place in the listing; if it stays it is evicted some day.
            let _ = directory.remove_segment(lock, id);
            return Err(error);
        }
        Ok(Self { id, file: Arc::new(file), end: HEADER_BYTES, entries: Vec::new(), capacity_bytes })
    }

    /// Goes on with a segment whose `records` are known; cuts off what lies behind them. `file` must be locked.
    pub(super) fn resume(
        file: File,
        id: SegmentId,
        records: &Records,
        capacity_bytes: u32,
    ) -> io::Result<Self> {
        file.set_len(u64::from(records.end))?;
        Ok(Self {
            id,
            file: Arc::new(file),
            end: records.end,
            entries: records.entries.clone(),
            capacity_bytes,
        })
    }

    /// How many of the records with these payload lengths fit, from the first on.
    pub(super) fn fitting(&self, lens: impl Iterator<Item = usize>) -> usize {
        let used = u64::from(self.end) + footer_bytes(self.entries.len());
        let mut left = u64::from(self.capacity_bytes).saturating_sub(used);
        lens.take_while(|&len| {
            let rest = left.checked_sub(stored_bytes(len as u32));
            left = rest.unwrap_or(0);
            rest.is_some()
        })
        .count()
    }

    /// Appends `records`, which must fit. After an error the segment is as it was before the piece that failed;
    /// what it has more than before is returned either way.
    pub(super) fn append(&mut self, secret: &Secret, records: &[Record]) -> (Vec<Entry>, io::Result<()>) {
        let before = self.entries.len();
        let mut result = Ok(());
        for piece in records.chunks(RECORDS_PER_WRITE) {
            result = self.append_piece(secret, piece);
            if result.is_err() {
                break;
            }
        }
        (self.entries[before..].to_vec(), result)
    }

    fn append_piece(&mut self, secret: &Secret, records: &[Record]) -> io::Result<()> {
        let headers: Vec<_> = records
            .iter()
            .map(|(kind, key, payload)| secret.encode_record(*kind, key, payload.len() as u32))
            .collect();
        let padding = [0; HEADER_BYTES as usize];
        let mut slices = Vec::with_capacity(3 * records.len());
        let mut entries = Vec::with_capacity(records.len());
        let mut end = self.end;
        for ((kind, key, payload), header) in records.iter().zip(&headers) {
            let entry = Entry { key: *key, kind: *kind, offset: end, len: payload.len() as u32 };
            let padding_bytes = payload.len().next_multiple_of(padding.len()) - payload.len();
            slices.extend([
                IoSlice::new(header),
                IoSlice::new(payload),
                IoSlice::new(&padding[..padding_bytes]),
            ]);
            end = entry.end() as u32;
            entries.push(entry);
        }
        if let Err(error) = write_all_at(&self.file, &mut slices, u64::from(self.end)) {
            // Half a record at the end would stop a walk; where cutting it off fails the next append overwrites it.
            let _ = self.file.set_len(u64::from(self.end));
            return Err(error);
        }
        self.end = end;
        self.entries.append(&mut entries);
        Ok(())
    }

    /// Finishes the segment: appends the footer, renames and unlocks it. Returns its final size in bytes.
    pub(super) fn seal(
        self,
        directory: &Directory,
        lock: &DirectoryLock,
        secret: &Secret,
    ) -> io::Result<u64> {
        let footer = secret.encode_footer(self.id, self.end, &self.entries);
        let mut bytes = u64::from(self.end) + footer.len() as u64;
        if self.file.write_all_at(&footer, u64::from(self.end)).is_err() {
            // Full disk: without a footer the records are found by walking, which is only slower.
            self.file.set_len(u64::from(self.end))?;
            bytes = u64::from(self.end);
        }
        directory.rename_segment(lock, self.id, false)?;
        self.file.unlock()?;
        Ok(bytes)
    }
}

/// The records of a segment, or of its end.
#[derive(Debug)]
pub(super) struct Records {
    /// The records.
    pub(super) entries: Vec<Entry>,
    /// Where they end, in bytes.
    pub(super) end: u32,
    /// Whether they came from a sound footer.
    pub(super) from_footer: bool,
}

/// The records of segment `id` from offset `from` on: from its footer where it is `sealed` and the footer is sound,
/// otherwise by walking from header to header as far as they are sound.
pub(super) fn read_records(
    file: &File,
    secret: &Secret,
    id: SegmentId,
    from: u32,
    sealed: bool,
) -> io::Result<Records> {
    let file_bytes = file.metadata()?.len();
    if sealed && let Some((mut entries, end)) = read_footer(file, secret, id, file_bytes)? {
        entries.retain(|entry| entry.offset >= from);
        return Ok(Records { entries, end, from_footer: true });
    }
    walk(file, secret, id, from, file_bytes)
}

fn read_footer(
    file: &File,
    secret: &Secret,
    id: SegmentId,
    file_bytes: u64,
) -> io::Result<Option<(Vec<Entry>, u32)>> {
    let tail_bytes = TAIL_BYTES.min(file_bytes);
    let mut tail = vec![0; tail_bytes as usize];
    file.read_exact_at(&mut tail, file_bytes - tail_bytes)?;
    let trailer_start = tail.len().saturating_sub(TRAILER_BYTES as usize);
    let Some(trailer) = decode_trailer(file_bytes, &tail[trailer_start..]) else { return Ok(None) };
    let footer_len = (file_bytes - u64::from(trailer.footer_offset)) as usize;
    if footer_len > tail.len() {
        tail = vec![0; footer_len];
        file.read_exact_at(&mut tail, u64::from(trailer.footer_offset))?;
    }
    let footer = &tail[tail.len() - footer_len..];
    Ok(secret.decode_footer(id, trailer, footer).map(|entries| (entries, trailer.footer_offset)))
}

fn walk(file: &File, secret: &Secret, id: SegmentId, from: u32, file_bytes: u64) -> io::Result<Records> {
    let mut header = [0; HEADER_BYTES as usize];
    let mut records = Records { entries: Vec::new(), end: from.max(HEADER_BYTES), from_footer: false };
    if file_bytes < u64::from(HEADER_BYTES) {
        return Ok(records);
    }
    file.read_exact_at(&mut header, 0)?;
    if !secret.is_segment(id, &header) {
        return Ok(records);
    }
    while u64::from(records.end) + u64::from(HEADER_BYTES) <= file_bytes {
        match file.read_exact_at(&mut header, u64::from(records.end)) {
            // Cut shorter at this moment by its writer, whose disk is full.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        let Some(entry) =
            secret.decode_record(records.end, &header).filter(|entry| entry.end() <= file_bytes)
        else {
            break;
        };
        records.end = entry.end() as u32;
        records.entries.push(entry);
    }
    Ok(records)
}

/// Whether the record at `second` lies right behind the one at `first`.
pub(super) fn are_neighbours(first: &Location, second: &Location) -> bool {
    first.segment == second.segment
        && u64::from(first.offset) + record_bytes(first.len) == u64::from(second.offset)
}

/// The payloads of records that lie in a row, with one system call; `None` for each that the file does not hold.
pub(super) fn read_payloads(file: &File, run: &[Location]) -> Vec<Option<Vec<u8>>> {
    let mut payloads: Vec<Vec<u8>> = run.iter().map(|at| vec![0; at.len as usize]).collect();
    let Some(first) = run.first() else { return Vec::new() };
    let start = u64::from(first.offset + HEADER_BYTES);
    let read = read_run(file, run, &mut payloads, start);
    let complete = payloads.into_iter().zip(run).map(|(mut payload, at)| {
        let payload_start = u64::from(at.offset + HEADER_BYTES);
        let whole = payload_start + u64::from(at.len) <= start + read;
        // A call may return less than was asked for; what is missing is asked for again, one by one.
        (whole || file.read_exact_at(&mut payload, payload_start).is_ok()).then_some(payload)
    });
    complete.collect()
}

/// Fills `payloads` from `start` on. Returns how many bytes of the file were read, gaps included.
fn read_run(file: &File, run: &[Location], payloads: &mut [Vec<u8>], start: u64) -> u64 {
    let mut gaps = vec![0; run.len() * GAP_BYTES_MAX];
    let mut slices = Vec::with_capacity(2 * run.len());
    for ((at, payload), gap) in run.iter().zip(payloads).zip(gaps.chunks_mut(GAP_BYTES_MAX)) {
        let gap_bytes = record_bytes(at.len) as usize - payload.len();
        slices.push(IoSliceMut::new(payload));
        slices.push(IoSliceMut::new(&mut gap[..gap_bytes]));
    }
    // What follows the last payload is not wanted.
    slices.pop();
    preadv(file, &mut slices, start as i64).map_or(0, |read| read as u64)
}

fn write_all_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match pwritev(file, slices, offset as i64) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
