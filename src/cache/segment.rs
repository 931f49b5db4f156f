//! A segment file: appending to it, sealing it, finding its records.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::direct::{Direct, write_all_at};
use super::directory::{Directory, DirectoryLock};
use super::eviction::Form;
use super::record::{
    BLOCK_BYTES, Entry, HEADER_BYTES, Header, Key, Kind, Secret, SegmentId, TRAILER_BYTES, decode_trailer,
    footer_bytes, gap_bytes, stored_bytes,
};
use super::staging::Staging;
use super::write_mode::WriteMode;

/// Bytes read at once from the end of a sealed segment: the footer of 370 records. A segment of 64 MiB
/// holds fewer full chunks.
const TAIL_BYTES: u64 = 16 * 1024;

/// Record to append.
pub(super) type Record = (Kind, Key, Bytes);

/// Segment that this process appends to. Its file stays locked while it is open.
#[derive(Debug)]
pub(super) struct OpenSegment {
    /// Its number.
    pub(super) id: SegmentId,
    /// Its file.
    pub(super) file: Arc<File>,
    /// End of its records, in bytes.
    pub(super) end: u32,
    /// Size of the file in bytes. With direct writes it exceeds `end` by up to a block.
    pub(super) file_bytes: u64,
    /// Same file opened for direct writes; `None` if writes are buffered.
    direct: Option<File>,
    /// Content of the last block, unless it is full. The next write begins with it.
    tail: Vec<u8>,
    entries: Vec<Entry>,
    capacity_bytes: u32,
}

impl OpenSegment {
    /// Creates segment `id` of at most `capacity_bytes`, footer included. Its header is written with the
    /// first records.
    pub(super) fn create(
        directory: &Directory,
        lock: &DirectoryLock,
        secret: &Secret,
        id: SegmentId,
        capacity_bytes: u32,
        mode: WriteMode,
    ) -> io::Result<Self> {
        let file = directory.create_segment(lock, id)?;
        Ok(Self {
            id,
            file: Arc::new(file),
            direct: directory.open_direct_to_append(lock, id, mode),
            end: HEADER_BYTES,
            file_bytes: 0,
            tail: secret.encode_segment(id).to_vec(),
            entries: Vec::new(),
            capacity_bytes,
        })
    }

    /// Resumes a segment whose `records` are known, and truncates the file after them. `file` must be
    /// locked.
    pub(super) fn resume(
        directory: &Directory,
        lock: &DirectoryLock,
        file: File,
        id: SegmentId,
        records: &Records,
        capacity_bytes: u32,
        mode: WriteMode,
    ) -> io::Result<Self> {
        let end = u64::from(records.end);
        file.set_len(end)?;
        let tail_bytes = end % u64::from(BLOCK_BYTES);
        let mut tail = vec![0; tail_bytes as usize];
        file.read_exact_at(&mut tail, end - tail_bytes)?;
        Ok(Self {
            id,
            file: Arc::new(file),
            direct: directory.open_direct_to_append(lock, id, mode),
            end: records.end,
            file_bytes: end,
            tail,
            entries: records.entries.clone(),
            capacity_bytes,
        })
    }

    /// Returns its write mode.
    pub(super) const fn mode(&self) -> WriteMode {
        if self.direct.is_some() { WriteMode::Direct } else { WriteMode::Buffered }
    }

    /// Returns its records.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the number of leading records with these payload lengths that certainly fit.
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

    /// Appends `records`, which must fit. After an error the segment is as it was before the failed piece.
    /// Returns the new entries in either case.
    pub(super) fn append(
        &mut self,
        directory: &Directory,
        secret: &Secret,
        staging: &mut Staging,
        records: &[Record],
    ) -> (Vec<Entry>, io::Result<()>) {
        let before = self.entries.len();
        let (mut rest, mut result) = (records, Ok(()));
        while !rest.is_empty() && result.is_ok() {
            let (end, mut entries) = self.stage(secret, staging, rest);
            result = self.write(&directory.direct, staging);
            staging.release();
            match &result {
                Ok(()) => {
                    rest = &rest[entries.len()..];
                    self.end = end;
                    self.tail.clear();
                    self.tail.extend_from_slice(staging.tail());
                    self.entries.append(&mut entries);
                }
                // Half a record at the end would stop a walk. If the truncation fails, the next append
                // overwrites it.
                Err(_) => self.cut(),
            }
        }
        (self.entries[before..].to_vec(), result)
    }

