//! Making a pin: copies its records into pinned segments, then writes its file. Removing a pin.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::directory::{Directory, DirectoryLock};
use super::error::{CacheError, PinError};
use super::eviction::{Form, Listed, survivors, survivors_bytes};
use super::manifest::{FileKey, ManifestPage, PageId};
use super::payload::Access;
use super::pins::{
    PIN_FILE_BYTES_MAX, PIN_NAME_BYTES_MAX, PIN_RECORDS_MAX, PINS_MAX, Pin, Usage, pinned_bytes_max,
};
use super::queue::{Item, Payload};
use super::reclaim::Reclaimed;
use super::record::{Key, Kind, Secret, SegmentId};
use super::segment::{OpenSegment, Record, read_records};
use super::shared::{RecordRef, Shared, Verified};
use super::staging::Staging;
use super::write_mode::WriteMode;
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

/// Pin as shown by `wormhole cache stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSummary {
    /// Its name for users: `HOST:/EXPORT/PATH`.
    pub name: String,
    /// Number of its files.
    pub files: u64,
    /// Total size of its files in bytes.
    pub bytes: u64,
    /// Time of its creation in seconds since 1970.
    pub made_at: u64,
}

impl From<&Pin> for PinSummary {
    fn from(pin: &Pin) -> Self {
        Self { name: pin.name.clone(), files: pin.files, bytes: pin.bytes, made_at: pin.made_at }
    }
}

