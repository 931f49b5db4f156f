//! A folder that is to be exported: the trust class of its file system.

use std::path::Path;

use super::Row;
use crate::host::FileSystemStatus;

/// Returns what is to be said of one folder.
pub(super) fn row(folder: &Path) -> Row {
    const CHECK: &str = "export";
    match FileSystemStatus::look(folder) {
        Ok(FileSystemStatus { path, name, trust, reason }) => {
            let found = format!("{path}: {name}, trust class {trust}: {reason}");
            if trust == "full" {
                return Row::ok(CHECK, found);
            }
            let help = "clients ask the host to confirm what they have cached, and show nothing of it while the host is away; \
                        a folder on ext4, xfs, btrfs or zfs needs neither";
            Row::warn(CHECK, found, help)
        }
        Err(error) => {
            Row::fail(CHECK, format!("{}: {error}", folder.display()), "name a folder that can be read")
        }
    }
}
