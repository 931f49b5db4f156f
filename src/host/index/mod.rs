//! What the host knows of the hashes of its files' chunks, so that nothing is read twice to be hashed. Kept in the folder of state.
//!
//! Bounded: on disk by the size of its table, in memory by [`PENDING_MAX`] stretches that wait to be written. Advisory: what is
//! damaged, full or locked is as good as not known. Only versions that name one content are taken note of, and files of
//! [`FILE_BYTES_MIN`]. What was noted is written once a second, so that is what a crash costs.

mod build;
#[cfg(test)]
mod fuzz;
mod slot;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use self::build::{Builder, Progress};
use lru::LruCache;

use self::slot::{STRETCH_CHUNKS, Stretch, StretchId};
use self::table::Table;
use super::core::seconds_now;
use super::{file_systems, trust};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange};
use crate::proto::{NodeId, Timestamp, Trust, Version};
use crate::transport::identity::random_bytes;

/// Name of its file in the folder of state.
pub(super) const INDEX_FILE: &str = "hashes";

/// Smallest file that is taken note of, in bytes; clients ask about no smaller one. Reading it takes no longer than looking it up.
pub(super) const FILE_BYTES_MIN: u64 = 1024 * 1024;

/// Most stretches that wait to be written: a second's worth at 16 GiB/s, 2 MiB of memory.
const PENDING_MAX: usize = 1024;

/// Stretches that are remembered as they are on disk, so that reading a file asks for each once: 128 KiB of memory, 64 readers.
const RECENT_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// One version of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVersion {
    pub(super) node: NodeId,
    pub(super) version: Version,
    /// Whether these two name one content. Where they do not, nothing is noted and nothing is known.
    pub(super) trust: Trust,
}

impl FileVersion {
    /// Of a file of the host that was seen before.
    pub(super) fn of(node: NodeId, version: Version) -> Self {
        let of_file_system = file_systems::trust_of(node.device);
        Self { node, version, trust: trust::of_file(of_file_system, node.birth_ns != 0, version.ctime) }
    }

    fn stretch(self, index: ChunkIndex) -> (StretchId, usize) {
        let id = StretchId { node: self.node, version: self.version, number: index.0 / STRETCH_CHUNKS };
        (id, (index.0 % STRETCH_CHUNKS) as usize)
    }

    /// Whether the index has anything of it at any time.
    const fn is_indexed(&self) -> bool {
        self.version.size >= FILE_BYTES_MIN && matches!(self.trust, Trust::Full)
    }

    /// Whether what was read of it from `observed` on may be taken note of.
    const fn is_worth_noting(&self, observed: Timestamp) -> bool {
        self.is_indexed() && self.version.is_settled(self.trust, observed)
    }
}

/// The index. All methods may be called from any thread.
#[derive(Debug)]
pub(super) struct HashIndex {
    /// `None` where it cannot be kept: then nothing is ever known.
    table: Option<Table>,
    pending: Mutex<HashMap<StretchId, Stretch>>,
    recent: Mutex<LruCache<StretchId, Stretch>>,
    /// Whether it is closed. One writes at a time, so that none takes back what another wrote.
    writing: Mutex<bool>,
    has_warned: AtomicBool,
}

