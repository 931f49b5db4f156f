//! Sessions: mounting, options, threads, end.
//!
//! The mount ends when the kernel says so, for any reason: [`Mounted::unmount`], `umount(8)`, or an abort.
//! [`Mounted::ended`] completes in each case.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, InitFlags, KernelConfig, MountOption, Session, SessionACL};
use tokio::sync::{oneshot, watch};

use super::adapter::FuseAdapter;
use super::device::check_device;
use super::notify;
use super::table::{self, MountEntry};
use super::unmount::{UnmountError, UnmountHow, unmount};
use crate::fs::{EventLane, FileSystem};

/// Users that may access a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// The mounting user.
    #[default]
    Owner,
    /// The mounting user and root (`allow_root`).
    RootAndOwner,
    /// All users, within permissions (`allow_other`).
    All,
}

/// Options of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of mount(8) that is on or off")]
pub struct FuseConfig {
    /// Source shown by `mount` and `df`. It must not be a ticket, because everybody can read it.
    pub source: String,
    /// Users that may access the mount.
    pub access: Access,
    /// True if the kernel refuses all changes itself.
    pub read_only: bool,
    /// True if the kernel checks permissions.
    pub default_permissions: bool,
    /// True if the kernel also uses the host's POSIX ACLs. It then checks permissions in any case.
    pub acls: bool,
    /// True if device nodes work.
    pub allows_devices: bool,
    /// True if set-user-id bits have effect.
    pub allows_set_uid: bool,
    /// True if programs can be executed.
    pub allows_exec: bool,
    /// Threads that take requests from the kernel. They never wait for the network. Two saturate the kernel's
    /// copying.
    pub threads: usize,
    /// Largest number of background requests (readahead) in flight.
    pub background_max: u16,
    /// The kernel's readahead, in bytes. Above 128 KiB only root can set it, after mounting. 1 MiB, one
    /// request, was the fastest measured (2.6 GB/s, against 1.8 at 128 KiB and 2.1 at 16 MiB).
    pub read_ahead_bytes: u32,
}

impl Default for FuseConfig {
    fn default() -> Self {
        Self {
            source: "wormhole".into(),
            access: Access::Owner,
            read_only: true,
            default_permissions: true,
            acls: false,
            allows_devices: false,
            allows_set_uid: false,
            allows_exec: true,
            threads: 2,
            background_max: 64,
            read_ahead_bytes: 1024 * 1024,
        }
    }
}

/// Reason why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount on {}: {source}{}", mountpoint.display(), hint(source))]
    Mount {
        /// Mountpoint.
        mountpoint: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The session could not start.
    #[error("cannot serve the mount on {}: {source}", mountpoint.display())]
    Start {
        /// Mountpoint.
        mountpoint: PathBuf,
        /// Reason.
        source: io::Error,
    },
}

/// Returns a remedy for an error of mounting.
fn hint(error: &io::Error) -> String {
    if let Err(device) = check_device() {
        return format!("; {device}: {}", device.remedy());
    }
    let help = match (error.kind(), error.raw_os_error()) {
        (_, Some(libc::ENOTCONN)) => "; a dead mount is there: umount it first",
        (io::ErrorKind::NotFound, _) => "; does the folder exist?",
        (io::ErrorKind::PermissionDenied, _) => {
            "; plain users need fusermount3 (package fuse3), a folder that they may write to, and user_allow_other in \
             /etc/fuse.conf for allow_other"
        }
        _ => "",
    };
    help.to_owned()
}

/// Limits and capabilities sent to the kernel at the start of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelLimits {
    background_max: u16,
    read_ahead_bytes: u32,
    acls: bool,
    idmapped: bool,
}

/// Longest request, in bytes: the kernel's default limit of 256 pages.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

impl KernelLimits {
    pub(super) const fn of(config: &FuseConfig) -> Self {
        let FuseConfig { background_max, read_ahead_bytes, acls, access, default_permissions, .. } = *config;
        // The kernel allows idmapped mounts only if it checks permissions itself. It then sends the caller's
        // ids only with calls that create something. So with access for the owner alone the FUSE library
        // would refuse everything else.
        let idmapped = default_permissions && matches!(access, Access::All);
        Self { background_max, read_ahead_bytes, acls, idmapped }
    }

