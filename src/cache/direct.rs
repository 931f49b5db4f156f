//! Direct I/O (`O_DIRECT`) on segments, until the file system refuses it.
//!
//! Some file systems refuse it on open, others on the first write. Buffered I/O works on the same files, so
//! nothing depends on direct I/O.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::uio::pwritev;
use tracing::debug;

use super::write_mode::WriteMode;

/// Setting of direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectIo {
    /// If the file system supports it and it costs less.
    Auto,
    /// If the file system supports it.
    #[cfg(test)]
    Always,
    /// Never.
    #[cfg(test)]
    Never,
    /// Simulates a file system that refuses to open files for direct I/O.
    #[cfg(test)]
    RefusesToOpen,
    /// Simulates a file system that opens files for direct I/O and refuses to write.
    #[cfg(test)]
    RefusesToWrite,
}

/// State of direct I/O in one directory.
#[derive(Debug)]
pub(super) struct Direct {
    #[cfg_attr(not(test), allow(dead_code, reason = "there is only one mode outside of tests"))]
    mode: DirectIo,
    refused: AtomicBool,
}

impl Direct {
    /// Creates the state before the first attempt.
    pub(super) const fn new(mode: DirectIo) -> Self {
        Self { mode, refused: AtomicBool::new(false) }
    }

    /// Returns `true` if the file system refused direct I/O.
    pub(super) fn is_refused(&self) -> bool {
        #[cfg(test)]
        if self.mode == DirectIo::Never {
            return true;
        }
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns `true` if a segment of this write mode is opened for direct writes.
    pub(super) fn writes(&self, mode: WriteMode) -> bool {
        #[cfg(test)]
        let mode = if self.mode == DirectIo::Auto { mode } else { WriteMode::Direct };
        mode == WriteMode::Direct && !self.is_refused()
    }

    /// Calls `open`, which opens a file with `O_DIRECT`; `None` if that does not work.
    pub(super) fn open(&self, open: impl FnOnce() -> io::Result<File>) -> Option<File> {
        if self.is_refused() {
            return None;
        }
        #[cfg(test)]
        let open = || if self.mode == DirectIo::RefusesToOpen { Err(Errno::EINVAL.into()) } else { open() };
        open().inspect_err(|error| self.note(error)).ok()
    }

    /// Writes whole blocks one after another. Returns `None` if the file system refuses direct I/O from now
    /// on.
    pub(super) fn write(&self, file: &File, blocks: &[&[u8]], at: u64) -> Option<io::Result<()>> {
        let write = move || write_all_at(file, blocks, at);
        #[cfg(test)]
        let write =
            move || if self.mode == DirectIo::RefusesToWrite { Err(Errno::EINVAL.into()) } else { write() };
        let result = write().inspect_err(|error| self.note(error));
        (!self.is_refused()).then_some(result)
    }

    /// Notes an error that may mean that direct I/O does not work here.
    pub(super) fn note(&self, error: &io::Error) {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let is_refusal = matches!(errno, Some(Errno::EINVAL | Errno::EOPNOTSUPP));
        if is_refusal && !self.refused.swap(true, Ordering::Relaxed) {
            debug!("the file system of the cache refuses direct I/O, using buffered I/O: {error}");
        }
    }
}

/// Writes all of `slices` one after another, from `at` on.
pub(super) fn write_all_at(file: &File, slices: &[&[u8]], mut at: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match pwritev(file, slices, at as i64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                IoSlice::advance_slices(&mut slices, bytes);
                at += bytes as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
