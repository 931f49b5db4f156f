//! Mounting: the options, the threads, and how it ends.
//!
//! The mount ends when the kernel says so, whoever asked it to: [`Mounted::unmount`], `umount(8)`, or an abort. Whoever
//! waits for [`Mounted::ended`] learns it in each case.

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

/// Who may use a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// The user who mounted it.
    #[default]
    Owner,
    /// He and root (`allow_root`).
    RootAndOwner,
    /// Everybody, as permissions allow (`allow_other`).
    All,
}

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of mount(8) that is on or off")]
pub struct FuseConfig {
    /// What `mount` and `df` show as the source. Not a ticket: everybody can read it.
    pub source: String,
    /// Who may use it.
    pub access: Access,
    /// Whether the kernel refuses all changes by itself.
    pub read_only: bool,
    /// Whether the kernel checks permissions.
    pub default_permissions: bool,
    /// Whether the kernel also goes by the host's POSIX ACLs. It checks permissions then in any case.
    pub acls: bool,
    /// Whether device nodes work.
    pub allows_devices: bool,
    /// Whether set-user-id programs work.
    pub allows_set_uid: bool,
    /// Whether programs can be run.
    pub allows_exec: bool,
    /// Threads that take requests from the kernel. They never wait for the network; two fill the kernel's copying.
    pub threads: usize,
    /// Most requests that nobody waits for (readahead), which the kernel sends at once.
    pub background_max: u16,
    /// The kernel's readahead, in bytes. Above 128 KiB it can only be set as root, after mounting; 1 MiB, one request,
    /// was the fastest measured (2.6 against 1.8 GB/s at 128 KiB, 2.1 at 16 MiB).
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

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount on {}: {source}{}", mountpoint.display(), hint(source))]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The session could not start.
    #[error("cannot serve the mount on {}: {source}", mountpoint.display())]
    Start {
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Returns what would help against an error of mounting.
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

/// What is told to the kernel when it says hello.
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
        // The kernel takes idmapped mounts only where it checks permissions itself. It then says who asks only where something
        // is made, so the FUSE library would refuse everything else where it lets in the owner alone.
        let idmapped = default_permissions && matches!(access, Access::All);
        Self { background_max, read_ahead_bytes, acls, idmapped }
    }

    /// Asks for the limits; where the kernel grants less, for what it grants.
    pub(super) fn apply(self, config: &mut KernelConfig) {
        let asked = config.set_max_write(REQUEST_BYTES_MAX);
        debug_assert!(asked.is_ok(), "the library takes requests of 16 MiB");
        if let Err(granted) = config.set_max_readahead(self.read_ahead_bytes) {
            tracing::debug!(granted, "the kernel's readahead is smaller than asked for");
        }
        if self.acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::debug!("the kernel does not go by ACLs");
        }
        if self.idmapped && config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP).is_err() {
            tracing::debug!("the kernel does not make idmapped mounts of it");
        }
        let _ = config.set_max_background(self.background_max);
        let _ = config.set_congestion_threshold(self.background_max / 4 * 3);
    }
}

/// A mount that is served. Dropping it detaches it from its folder.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// How the kernel listed it when it was made. `None`: it was gone before anybody could look.
    entry: Option<MountEntry>,
    ended: watch::Receiver<Option<Arc<io::Result<()>>>>,
    _notify: Vec<oneshot::Sender<()>>,
}

/// Mounts `fs` on `mountpoint` and serves it from threads of its own. When it returns, the mount answers.
pub fn mount(fs: &Arc<FileSystem>, mountpoint: &Path, config: &FuseConfig) -> Result<Mounted, FuseError> {
    let adapter = FuseAdapter::new(Arc::clone(fs), KernelLimits::of(config));
    let lanes = [EventLane::Copies, EventLane::Attributes].map(|lane| fs.take_events(lane));
    serve(adapter, mountpoint, config, |notifier| {
        let start = |events| notify::start(fs.runtime().clone(), notifier.clone(), events);
        lanes.into_iter().flatten().map(start).collect()
    })
}

/// Mounts any of the library's file systems.
pub(super) fn serve<F: fuser::Filesystem>(
    adapter: F,
    mountpoint: &Path,
    config: &FuseConfig,
    start_notify: impl FnOnce(fuser::Notifier) -> io::Result<Vec<oneshot::Sender<()>>>,
) -> Result<Mounted, FuseError> {
    let failed = |source| FuseError::Mount { mountpoint: mountpoint.to_owned(), source };
    // The name under which the kernel lists it.
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
        // After an abort the kernel has let go of us, but the folder has not. A mount that was made on it since, which may have
        // our numbers again, answers.
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

/// Serves from threads of the library's, without its unmounting at the end: it takes a mount that is gone for one that is
/// there, unmounts by name, and so takes away what was mounted on the same folder next.
fn spawn<F: fuser::Filesystem>(session: Session<F>) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut session = session.spawn()?;
    let serving = std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(())));
    std::mem::forget(session);
    Ok(serving)
}

/// Whether nobody serves what is mounted there any more.
fn is_dead(mountpoint: &Path) -> bool {
    mountpoint.metadata().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

impl Mounted {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns when the mount has ended, with an error if that was not because it was unmounted.
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

    /// Whether the mount has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// How the kernel listed it when it was made.
    pub const fn entry(&self) -> Option<&MountEntry> {
        self.entry.as_ref()
    }

    /// Unmounts it; what was mounted on the same folder since stays. After [`UnmountHow::Clean`] wait for [`Self::ended`]; a detached mount ends when its last user is gone.
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
            // Somebody has detached it.
            Ok(()) | Err(UnmountError::NotMounted(_)) => {}
            Err(error) => tracing::warn!(%error, "a mount is left behind"),
        }
    }
}

/// What the library is told. It mounts for root by the kernel, which takes the source as it is, and for others by
/// fusermount3 (`by_helper`), which takes it out of a list: there a comma and a backslash need a backslash.
fn library_config(config: &FuseConfig, by_helper: bool) -> Config {
    let source = config.source.clone();
    let source = if by_helper { source.replace('\\', "\\\\").replace(',', "\\,") } else { source };
    let either = |yes: bool, then: MountOption, otherwise: MountOption| if yes { then } else { otherwise };
    let mut options = vec![
        MountOption::FSName(source),
        // The library tells a subtype to fusermount3 only; said so, the kernel hears it in both cases.
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

/// Raises the kernel's readahead over what a FUSE mount is granted; root only.
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
