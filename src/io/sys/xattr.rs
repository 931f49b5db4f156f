//! Extended attributes of open files and of paths.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Most bytes of one value or of the list of names of one file: the kernel's `XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX`.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Buffer of the first attempt, in bytes. It fits nearly all values (an ACL entry has 8 bytes), so one call
/// is enough.
const FIRST_TRY_BYTES: usize = 256;

/// File whose attributes are meant.
#[derive(Debug, Clone, Copy)]
pub enum XattrTarget<'a> {
    /// An open file. An `O_PATH` descriptor, which the kernel refuses here, is reached through
    /// `/proc/self/fd`; one of a symlink gives the attributes of the link.
    Fd(BorrowedFd<'a>),
    /// The target of a path.
    Path(&'a CStr),
    /// The path itself, if it is a symlink.
    Link(&'a CStr),
}

/// Precondition of [`set_xattr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XattrSet {
    /// The attribute may exist or not.
    #[default]
    Any,
    /// It must not exist, otherwise EEXIST.
    Create,
    /// It must exist, otherwise ENODATA.
    Replace,
}

/// Returns the value of attribute `name`, at most [`XATTR_BYTES_MAX`] bytes. ENODATA if it is missing.
pub fn get_xattr(target: XattrTarget<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    on(target, |target| {
        read_growing(|buffer| {
            let (value, size) = (buffer.as_mut_ptr().cast(), buffer.len());
            let name = name.as_ptr();
            // SAFETY: strings end in NUL; `value` points to `size` writable bytes; the kernel keeps no
            // pointer.
            unsafe {
                match target {
                    XattrTarget::Fd(fd) => libc::fgetxattr(fd.as_raw_fd(), name, value, size),
                    XattrTarget::Path(path) => libc::getxattr(path.as_ptr(), name, value, size),
                    XattrTarget::Link(path) => libc::lgetxattr(path.as_ptr(), name, value, size),
                }
            }
        })
    })
}

/// Returns the names of all attributes visible to the caller, each followed by a NUL byte: at most
/// [`XATTR_BYTES_MAX`] bytes, otherwise E2BIG. [`split_xattr_names`] separates them.
pub fn list_xattr(target: XattrTarget<'_>) -> Result<Vec<u8>, Errno> {
    on(target, |target| {
        read_growing(|buffer| {
            let (list, size) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: strings end in NUL; `list` points to `size` writable bytes; the kernel keeps no
            // pointer.
            unsafe {
                match target {
                    XattrTarget::Fd(fd) => libc::flistxattr(fd.as_raw_fd(), list, size),
                    XattrTarget::Path(path) => libc::listxattr(path.as_ptr(), list, size),
                    XattrTarget::Link(path) => libc::llistxattr(path.as_ptr(), list, size),
                }
            }
        })
    })
}

/// Sets attribute `name` to `value`. E2BIG or ENOSPC if the file system has no room for it.
pub fn set_xattr(target: XattrTarget<'_>, name: &CStr, value: &[u8], how: XattrSet) -> Result<(), Errno> {
    let flags = match how {
        XattrSet::Any => 0,
        XattrSet::Create => libc::XATTR_CREATE,
        XattrSet::Replace => libc::XATTR_REPLACE,
    };
    on(target, |target| {
        let (name, bytes, size) = (name.as_ptr(), value.as_ptr().cast(), value.len());
        // SAFETY: strings end in NUL; `bytes` points to `size` readable bytes; the kernel keeps no pointer.
        let code = unsafe {
            match target {
                XattrTarget::Fd(fd) => libc::fsetxattr(fd.as_raw_fd(), name, bytes, size, flags),
                XattrTarget::Path(path) => libc::setxattr(path.as_ptr(), name, bytes, size, flags),
                XattrTarget::Link(path) => libc::lsetxattr(path.as_ptr(), name, bytes, size, flags),
            }
        };
        Errno::result(code).map(drop)
    })
}

/// Removes attribute `name`. ENODATA if it is missing.
pub fn remove_xattr(target: XattrTarget<'_>, name: &CStr) -> Result<(), Errno> {
    on(target, |target| {
        let name = name.as_ptr();
        // SAFETY: strings end in NUL, and the kernel keeps no pointer.
        let code = unsafe {
            match target {
                XattrTarget::Fd(fd) => libc::fremovexattr(fd.as_raw_fd(), name),
                XattrTarget::Path(path) => libc::removexattr(path.as_ptr(), name),
                XattrTarget::Link(path) => libc::lremovexattr(path.as_ptr(), name),
            }
        };
        Errno::result(code).map(drop)
    })
}

/// Returns the names in a list of [`list_xattr`].
pub fn split_xattr_names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == 0).filter(|name| !name.is_empty())
}