    /// Stages the first of `records`, as many as one piece takes. Returns the new end of the records and
    /// their entries.
    fn stage(&self, secret: &Secret, staging: &mut Staging, records: &[Record]) -> (u32, Vec<Entry>) {
        let (mut end, mut entries) = (self.end, Vec::with_capacity(records.len()));
        staging.begin(&self.tail);
        for (kind, key, payload) in records {
            let len = payload.len() as u32;
            let entry = Entry { key: *key, kind: *kind, offset: end + gap_bytes(end, len), len };
            if !staging.push(&secret.encode_prefix(end, *kind, key, len), payload) {
                break;
            }
            end = entry.end() as u32;
            entries.push(entry);
        }
        (end, entries)
    }

    /// Writes the staged piece over the last block: with direct I/O, or buffered if that is refused.
    fn write(&mut self, direct: &Direct, staging: &mut Staging) -> io::Result<()> {
        let start = u64::from(self.end) - self.tail.len() as u64;
        if let Some(file) = &self.direct {
            let blocks = staging.blocks();
            let bytes: usize = blocks.iter().map(|block| block.len()).sum();
            if let Some(result) = direct.write(file, &blocks, start) {
                result?;
                self.file_bytes = start + bytes as u64;
                return Ok(());
            }
            self.direct = None;
            self.cut();
        }
        write_all_at(&self.file, &staging.slices(), start)?;
        self.file_bytes = start + staging.len() as u64;
        Ok(())
    }

    /// Truncates the file after its records.
    fn cut(&mut self) {
        if self.file.set_len(u64::from(self.end)).is_ok() {
            self.file_bytes = u64::from(self.end);
        }
    }

    /// Seals the segment: appends the footer, renames the file to `form` and unlocks it. Returns its final
    /// size in bytes.
    pub(super) fn seal(
        self,
        directory: &Directory,
        lock: &DirectoryLock,
        secret: &Secret,
        form: Form,
    ) -> io::Result<u64> {
        // The footer must end the file, so the padding of the last block goes first. The footer is small
        // and the next start reads it, so it goes through the page cache.
        self.file.set_len(u64::from(self.end))?;
        let footer = secret.encode_footer(self.id, self.end, &self.entries);
        let mut bytes = u64::from(self.end) + footer.len() as u64;
        if self.file.write_all_at(&footer, u64::from(self.end)).is_err() {
            // The disk is full. Without a footer the next start walks the records, which is only slower.
            self.file.set_len(u64::from(self.end))?;
            bytes = u64::from(self.end);
        }
        if form == Form::Pinned {
            // A pin promises to survive a power loss.
            self.file.sync_data()?;
        }
        directory.rename_segment(lock, self.id, Form::Open, form)?;
        self.file.unlock()?;
        Ok(bytes)
    }
}

/// Records of a segment, or of its end.
#[derive(Debug)]
pub(super) struct Records {
    /// The records.
    pub(super) entries: Vec<Entry>,
    /// End of the records in bytes.
    pub(super) end: u32,
    /// True if they came from a valid footer.
    pub(super) from_footer: bool,
}

/// Reads the records of segment `id` from offset `from` on. They come from the footer if the segment is
/// `sealed` and the footer is valid, otherwise from a walk over the valid headers.
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
            // The writer truncated the file at this moment, because its disk is full.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        match secret.decode_header(records.end, &header) {
            Some(Header::Record(entry)) if entry.end() <= file_bytes => {
                records.end = entry.end() as u32;
                records.entries.push(entry);
            }
            Some(Header::Gap(end)) if u64::from(end) <= file_bytes => records.end = end,
            _ => break,
        }
    }
    Ok(records)
}
