//! Manual maintenance of a cache: opening it read-only, verifying it, collecting garbage.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use super::direct::DirectIo;
use super::directory::Directory;
use super::error::{CacheError, PinError};
use super::eviction::{Form, Listed};
use super::payload::Access;
use super::pinning::{PinWriter, PinsLock};
use super::pins::Usage;
use super::record::{HEADER_BYTES, SegmentId};
use super::shared::{RecordRef, Shared, Verified};
use super::{CacheConfig, DiskCache};

/// Most records that [`DiskCache::verify`] reads between two reports: up to 4 MiB.
const VERIFY_BATCH: usize = 16;

/// Batches verified in parallel: one is hashed while the disk reads the next.
const VERIFY_THREADS: usize = 2;

/// Smallest and largest segment into which pins are compacted, in bytes. Between them it is 1/32 of the
/// cache.
const SEGMENT_BYTES: (u64, u64) = (16 * 1024, 64 * 1024 * 1024);
const SEGMENTS: u64 = 32;

/// Age from which a temporary file counts as left by a crash. Writing one takes milliseconds.
const LEFTOVER_AFTER: Duration = Duration::from_secs(3600);

/// Progress of [`DiskCache::verify`], and its result at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Records in the cache at the start.
    pub records_total: u64,
    /// Records read so far.
    pub records: u64,
    /// Bytes of payload read so far.
    pub bytes: u64,
    /// Damaged records, which are forgotten.
    pub bad: u64,
}

/// Record that failed verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// File of its segment, below `v1/segments` of the cache directory.
    pub file: String,
    /// Offset of its payload in the file, in bytes.
    pub offset: u64,
    /// Size of its payload, in bytes.
    pub bytes: u64,
}

/// Result of [`gc`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Bytes of the segments before.
    pub before_bytes: u64,
    /// Bytes of the segments after.
    pub after_bytes: u64,
    /// Segments that were removed because all their records were found elsewhere.
    pub shadowed: u64,
    /// Segments that no pin needs any more, and that may now be evicted.
    pub unpinned: u64,
    /// Temporary files that a crash had left.
    pub leftovers: u64,
}

impl DiskCache {
    /// Opens the cache in `root` read-only. It creates, evicts and writes nothing, and drops inserts.
    pub fn open_read_only(root: &Path) -> Result<Self, CacheError> {
        let (directory, secret) = Directory::open_read_only(root)?;
        Self::reading(directory, secret)
    }

    /// Reads and verifies every record. Calls `report` with the progress and the newly found damage, and
    /// stops when it returns `false`. Blocks.
    pub fn verify(&self, mut report: impl FnMut(&VerifyProgress, &[Damaged]) -> bool) -> VerifyProgress {
        let all = self.shared().index().all();
        let mut progress = VerifyProgress { records_total: all.len() as u64, ..VerifyProgress::default() };
        let batches: Vec<&[RecordRef]> = all.chunks(VERIFY_BATCH).collect();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(VERIFY_THREADS);
            for _ in 0..VERIFY_THREADS {
                let (sender, batches, next) = (sender.clone(), &batches, &next);
                scope.spawn(move || {
                    // The send fails after `report` returned `false`.
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed))
                        && sender.send((*batch, verify(self.shared(), batch))).is_ok()
                    {}
                });
            }
            drop(sender);
            for (batch, damaged) in receiver {
                progress.bad += damaged.len() as u64;
                progress.records += batch.len() as u64;
                progress.bytes += batch.iter().map(|(.., at)| u64::from(at.len)).sum::<u64>();
                if !report(&progress, &damaged) {
                    break;
                }
            }
        });
        progress
    }
}

/// Reads a batch. Returns its damaged records.
fn verify(shared: &Shared, batch: &[RecordRef]) -> Vec<Damaged> {
    let read = shared.read(batch, Access::First);
    let lost = read.iter().zip(batch).filter(|(verified, _)| verified.is_none());
    lost.filter_map(|(_, wanted)| damaged(shared, wanted)).collect()
}

/// Describes a record that could not be read; `None` if its segment was evicted meanwhile.
fn damaged(shared: &Shared, (_, _, at): &RecordRef) -> Option<Damaged> {
    let forms = [Form::Sealed, Form::Pinned, Form::Open];
    let path =
        forms.map(|form| shared.directory.path(at.segment, form)).into_iter().find(|path| path.exists())?;
    let file = path.file_name()?.to_string_lossy().into_owned();
    Some(Damaged { file, offset: u64::from(at.offset + HEADER_BYTES), bytes: u64::from(at.len) })
}