/// Lock for changing pins. One process holds it at a time.
pub(super) struct PinsLock(#[allow(dead_code, reason = "held, not read")] File);

impl Directory {
    /// Takes the lock, or fails if another process holds it.
    pub(super) fn lock_pins(&self) -> Result<PinsLock, PinError> {
        let file = self.open_pins_lock().map_err(PinError::Io)?;
        match file.try_lock() {
            Ok(()) => Ok(PinsLock(file)),
            Err(TryLockError::WouldBlock) => Err(PinError::Busy),
            Err(TryLockError::Error(error)) => Err(PinError::Io(error)),
        }
    }

    fn pin_path(&self, name: &str) -> PathBuf {
        self.pins().join(format!("{}.pin", Pin::stem(name)))
    }

    /// Calls `work` with every valid pin, one at a time, because together they may be large.
    pub(super) fn each_pin(&self, secret: &Secret, mut work: impl FnMut(&Pin)) -> io::Result<()> {
        let entries = match fs::read_dir(self.pins()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries.take(2 * PINS_MAX) {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "pin")
                && let Some(pin) = read_pin(&path, secret)?
            {
                work(&pin);
            }
        }
        Ok(())
    }

    /// Returns the use of each pinned segment by pins.
    pub(super) fn pin_usage(&self, secret: &Secret, listed: &[Listed]) -> io::Result<Vec<Usage>> {
        let mut usage = Vec::new();
        for segment in listed.iter().filter(|segment| segment.is_pinned()) {
            let records = read_records(&self.open_segment(segment.id)?, secret, segment.id, 0, true)?;
            usage.push(Usage::new(segment.id, records.entries));
        }
        self.each_pin(secret, |pin| usage.iter_mut().for_each(|segment| segment.mark(pin)))?;
        Ok(usage)
    }

    /// Releases the pinned segments without records of any pin. Returns their number. The caller holds the
    /// pins lock.
    pub(super) fn release_unused(&self, _: &PinsLock, secret: &Secret) -> Result<usize, PinError> {
        // This happens before the directory lock: pins cannot change meanwhile, and other processes wait
        // for that lock for two seconds only.
        let usage = self.pin_usage(secret, &self.list()?)?;
        let unused: Vec<_> = usage.into_iter().filter(Usage::is_unused).collect();
        let lock = self.lock()?;
        for usage in &unused {
            self.rename_segment(&lock, usage.segment, Form::Pinned, Form::Sealed)?;
        }
        Ok(unused.len())
    }
}

/// Reads the pin in a file; `None` if it is damaged or gone meanwhile.
fn read_pin(path: &Path, secret: &Secret) -> io::Result<Option<Pin>> {
    let mut bytes = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    file.take(PIN_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Pin::decode(secret, &bytes))
}

/// Pin that is being made. Its records stay in the cache from then on. Dropping it unfinished releases
/// them. Its methods block on the disk.
pub struct PinBuilder {
    shared: Arc<Shared>,
    turn: PinsLock,
    name: String,
    files: u64,
    bytes: u64,
    keys: BTreeSet<Key>,
    writer: PinWriter,
    is_finished: bool,
}

impl PinBuilder {
    /// Begins a pin under `name`. Finishing it replaces an existing pin of this name.
    pub(super) fn begin(shared: Arc<Shared>, name: &str) -> Result<Self, PinError> {
        if shared.directory.read_only {
            return Err(PinError::ReadOnly);
        }
        if name.len() > PIN_NAME_BYTES_MAX {
            return Err(PinError::NameTooLong);
        }
        let turn = shared.directory.lock_pins()?;
        let mut others = 0;
        shared.directory.each_pin(&shared.secret, |pin| others += usize::from(pin.name != name))?;
        if others >= PINS_MAX {
            return Err(PinError::TooMany { most: PINS_MAX });
        }
        // Picks up pins that another process made or removed a moment ago.
        shared.directory.release_unused(&turn, &shared.secret)?;
        shared.queue.refresh_now(std::time::Instant::now() + super::store::FLUSH_WAIT);
        let writer = PinWriter::new(Arc::clone(&shared));
        let (name, keys) = (name.to_owned(), BTreeSet::new());
        Ok(Self { shared, turn, name, files: 0, bytes: 0, keys, writer, is_finished: false })
    }

    /// Returns an error if a file of this size cannot be pinned beside the existing pins.
    pub fn check_capacity(&self, size_bytes: u64) -> Result<(), PinError> {
        let most = self.writer.pinned_bytes_max();
        let pinned = pinned_bytes(&self.shared.directory.list()?);
        if size_bytes > most { Err(PinError::TooMuch { pinned, most }) } else { Ok(()) }
    }

    /// Returns the most bytes that may wait in the cache to be pinned: a quarter of the share that is never
    /// pinned, so that later content does not evict them.
    pub fn ahead_bytes_max(&self) -> u64 {
        (self.shared.bounds.size_bytes - self.writer.pinned_bytes_max()) / 4
    }

    /// Pins some chunks of a file version. Returns [`PinError::Missing`] if the cache lacks one of them.
    pub fn add_chunks(&mut self, file: &FileKey, chunks: ChunkRange) -> Result<(), PinError> {
        let mut hashes = Vec::with_capacity(chunks.count as usize);
        for index in chunks.iter() {
            hashes.push(self.known_hash(file, index).ok_or(PinError::Missing)?);
        }
        let records = self.load(&hashes)?;
        self.add(records)
    }

    /// Pins the hashes of a file version of `size_bytes` whose chunks were all added.
    pub fn add_file(&mut self, file: &FileKey, size_bytes: u64) -> Result<(), PinError> {
        let mut pages: Vec<(PageId, ManifestPage)> = Vec::new();
        for index in (0..size_bytes.div_ceil(CHUNK_BYTES)).map(ChunkIndex) {
            let (id, slot) = PageId::of(*file, index);
            if pages.last().is_none_or(|(last, _)| *last != id) {
                pages.push((id, ManifestPage::default()));
            }
            let hash = self.known_hash(file, index).ok_or(PinError::Missing)?;
            if let Some((_, page)) = pages.last_mut() {
                page.set(slot, hash);
            }
        }
        let mut records = Vec::with_capacity(pages.len());
        for (id, page) in pages {
            let key = id.key();
            if self.pinned_page(&key).is_some_and(|known| known == page) {
                self.keys.insert(key);
            } else {
                records.push((Kind::Manifest, key, page.encode(&self.shared.secret, &key).into()));
            }
        }
        self.add(records)?;
        self.files += 1;
        self.bytes += size_bytes;
        Ok(())
    }

    /// Finishes the pin. From now on it survives the end of this process.
    pub fn finish(mut self) -> Result<PinSummary, PinError> {
        self.writer.seal()?;
        let keys = std::mem::take(&mut self.keys).into_iter().collect();
        let made_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (files, bytes) = (self.files, self.bytes);
        let pin = Pin { name: self.name.clone(), files, bytes, made_at, keys };
        let directory = &self.shared.directory;
        directory.write_pin(&directory.pin_path(&pin.name), &pin.encode(&self.shared.secret))?;
        self.is_finished = true;
        // Releases the content of a replaced pin. If this fails, the next change of a pin does it.
        let _ = directory.release_unused(&self.turn, &self.shared.secret);
        Ok(PinSummary::from(&pin))
    }

    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash> {
        super::store::known_hash(&self.shared, file, index)
    }

    /// Writes the records that are not pinned yet, and notes their keys.
    fn add(&mut self, mut records: Vec<Record>) -> Result<(), PinError> {
        if self.keys.len() + records.len() > PIN_RECORDS_MAX {
            return Err(PinError::TooManyRecords { most: PIN_RECORDS_MAX });
        }
        let keys = &mut self.keys;
        records.retain(|(_, key, _)| keys.insert(*key));
        self.writer.put(&records)
    }

    /// Returns the chunks to write. Chunks in a pinned segment are read, too: damage is repaired with a
    /// copy of the content that the host sent.
    fn load(&mut self, hashes: &[ChunkHash]) -> Result<Vec<Record>, PinError> {
        let mut records = Vec::new();
        for hash in hashes {
            let key = *hash.as_bytes();
            if self.keys.contains(&key) {
                continue;
            }
            let place = self.shared.index().peek(&key, Kind::Chunk);
            let on_disk = place.and_then(|at| {
                let wanted: RecordRef = (key, Kind::Chunk, at);
                self.shared.read(&[wanted], Access::First).pop().flatten()
            });
            let is_pinned = place.is_some_and(|at| self.writer.is_pinned(at.segment));
            match on_disk {
                Some(Verified::Chunk(_)) if is_pinned => {
                    self.keys.insert(key);
                }
                Some(Verified::Chunk(chunk)) => records.push(record_of(chunk)),
                _ => match self.shared.queue.get(&key, Kind::Chunk) {
                    Some(Payload::Chunk(chunk)) => records.push(record_of(chunk)),
                    _ => return Err(PinError::Missing),
                },
            }
        }
        Ok(records)
    }

    /// Returns the page under `key` if it lies in a pinned segment.
    fn pinned_page(&self, key: &Key) -> Option<ManifestPage> {
        let at = self.shared.index().peek(key, Kind::Manifest)?;
        let is_pinned = self.writer.is_pinned(at.segment);
        match self.shared.read(&[(*key, Kind::Manifest, at)], Access::First).pop()?? {
            Verified::Manifest(page, _) => Some(page).filter(|_| is_pinned),
            Verified::Chunk(_) => None,
        }
    }
}

impl Drop for PinBuilder {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // If this fails, the next pin or `gc` does it.
        let _ = self.writer.seal();
        let _ = self.shared.directory.release_unused(&self.turn, &self.shared.secret);
    }
}

