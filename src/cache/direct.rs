//! Around the page cache, where that costs less: segments are opened with `O_DIRECT` until the file system refuses it.
//!
//! Some file systems refuse it when a file is opened, some at the first write. Nothing depends on it: everything works
//! through the page cache, too, and on the same files.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::uio::pwritev;
use tracing::debug;

use super::way::Way;

/// When segments are read and written around the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectIo {
    /// Where the file system takes it and where it costs less.
    Auto,
    /// Where the file system takes it.
    #[cfg(test)]
    Always,
    /// Nowhere.
    #[cfg(test)]
    Never,
    /// As on a file system that does not let files be opened so.
    #[cfg(test)]
    RefusesToOpen,
    /// As on a file system that lets files be opened so, and refuses to write.
    #[cfg(test)]
    RefusesToWrite,
}

/// What is known of one directory.
#[derive(Debug)]
pub(super) struct Direct {
    #[cfg_attr(not(test), allow(dead_code, reason = "there is but one way outside of tests"))]
    how: DirectIo,
    refused: AtomicBool,
}

impl Direct {
    /// Nothing is known yet.
    pub(super) const fn new(how: DirectIo) -> Self {
        Self { how, refused: AtomicBool::new(false) }
    }

    /// Whether it was refused.
    pub(super) fn is_refused(&self) -> bool {
        #[cfg(test)]
        if self.how == DirectIo::Never {
            return true;
        }
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether a segment that is to be written that `way` is opened for direct writes.
    pub(super) fn writes(&self, way: Way) -> bool {
        #[cfg(test)]
        let way = if self.how == DirectIo::Auto { way } else { Way::Around };
        way == Way::Around && !self.is_refused()
    }

    /// What `open` opens with `O_DIRECT`; `None` where that does not work.
    pub(super) fn open(&self, open: impl FnOnce() -> io::Result<File>) -> Option<File> {
        if self.is_refused() {
            return None;
        }
        #[cfg(test)]
        let open = || if self.how == DirectIo::RefusesToOpen { Err(Errno::EINVAL.into()) } else { open() };
        open().inspect_err(|error| self.note(error)).ok()
    }

    /// Writes whole blocks, one behind the other. Says `None` where that is refused from now on.
    pub(super) fn write(&self, file: &File, blocks: &[&[u8]], at: u64) -> Option<io::Result<()>> {
        let write = move || write_all_at(file, blocks, at);
        #[cfg(test)]
        let write =
            move || if self.how == DirectIo::RefusesToWrite { Err(Errno::EINVAL.into()) } else { write() };
        let result = write().inspect_err(|error| self.note(error));
        (!self.is_refused()).then_some(result)
    }

    /// Takes note of an error which may mean that nothing here can be done around the page cache.
    pub(super) fn note(&self, error: &io::Error) {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let is_refusal = matches!(errno, Some(Errno::EINVAL | Errno::EOPNOTSUPP));
        if is_refusal && !self.refused.swap(true, Ordering::Relaxed) {
            debug!("the file system of the cache takes no direct I/O, the page cache is used: {error}");
        }
    }
}

/// Writes all of `slices`, one behind the other, from `at` on.
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
