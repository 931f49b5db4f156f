//! Removes mounts from the tree: by the kernel for root, by fusermount3 for other users.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;

use super::table::{self, MountEntry};

/// Ways to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountHow {
    /// Fails while the mount is in use.
    Clean,
    /// Removes the mount from the tree at once. Open files keep working, and the mount ends with its last
    /// user.
    Detach,
    /// Does the same as [`Self::Detach`], and fails waiting calls (`umount -f`).
    Abort,
}

/// Reason why a mount is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The mount is in use.
    #[error(
        "{} is in use: close the programs that use it (`fuser -vm {}` lists them), or unmount it with `wormhole umount -l`",
        .0.display(), .0.display()
    )]
    Busy(PathBuf),
    /// Nothing is mounted there.
    #[error("{}: not mounted", .0.display())]
    NotMounted(PathBuf),
    /// Another mount covers it.
    #[error("{}: {} was mounted over it; unmount that first", .0.display(), .1)]
    Covered(PathBuf, String),
    /// Only the mounting user and root may unmount it.
    #[error("{}: only root and the user who mounted it may unmount it", .0.display())]
    NotAllowed(PathBuf),
    /// fusermount3 is missing.
    #[error("{}: fusermount3 is missing; install it with `apt install fuse3` (or `dnf install fuse3`)", .0.display())]
    NoFusermount(PathBuf),
    /// Any other error.
    #[error("{}: {why}", mountpoint.display())]
    System {
        /// Mountpoint.
        mountpoint: PathBuf,
        /// Error of the system.
        why: String,
    },
}

/// Unmounts this mount, and not a later one on the same folder.
pub fn unmount(entry: &MountEntry, how: UnmountHow) -> Result<(), UnmountError> {
    let place = &entry.mountpoint;
    let system = |why: &dyn std::fmt::Display| UnmountError::System {
        mountpoint: place.clone(),
        why: why.to_string(),
    };
    check_topmost(entry).map_err(|error| error.unwrap_or_else(|error| system(&error)))?;
    let done = match how {
        UnmountHow::Clean => umount2(place, MntFlags::UMOUNT_NOFOLLOW),
        UnmountHow::Detach => detach(entry, MntFlags::MNT_DETACH),
        UnmountHow::Abort => detach(entry, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE),
    };
    match done {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => by_fusermount(entry, how),
        Err(Errno::EBUSY) => Err(UnmountError::Busy(place.clone())),
        Err(Errno::EINVAL | Errno::ENOENT) => Err(UnmountError::NotMounted(place.clone())),
        Err(error) => Err(system(&error.desc())),
    }
}

/// Fails unless a path to the folder leads to this mount.
fn check_topmost(entry: &MountEntry) -> Result<(), Result<UnmountError, io::Error>> {
    let mounts = table::mounts().map_err(Err)?;
    let topmost = mounts.iter().rev().find(|other| other.mountpoint == entry.mountpoint);
    match topmost {
        Some(topmost) if topmost.is_same_mount(entry) => Ok(()),
        Some(topmost) if mounts.iter().any(|other| other.is_same_mount(entry)) => {
            Err(Ok(UnmountError::Covered(entry.mountpoint.clone(), topmost.source.clone())))
        }
        _ => Err(Ok(UnmountError::NotMounted(entry.mountpoint.clone()))),
    }
}

/// Removes the mount by a descriptor of it, so a later mount over its folder stays. A clean unmount cannot
/// use a descriptor, because that counts as a user.
fn detach(entry: &MountEntry, flags: MntFlags) -> nix::Result<()> {
    // `O_PATH` sends no request to the daemon of the mount, which may be gone.
    let flags_of_path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = open(&entry.mountpoint, flags_of_path, Mode::empty())?;
    let fd = folder.as_raw_fd();
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|_| Errno::EINVAL)?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    if id != Some(entry.id) {
        return Err(Errno::EINVAL);
    }
    umount2(format!("/proc/self/fd/{fd}").as_str(), flags)
}

/// Unmounts by fusermount3, which is set-user-id root and unmounts the mounts of its caller.
fn by_fusermount(entry: &MountEntry, how: UnmountHow) -> Result<(), UnmountError> {
    let place = entry.mountpoint.clone();
    if how == UnmountHow::Abort
        && let Err(error) = abort_connection(entry.device.1)
    {
        // The mount still leaves its folder. Waiting calls wait for a deadline, or for the end of the daemon.
        tracing::debug!(%error, "requests are not aborted; is /sys/fs/fuse/connections mounted?");
    }
    let mut command = Command::new("fusermount3");
    command.arg(if how == UnmountHow::Clean { "-u" } else { "-uz" }).arg("--").arg(&entry.mountpoint);
    // Its messages are compared below.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(UnmountError::NoFusermount(place));
        }
        Err(error) => return Err(UnmountError::System { mountpoint: place, why: error.to_string() }),
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(if words.contains("busy") {
        UnmountError::Busy(place)
    } else if words.contains("not found in") || words.contains("not mounted") {
        UnmountError::NotMounted(place)
    } else if words.contains("not permitted") || words.contains("bad mount") {
        UnmountError::NotAllowed(place)
    } else {
        UnmountError::System { mountpoint: place, why: words.trim().replace('\n', "; ") }
    })
}

/// Makes the kernel fail all calls that wait for the daemon of a FUSE connection. For root and the mounting
/// user.
pub fn abort_connection(device_minor: u32) -> io::Result<()> {
    fs::write(format!("/sys/fs/fuse/connections/{device_minor}/abort"), "1")
}
