//! Mounting without `fusermount3`, for root.
//!
//! The library mounts as type `fuse`; only a call of mount(2) of our own makes the mount table say `fuse.wormhole`, by which
//! `findmnt`, `df -t`, `updatedb` and our own commands tell such mounts from others. `fusermount3` does the same for users.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::session::{Access, FuseConfig};

/// What the mount table shows.
const TYPE: &str = "fuse.wormhole";

/// Mounts on `mountpoint`. `None` if only `fusermount3` may.
pub(super) fn mount_directly(mountpoint: &Path, config: &FuseConfig) -> io::Result<Option<OwnedFd>> {
    let root_mode = mountpoint.metadata()?.mode();
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = options(&device, root_mode, config);
    match mount(Some(config.source.as_str()), mountpoint, Some(TYPE), flags(config), Some(options.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn options(device: &File, root_mode: u32, config: &FuseConfig) -> String {
    let mut options = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={}",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if config.default_permissions {
        options.push_str(",default_permissions");
    }
    // Between root and the others the library distinguishes itself.
    if config.access != Access::Owner {
        options.push_str(",allow_other");
    }
    options
}

fn flags(config: &FuseConfig) -> MsFlags {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, config.read_only);
    flags.set(MsFlags::MS_NODEV, !config.allows_devices);
    flags.set(MsFlags::MS_NOSUID, !config.allows_set_uid);
    flags.set(MsFlags::MS_NOEXEC, !config.allows_exec);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_forbidden_to_the_kernel() {
        let safe = flags(&FuseConfig::default());
        assert!(safe.contains(MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID));
        assert!(!safe.contains(MsFlags::MS_NOEXEC));
        let open = FuseConfig {
            read_only: false,
            allows_devices: true,
            allows_set_uid: true,
            allows_exec: false,
            ..FuseConfig::default()
        };
        assert_eq!(flags(&open), MsFlags::MS_NOEXEC);
    }

    #[test]
    fn others_get_in_only_when_asked_for() {
        let device = File::open("/dev/null").unwrap();
        let text = |access| options(&device, 0o40_755, &FuseConfig { access, ..FuseConfig::default() });
        assert!(
            text(Access::Owner).contains("rootmode=40755") && !text(Access::Owner).contains("allow_other")
        );
        assert!(text(Access::All).ends_with(",default_permissions,allow_other"));
        assert!(text(Access::RootAndOwner).contains("allow_other"));
    }
}