/// Collects garbage in `root`, which may be in use: finishes segments left by a crash, releases segments
/// without a pin and removes duplicates. With `size_bytes` it also evicts down to that size. Blocks.
pub fn gc(root: &Path, size_bytes: Option<u64>) -> Result<GcReport, PinError> {
    let (directory, secret) = Directory::open_read_only(root)?;
    let turn = directory.lock_pins()?;
    let listed = directory.list()?;
    let before_bytes = total(&listed);
    let mut collected = GcReport { before_bytes, ..GcReport::default() };
    collected.leftovers = remove_leftovers(root)?;
    collected.unpinned = directory.release_unused(&turn, &secret)? as u64;
    // Without a size, it evicts only to compact pins: a mount with a larger bound needs the content.
    let segment_bytes =
        (size_bytes.unwrap_or(before_bytes) / SEGMENTS).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1);
    let reserved = listed.iter().map(|segment| segment.reserved(segment_bytes)).sum::<u64>();
    let config = CacheConfig {
        directory: root.to_owned(),
        size_bytes: size_bytes.unwrap_or(reserved.max(2 * segment_bytes)),
        min_free_ratio: 0.0,
        segment_bytes: Some(segment_bytes),
    };
    let cache = DiskCache::open_with(&config, DirectIo::Auto)?;
    collected.unpinned += compact(&cache, &turn)?;
    collected.shadowed = remove_shadowed(cache.shared())?;
    collected.after_bytes = total(&cache.shared().directory.list()?);
    Ok(collected)
}

fn total(listed: &[Listed]) -> u64 {
    listed.iter().map(|segment| segment.bytes).sum()
}

/// Copies the pinned records out of pinned segments that are mostly unpinned, and releases those. Returns
/// their number.
fn compact(cache: &DiskCache, _: &PinsLock) -> Result<u64, PinError> {
    let shared = cache.shared();
    let listed = shared.directory.list()?;
    let usage = shared.directory.pin_usage(&shared.secret, &listed)?;
    let mut writer = PinWriter::new(Arc::clone(shared));
    let mut gathered = Vec::new();
    for segment in usage.iter().filter(|segment| segment.is_sparse()) {
        match copy_named(shared, segment, &mut writer) {
            Ok(()) => gathered.push(segment.segment),
            // Without room for the copy, nothing changes.
            Err(PinError::NoRoom | PinError::TooMuch { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    writer.seal()?;
    let lock = shared.directory.lock()?;
    for &segment in &gathered {
        shared.directory.rename_segment(&lock, segment, Form::Pinned, Form::Sealed)?;
    }
    Ok(gathered.len() as u64)
}

fn copy_named(shared: &Shared, from: &Usage, writer: &mut PinWriter) -> Result<(), PinError> {
    for (entry, _) in from.records.iter().filter(|(_, named)| *named) {
        let at = shared.index().peek(&entry.key, entry.kind);
        // Otherwise another pinned segment has it.
        let Some(at) = at.filter(|at| at.segment == from.segment) else { continue };
        let payload = match shared.read(&[(entry.key, entry.kind, at)], Access::First).pop().flatten() {
            Some(Verified::Chunk(chunk)) => chunk.into_bytes(),
            Some(Verified::Manifest(_, payload)) => payload,
            None => continue,
        };
        writer.put(&[(entry.kind, entry.key, payload)])?;
    }
    Ok(())
}

/// Removes sealed segments whose records are all found elsewhere. Returns their number.
fn remove_shadowed(shared: &Shared) -> Result<u64, PinError> {
    let lock = shared.directory.lock()?;
    let listed = shared.directory.list()?;
    let live: BTreeSet<SegmentId> = shared.index().all().into_iter().map(|(.., at)| at.segment).collect();
    let known = |id: SegmentId| shared.index().segments().contains_key(&id);
    let mut removed = 0;
    for segment in listed.iter().filter(|segment| segment.form == Form::Sealed) {
        // A segment that the index does not know was written by another process a moment ago.
        if known(segment.id) && !live.contains(&segment.id) {
            shared.directory.remove_segment(&lock, segment.id)?;
            shared.forget_segment(segment.id);
            removed += 1;
        }
    }
    Ok(removed)
}

fn remove_leftovers(root: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for folder in ["", "v1", "v1/pins"] {
        let entries = match fs::read_dir(root.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let is_half_written = entry.path().extension().is_some_and(|kind| kind == "new");
            let age = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .map(|changed| SystemTime::now().duration_since(changed).unwrap_or_default());
            if is_half_written && age.is_ok_and(|age| age >= LEFTOVER_AFTER) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}
