//! Claim to mount on a folder. One process at a time has it, and it ends when another mount is made there.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::table::{self, MountEntry};

/// Reason why nothing can be mounted on a folder now.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process is about to mount there.
    #[error(
        "{}: another process is about to mount there; `wormhole status` shows it, and `wormhole umount` cancels it",
        .0.display()
    )]
    Busy(PathBuf),
    /// A wormhole mount is there.
    #[error("{}: {source_label} is mounted there already; `wormhole umount` unmounts it", mountpoint.display())]
    Mounted {
        /// The folder.
        mountpoint: PathBuf,
        /// Source of the mount.
        source_label: String,
    },
    /// A mount was made or removed since the claim.
    #[error("{}: something else was mounted or unmounted there meanwhile", .0.display())]
    Changed(PathBuf),
    /// The system does not tell.
    #[error("{}: {why}", mountpoint.display())]
    System {
        /// The folder.
        mountpoint: PathBuf,
        /// Reason.
        why: io::Error,
    },
}

/// A claim to a folder. No other process has one until this is dropped.
#[derive(Debug)]
pub struct Claim {
    mountpoint: PathBuf,
    /// The mount that is there and will be covered.
    covers: Option<MountEntry>,
    /// Lock against other claims. `None` if the file system has no locks on folders.
    _lock: Option<File>,
}

impl Claim {
    /// Claims a folder. Its path must be the one that the kernel lists.
    pub fn take(mountpoint: &Path) -> Result<Self, ClaimError> {
        let covers = look(mountpoint)?;
        if let Some(entry) = covers.as_ref().filter(|entry| entry.is_wormhole()) {
            let (mountpoint, source_label) = (mountpoint.to_owned(), entry.source.clone());
            return Err(ClaimError::Mounted { mountpoint, source_label });
        }
        let lock = match File::open(mountpoint).map(|folder| (folder.try_lock(), folder)) {
            Ok((Err(TryLockError::WouldBlock), _)) => return Err(ClaimError::Busy(mountpoint.to_owned())),
            Ok((Ok(()), folder)) => Some(folder),
            _ => None,
        };
        let claim = Self { mountpoint: mountpoint.to_owned(), covers, _lock: lock };
        // Another process may have mounted between the check and the lock.
        claim.check()?;
        Ok(claim)
    }

    /// Fails if a mount was made or removed there since the claim.
    pub fn check(&self) -> Result<(), ClaimError> {
        let same = match (look(&self.mountpoint)?, &self.covers) {
            (Some(now), Some(then)) => now.is_same_mount(then),
            (now, then) => now.is_none() && then.is_none(),
        };
        if same { Ok(()) } else { Err(ClaimError::Changed(self.mountpoint.clone())) }
    }
}

fn look(mountpoint: &Path) -> Result<Option<MountEntry>, ClaimError> {
    table::mount_at(mountpoint).map_err(|why| ClaimError::System { mountpoint: mountpoint.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_claim_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let claim = Claim::take(&path).unwrap();
        claim.check().unwrap();
        assert!(matches!(Claim::take(&path), Err(ClaimError::Busy(_))));
        drop(claim);
        Claim::take(&path).unwrap();
    }

    #[test]
    fn a_mount_or_unmount_meanwhile_ends_a_claim() {
        let root = Claim::take(Path::new("/")).unwrap();
        root.check().unwrap();
        let elsewhere = Claim { mountpoint: "/".into(), covers: None, _lock: None };
        assert!(matches!(elsewhere.check(), Err(ClaimError::Changed(_))));
        let gone = Claim { mountpoint: "/no such folder".into(), ..root };
        assert!(matches!(gone.check(), Err(ClaimError::Changed(_))));
    }
}
