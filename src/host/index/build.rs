//! `--index`: hashes everything ahead, on a thread that gives way to all others.
//!
//! It goes through the exports once. What was hashed before is skipped, so a run that was broken off goes on where it was. What
//! changes later is taken note of as it is served.

use std::fs::{self, File, OpenOptions, ReadDir};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::slot::STRETCH_CHUNKS;
use super::{FILE_BYTES_MIN, FileVersion, HashIndex};
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange};
use crate::host::attributes;
use crate::host::counters::Counters;
use crate::host::crossing;
use crate::io::sys::{idle_thread, is_cached};
use crate::proto::{Attributes, FileKind};

/// How much is read at once, in bytes.
const READ_BYTES: u64 = 4 * CHUNK_BYTES;

/// Folders inside each other; what lies deeper is left to those who read it.
const DEPTH_MAX: usize = 256;

/// How long to give way to clients that read, before each [`READ_BYTES`] and in all.
const YIELD: Duration = Duration::from_millis(2);
const YIELDS_MAX: u32 = 100;

/// How far it is.
#[derive(Debug, Default)]
pub(in crate::host) struct Progress {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    is_running: AtomicBool,
    is_stopped: AtomicBool,
}

impl Progress {
    /// Bytes in files that are to be hashed, as far as they are counted.
    pub(in crate::host) fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of them that are hashed, or were before.
    pub(in crate::host) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Whether it is at work.
    pub(in crate::host) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    /// It ends before its next read.
    pub(in crate::host) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }
}

/// What the thread works on.
pub(in crate::host) struct Builder {
    pub(in crate::host) roots: Vec<PathBuf>,
    pub(in crate::host) index: Arc<HashIndex>,
    pub(in crate::host) counters: Arc<Counters>,
    pub(in crate::host) progress: Arc<Progress>,
}

impl Builder {
    /// Begins, on a thread of its own.
    pub(in crate::host) fn start(self) -> io::Result<()> {
        self.progress.is_running.store(true, Ordering::Release);
        let progress = Arc::clone(&self.progress);
        let started = thread::Builder::new().name("wormhole-index".to_owned()).spawn(move || self.run());
        started.map(drop).inspect_err(|_| progress.is_running.store(false, Ordering::Release))
    }

    fn run(&self) {
        let _ended = Ended(&self.progress);
        if let Err(errno) = idle_thread() {
            tracing::warn!("hashing ahead does not give way to other work: {errno}");
        }
        let count = |_: &Path, size| {
            self.progress.total_bytes.fetch_add(size, Ordering::Relaxed);
        };
        self.walk(count);
        let hash = |path: &Path, size| {
            let before = self.progress.done_bytes();
            if let Err(error) = self.hash_file(path) {
                tracing::debug!("{} is not hashed ahead: {error}", path.display());
            }
            if !self.progress.is_stopped() {
                // It may have grown, shrunk or gone since it was counted.
                self.progress.done_bytes.store(before + size, Ordering::Relaxed);
            }
        };
        self.walk(hash);
        self.index.flush();
        if !self.progress.is_stopped() {
            tracing::info!("hashed ahead: {} bytes", self.progress.done_bytes());
        }
    }

    /// Visits each file that is large enough, with its size. Follows no link.
    fn walk(&self, mut visit: impl FnMut(&Path, u64)) {
        for root in &self.roots {
            let mut folders: Vec<ReadDir> = fs::read_dir(root).into_iter().collect();
            while let Some(folder) = folders.last_mut() {
                if self.progress.is_stopped() {
                    return;
                }
                let Some(entry) = folder.next() else {
                    folders.pop();
                    continue;
                };
                let Ok(entry) = entry else { continue };
                let path = entry.path();
                if crossing::leads_into_mount(&path) {
                    continue;
                }
                let Ok(found) = entry.metadata() else { continue };
                if found.is_dir() && folders.len() < DEPTH_MAX {
                    folders.extend(fs::read_dir(&path));
                } else if found.is_file() && found.len() >= FILE_BYTES_MIN {
                    visit(&path, found.len());
                }
            }
        }
    }

    fn hash_file(&self, path: &Path) -> io::Result<()> {
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let found = look(&file)?;
        if found.kind != FileKind::Regular || !found.is_settled() {
            return Ok(());
        }
        let mut buffer = vec![0; READ_BYTES as usize];
        let all = ChunkRange::new(ChunkIndex(0), u64::MAX).clamp_to(found.size);
        for first in all.as_range().step_by(STRETCH_CHUNKS as usize) {
            let stretch = ChunkRange::new(ChunkIndex(first), STRETCH_CHUNKS).clamp_to(found.size);
            if !self.hash_stretch(&file, &found, stretch, &mut buffer)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Hashes some chunks that are not known. Returns whether the file is still the same.
    fn hash_stretch(
        &self,
        file: &File,
        found: &Attributes,
        stretch: ChunkRange,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let version = FileVersion::of(found.node, found.version());
        let known = self.index.hashes(version, stretch);
        let mut hashed = Vec::new();
        for part in stretch.as_range().step_by((READ_BYTES / CHUNK_BYTES) as usize) {
            if self.progress.is_stopped() {
                return Ok(false);
            }
            let end = (part + READ_BYTES / CHUNK_BYTES).min(stretch.as_range().end);
            let chunks = ChunkRange::new(ChunkIndex(part), end - part);
            let at = (part - stretch.first.0) as usize;
            if known[at..at + chunks.count as usize].iter().any(Option::is_none) {
                self.give_way();
                hashed.extend(hash_part(file, chunks, found.size, buffer)?);
            }
            self.progress.done_bytes.fetch_add(chunks.bytes_in(found.size).len, Ordering::Relaxed);
        }
        if look(file)?.version() != found.version() {
            return Ok(false);
        }
        for (index, hash) in hashed {
            self.index.note(version, found.observed, index, hash);
        }
        self.index.flush();
        Ok(true)
    }

    /// Waits while clients have the disk read, but not for ever.
    fn give_way(&self) {
        for _ in 0..YIELDS_MAX {
            if self.counters.disk_inflight.get() == 0 || self.progress.is_stopped() {
                return;
            }
            thread::sleep(YIELD);
        }
    }
}

/// Clears the mark when the thread ends, however it does.
struct Ended<'a>(&'a Progress);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Release);
    }
}

fn look(file: &File) -> io::Result<Attributes> {
    attributes::of_open(file.as_fd()).map_err(|error| io::Error::from_raw_os_error(error.errno().0))
}

/// Reads and hashes some chunks. What was not in the page cache before is not there afterwards: others need it more.
fn hash_part(
    file: &File,
    chunks: ChunkRange,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<Vec<(ChunkIndex, ChunkHash)>> {
    let range = chunks.bytes_in(size);
    let was_cached = is_cached(file.as_fd(), range.offset, range.len).unwrap_or(true);
    let bytes = &mut buffer[..range.len as usize];
    file.read_exact_at(bytes, range.offset)?;
    if !was_cached {
        let (offset, len) = (range.offset as libc::off_t, range.len as libc::off_t);
        // Only advice: where it is not taken, nothing is lost.
        let _ = posix_fadvise(file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
    let hashes = bytes.chunks(CHUNK_BYTES as usize).map(ChunkHash::of);
    Ok(chunks.iter().zip(hashes).collect())
}
