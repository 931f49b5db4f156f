//! Mount options: their values and their parser.
//!
//! Pure. Every accepted option is either in [`table`] and sets a field here, or in [`compat`] with the reason
//! why it has no effect. If an option is given twice the last one counts, as in mount(8).

mod compat;
mod read;
mod table;

use std::path::PathBuf;
use std::time::Duration;

pub use compat::{OPTIONS_FOR_OTHERS, options_not_yet, options_without_effect};
pub use table::{OPTION_FAMILIES, OptionEntry, OptionFamily};

use super::option_list;
use super::units::Size;
use super::{Environment, OptionError};
use crate::fs::DedupWish;
use crate::proto::CompressionWish;
use crate::transport::{CongestionKind, TransportChoice};

/// Values of `-o` lists. `None` means that the option was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Behaviour of the kernel for the mount.
    pub kernel: KernelOptions,
    /// Owners and permissions.
    pub ownership: Ownership,
    /// Kinds of locks that are kept on this machine.
    pub local_locks: LocalLocks,
    /// Host and identity.
    pub host: HostOptions,
    /// Timeouts of operations.
    pub timeouts: Timeouts,
    /// Times for which attributes and names are cached.
    pub attributes: AttributeTimes,
    /// Disk and memory cache.
    pub cache: CacheOptions,
    /// Transfer of content.
    pub transfer: TransferOptions,
    /// Behaviour while the host does not answer at the start.
    pub start: Start,
}

/// Behaviour of the kernel for the mount.
#[allow(clippy::struct_excessive_bools, reason = "each is a option of its own that people type")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Read-only mount: `ro`.
    pub read_only: bool,
    /// Programs on the mount cannot be executed: `noexec`.
    pub no_exec: bool,
    /// Set-user-id bits have effect: `suid`. For root only.
    pub suid: bool,
    /// Device files work: `dev`. For root only.
    pub dev: bool,
    /// Users that may access the mount.
    pub visibility: Visibility,
    /// The kernel checks permission bits itself: `default_permissions`.
    pub default_permissions: bool,
}

impl KernelOptions {
    /// Returns true if the kernel must check permission bits: if it was asked to, or if other users than the
    /// owner have access.
    pub fn checks_permissions(&self) -> bool {
        self.default_permissions || self.visibility != Visibility::Owner
    }
}

/// Users that may access the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// The mounting user.
    #[default]
    Owner,
    /// The mounting user and root: `allow_root`.
    OwnerAndRoot,
    /// All users, within permission bits: `allow_other`.
    Everyone,
}

/// Kinds of file locks that hold only between programs on this mount: `local_lock=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalLocks {
    /// None. All are held on the host.
    #[default]
    None,
    /// All: `nolock`.
    All,
    /// Those of `flock(2)`.
    Flock,
    /// Those of `fcntl(2)`.
    Posix,
}

/// Owners and permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Owner shown for all files: `uid=`.
    pub uid: Option<u32>,
    /// Group shown for all files: `gid=`.
    pub gid: Option<u32>,
    /// Permission bits removed from files: `fmask=`, `umask=`.
    pub file_mask: Option<u16>,
    /// Permission bits removed from directories: `dmask=`, `umask=`.
    pub directory_mask: Option<u16>,
    /// Mapping of numeric ids: `idmap=`.
    pub id_map: IdMapKind,
    /// File of users for [`IdMapKind::File`]: `uidfile=`.
    pub uid_file: Option<PathBuf>,
    /// File of groups for [`IdMapKind::File`]: `gidfile=`.
    pub gid_file: Option<PathBuf>,
    /// True if numbers without a line in these files are shown unchanged: `nomap=`.
    pub keeps_unmapped: bool,
}

/// Mapping of numeric ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IdMapKind {
    /// Ids are those of the host: `none`.
    #[default]
    None,
    /// The user as which the host acts appears as the mounting user: `user`.
    User,
    /// Files define the mapping: `file`.
    File,
}

/// Host and identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Port of the host, for UDP and TCP, if the source has none: `port=`.
    pub port: Option<u16>,
    /// File with the key of this client: `identity=`.
    pub identity: Option<PathBuf>,
    /// File with the known hosts: `known_hosts=`.
    pub known_hosts: Option<PathBuf>,
    /// File with a ticket: `credentials=`.
    pub credentials: Option<PathBuf>,
}

/// Timeouts of operations.
///
/// The deadline is `timeo` x `retrans`, the longest time for which NFS waits before it reports a soft
/// timeout. The growing intervals of NFS are not needed, because the transport resends lost packets long
/// before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Operations wait until the host is back: `hard`.
    pub hard: bool,
    /// `timeo=`, in tenths of a second.
    pub timeo: Duration,
    /// `retrans=`.
    pub retrans: u32,
    /// Cached data is not served while the host is away: `nosoftreval`.
    pub never_stale: bool,
}

impl Default for Timeouts {
    /// Returns 30 s, twice: the 60 s after which NFS with its own `timeo=600` would first repeat a request.
    fn default() -> Self {
        Self { hard: false, timeo: Duration::from_secs(30), retrans: 2, never_stale: false }
    }
}

