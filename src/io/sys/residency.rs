//! Whether a part of a file is in the page cache.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};

/// `cachestat(2)`, the same number on every architecture this runs on; no library has a wrapper yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// Page size where the system does not say, in bytes.
const PAGE_BYTES: u64 = 4096;

#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// Numbers of pages: `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether every page of `len` bytes from `offset` on is in the page cache. Reads nothing and brings nothing there.
///
/// ENOSYS before Linux 6.5, EPERM for a file that is neither ours nor open for writing.
pub fn is_cached(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<bool, Errno> {
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.map_or(PAGE_BYTES, |bytes| bytes as u64);
    let range = Range { offset, len };
    let mut pages = Pages::default();
    // SAFETY: both structs are laid out as the kernel's, and outlive the call; the kernel keeps no pointer.
    let code =
        unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut pages, 0u32) };
    Errno::result(code)?;
    Ok(pages.cached >= (offset + len).div_ceil(page_bytes) - offset / page_bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    use super::*;

    #[test]
    fn what_was_written_is_cached_until_it_is_dropped() {
        // Beside the test binary, as nothing leaves the cache of a tmpfs.
        let mut file = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        file.write_all(&vec![7; 100_000]).unwrap();
        let cached = |file: &File, offset, len| is_cached(file.as_fd(), offset, len);
        if cached(&file, 0, 1) == Err(Errno::ENOSYS) {
            eprintln!("SKIPPED: needs Linux 6.5");
            return;
        }
        assert_eq!(cached(&file, 5000, 90_000), Ok(true));
        assert_eq!(cached(&file, 90_000, 90_000), Ok(false), "behind the end");
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert_eq!(cached(&file, 5000, 90_000), Ok(false));
    }
}