    /// Requests the limits, and accepts smaller ones from the kernel.
    pub(super) fn apply(self, config: &mut KernelConfig) {
        let asked = config.set_max_write(REQUEST_BYTES_MAX);
        debug_assert!(asked.is_ok(), "the library takes requests of 16 MiB");
        if let Err(granted) = config.set_max_readahead(self.read_ahead_bytes) {
            tracing::debug!(granted, "the kernel's readahead is smaller than requested");
        }
        if self.acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::debug!("the kernel does not support ACLs");
        }
        if self.idmapped && config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP).is_err() {
            tracing::debug!("the kernel does not support idmapped mounts of it");
        }
        let _ = config.set_max_background(self.background_max);
        let _ = config.set_congestion_threshold(self.background_max / 4 * 3);
    }
}

/// A mount that is served. Dropping it detaches it from its folder.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// Entry in the mount table when the mount was made, `None` if it was gone before the table was read.
    entry: Option<MountEntry>,
    ended: watch::Receiver<Option<Arc<io::Result<()>>>>,
    _notify: Vec<oneshot::Sender<()>>,
}

/// Mounts `fs` on `mountpoint` and serves it from its own threads. When this returns, the mount answers.
pub fn mount(fs: &Arc<FileSystem>, mountpoint: &Path, config: &FuseConfig) -> Result<Mounted, FuseError> {
    let adapter = FuseAdapter::new(Arc::clone(fs), KernelLimits::of(config));
    let lanes = [EventLane::Copies, EventLane::Attributes].map(|lane| fs.take_events(lane));
    serve(adapter, mountpoint, config, |notifier| {
        let start = |events| notify::start(fs.runtime().clone(), notifier.clone(), events);
        lanes.into_iter().flatten().map(start).collect()
    })
}

/// Mounts any file system of the library.
pub(super) fn serve<F: fuser::Filesystem>(
    adapter: F,
    mountpoint: &Path,
    config: &FuseConfig,
    start_notify: impl FnOnce(fuser::Notifier) -> io::Result<Vec<oneshot::Sender<()>>>,
) -> Result<Mounted, FuseError> {
    let failed = |source| FuseError::Mount { mountpoint: mountpoint.to_owned(), source };
    // Path under which the kernel lists the mount.
    let mountpoint_found = mountpoint.canonicalize().map_err(failed)?;
    let by_helper = !nix::unistd::geteuid().is_root();
    let session =
        Session::new(adapter, &mountpoint_found, &library_config(config, by_helper)).map_err(failed)?;
    let not_started = |source| FuseError::Start { mountpoint: mountpoint.to_owned(), source };
    let notify = start_notify(session.notifier()).map_err(not_started)?;
    let serving = spawn(session).map_err(not_started)?;
    let (end, ended) = watch::channel(None);
    let entry = table::mount_at(&mountpoint_found).ok().flatten();
    let ours = entry.clone();
    let wait = move || {
        let panicked = |_| Err(io::Error::other("the thread that serves the mount has panicked"));
        let result = serving.join().unwrap_or_else(panicked);
        tracing::debug!(?result, "the mount has ended");
        // After an abort the kernel has closed the connection, but the folder still shows the mount. A later
        // mount on the same folder, which may have the same numbers, would answer.
        if let Some(ours) = ours.filter(|ours| result.is_err() && is_dead(&ours.mountpoint)) {
            let _ = unmount(&ours, UnmountHow::Detach);
        }
        end.send_replace(Some(Arc::new(result)));
    };
    std::thread::Builder::new().name("wormhole-fuse".into()).spawn(wait).map_err(not_started)?;
    if let Some(entry) = &entry {
        raise_read_ahead(entry.device, config.read_ahead_bytes);
    }
    Ok(Mounted { mountpoint: mountpoint_found, entry, ended, _notify: notify })
}

/// Serves from threads of the library, without its unmount at the end. The library takes an ended mount for a
/// present one and unmounts by path, so it would remove the next mount on the same folder.
fn spawn<F: fuser::Filesystem>(session: Session<F>) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut session = session.spawn()?;
    let serving = std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(())));
    std::mem::forget(session);
    Ok(serving)
}

