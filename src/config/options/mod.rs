//! Mount options: what there is to say, and how it is said.
//!
//! Pure. Every option that is accepted either stands in [`table`] and sets a field here, or in [`compat`] with the reason why it
//! sets none.
//! Of an option that is given twice the last one counts, as in mount(8).

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

/// What `-o` lists say. What is `None` was not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// How the kernel treats the mount.
    pub kernel: KernelOptions,
    /// Who appears to own what.
    pub ownership: Ownership,
    /// Which locks are kept on this machine.
    pub local_locks: LocalLocks,
    /// Which host, and who is asking.
    pub host: HostOptions,
    /// How long an answer is waited for.
    pub timeouts: Timeouts,
    /// How long attributes and names are believed.
    pub attributes: AttributeTimes,
    /// What is kept.
    pub cache: CacheOptions,
    /// How content travels.
    pub transfer: TransferOptions,
    /// What happens while the host does not answer the first time.
    pub start: Start,
}

/// How the kernel treats the mount.
#[allow(clippy::struct_excessive_bools, reason = "each is a option of its own that people type")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Nothing is changed through the mount: `ro`.
    pub read_only: bool,
    /// Programs on the mount cannot be run: `noexec`.
    pub no_exec: bool,
    /// Set-user-id bits count: `suid`. For root only.
    pub suid: bool,
    /// Device files work: `dev`. For root only.
    pub dev: bool,
    /// Who may use the mount.
    pub visibility: Visibility,
    /// The kernel checks permission bits itself: `default_permissions`.
    pub default_permissions: bool,
}

impl KernelOptions {
    /// Whether the kernel has to check permission bits: when asked to, and wherever others than the owner get in.
    pub fn checks_permissions(&self) -> bool {
        self.default_permissions || self.visibility != Visibility::Owner
    }
}

/// Who may use the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Who mounted it.
    #[default]
    Owner,
    /// And root: `allow_root`.
    OwnerAndRoot,
    /// Everyone, within permission bits: `allow_other`.
    Everyone,
}

/// Which kinds of file locks hold between programs on this mount alone: `local_lock=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalLocks {
    /// None: all are held on the host.
    #[default]
    None,
    /// All: `nolock`.
    All,
    /// Those of `flock(2)`.
    Flock,
    /// Those of `fcntl(2)`.
    Posix,
}

/// Who appears to own what, and with which permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Shown as the owner of everything: `uid=`.
    pub uid: Option<u32>,
    /// Shown as the group of everything: `gid=`.
    pub gid: Option<u32>,
    /// Permission bits taken from files: `fmask=`, `umask=`.
    pub file_mask: Option<u16>,
    /// Permission bits taken from directories: `dmask=`, `umask=`.
    pub directory_mask: Option<u16>,
    /// Who here stands for whom on the host: `idmap=`.
    pub id_map: IdMapKind,
    /// Users, for [`IdMapKind::File`]: `uidfile=`.
    pub uid_file: Option<PathBuf>,
    /// Groups, for [`IdMapKind::File`]: `gidfile=`.
    pub gid_file: Option<PathBuf>,
    /// Whether numbers without a line in these are shown as they are: `nomap=`.
    pub keeps_unmapped: bool,
}

/// Who here stands for whom on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IdMapKind {
    /// Numbers are the host's: `none`.
    #[default]
    None,
    /// The mounting user for the one as whom the host acts: `user`.
    User,
    /// As files say: `file`.
    File,
}

/// Which host, and who is asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Port of the host, for UDP and TCP, where the source names none: `port=`.
    pub port: Option<u16>,
    /// File with this client's key: `identity=`.
    pub identity: Option<PathBuf>,
    /// File with the keys of hosts: `known_hosts=`.
    pub known_hosts: Option<PathBuf>,
    /// File with a join ticket: `credentials=`.
    pub credentials: Option<PathBuf>,
}

