//! Opening what a client named without ever leaving the folder that was shared: no `..`, no symlinks, no magic links.
//!
//! Mount points below the folder are crossed: they are part of what its owner sees there.

use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlink};
use nix::sys::stat::{Mode, fstat};

use crate::io::sys;
use crate::proto::OpenAccess;

/// Longest path given to the kernel in one call, in bytes: below its `PATH_MAX` of 4096, with the NUL.
const PATH_BYTES_MAX: usize = 4000;

/// Opens what `path` (names joined by `/`, relative, not empty) leads to below `root`.
///
/// A symlink at the end is opened itself where `flags` hold `O_PATH`, and is ELOOP otherwise; one on the way is ELOOP
/// or ENOTDIR.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let (mut path, mut folder) = (path, None);
    while path.len() > PATH_BYTES_MAX {
        let cut = path[..PATH_BYTES_MAX].iter().rposition(|byte| *byte == b'/').ok_or(Errno::ENAMETOOLONG)?;
        let at = folder.as_ref().map_or(root, AsFd::as_fd);
        folder = Some(open_short(at, &path[..cut], OFlag::O_PATH | OFlag::O_DIRECTORY)?);
        path = &path[cut + 1..];
    }
    open_short(folder.as_ref().map_or(root, AsFd::as_fd), path, flags)
}

/// Opens the entry `name`, one checked name, of a folder as it is, a link as a link.
pub(super) fn open_entry(folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(folder, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens what `path` leads to below `root`, as [`open_beneath`] does, without ever waiting: only what the kernel finds in memory, on `root`'s own file system.
///
/// `Some(ENOENT)` says that the kernel remembers that there is nothing. `None` says nothing at all: ask in a place that
/// may wait. The kernel has this since Linux 5.12; it is a shortcut and never the only way.
pub(super) fn open_if_in_memory(root: BorrowedFd<'_>, path: &[u8]) -> Option<Result<OwnedFd, Errno>> {
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat2(root, path, OpenHow::new().flags(flags).resolve(resolve)) {
        Ok(fd) => Some(Ok(fd)),
        Err(Errno::ENOENT) => Some(Err(Errno::ENOENT)),
        Err(_) => None,
    }
}

/// Opens the regular file or folder behind an `O_PATH` descriptor for reading: that very inode, wherever its names are.
///
/// Whoever calls has made sure that it is one of the two: opening a device or a pipe has effects.
pub(super) fn open_for_reading(fd: BorrowedFd<'_>, is_folder: bool) -> Result<OwnedFd, Errno> {
    // Not O_NONBLOCK: io_uring would answer EAGAIN for what is not in memory.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    if is_folder {
        return openat(fd, ".", flags | OFlag::O_DIRECTORY, Mode::empty());
    }
    open(proc_path(fd).as_str(), flags, Mode::empty())
}

/// Opens the regular file behind any descriptor of it, for `access`; as [`open_for_reading`]. Who only wants to write gets a
/// descriptor that reads, too, where the file's permissions allow that. `appends` is returned if whatever is written goes to the end.
pub(super) fn open_for(fd: BorrowedFd<'_>, access: OpenAccess) -> Result<(OwnedFd, OpenAccess), Errno> {
    if !access.writes {
        return open_for_reading(fd, false).map(|fd| (fd, OpenAccess::READ));
    }
    let flags = OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let path = proc_path(fd);
    let open = |how| match open(path.as_str(), flags | how | OFlag::O_RDWR, Mode::empty()) {
        Err(Errno::EACCES) if !access.reads => {
            let fd = open(path.as_str(), flags | how | OFlag::O_WRONLY, Mode::empty())?;
            Ok((fd, OpenAccess { appends: false, ..access }))
        }
        opened => opened.map(|fd| (fd, OpenAccess { reads: true, writes: true, appends: false })),
    };
    match open(OFlag::empty()) {
        // A file that may only be appended to.
        Err(Errno::EPERM) if access.appends => {
            open(OFlag::O_APPEND).map(|(fd, opened)| (fd, OpenAccess { appends: true, ..opened }))
        }
        opened => opened,
    }
}

/// Whether what is open lies in the folder `root`, by the names that the kernel has for both now. What has lost its name lies where it lay.
/// Takes some microseconds and never waits. Of names that are too long for one piece it says no.
pub(super) fn lies_in(root: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> bool {
    let name = |fd| readlink(proc_path(fd).as_str()).map(OsString::into_vec);
    let (Ok(root_name), Ok(name)) = (name(root), name(fd)) else { return false };
    // A folder that was removed bears a mark behind its name; a file in it that is still open does not bear it there.
    let removed = root_name.strip_suffix(b" (deleted)");
    is_in(&root_name, &name)
        || removed.is_some_and(|root_name| {
            is_in(root_name, &name) && fstat(root).is_ok_and(|found| found.st_nlink == 0)
        })
}

/// Whether a path leads to a folder or below it.
fn is_in(folder: &[u8], path: &[u8]) -> bool {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The name that `/proc` has for a descriptor, for calls that take paths only.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens what a descriptor stands for once more, by the path that it has below `root` now; `None` where that is not below it.
///
/// The path that the kernel tells is a hint: what is opened was reached from `root` alone, and may be something else.
pub(super) fn open_where_it_is(root: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = |fd| readlink(proc_path(fd).as_str()).ok();
    let (root_path, path) = (path(root)?, path(fd)?);
    let below = below(root_path.as_bytes(), path.as_bytes())?;
    open_beneath(root, below, OFlag::O_PATH).ok()
}

/// Returns what of `path` lies below `root`, both absolute; not `root` itself.
fn below<'a>(root: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    path.strip_prefix(root)?.strip_prefix(b"/").filter(|rest| !rest.is_empty())
}

fn open_short(at: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if has_openat2() {
        sys::open_beneath(at, path, flags, Mode::empty(), ResolveFlag::RESOLVE_NO_SYMLINKS)
    } else {
        open_by_steps(at, path, flags)
    }
}

/// Whether the kernel has `openat2` (Linux 5.6) and whatever guards this process lets it through.
fn has_openat2() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Ok(root) = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else {
            return true;
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let probe = sys::open_beneath(root.as_fd(), ".", flags, Mode::empty(), ResolveFlag::empty());
        // Container runtimes older than the call answer EPERM for what they do not know.
        !matches!(probe, Err(Errno::ENOSYS | Errno::EPERM))
    })
}

