//! What people do to a cache by hand: look at it, prove it, tidy it up.

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
use super::payload::Reading;
use super::pinning::{PinWriter, Turn};
use super::pins::Usage;
use super::record::{HEADER_BYTES, SegmentId};
use super::shared::{Proven, Shared, Wanted};
use super::{CacheConfig, DiskCache};

/// Most records that [`DiskCache::verify`] reads between two reports: up to 4 MiB.
const VERIFY_BATCH: usize = 16;

/// Batches that are read at once: while one is hashed the disk brings the next.
const VERIFY_THREADS: usize = 2;

/// Smallest and largest segment into which pins are gathered, in bytes; a 32nd of the cache in between.
const SEGMENT_BYTES: (u64, u64) = (16 * 1024, 64 * 1024 * 1024);
const SEGMENTS: u64 = 32;

/// Half-written files older than this were left by a crash: writing one takes milliseconds.
const LEFTOVER_AFTER: Duration = Duration::from_secs(3600);

/// How far [`DiskCache::verify`] is; at the end, what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Records in the cache when it began.
    pub records_total: u64,
    /// Records read so far.
    pub records: u64,
    /// Bytes of payload read so far.
    pub bytes: u64,
    /// Records that were damaged; they are forgotten.
    pub bad: u64,
}

/// A record that did not prove itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The file of its segment, below the cache directory's `v1/segments`.
    pub file: String,
    /// Where its payload starts in the file, in bytes.
    pub offset: u64,
    /// Size of its payload, in bytes.
    pub bytes: u64,
}

/// What [`gc`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes that the segments took before.
    pub before_bytes: u64,
    /// Bytes that they take now.
    pub after_bytes: u64,
    /// Segments of which every record was found elsewhere, and that were removed.
    pub shadowed: u64,
    /// Pinned segments that hold nothing that is pinned any more, and now go when their turn comes.
    pub unpinned: u64,
    /// Half-written files that a crash had left.
    pub leftovers: u64,
}

impl DiskCache {
    /// Opens the cache in `root` for looking only: nothing is made, evicted or written, also not by inserts.
    pub fn look(root: &Path) -> Result<Self, CacheError> {
        let (directory, secret) = Directory::look(root)?;
        Self::reading(directory, secret)
    }

    /// Reads and proves every record; `report` is told how far it is and what was damaged since it was told last, and
    /// ends it by returning `false`. Blocks.
    pub fn verify(&self, mut report: impl FnMut(&VerifyProgress, &[Damaged]) -> bool) -> VerifyProgress {
        let all = self.shared().index().all();
        let mut progress = VerifyProgress { records_total: all.len() as u64, ..VerifyProgress::default() };
        let batches: Vec<&[Wanted]> = all.chunks(VERIFY_BATCH).collect();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(VERIFY_THREADS);
            for _ in 0..VERIFY_THREADS {
                let (sender, batches, next) = (sender.clone(), &batches, &next);
                scope.spawn(move || {
                    // Nobody listens any more when `report` has had enough.
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed))
                        && sender.send((*batch, prove(self.shared(), batch))).is_ok()
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

/// Reads a batch. Returns what of it is damaged.
fn prove(shared: &Shared, batch: &[Wanted]) -> Vec<Damaged> {
    let read = shared.read(batch, Reading::Once);
    let lost = read.iter().zip(batch).filter(|(proven, _)| proven.is_none());
    lost.filter_map(|(_, wanted)| damaged(shared, wanted)).collect()
}

/// What is wrong with a record that could not be read; `None` where its segment was evicted meanwhile.
fn damaged(shared: &Shared, (_, _, at): &Wanted) -> Option<Damaged> {
    let forms = [Form::Sealed, Form::Pinned, Form::Open];
    let path =
        forms.map(|form| shared.directory.path(at.segment, form)).into_iter().find(|path| path.exists())?;
    let file = path.file_name()?.to_string_lossy().into_owned();
    Some(Damaged { file, offset: u64::from(at.offset + HEADER_BYTES), bytes: u64::from(at.len) })
}

/// Tidies up the cache in `root`, which may be in use: finishes what a crash left, lets go of what no pin names, removes
/// what is found elsewhere, and, with `size_bytes`, evicts down to that size. Blocks.
pub fn gc(root: &Path, size_bytes: Option<u64>) -> Result<Collected, PinError> {
    let (directory, secret) = Directory::look(root)?;
    let turn = directory.pins_turn()?;
    let listed = directory.list()?;
    let before_bytes = total(&listed);
    let mut collected = Collected { before_bytes, ..Collected::default() };
    collected.leftovers = remove_leftovers(root)?;
    collected.unpinned = directory.release_unused(&turn, &secret)? as u64;
    // Where nobody says, nothing is evicted but to gather pins: whoever mounts with a larger bound needs what is here.
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
    collected.unpinned += gather(&cache, &turn)?;
    collected.shadowed = remove_shadowed(cache.shared())?;
    collected.after_bytes = total(&cache.shared().directory.list()?);
    Ok(collected)
}

fn total(listed: &[Listed]) -> u64 {
    listed.iter().map(|segment| segment.bytes).sum()
}

/// Copies what is pinned out of pinned segments of which most is not, and lets go of these. Returns how many.
fn gather(cache: &DiskCache, _: &Turn) -> Result<u64, PinError> {
    let shared = cache.shared();
    let listed = shared.directory.list()?;
    let usage = shared.directory.pin_usage(&shared.secret, &listed)?;
    let mut writer = PinWriter::new(Arc::clone(shared));
    let mut gathered = Vec::new();
    for segment in usage.iter().filter(|segment| segment.is_sparse()) {
        match copy_named(shared, segment, &mut writer) {
            Ok(()) => gathered.push(segment.segment),
            // Where there is no room to copy to, things stay as they are.
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
        // Else another pinned segment has it.
        let Some(at) = at.filter(|at| at.segment == from.segment) else { continue };
        let payload = match shared.read(&[(entry.key, entry.kind, at)], Reading::Once).pop().flatten() {
            Some(Proven::Chunk(chunk)) => chunk.into_bytes(),
            Some(Proven::Manifest(_, payload)) => payload,
            None => continue,
        };
        writer.put(&[(entry.kind, entry.key, payload)])?;
    }
    Ok(())
}

/// Removes finished segments of which every record is found elsewhere. Returns how many.
fn remove_shadowed(shared: &Shared) -> Result<u64, PinError> {
    let lock = shared.directory.lock()?;
    let listed = shared.directory.list()?;
    let live: BTreeSet<SegmentId> = shared.index().all().into_iter().map(|(.., at)| at.segment).collect();
    let known = |id: SegmentId| shared.index().segments().contains_key(&id);
    let mut removed = 0;
    for segment in listed.iter().filter(|segment| segment.form == Form::Sealed) {
        // What the index does not know was written by another process a moment ago.
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
