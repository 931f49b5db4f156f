//! File locks: byte ranges that belong to an open file, not to a process (`F_OFD_SETLK`), and whole files
//! (`flock`).
//!
//! None of these wait. The two kinds are independent.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Locks bytes `start` to `end` (inclusive; `i64::MAX` means the end of the file), exclusively or shared,
/// or unlocks them (`None`). Returns `false` if another open file holds some of them.
///
/// An exclusive lock needs a file open for writing, a shared one a file open for reading; otherwise EBADF.
pub fn lock_range(file: &File, start: u64, end: u64, exclusive: Option<bool>) -> Result<bool, Errno> {
    let lock = described(start, end, exclusive);
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns a lock that conflicts with locking these bytes: its first and last byte, and `true` if it is
/// exclusive.
pub fn test_range(
    file: &File,
    start: u64,
    end: u64,
    exclusive: bool,
) -> Result<Option<(u64, u64, bool)>, Errno> {
    let mut lock = described(start, end, Some(exclusive));
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = lock.l_start as u64;
    let end = if lock.l_len == 0 { i64::MAX as u64 } else { start + (lock.l_len - 1) as u64 };
    Ok(Some((start, end, i32::from(lock.l_type) == libc::F_WRLCK)))
}

/// Locks the whole file with `flock`, exclusively or shared, or unlocks it (`None`). Returns `false` if
/// another open file holds it; an earlier lock of this file may be lost then, as with `flock`.
pub fn lock_whole(file: &File, exclusive: Option<bool>) -> Result<bool, Errno> {
    loop {
        let done = match exclusive {
            Some(true) => file.try_lock(),
            Some(false) => file.try_lock_shared(),
            None => file.unlock().map_err(TryLockError::Error),
        };
        match done {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => {
                return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
            }
        }
    }
}

fn described(start: u64, end: u64, exclusive: Option<bool>) -> libc::flock {
    let kind = match exclusive {
        Some(true) => libc::F_WRLCK,
        Some(false) => libc::F_RDLCK,
        None => libc::F_UNLCK,
    };
    let len = if end >= i64::MAX as u64 { 0 } else { (end - start + 1) as i64 };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: len,
        // The kernel requires 0.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    const END: u64 = i64::MAX as u64;

    fn opened(path: &std::path::Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn ranges_exclude_each_other_between_open_files_of_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (one, other) = (opened(&path), opened(&path));
        assert_eq!(lock_range(&one, 10, 19, Some(true)), Ok(true));
        assert_eq!(lock_range(&other, 19, END, Some(false)), Ok(false));
        assert_eq!(test_range(&other, 0, END, false), Ok(Some((10, 19, true))));
        assert_eq!(test_range(&one, 0, END, true), Ok(None));
        assert_eq!(lock_range(&one, 15, 19, None), Ok(true));
        assert_eq!(lock_range(&other, 15, END, Some(false)), Ok(true));
        assert_eq!(test_range(&one, 12, END, true), Ok(Some((15, END, false))));
        let reader = File::open(&path).unwrap();
        assert_eq!(lock_range(&reader, 0, 1, Some(true)), Err(Errno::EBADF));
        assert_eq!(lock_range(&reader, 0, 1, Some(false)), Ok(true));
    }

    #[test]
    fn whole_files_and_ranges_are_locked_independently() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (one, other) = (opened(&path), opened(&path));
        assert_eq!(lock_whole(&one, Some(true)), Ok(true));
        assert_eq!(lock_whole(&other, Some(false)), Ok(false));
        assert_eq!(lock_range(&other, 0, END, Some(true)), Ok(true));
        assert_eq!(lock_whole(&one, Some(false)), Ok(true));
        assert_eq!(lock_whole(&other, Some(false)), Ok(true));
        assert_eq!(lock_whole(&one, None), Ok(true));
        assert_eq!(lock_whole(&other, Some(true)), Ok(true));
    }
}