/// The same for older kernels: one name a call, each a folder that is not reached through a link.
fn open_by_steps(at: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    if names.iter().any(|name| matches!(*name, b"" | b".." | b".")) {
        return Err(Errno::EXDEV);
    }
    let last = names.pop().ok_or(Errno::ENOENT)?;
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut folder = None;
    for name in names {
        folder = Some(openat(folder.as_ref().map_or(at, AsFd::as_fd), name, step, Mode::empty())?);
    }
    openat(folder.as_ref().map_or(at, AsFd::as_fd), last, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    type Open = fn(BorrowedFd<'_>, &[u8], OFlag) -> Result<OwnedFd, Errno>;

    /// Both ways must refuse and find the same.
    const WAYS: [Open; 2] = [open_beneath, |at, path, flags| {
        open_by_steps(at, path, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
    }];

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("export/a/b")).unwrap();
        fs::write(folder.path().join("export/a/b/file"), "inside").unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        symlink("../secret", folder.path().join("export/out")).unwrap();
        symlink("..", folder.path().join("export/up")).unwrap();
        symlink("b", folder.path().join("export/a/within")).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let root = open(&folder.path().join("export"), flags, Mode::empty()).unwrap();
        (folder, root)
    }

    #[test]
    fn what_lies_below_is_found() {
        let (_folder, root) = tree();
        for way in WAYS {
            assert!(way(root.as_fd(), b"a/b/file", OFlag::O_PATH).is_ok());
            assert_eq!(way(root.as_fd(), b"a/none", OFlag::O_PATH).unwrap_err(), Errno::ENOENT);
        }
    }

    #[test]
    fn nothing_leads_out() {
        let (folder, root) = tree();
        let absolute = folder.path().join("secret");
        let absolute = absolute.as_os_str().as_encoded_bytes();
        for way in WAYS {
            for path in
                [b"..".as_slice(), b"../secret", b"a/../../secret", b"up/secret", b"/etc/passwd", absolute]
            {
                assert!(way(root.as_fd(), path, OFlag::O_PATH).is_err(), "{path:?}");
            }
        }
    }

    #[test]
    fn links_are_opened_as_links_and_never_followed() {
        let (_folder, root) = tree();
        for way in WAYS {
            let link = way(root.as_fd(), b"out", OFlag::O_PATH).unwrap();
            assert_eq!(fstat(&link).unwrap().st_mode & libc::S_IFMT, libc::S_IFLNK);
            assert_eq!(way(root.as_fd(), b"out", OFlag::O_RDONLY).unwrap_err(), Errno::ELOOP);
            assert!(way(root.as_fd(), b"a/within/file", OFlag::O_PATH).is_err());
        }
    }

    #[test]
    fn what_is_in_memory_is_found_at_once_and_nothing_leads_out() {
        let (_folder, root) = tree();
        // Looked up before, so the kernel has it in memory; where it has not, it says nothing.
        open_beneath(root.as_fd(), b"a/b/file", OFlag::O_PATH).unwrap();
        if let Some(found) = open_if_in_memory(root.as_fd(), b"a/b/file") {
            let slowly = open_beneath(root.as_fd(), b"a/b/file", OFlag::O_PATH).unwrap();
            assert_eq!(fstat(found.unwrap()).unwrap().st_ino, fstat(&slowly).unwrap().st_ino);
        }
        for path in [b"..".as_slice(), b"../secret", b"up/secret", b"/etc/passwd", b"a/within/file"] {
            assert!(!matches!(open_if_in_memory(root.as_fd(), path), Some(Ok(_))), "{path:?}");
        }
    }

    #[test]
    fn what_was_moved_is_found_where_it_is_as_long_as_that_is_below() {
        let (folder, root) = tree();
        let moved = open_beneath(root.as_fd(), b"a/b", OFlag::O_PATH).unwrap();
        let same = |found: Option<OwnedFd>| {
            found.map(|found| fstat(&found).unwrap().st_ino) == Some(fstat(&moved).unwrap().st_ino)
        };
        assert!(same(open_where_it_is(root.as_fd(), moved.as_fd())));
        fs::rename(folder.path().join("export/a/b"), folder.path().join("export/c")).unwrap();
        assert!(same(open_where_it_is(root.as_fd(), moved.as_fd())));
        fs::rename(folder.path().join("export"), folder.path().join("elsewhere")).unwrap();
        assert!(same(open_where_it_is(root.as_fd(), moved.as_fd())));
        fs::rename(folder.path().join("elsewhere/c"), folder.path().join("elsewhere-c")).unwrap();
        assert!(open_where_it_is(root.as_fd(), moved.as_fd()).is_none());
        assert!(open_where_it_is(root.as_fd(), root.as_fd()).is_none());
    }

    #[test]
    fn below_a_folder_is_what_its_whole_path_begins() {
        for (root, path, expected) in [
            ("/a", "/a/b/c", Some("b/c")),
            ("/", "/a", Some("a")),
            ("/a", "/ab", None),
            ("/a", "/a", None),
            ("/a", "/", None),
            ("/", "/", None),
        ] {
            assert_eq!(below(root.as_bytes(), path.as_bytes()), expected.map(str::as_bytes));
        }
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_walked() {
        let (_folder, root) = tree();
        let name = [b'x'; 200];
        let mut at = root.try_clone().unwrap();
        for _ in 0..30 {
            nix::sys::stat::mkdirat(&at, &name[..], Mode::S_IRWXU).unwrap();
            at = openat(&at, &name[..], OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        let found = open_beneath(root.as_fd(), &[&name[..]; 30].join(&b'/'), OFlag::O_PATH).unwrap();
        assert_eq!(fstat(&found).unwrap().st_ino, fstat(&at).unwrap().st_ino);
    }

    #[test]
    fn what_is_open_lies_where_its_name_is_now() {
        let (folder, root) = tree();
        let open = |path: &[u8]| open_beneath(root.as_fd(), path, OFlag::O_PATH).unwrap();
        let (inner, file, link) = (open(b"a/b"), open(b"a/b/file"), open(b"out"));
        let all = [&inner, &file, &link, &root];
        let lie = |expected: [bool; 4]| {
            assert_eq!(all.map(|fd| lies_in(root.as_fd(), fd.as_fd())), expected);
        };
        lie([true; 4]);
        let path = |name: &str| folder.path().join(name);
        fs::rename(path("export/a/b"), path("export/b")).unwrap();
        lie([true; 4]);
        fs::rename(path("export"), path("export, renamed")).unwrap();
        lie([true; 4]);
        // A folder whose name only begins alike is another one.
        fs::create_dir(path("export, renamed too")).unwrap();
        fs::rename(path("export, renamed/b"), path("export, renamed too/b")).unwrap();
        lie([false, false, true, true]);
        fs::remove_file(path("export, renamed/out")).unwrap();
        lie([false, false, true, true]);
        fs::remove_file(path("export, renamed too/b/file")).unwrap();
        lie([false, false, true, true]);
        fs::remove_dir_all(path("export, renamed")).unwrap();
        lie([false, false, true, true]);
        let everything = open_folder(Path::new("/"));
        assert!(all.iter().all(|fd| lies_in(everything.as_fd(), fd.as_fd())));
    }

    fn open_folder(path: &Path) -> OwnedFd {
        open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn the_inode_behind_a_path_descriptor_is_opened_not_its_name() {
        let (folder, root) = tree();
        let file = open_beneath(root.as_fd(), b"a/b/file", OFlag::O_PATH).unwrap();
        fs::rename(folder.path().join("secret"), folder.path().join("export/a/b/file")).unwrap();
        let file = fs::File::from(open_for_reading(file.as_fd(), false).unwrap());
        assert_eq!(std::io::read_to_string(file).unwrap(), "inside");
    }
}
