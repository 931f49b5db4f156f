//! Mounts of wormhole below an export, into which the host does not walk.
//!
//! An export may contain the place where it is mounted itself: whoever walked into it would walk in circles, with the host as its
//! own client. Another host's mount may hang with that host. To serve one, export it by name.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno as SystemErrno;
use nix::fcntl::{AT_FDCWD, AtFlags};

use super::attributes::system_error;
use crate::io::sys;
use crate::proto::WireError;

/// How long the list of mounts is good. Reading it costs more than a lookup.
const LIST_FRESH: Duration = Duration::from_secs(1);

/// Type of wormhole's mounts in the kernel's list.
const FILE_SYSTEM: &[u8] = b"fuse.wormhole";

/// When the mounts were listed, and the devices of those of wormhole.
type Listed = (Instant, Arc<HashSet<u64>>);

static LISTED: LazyLock<Mutex<Option<Listed>>> = LazyLock::new(Mutex::default);

/// Refuses an entry that a mount of wormhole covers, with EREMOTE, unless its folder lies in that mount too. Asks the mount nothing.
pub(super) fn check_entry(folder: BorrowedFd<'_>, name: &CStr) -> Result<(), WireError> {
    refuse((folder, c"", AtFlags::AT_EMPTY_PATH), (folder, name, AtFlags::AT_SYMLINK_NOFOLLOW))
}

/// Refuses what was opened below `folder` in the same way.
pub(super) fn check(folder: BorrowedFd<'_>, opened: BorrowedFd<'_>) -> Result<(), WireError> {
    refuse((folder, c"", AtFlags::AT_EMPTY_PATH), (opened, c"", AtFlags::AT_EMPTY_PATH))
}

/// Returns whether `path` leads into a mount of wormhole in which its folder does not lie.
pub(super) fn leads_into_mount(path: &Path) -> bool {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
    let (Some(folder), Some(path)) = (path.parent().and_then(c_path), c_path(path)) else { return false };
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    refuse((AT_FDCWD, &folder, flags), (AT_FDCWD, &path, flags)).is_err()
}

/// Arguments of `statx`.
type At<'a> = (BorrowedFd<'a>, &'a CStr, AtFlags);

fn refuse(folder: At<'_>, found: At<'_>) -> Result<(), WireError> {
    let mounts = wormhole_mounts(Instant::now());
    if mounts.is_empty() {
        return Ok(());
    }
    let device = |(at, path, flags): At<'_>| sys::device_of(at, path, flags).ok();
    // What else is wrong the caller finds out.
    let Some(device_found) = device(found).filter(|device| mounts.contains(device)) else { return Ok(()) };
    if device(folder) == Some(device_found) { Ok(()) } else { Err(system_error(SystemErrno::EREMOTE)) }
}

fn wormhole_mounts(now: Instant) -> Arc<HashSet<u64>> {
    let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((when, mounts)) = &*listed
        && now.saturating_duration_since(*when) < LIST_FRESH
    {
        return Arc::clone(mounts);
    }
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = Arc::new(devices_of(&text));
    *listed = Some((now, Arc::clone(&mounts)));
    mounts
}

/// The devices of wormhole's mounts in the text of `mountinfo`, see proc(5).
fn devices_of(mountinfo: &[u8]) -> HashSet<u64> {
    let device = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let (major, minor) = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
        (kind == FILE_SYSTEM).then_some(device)
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_wormhole_are_told_from_others() {
        let text = b"24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            99 24 0:52 / /mnt/a\\040b rw,nosuid shared:7 master:1 - fuse.wormhole nas:/media rw\n\
            98 24 0:53 / /mnt/c rw - fuse.sshfs nas: rw\n\
            97 24 nonsense\n\n";
        assert_eq!(devices_of(text), HashSet::from([libc::makedev(0, 52)]));
    }
}
