//! Identity of a mounted file system.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `FS_IOC_GETFSUUID` of `linux/fs.h`, since Linux 6.9: `_IOR(0x15, 0, struct fsuuid2)`.
const GET_UUID: libc::c_ulong = 0x8011_1500;

/// The kernel's `struct fsuuid2`: a length, and as many bytes.
#[repr(C)]
struct RawUuid {
    len: u8,
    bytes: [u8; 16],
}

/// Returns the UUID of the file system of `fd`, padded with zeroes. Returns an error if it has none, if it
/// is all zeroes, or if the kernel does not support the query.
///
/// `fd` must not be an `O_PATH` descriptor.
pub fn file_system_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut raw = RawUuid { len: 0, bytes: [0; 16] };
    // SAFETY: the kernel writes one `struct fsuuid2`, which is the type of `raw`, and `raw` outlives the
    // call.
    let code = unsafe { libc::ioctl(fd.as_raw_fd(), GET_UUID as _, &raw mut raw) };
    Errno::result(code)?;
    if raw.bytes == [0; 16] { Err(Errno::ENODATA) } else { Ok(raw.bytes) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn one_file_system_has_one_uuid_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        let uuid = file_system_uuid(file.as_fd());
        assert_eq!(uuid, file_system_uuid(File::open(folder.path()).unwrap().as_fd()));
        assert_ne!(uuid, Ok([0; 16]));
        let procfs = File::open("/proc/self/status").unwrap();
        assert!(file_system_uuid(procfs.as_fd()).is_err(), "procfs has none");
    }
}
