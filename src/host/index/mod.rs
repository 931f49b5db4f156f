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
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use self::build::{Builder, Progress};
use self::slot::{STRETCH_CHUNKS, Stretch, StretchId};
use self::table::Table;
use super::core::seconds_now;
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange};
use crate::proto::{NodeId, Timestamp, Version};
use crate::transport::identity::random_bytes;

/// Name of its file in the folder of state.
pub(super) const INDEX_FILE: &str = "hashes";

/// Smallest file that is taken note of, in bytes; clients ask about no smaller one. Reading it takes no longer than looking it up.
pub(super) const FILE_BYTES_MIN: u64 = 1024 * 1024;

/// Most stretches that wait to be written: a second's worth at 16 GiB/s, 2 MiB of memory.
const PENDING_MAX: usize = 1024;

/// One version of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVersion {
    pub(super) node: NodeId,
    pub(super) version: Version,
}

impl FileVersion {
    fn stretch(self, index: ChunkIndex) -> (StretchId, usize) {
        let id = StretchId { node: self.node, version: self.version, number: index.0 / STRETCH_CHUNKS };
        (id, (index.0 % STRETCH_CHUNKS) as usize)
    }

    /// Whether what was read of it from `observed` on may be taken note of.
    const fn is_worth_noting(&self, observed: Timestamp) -> bool {
        self.version.size >= FILE_BYTES_MIN && self.version.is_settled(observed)
    }
}

/// The index. All methods may be called from any thread.
#[derive(Debug)]
pub(super) struct HashIndex {
    /// `None` where it cannot be kept: then nothing is ever known.
    table: Option<Table>,
    pending: Mutex<HashMap<StretchId, Stretch>>,
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
        let mut last: Option<(StretchId, Stretch)> = None;
        let mut hash_of = |index: ChunkIndex| {
            let (id, at) = file.stretch(index);
            if last.as_ref().is_none_or(|(known, _)| *known != id) {
                last = Some((id, self.stretch(&id)));
            }
            last.as_ref()?.1.get(at)
        };
        if file.version.size < FILE_BYTES_MIN {
            return vec![None; chunks.count as usize];
        }
        chunks.iter().map(&mut hash_of).collect()
    }

    /// The hash of the whole file, where it is known. Blocks on the disk.
    pub(super) fn sum(&self, file: FileVersion) -> Option<ChunkHash> {
        if file.version.size < FILE_BYTES_MIN {
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

    fn note_in(
        &self,
        file: FileVersion,
        observed: Timestamp,
        id: StretchId,
        change: impl FnOnce(&mut Stretch),
    ) {
        if self.table.is_none() || !file.is_worth_noting(observed) {
            return;
        }
        let mut pending = lock(&self.pending);
        if pending.len() < PENDING_MAX || pending.contains_key(&id) {
            change(pending.entry(id).or_default());
        }
    }

    fn stretch(&self, id: &StretchId) -> Stretch {
        let mut known = self.table.as_ref().and_then(|table| table.read(id)).unwrap_or_default();
        if let Some(newer) = lock(&self.pending).get(id) {
            known.join(newer);
        }
        known
    }
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