impl Timeouts {
    /// Returns the time after which an operation fails with `ETIMEDOUT`, `None` for `hard`.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.hard).then(|| self.timeo.saturating_mul(self.retrans.max(1)))
    }
}

/// Times for which attributes and names are cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributeTimes {
    /// Minimum for files: `acregmin=`.
    pub regular_min: Option<Duration>,
    /// Maximum for files: `acregmax=`.
    pub regular_max: Option<Duration>,
    /// Minimum for directories: `acdirmin=`.
    pub directory_min: Option<Duration>,
    /// Maximum for directories: `acdirmax=`.
    pub directory_max: Option<Duration>,
    /// Time for names: `entry_timeout=`.
    pub entry: Option<Duration>,
    /// Time for the absence of names: `negative_timeout=`.
    pub negative: Option<Duration>,
}

impl AttributeTimes {
    fn set_all_attributes(&mut self, time: Duration) {
        for field in
            [&mut self.regular_min, &mut self.regular_max, &mut self.directory_min, &mut self.directory_max]
        {
            *field = Some(time);
        }
    }
}

/// Disk and memory cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// `cache=`.
    pub mode: CacheMode,
    /// Directory: `cache_dir=`.
    pub directory: Option<PathBuf>,
    /// Size on disk: `cache_size=`.
    pub size: Option<Size>,
    /// Free space that stays on the disk: `cache_min_free=`.
    pub min_free: Option<Size>,
    /// Size of memory: `memory_target=`.
    pub memory: Option<Size>,
}

/// Trust in the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// No disk cache: `none`.
    None,
    /// Opening a file asks the host if it changed: `strict`.
    #[default]
    Strict,
    /// Attributes hold for their time, and opening does not ask: `loose`.
    Loose,
}

/// Transfer of content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransferOptions {
    /// Largest number of bytes requested ahead of a reader: `read_ahead=`. 0 disables it.
    pub read_ahead_bytes: Option<u64>,
    /// Connections to the host: `nconnect=`.
    pub connections: Option<u8>,
    /// Compression of content: `compress=`.
    pub compression: Option<CompressionWish>,
    /// Search for content on the host before it is sent: `dedup=`.
    pub dedup: DedupWish,
    /// Transport protocol: `transport=`.
    pub transport: TransportChoice,
    /// Congestion control: `cc=`.
    pub congestion: Option<CongestionKind>,
}

/// Behaviour while the host does not answer at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// The command returns and the daemon keeps trying: `bg`.
    pub background: bool,
    /// Time for which it tries: `retry=`, in minutes.
    pub retry: Option<Duration>,
    /// The host is never asked, and only cached data is shown: `offline`.
    pub offline: bool,
}

impl Start {
    /// Default of NFS for `bg`: 10,000 minutes, a week.
    const BACKGROUND_RETRY: Duration = Duration::from_secs(10_000 * 60);

    /// Returns the time for which to retry after a first failure.
    pub fn retry_for(&self) -> Duration {
        let usual = if self.background { Self::BACKGROUND_RETRY } else { Duration::ZERO };
        self.retry.unwrap_or(usual)
    }
}

/// User and group database.
pub trait Accounts {
    /// Returns the id of the user of that name.
    fn user(&self, name: &str) -> Option<u32>;
    /// Returns the id of the group of that name.
    fn group(&self, name: &str) -> Option<u32>;
}

/// The name service of this system.
#[derive(Debug, Clone, Copy)]
pub struct LocalAccounts;

impl Accounts for LocalAccounts {
    fn user(&self, name: &str) -> Option<u32> {
        nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
    }

    fn group(&self, name: &str) -> Option<u32> {
        nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
    }
}

/// Parsed options, and remarks about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The options.
    pub options: MountOptions,
    /// Remarks for the log about accepted options without effect.
    pub remarks: Vec<String>,
}

impl MountOptions {
    /// Reads `-o` lists in their order.
    ///
    /// `sloppy` turns unknown options into remarks, like `mount -s`. `environment` tells if the user is root.
    pub fn parse<'a>(
        lists: impl IntoIterator<Item = &'a str>,
        sloppy: bool,
        environment: &Environment,
        accounts: &dyn Accounts,
    ) -> Result<Parsed, OptionError> {
        let mut options = Self::default();
        let mut remarks = Vec::new();
        for list in lists {
            for option in option_list::split(list)? {
                compat::refuse_not_yet(&option)?;
                if table::entry(&option.name).is_some() && options.read(&option, environment, accounts)? {
                    continue;
                }
                match compat::ignored(&option)? {
                    Some("") => {}
                    Some(reason) => {
                        remarks.push(format!("mount option `{}` has no effect: {reason}", option.typed));
                    }
                    None if sloppy => {
                        remarks.push(format!("mount option `{}` is unknown and ignored", option.typed));
                    }
                    None => return Err(OptionError::Unknown(option.typed)),
                }
            }
        }
        Ok(Parsed { options, remarks })
    }
}

#[cfg(test)]
mod tests;