fn record_of(chunk: VerifiedChunk) -> Record {
    (Kind::Chunk, *chunk.hash().as_bytes(), chunk.into_bytes())
}

/// Returns the bytes that pinned segments take.
pub(super) fn pinned_bytes(listed: &[Listed]) -> u64 {
    listed.iter().filter(|segment| segment.is_pinned()).map(|segment| segment.reserved(0)).sum()
}

/// Writes records into pinned segments, within the share of the cache that may be pinned.
pub(super) struct PinWriter {
    shared: Arc<Shared>,
    current: Option<OpenSegment>,
    staging: Staging,
}

impl PinWriter {
    /// Creates a writer.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, current: None, staging: Staging::new() }
    }

    /// Returns the most bytes that pinned segments may take.
    fn pinned_bytes_max(&self) -> u64 {
        pinned_bytes_max(self.shared.bounds.size_bytes, u64::from(self.shared.bounds.segment_bytes))
    }

    /// Returns `true` if `segment` is pinned or will be.
    pub(super) fn is_pinned(&self, segment: SegmentId) -> bool {
        let is_current = self.current.as_ref().is_some_and(|current| current.id == segment);
        is_current
            || self.shared.index().segments().get(&segment).is_some_and(|known| known.form == Form::Pinned)
    }

    /// Writes `records`.
    pub(super) fn put(&mut self, records: &[Record]) -> Result<(), PinError> {
        let mut rest = records;
        while let Some((_, _, payload)) = rest.first() {
            self.ensure_room(payload.len())?;
            let Some(current) = &mut self.current else { return Err(PinError::NoRoom) };
            let count = current.fitting(rest.iter().map(|(.., payload)| payload.len()));
            let Shared { directory, secret, .. } = &*self.shared;
            let (entries, result) = current.append(directory, secret, &mut self.staging, &rest[..count]);
            self.shared.index().extend(current.id, &entries, current.file_bytes, current.end, Form::Open);
            result?;
            rest = &rest[entries.len()..];
        }
        Ok(())
    }

    /// Seals the segment. From now on no process evicts it.
    pub(super) fn seal(&mut self) -> Result<(), PinError> {
        if self.current.is_some() {
            self.sync()?;
            let lock = self.shared.directory.lock()?;
            self.seal_current(&lock)?;
        }
        Ok(())
    }

    /// Syncs the segment before the lock is taken, because other processes wait for the lock for two
    /// seconds only.
    fn sync(&self) -> Result<(), PinError> {
        self.current.as_ref().map_or(Ok(()), |current| Ok(current.file.sync_data()?))
    }

    fn seal_current(&mut self, lock: &DirectoryLock) -> Result<(), PinError> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let (id, end, entries) = (current.id, current.end, current.entries().to_vec());
        let bytes = current.seal(&self.shared.directory, lock, &self.shared.secret, Form::Pinned)?;
        // The records are added again: from now on they take precedence over copies in younger segments.
        self.shared.index().extend(id, &entries, bytes, end, Form::Pinned);
        Ok(())
    }

    /// Ensures a segment with room for a payload of `len` bytes.
    fn ensure_room(&mut self, len: usize) -> Result<(), PinError> {
        let fits = |current: &OpenSegment| current.fitting([len].into_iter()) == 1;
        if self.current.as_ref().is_some_and(fits) {
            return Ok(());
        }
        self.sync()?;
        let lock = self.shared.directory.lock()?;
        self.seal_current(&lock)?;
        let listed = self.shared.directory.list()?;
        let segment_bytes = u64::from(self.shared.bounds.segment_bytes);
        let (pinned, most) = (pinned_bytes(&listed), self.pinned_bytes_max());
        if pinned + segment_bytes > most {
            return Err(PinError::TooMuch { pinned, most });
        }
        let reclaimed = self.shared.reclaim(&lock, &listed, segment_bytes)?;
        let created = if reclaimed.enough { self.create(&lock, &listed) } else { Err(PinError::NoRoom) };
        drop(lock);
        self.requeue(reclaimed);
        created?;
        if self.current.as_ref().is_some_and(fits) { Ok(()) } else { Err(PinError::NoRoom) }
    }

    fn create(&mut self, lock: &DirectoryLock, listed: &[Listed]) -> Result<(), PinError> {
        let Shared { directory, secret, bounds, .. } = &*self.shared;
        let youngest = listed.last().map_or(0, |last| last.id);
        let known = self.shared.index().segments().keys().next_back().copied().unwrap_or(0);
        let id = youngest.max(known) + 1;
        let segment =
            OpenSegment::create(directory, lock, secret, id, bounds.segment_bytes, WriteMode::Direct)?;
        self.shared.index().extend(id, &[], segment.file_bytes, segment.end, Form::Open);
        self.shared.keep_file(id, Arc::clone(&segment.file));
        self.current = Some(segment);
        Ok(())
    }

    /// Queues the used records of the evicted segments to be written again.
    fn requeue(&self, reclaimed: Reclaimed) {
        let used = survivors(reclaimed.used, survivors_bytes(u64::from(self.shared.bounds.segment_bytes)));
        let wanted: Vec<RecordRef> =
            used.iter().map(|one| (one.entry.key, one.entry.kind, one.location())).collect();
        let read = self.shared.read(&wanted, Access::First);
        reclaimed.evicted.iter().for_each(|&segment| self.shared.forget_segment(segment));
        for (verified, (key, ..)) in read.into_iter().zip(wanted) {
            let payload = match verified {
                Some(Verified::Chunk(chunk)) => Payload::Chunk(chunk),
                Some(Verified::Manifest(page, _)) => Payload::Manifest(Arc::new(page)),
                None => continue,
            };
            // A record that does not fit is dropped, like any insert.
            self.shared.queue.push(Item { key, payload });
        }
    }
}