/// Calls `call` on the target; for an `O_PATH` descriptor, on its name in `/proc`.
fn on<T>(target: XattrTarget<'_>, call: impl Fn(XattrTarget<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    match (call(target), target) {
        (Err(Errno::EBADF), XattrTarget::Fd(fd)) => {
            let path =
                CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
            call(XattrTarget::Path(&path))
        }
        (answer, _) => answer,
    }
}

/// Runs `call` with a small buffer, and if necessary again with the largest that the kernel can fill.
fn read_growing(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> Result<Vec<u8>, Errno> {
    let mut small = [0; FIRST_TRY_BYTES];
    match Errno::result(call(&mut small)) {
        Ok(len) => return Ok(small[..len as usize].to_vec()),
        Err(Errno::ERANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut large = vec![0; XATTR_BYTES_MAX];
    let len = Errno::result(call(&mut large))?;
    large.truncate(len as usize);
    large.shrink_to_fit();
    Ok(large)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;

    /// Returns a directory on a file system with `user.` attributes: beside the test binary, because an old
    /// tmpfs on /tmp lacks them.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    #[test]
    fn values_of_all_sizes_come_back() {
        let dir = directory();
        let file = File::create(dir.path().join("file")).unwrap();
        let target = XattrTarget::Fd(file.as_fd());
        assert_eq!(get_xattr(target, c"user.size").unwrap_err(), Errno::ENODATA);
        for len in [0, 1, FIRST_TRY_BYTES, FIRST_TRY_BYTES + 1, 3000] {
            let value: Vec<u8> = (0..len).map(|i| i as u8).collect();
            set_xattr(target, c"user.size", &value, XattrSet::Any).unwrap();
            assert_eq!(get_xattr(target, c"user.size").unwrap(), value);
        }
        assert_eq!(set_xattr(target, c"user.size", b"", XattrSet::Create), Err(Errno::EEXIST));
        assert_eq!(set_xattr(target, c"user.none", b"", XattrSet::Replace), Err(Errno::ENODATA));
        let huge = vec![0; XATTR_BYTES_MAX + 1];
        assert_eq!(set_xattr(target, c"user.size", &huge, XattrSet::Any), Err(Errno::E2BIG));
        remove_xattr(target, c"user.size").unwrap();
        assert_eq!(get_xattr(target, c"user.size").unwrap_err(), Errno::ENODATA);
    }

    #[test]
    fn lists_more_names_than_fit_the_first_try() {
        let dir = directory();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let target = XattrTarget::Fd(file.as_fd());
        let mut expected = Vec::new();
        for i in 0..20 {
            let name = CString::new(format!("user.a-rather-long-name-{i:02}")).unwrap();
            set_xattr(target, &name, b"x", XattrSet::Create).unwrap();
            expected.push(name.into_bytes());
        }
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        for target in [target, XattrTarget::Path(&path), XattrTarget::Link(&path)] {
            let list = list_xattr(target).unwrap();
            let mut names: Vec<_> = split_xattr_names(&list)
                .filter(|name| name.starts_with(b"user."))
                .map(<[u8]>::to_vec)
                .collect();
            names.sort();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn path_descriptors_and_links() {
        let dir = directory();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        set_xattr(XattrTarget::Fd(file.as_fd()), c"user.origin", b"file", XattrSet::Any).unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let link = CString::new(dir.path().join("link").as_os_str().as_bytes()).unwrap();
        assert_eq!(get_xattr(XattrTarget::Path(&link), c"user.origin").unwrap(), b"file");
        assert_eq!(get_xattr(XattrTarget::Link(&link), c"user.origin").unwrap_err(), Errno::ENODATA);

        let opened = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let target = XattrTarget::Fd(opened.as_fd());
        assert_eq!(get_xattr(target, c"user.origin").unwrap(), b"file");
        set_xattr(target, c"user.origin", b"path", XattrSet::Replace).unwrap();
        assert_eq!(get_xattr(XattrTarget::Fd(file.as_fd()), c"user.origin").unwrap(), b"path");
        let opened = open(link.as_c_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).unwrap();
        assert_eq!(get_xattr(XattrTarget::Fd(opened.as_fd()), c"user.origin").unwrap_err(), Errno::ENODATA);
    }
}