/// Returns true if the mount there is not served any more.
fn is_dead(mountpoint: &Path) -> bool {
    mountpoint.metadata().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

impl Mounted {
    /// Returns the mountpoint.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the mount has ended. Returns an error unless it was unmounted.
    pub async fn ended(&self) -> io::Result<()> {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await;
        match end.as_deref() {
            Ok(Some(result)) => match result.as_ref() {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            },
            Ok(None) | Err(_) => Err(io::Error::other("the thread that serves the mount has panicked")),
        }
    }

    /// Returns true if the mount has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Returns the entry in the mount table when the mount was made.
    pub const fn entry(&self) -> Option<&MountEntry> {
        self.entry.as_ref()
    }

    /// Unmounts this mount, and not a later one on the same folder. After [`UnmountHow::Clean`] wait for
    /// [`Self::ended`]. A detached mount ends with its last user.
    pub fn unmount(&self, how: UnmountHow) -> Result<(), UnmountError> {
        match &self.entry {
            Some(entry) if !self.has_ended() => unmount(entry, how),
            _ => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        match self.unmount(UnmountHow::Detach) {
            // It was detached before.
            Ok(()) | Err(UnmountError::NotMounted(_)) => {}
            Err(error) => tracing::warn!(%error, "a mount is left in place"),
        }
    }
}

/// Returns the options for the library. For root it mounts by the kernel, which takes the source literally.
/// For others it mounts by fusermount3 (`by_helper`), which takes the source from a list, where a comma and a
/// backslash need a backslash.
fn library_config(config: &FuseConfig, by_helper: bool) -> Config {
    let source = config.source.clone();
    let source = if by_helper { source.replace('\\', "\\\\").replace(',', "\\,") } else { source };
    let either = |yes: bool, then: MountOption, otherwise: MountOption| if yes { then } else { otherwise };
    let mut options = vec![
        MountOption::FSName(source),
        // The library passes a subtype only to fusermount3. This form reaches the kernel in both cases.
        MountOption::CUSTOM("subtype=wormhole".into()),
        either(config.read_only, MountOption::RO, MountOption::RW),
        either(config.allows_devices, MountOption::Dev, MountOption::NoDev),
        either(config.allows_set_uid, MountOption::Suid, MountOption::NoSuid),
        either(config.allows_exec, MountOption::Exec, MountOption::NoExec),
    ];
    if config.default_permissions {
        options.push(MountOption::DefaultPermissions);
    }
    let mut library = Config::default();
    library.mount_options = options;
    library.acl = match config.access {
        Access::Owner => SessionACL::Owner,
        Access::RootAndOwner => SessionACL::RootAndOwner,
        Access::All => SessionACL::All,
    };
    library.n_threads = Some(config.threads.max(1));
    library.clone_fd = true;
    library
}

/// Raises the kernel's readahead above the limit of FUSE mounts. Works only for root.
fn raise_read_ahead((major, minor): (u32, u32), read_ahead_bytes: u32) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    match std::fs::write(&path, (read_ahead_bytes / 1024).to_string()) {
        Ok(()) => tracing::debug!(path, read_ahead_bytes, "raised the kernel's readahead"),
        Err(error) => {
            tracing::debug!(path, %error, "the kernel's readahead stays as it is; root can raise it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_escaped_for_the_helper_alone() {
        let config = FuseConfig { source: r"nas:/a,b\c".into(), ..Default::default() };
        for (by_helper, name) in [(false, r"nas:/a,b\c"), (true, r"nas:/a\,b\\c")] {
            let options = library_config(&config, by_helper).mount_options;
            assert!(options.contains(&MountOption::FSName(name.into())), "{options:?}");
        }
    }

    #[test]
    fn safe_options_are_the_default() {
        let library = library_config(&FuseConfig::default(), false);
        for option in
            [MountOption::RO, MountOption::NoDev, MountOption::NoSuid, MountOption::DefaultPermissions]
        {
            assert!(library.mount_options.contains(&option), "{option:?}");
        }
        assert_eq!(library.acl, SessionACL::Owner);
        let open =
            FuseConfig { read_only: false, allows_devices: true, access: Access::All, ..Default::default() };
        let library = library_config(&open, false);
        assert!(library.mount_options.contains(&MountOption::RW));
        assert!(library.mount_options.contains(&MountOption::Dev));
        assert_eq!(library.acl, SessionACL::All);
    }
}