/// Returns the pins of the cache in `root`, and the bytes of its pinned segments.
pub fn pins(root: &Path) -> Result<(Vec<PinSummary>, u64), PinError> {
    let (directory, secret) = Directory::open_read_only(root)?;
    let mut found = Vec::new();
    directory.each_pin(&secret, |pin| found.push(PinSummary::from(pin)))?;
    found.sort_by(|first, second| first.name.cmp(&second.name));
    let listed = directory.list()?;
    let pinned = listed.iter().filter(|segment| segment.is_pinned());
    Ok((found, pinned.map(|segment| segment.bytes).sum()))
}

/// Removes the pin `name` from the cache in `root`, which may be in use. Its content stays until it is
/// evicted.
pub fn unpin(root: &Path, name: &str) -> Result<PinSummary, PinError> {
    let (directory, secret) = Directory::open_read_only(root)?;
    let turn = directory.lock_pins()?;
    let path = directory.pin_path(name);
    let no_such = || PinError::NoSuchPin { name: name.to_owned() };
    let pin = read_pin(&path, &secret)?.filter(|pin| pin.name == name).ok_or_else(no_such)?;
    fs::remove_file(&path).map_err(CacheError::io("remove", &path))?;
    directory.release_unused(&turn, &secret)?;
    Ok(PinSummary::from(&pin))
}
