//! Finding the daemon behind a mount. Touches no mount: who serves it may hang.

use std::path::{Path, PathBuf};

use crate::control::{self, Daemon};
use crate::fuse::table::MountEntry;

/// Returns the daemons that were told to mount there, the last one first.
pub(super) fn daemons_of(mountpoint: &Path) -> impl Iterator<Item = Daemon> {
    let asked = |directory: PathBuf| control::daemons_of_mount(&directory, mountpoint).unwrap_or_default();
    super::control_directories().into_iter().flat_map(asked)
}

/// Returns the daemon behind a mount, which may be another than the last one that mounted there and still runs.
pub(super) fn daemon_behind(entry: &MountEntry) -> Option<Daemon> {
    let device = entry.device_text();
    daemons_of(&entry.mountpoint).find(|daemon| daemon.may_serve(&device))
}
