//! Queries of the page cache, and reads from it that never wait for a disk.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::uio::pread;
use nix::unistd::{SysconfVar, sysconf};

/// `cachestat(2)`, the same number on every supported architecture. No library wraps it yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// Default page size in bytes, if the system does not report one.
const PAGE_BYTES: u64 = 4096;

#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// Page counts: the kernel's `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Returns `true` if every page of `len` bytes from `offset` on is in the page cache. Reads no data.
///
/// ENOSYS before Linux 6.5, EPERM for a file that is neither owned by this user nor open for writing.
pub fn is_cached(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<bool, Errno> {
    let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.map_or(PAGE_BYTES, |bytes| bytes as u64);
    let range = Range { offset, len };
    let mut pages = Pages::default();
    // SAFETY: both structs have the kernel's layout and outlive the call; the kernel keeps no pointer.
    let code =
        unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut pages, 0u32) };
    Errno::result(code)?;
    Ok(pages.cached >= (offset + len).div_ceil(page_bytes) - offset / page_bytes)
}

/// Fills `memory` with cached data from `offset` on, up to the first page that is not cached. Returns the
/// number of bytes. Waits for no disk, unless the file was opened with `O_DIRECT`.
///
/// EAGAIN if no data is cached there, EOPNOTSUPP from file systems that cannot tell.
pub fn read_cached(fd: BorrowedFd<'_>, offset: u64, memory: &mut [u8]) -> Result<usize, Errno> {
    let part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: `part` describes `memory`, which is borrowed exclusively and outlives the call; the kernel
    // keeps no pointer.
    let read =
        unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, offset as libc::off_t, libc::RWF_NOWAIT) };
    match Errno::result(read) {
        Ok(count) => Ok(count as usize),
        Err(Errno::EOPNOTSUPP) if lies_in_memory(fd, offset, memory.len()) => {
            pread(fd, memory, offset as libc::off_t)
        }
        Err(error) => Err(error),
    }
}

/// Returns `true` if the file is on a tmpfs, which refuses `RWF_NOWAIT`, and no page of the range is
/// swapped out.
fn lies_in_memory(fd: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
    fstatfs(fd).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
        && is_cached(fd, offset, len as u64).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    use super::*;

    /// Returns a file of 100,000 bytes beside the test binary, because a tmpfs never drops its pages.
    fn file_on_disk() -> File {
        let mut file = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        file.write_all(&vec![7; 100_000]).unwrap();
        file
    }

    fn drop_from_cache(file: &File) {
        file.sync_all().unwrap();
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }

    #[test]
    fn written_data_is_cached_until_it_is_dropped() {
        let file = file_on_disk();
        let cached = |file: &File, offset, len| is_cached(file.as_fd(), offset, len);
        if cached(&file, 0, 1) == Err(Errno::ENOSYS) {
            eprintln!("SKIPPED: needs Linux 6.5");
            return;
        }
        assert_eq!(cached(&file, 5000, 90_000), Ok(true));
        assert_eq!(cached(&file, 90_000, 90_000), Ok(false), "behind the end");
        drop_from_cache(&file);
        assert_eq!(cached(&file, 5000, 90_000), Ok(false));
    }

    #[test]
    fn only_cached_data_is_read() {
        let (file, mut memory) = (file_on_disk(), vec![0; 90_000]);
        match read_cached(file.as_fd(), 5000, &mut memory) {
            Err(Errno::EOPNOTSUPP) => {
                eprintln!("SKIPPED: this file system cannot report cached pages");
                return;
            }
            read => assert_eq!(read, Ok(90_000)),
        }
        assert!(memory.iter().all(|&byte| byte == 7));
        assert_eq!(read_cached(file.as_fd(), 95_000, &mut memory), Ok(5000), "the file ends there");
        drop_from_cache(&file);
        assert_eq!(read_cached(file.as_fd(), 5000, &mut memory), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_file_in_memory_is_read() {
        let Ok(mut file) = tempfile::tempfile_in("/dev/shm") else {
            eprintln!("SKIPPED: needs a tmpfs at /dev/shm");
            return;
        };
        file.write_all(&[7; 10_000]).unwrap();
        let mut memory = [0; 5000];
        assert_eq!(read_cached(file.as_fd(), 1000, &mut memory), Ok(5000));
        assert_eq!(memory, [7; 5000]);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(read_cached(reader.as_fd(), 0, &mut [0; 10]), Err(Errno::ESPIPE));
    }
}