/// How long an operation waits for the host.
///
/// Its deadline is `timeo` x `retrans`, as the longest that NFS waits before it reports a soft timeout, without NFS's growing
/// intervals in between: lost packets are sent again by the transport, long before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Operations wait until the host is back: `hard`.
    pub hard: bool,
    /// `timeo=`, in tenths of a second.
    pub timeo: Duration,
    /// `retrans=`.
    pub retrans: u32,
    /// What is known is not served while the host is away: `nosoftreval`.
    pub never_stale: bool,
}

impl Default for Timeouts {
    /// 30 s, twice: the 60 s after which NFS's own `timeo=600` would first repeat a request.
    fn default() -> Self {
        Self { hard: false, timeo: Duration::from_secs(30), retrans: 2, never_stale: false }
    }
}

impl Timeouts {
    /// After this an operation fails with `ETIMEDOUT`; `None`: never (`hard`).
    pub fn deadline(&self) -> Option<Duration> {
        (!self.hard).then(|| self.timeo.saturating_mul(self.retrans.max(1)))
    }
}

/// How long attributes and names are believed without asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributeTimes {
    /// At least, for files: `acregmin=`.
    pub regular_min: Option<Duration>,
    /// At most, for files: `acregmax=`.
    pub regular_max: Option<Duration>,
    /// At least, for directories: `acdirmin=`.
    pub directory_min: Option<Duration>,
    /// At most, for directories: `acdirmax=`.
    pub directory_max: Option<Duration>,
    /// That a name leads where it led: `entry_timeout=`.
    pub entry: Option<Duration>,
    /// That there is no such name: `negative_timeout=`.
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

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// `cache=`.
    pub mode: CacheMode,
    /// Where: `cache_dir=`.
    pub directory: Option<PathBuf>,
    /// How much of the disk: `cache_size=`.
    pub size: Option<Size>,
    /// How much of the disk stays free: `cache_min_free=`.
    pub min_free: Option<Size>,
    /// How much memory: `memory_target=`.
    pub memory: Option<Size>,
}

/// How far what is kept is trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Nothing is kept on disk: `none`.
    None,
    /// Opening a file asks the host whether it changed: `strict`.
    #[default]
    Strict,
    /// Attributes are believed for their time, opening does not ask: `loose`.
    Loose,
}

/// How content travels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransferOptions {
    /// Most bytes asked for ahead of a reader: `read_ahead=`; 0 turns it off.
    pub read_ahead_bytes: Option<u64>,
    /// Connections to the host: `nconnect=`.
    pub connections: Option<u8>,
    /// Whether content comes compressed: `compress=`.
    pub compression: Option<CompressionWish>,
    /// Whether the host is asked for content before it is sent: `dedup=`.
    pub dedup: DedupWish,
    /// What carries content: `transport=`.
    pub transport: TransportChoice,
    /// Congestion control: `cc=`.
    pub congestion: Option<CongestionKind>,
}

/// What happens while the host does not answer the first time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// The command returns and the daemon goes on trying: `bg`.
    pub background: bool,
    /// For how long it is tried: `retry=`, in minutes.
    pub retry: Option<Duration>,
    /// The host is never asked: what the cache knows is shown: `offline`.
    pub offline: bool,
}

impl Start {
    /// NFS's own for `bg`: 10,000 minutes, a week.
    const BACKGROUND_RETRY: Duration = Duration::from_secs(10_000 * 60);

    /// For how long to try again after a first failure.
    pub fn retry_for(&self) -> Duration {
        let usual = if self.background { Self::BACKGROUND_RETRY } else { Duration::ZERO };
        self.retry.unwrap_or(usual)
    }
}

/// Users and groups of this machine.
pub trait Accounts {
    /// The user of that name.
    fn user(&self, name: &str) -> Option<u32>;
    /// The group of that name.
    fn group(&self, name: &str) -> Option<u32>;
}

/// As the system's name service knows them.
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

/// Options, and what there is to say about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What was set.
    pub options: MountOptions,
    /// Accepted options that set nothing, each with the reason, for the log.
    pub remarks: Vec<String>,
}

impl MountOptions {
    /// Reads `-o` lists in their order.
    ///
    /// `sloppy` turns unknown options into remarks, as `mount -s` asks; `environment` says whether root is asking.
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