impl HashIndex {
    /// Opens the index in the folder of state. Where that cannot be done the daemon goes without, and says so once. Blocks.
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(INDEX_FILE);
        let opened = random_bytes().map_err(io::Error::other).and_then(|key| Table::open(&path, key));
        let table = opened.inspect_err(|error| {
            let why = if error.kind() == io::ErrorKind::WouldBlock {
                "another daemon uses it".to_owned()
            } else {
                error.to_string()
            };
            tracing::warn!("hashes of files are not kept in {}: {why}", path.display());
        });
        Self::over(table.ok())
    }

    fn over(table: Option<Table>) -> Self {
        Self {
            table,
            pending: Mutex::default(),
            recent: Mutex::new(LruCache::new(RECENT_MAX)),
            writing: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Takes note of the hash of a chunk, read after the host's clock said `observed` and found in this version since. Does
    /// no I/O.
    pub(super) fn note(&self, file: FileVersion, observed: Timestamp, index: ChunkIndex, hash: ChunkHash) {
        let (id, at) = file.stretch(index);
        self.note_in(file, observed, id, |stretch| stretch.set(at, hash));
    }

    /// The same of the hash of the whole file.
    pub(super) fn note_sum(&self, file: FileVersion, observed: Timestamp, sum: ChunkHash) {
        let (id, _) = file.stretch(ChunkIndex(0));
        self.note_in(file, observed, id, |stretch| stretch.sum = Some(sum));
    }

    /// The hashes of some chunks, where they are known. Blocks on the disk.
    pub(super) fn hashes(&self, file: FileVersion, chunks: ChunkRange) -> Vec<Option<ChunkHash>> {
        let hashes = collect(file, chunks, |id| Some(self.stretch(id)));
        hashes.unwrap_or_else(|| vec![None; chunks.count as usize])
    }

    /// The same without asking the disk; `None` where that cannot be said.
    pub(super) fn hashes_at_hand(
        &self,
        file: FileVersion,
        chunks: ChunkRange,
    ) -> Option<Vec<Option<ChunkHash>>> {
        collect(file, chunks, |id| self.stretch_at_hand(id))
    }

    /// The hash of the whole file, where it is known. Blocks on the disk.
    pub(super) fn sum(&self, file: FileVersion) -> Option<ChunkHash> {
        if !file.is_indexed() {
            return None;
        }
        self.stretch(&file.stretch(ChunkIndex(0)).0).sum
    }

    /// Writes what waits. Blocks on the disk.
    pub(super) fn flush(&self) {
        let is_closed = lock(&self.writing);
        if !*is_closed {
            self.write_pending();
        }
    }

    /// Writes what waits, and leaves the file to the next daemon. Blocks on the disk.
    pub(super) fn close(&self) {
        let mut is_closed = lock(&self.writing);
        if !std::mem::replace(&mut *is_closed, true) {
            self.write_pending();
            self.table.iter().for_each(Table::unlock);
        }
    }

    fn write_pending(&self) {
        let Some(table) = &self.table else { return };
        let due = std::mem::take(&mut *lock(&self.pending));
        let now = seconds_now();
        for (id, stretch) in due {
            if let Err(error) = table.write(&id, &stretch, now) {
                if !self.has_warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!("hashes of files cannot be written down: {error}");
                }
                return;
            }
        }
    }

    /// What it takes on disk, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.table.as_ref().map_or(0, Table::bytes)
    }

    /// The most that it takes there; 0 where there is none.
    pub(super) fn bytes_max(&self) -> u64 {
        self.table.as_ref().map_or(0, Table::bytes_max)
    }

    fn note_in(&self, file: FileVersion, observed: Timestamp, id: StretchId, change: impl Fn(&mut Stretch)) {
        if self.table.is_none() || !file.is_worth_noting(observed) {
            return;
        }
        if let Some(stretch) = lock(&self.recent).peek_mut(&id) {
            change(stretch);
        }
        let mut pending = lock(&self.pending);
        if pending.len() < PENDING_MAX || pending.contains_key(&id) {
            change(pending.entry(id).or_default());
        }
    }

    fn stretch(&self, id: &StretchId) -> Stretch {
        if let Some(known) = self.stretch_at_hand(id) {
            return known;
        }
        let mut known = self.table.as_ref().and_then(|table| table.read(id)).unwrap_or_default();
        if let Some(newer) = lock(&self.pending).get(id) {
            known.join(newer);
        }
        lock(&self.recent).put(*id, known.clone());
        known
    }

    fn stretch_at_hand(&self, id: &StretchId) -> Option<Stretch> {
        if self.table.is_none() {
            return Some(Stretch::default());
        }
        lock(&self.recent).get(id).cloned()
    }
}

/// The hashes of some chunks, out of the stretches they are in; `None` where one of these is `None`.
fn collect(
    file: FileVersion,
    chunks: ChunkRange,
    stretch: impl Fn(&StretchId) -> Option<Stretch>,
) -> Option<Vec<Option<ChunkHash>>> {
    if !file.is_indexed() {
        return Some(vec![None; chunks.count as usize]);
    }
    let mut last: Option<(StretchId, Stretch)> = None;
    let mut hashes = Vec::with_capacity(chunks.count as usize);
    for index in chunks.iter() {
        let (id, at) = file.stretch(index);
        let stretch = match last.take() {
            Some((known, found)) if known == id => found,
            _ => stretch(&id)?,
        };
        hashes.push(stretch.get(at));
        last = Some((id, stretch));
    }
    Some(hashes)
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
