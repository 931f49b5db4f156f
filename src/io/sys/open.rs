//! Opening paths named by a peer, confined to the shared directory.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// Attempts to open one path. The kernel answers EAGAIN if a rename anywhere on the system crosses the
/// resolution of a `..` below the root, so a second attempt nearly always succeeds. Endless renames may
/// make it fail.
const ATTEMPTS_MAX: u32 = 32;

/// Opens `path` relative to `root` with `openat2`. The result never lies outside of `root`.
///
/// `RESOLVE_BENEATH` and `RESOLVE_NO_MAGICLINKS` are always set. `resolve` adds to them
/// (`RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_XDEV`). `mode` is ignored unless `flags` has `O_CREAT` or
/// `O_TMPFILE`. The descriptor is always close-on-exec.
///
/// EXDEV means that the path leads out of `root`, ELOOP that it crosses a symlink where none is allowed,
/// ENOSYS that the kernel is older than 5.6. Without this call there is no safe way, so no other is tried.
pub fn open_beneath<P: NixPath + ?Sized>(
    root: BorrowedFd<'_>,
    path: &P,
    flags: OFlag,
    mode: Mode,
    resolve: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let creates = flags.intersects(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(if creates { mode } else { Mode::empty() })
        .resolve(resolve | ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut answer = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS_MAX {
        answer = openat2(root, path, how);
        if !matches!(answer, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn open(root: &File, path: &str, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
        open_beneath(root.as_fd(), Path::new(path), OFlag::O_RDONLY, Mode::empty(), resolve)
    }

    #[test]
    fn stays_beneath_the_root() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), b"no").unwrap();
        let inner = outer.path().join("export");
        fs::create_dir_all(inner.join("a/b")).unwrap();
        fs::write(inner.join("a/b/file"), b"yes").unwrap();
        symlink("../secret", inner.join("out")).unwrap();
        symlink("/etc/passwd", inner.join("absolute")).unwrap();
        symlink("a/b", inner.join("in")).unwrap();
        let root = File::open(&inner).unwrap();
        let none = ResolveFlag::empty();

        let mut text = String::new();
        File::from(open(&root, "a/../a/b/file", none).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "yes");
        assert!(open(&root, "in/file", none).is_ok());
        assert_eq!(open(&root, "in/file", ResolveFlag::RESOLVE_NO_SYMLINKS).unwrap_err(), Errno::ELOOP);
        for escape in ["../secret", "out", "absolute", "/etc/passwd", "a/../../secret"] {
            assert_eq!(open(&root, escape, none).unwrap_err(), Errno::EXDEV, "{escape}");
        }
        assert_eq!(open(&root, "missing", none).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn mode_counts_only_for_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let mode = Mode::from_bits_truncate(0o600);
        let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        open_beneath(root.as_fd(), c"new", create, mode, ResolveFlag::empty()).unwrap();
        // The bare system call answers EINVAL to a mode without O_CREAT.
        open_beneath(root.as_fd(), c"new", OFlag::O_RDONLY, mode, ResolveFlag::empty()).unwrap();
        open_beneath(root.as_fd(), c".", OFlag::O_TMPFILE | OFlag::O_RDWR, mode, ResolveFlag::empty())
            .unwrap();
    }
}
