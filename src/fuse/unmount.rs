//! Taking mounts out of the tree: by the kernel for root, by fusermount3 for everybody else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::table;

/// How hard to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountHow {
    /// Not while anybody uses it.
    Clean,
    /// Out of the tree at once; who has files open there may go on, and it ends with its last user.
    Detach,
    /// As [`Self::Detach`], and whoever waits for an answer gets an error (`umount -f`).
    Abort,
}

/// Why a mount is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody is in it.
    #[error(
        "{} is in use: close what uses it (`fuser -vm {}` names it), or take it down with `wormhole umount -l`",
        .0.display(), .0.display()
    )]
    Busy(PathBuf),
    /// Nothing is mounted there.
    #[error("{}: not mounted", .0.display())]
    NotMounted(PathBuf),
    /// Only who mounted it may.
    #[error("{}: only root and the user who mounted it may unmount it", .0.display())]
    NotAllowed(PathBuf),
    /// The program that unmounts for users is missing.
    #[error("{}: fusermount3 is missing; install it with `apt install fuse3` (or `dnf install fuse3`)", .0.display())]
    NoFusermount(PathBuf),
    /// Anything else.
    #[error("{}: {why}", mountpoint.display())]
    System {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What the system said.
        why: String,
    },
}

/// Unmounts what is at `mountpoint`, which must be named as the kernel lists it.
pub fn unmount(mountpoint: &Path, how: UnmountHow) -> Result<(), UnmountError> {
    let flags = match how {
        UnmountHow::Clean => MntFlags::empty(),
        UnmountHow::Detach => MntFlags::MNT_DETACH,
        UnmountHow::Abort => MntFlags::MNT_DETACH | MntFlags::MNT_FORCE,
    };
    let place = mountpoint.to_owned();
    match umount2(mountpoint, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => by_fusermount(mountpoint, how),
        Err(Errno::EBUSY) => Err(UnmountError::Busy(place)),
        Err(Errno::EINVAL | Errno::ENOENT) => Err(UnmountError::NotMounted(place)),
        Err(error) => Err(UnmountError::System { mountpoint: place, why: error.desc().to_owned() }),
    }
}

/// fusermount3 is set-user-id root and unmounts what its caller has mounted.
fn by_fusermount(mountpoint: &Path, how: UnmountHow) -> Result<(), UnmountError> {
    let place = mountpoint.to_owned();
    if how == UnmountHow::Abort
        && let Err(error) = abort(mountpoint)
    {
        // It goes from its folder all the same; who waits there waits for a deadline, or for the end of who serves it.
        tracing::debug!(%error, "requests are not aborted; is /sys/fs/fuse/connections mounted?");
    }
    let mut command = Command::new("fusermount3");
    command.arg(if how == UnmountHow::Clean { "-u" } else { "-uz" }).arg("--").arg(mountpoint);
    // Its words are compared below.
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

/// Makes every request of one's own mount fail, those under way too.
fn abort(mountpoint: &Path) -> io::Result<()> {
    let entry = table::mount_at(mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
    abort_connection(entry.device.1)
}

/// Makes the kernel answer everybody who waits for the daemon of a FUSE connection. For root, and who mounted it.
pub fn abort_connection(device_minor: u32) -> io::Result<()> {
    std::fs::write(format!("/sys/fs/fuse/connections/{device_minor}/abort"), "1")
}
