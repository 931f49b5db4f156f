//! Appending to a file that others may append to.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

/// Appends all of `bytes` to `file`. Returns the offset of the first byte.
///
/// Each part is appended as with `O_APPEND`, so concurrent appends are not overwritten. The offset of the
/// descriptor must not be used meanwhile. There are several parts only if the disk is full or a signal
/// arrives in between.
pub fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<u64, Errno> {
    let (mut rest, mut begin) = (bytes, None);
    while !rest.is_empty() {
        let part = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        // SAFETY: `part` describes `rest`, which is only read and outlives the call; the kernel keeps no
        // pointer.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, -1, libc::RWF_APPEND) };
        match Errno::result(written) {
            Ok(count) => {
                let count = count as usize;
                // With offset -1, the offset of the descriptor moves to the end of the written bytes.
                let end = lseek64(file, 0, Whence::SeekCur)? as u64;
                begin.get_or_insert(end - count as u64);
                rest = &rest[count..];
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(begin.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn appended_bytes_go_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "one").unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(append(file.as_fd(), b"two").unwrap(), 3);
        fs::write(&path, "longer than before").unwrap();
        assert_eq!(append(file.as_fd(), b"!").unwrap(), 18);
        assert_eq!(fs::read(&path).unwrap(), b"longer than before!");
        let reader = fs::File::open(&path).unwrap();
        assert_eq!(append(reader.as_fd(), b"x"), Err(Errno::EBADF));
    }
}
