//! Turns options into a mount configuration, with defaults.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::id_files::{IdMapError, id_mapping};
use super::options::{AttributeTimes, CacheMode, CacheOptions, HostOptions, LocalLocks, TransferOptions};
use super::{Environment, LocalAccounts, MountOptions, NoHome, Side, Size, Visibility};
use crate::cache::CacheConfig;
use crate::chunk::CHUNK_BYTES;
use crate::fetch::FetchConfig;
use crate::fs::{Freshness, Ownership, RemoteLocks};
use crate::fuse::{Access, FuseConfig};
use crate::io::private::{self, NotPrivate};
use crate::mount::{CacheChoice, LinkConfig, MountConfig, Remote};
use crate::proto::CompressionWish;
use crate::transport::interfaces::address_kind;
use crate::transport::mount_source::SourceError;
use crate::transport::{
    DEFAULT_PORT, Expected, ExpectedHost, HostAddress, HostQuery, KnownHosts, MountSource, Ticket,
    TransportTuning,
};

/// Largest default size of the cache.
const CACHE_BYTES_DEFAULT_MAX: u64 = 20 << 30;
/// Default share of the disk for the cache.
const CACHE_SHARE_DEFAULT: Size = Size::Percent(10);
/// Default share of the disk that stays free, as reserved for root by ext4.
const MIN_FREE_DEFAULT: Size = Size::Percent(5);

/// Default memory for content. Three quarters hold chunks, one quarter holds data in transit.
const MEMORY_BYTES_DEFAULT: u64 = 128 << 20;
/// Smallest memory. Less would not hold the requests under way on a slow link.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Cache time of attributes with `cache=loose`, the default of NFS's `acregmax`.
const LOOSE: Duration = Duration::from_secs(60);

/// Deadline with `hard`, longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Largest credentials file. It holds one word.
const CREDENTIALS_BYTES_MAX: u64 = 16 * 1024;

/// Source and mountpoint of a mount, apart from options.
#[derive(Debug, Clone)]
pub struct MountTarget {
    /// The source.
    pub source: MountSource,
    /// The source as text, without secrets.
    pub label: String,
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// Directory of keys and known hosts, if not the default one.
    pub state_dir: Option<PathBuf>,
}

/// Error of a mount configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No default place for files.
    #[error(transparent)]
    NoHome(#[from] NoHome),
    /// The source is not valid.
    #[error(transparent)]
    MountSource(#[from] SourceError),
    /// `credentials=` holds no ticket.
    #[error("credentials file {}: {why}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Reason.
        why: String,
    },
    /// No host is known at all.
    #[error(
        "the host {host} is not known here: mount it once by a ticket (on the host: `wormhole pair new`), or give one with -o credentials=FILE"
    )]
    UnknownHost {
        /// The host.
        host: HostAddress,
    },
    /// `offline` together with an option that leaves nothing to show.
    #[error("`offline` shows only cached data, and `{0}` does not allow it")]
    NothingOffline(&'static str),
    /// The id mapping is not valid.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    /// The known-hosts file cannot be used.
    #[error(transparent)]
    KnownHosts(#[from] crate::transport::known_hosts::KnownHostsError),
    /// The directory of keys and known hosts belongs to another user, or others may write to it.
    #[error("cannot trust the files in {}: {source}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Reason, with a remedy.
        source: NotPrivate,
    },
    /// The size of the cache's disk is unknown.
    #[error("cache directory {}: {why}", path.display())]
    CacheDisk {
        /// The directory.
        path: PathBuf,
        /// Reason.
        why: String,
    },
}

/// Makes the mount configuration. Reads the known hosts and the credentials.
pub fn mount_config(
    target: MountTarget,
    options: &MountOptions,
    environment: &Environment,
) -> Result<MountConfig, ConfigError> {
    let state = |name: &str| {
        let directory = match &target.state_dir {
            Some(directory) => directory.clone(),
            None => environment.state_dir(Side::Client)?,
        };
        // A user that may write there decides which hosts are known.
        private::check_if_there(&directory)
            .map_err(|source| ConfigError::StateDir { path: directory.clone(), source })?;
        Ok::<_, ConfigError>(directory.join(name))
    };
    let host = &options.host;
    let known_hosts = KnownHosts::at(match &host.known_hosts {
        Some(path) => path.clone(),
        None => state("known_hosts")?,
    });
    let identity_file = match &host.identity {
        Some(path) => path.clone(),
        None => state("identity")?,
    };
    let memory_bytes = memory_bytes(options.cache.memory);
    let offline = options.start.offline;
    match (options.cache.mode, options.timeouts.never_stale) {
        (CacheMode::None, _) if offline => return Err(ConfigError::NothingOffline("cache=none")),
        (_, true) if offline => return Err(ConfigError::NothingOffline("nosoftreval")),
        _ => {}
    }
    Ok(MountConfig {
        remote: remote(&target.source, host, &known_hosts)?,
        offline,
        serves_stale: !options.timeouts.never_stale,
        dedup: options.transfer.dedup,
        known_hosts,
        identity_file,
        mountpoint: target.mountpoint,
        control_dir: environment.control_dir(),
        link: link(&options.transfer, options.timeouts.deadline(), memory_bytes),
        cache: cache(&options.cache, environment)?,
        fetch: fetch(&options.transfer, memory_bytes),
        freshness: freshness(&options.attributes, options.cache.mode),
        ownership: Ownership {
            uid: options.ownership.uid,
            gid: options.ownership.gid,
            file_mask: options.ownership.file_mask.unwrap_or(0),
            directory_mask: options.ownership.directory_mask.unwrap_or(0),
            ..Ownership::default()
        },
        id_mapping: id_mapping(&options.ownership, environment, &LocalAccounts)?,
        locks: locks(options.local_locks),
        fuse: fuse(options, &target.label),
        label: target.label,
    })
}

/// Returns the addresses of the host, its expected key, and the secret for it.
fn remote(source: &MountSource, options: &HostOptions, known: &KnownHosts) -> Result<Remote, ConfigError> {
    match source {
        MountSource::Ticket(ticket) => Ok(Remote {
            addresses: ticket.addresses().to_vec(),
            expected: ExpectedHost::Key(ticket.host_key()),
            query: None,
            export: ticket.export().to_owned(),
            sub_path: Vec::new(),
            secret: Some(ticket.secret()),
        }),
        MountSource::Address { host, port, export, sub_path } => {
            let port = port.or(options.port).unwrap_or(DEFAULT_PORT);
            let address = HostAddress::new(host, port)?;
            let ticket = options.credentials.as_deref().map(read_ticket).transpose()?;
            let query =
                HostQuery { kind: address_kind(&address), address: address.clone(), export: export.clone() };
            let expected = match &ticket {
                Some(ticket) => ExpectedHost::Key(ticket.host_key()),
                None => match known.expected(&query)? {
                    Expected::Only(key) => ExpectedHost::Key(key),
                    Expected::AnyKnown(keys) if keys.is_empty() => {
                        return Err(ConfigError::UnknownHost { host: address });
                    }
                    Expected::AnyKnown(keys) => ExpectedHost::OneOf(Arc::new(keys)),
                },
            };
            Ok(Remote {
                addresses: vec![address],
                expected,
                query: Some(query),
                export: export.clone(),
                sub_path: sub_path.clone().into_bytes(),
                secret: ticket.map(|ticket| ticket.secret()),
            })
        }
    }
}

fn read_ticket(path: &Path) -> Result<Ticket, ConfigError> {
    let wrong = |why: &dyn std::fmt::Display| ConfigError::Credentials {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| wrong(&error))?;
    text.trim().parse().map_err(|error| wrong(&error))
}

fn link(options: &TransferOptions, deadline: Option<Duration>, memory_bytes: u64) -> LinkConfig {
    let connections = options.connections.unwrap_or(1);
    let mut tuning = TransportTuning::for_memory(memory_bytes / 4 / u64::from(connections));
    tuning.transport = options.transport;
    if let Some(congestion) = options.congestion {
        tuning.congestion = congestion;
    }
    LinkConfig {
        deadline: deadline.unwrap_or(FOREVER),
        connections: connections.into(),
        compression: options.compression.unwrap_or(CompressionWish::Worthwhile),
        tuning,
    }
}

fn fetch(options: &TransferOptions, memory_bytes: u64) -> FetchConfig {
    let mut fetch = FetchConfig { memory_bytes: memory_bytes / 4 * 3, ..FetchConfig::default() };
    if let Some(ahead_bytes) = options.read_ahead_bytes {
        let request_bytes = fetch.request_chunks * CHUNK_BYTES;
        fetch.ahead_requests_max = ahead_bytes.div_ceil(request_bytes) as usize;
    }
    fetch
}

const fn locks(local: LocalLocks) -> RemoteLocks {
    match local {
        LocalLocks::None => RemoteLocks::ALL,
        LocalLocks::All => RemoteLocks::NONE,
        LocalLocks::Flock => RemoteLocks { flock: false, fcntl: true },
        LocalLocks::Posix => RemoteLocks { flock: true, fcntl: false },
    }
}

fn fuse(options: &MountOptions, label: &str) -> FuseConfig {
    let mut fuse = FuseConfig {
        source: label.to_owned(),
        access: match options.kernel.visibility {
            Visibility::Owner => Access::Owner,
            Visibility::OwnerAndRoot => Access::RootAndOwner,
            Visibility::Everyone => Access::All,
        },
        read_only: options.kernel.read_only,
        default_permissions: options.kernel.checks_permissions(),
        acls: goes_by_acls(options),
        allows_devices: options.kernel.dev,
        allows_set_uid: options.kernel.suid,
        allows_exec: !options.kernel.no_exec,
        ..FuseConfig::default()
    };
    if let Some(ahead_bytes) = options.transfer.read_ahead_bytes {
        // If the user wants little read-ahead, the kernel must not do more.
        fuse.read_ahead_bytes = fuse.read_ahead_bytes.min(u32::try_from(ahead_bytes).unwrap_or(u32::MAX));
    }
    fuse
}

/// Returns true if the kernel shall use the host's ACLs: if it checks permissions at all, with owners and
/// modes of the host. Offline the ACLs are unknown.
fn goes_by_acls(options: &MountOptions) -> bool {
    let ownership = &options.ownership;
    let shows_the_hosts = ownership.uid.is_none()
        && ownership.gid.is_none()
        && ownership.file_mask.is_none()
        && ownership.directory_mask.is_none();
    options.kernel.checks_permissions() && shows_the_hosts && !options.start.offline
}

/// Returns the cache times. The separate times of NFS for files and directories are one here: a second, at
/// least the given minimum, and at most the given maximum. Times of attributes also hold for names, unless
/// names have their own.
fn freshness(times: &AttributeTimes, mode: CacheMode) -> Freshness {
    let mut usual = Freshness::default();
    if mode == CacheMode::Loose {
        usual = Freshness { attributes: LOOSE, entries: LOOSE, ..usual };
    }
    let at_least = times.regular_min.max(times.directory_min).unwrap_or(Duration::ZERO);
    let at_most = [times.regular_max, times.directory_max].into_iter().flatten().min();
    let bounded = |usual: Duration| usual.max(at_least).min(at_most.unwrap_or(Duration::MAX));
    Freshness {
        attributes: bounded(usual.attributes),
        entries: times.entry.unwrap_or_else(|| bounded(usual.entries)),
        absence: times.negative.unwrap_or_else(|| usual.absence.min(bounded(usual.entries))),
    }
}

fn cache(options: &CacheOptions, environment: &Environment) -> Result<Option<CacheChoice>, ConfigError> {
    if options.mode == CacheMode::None {
        return Ok(None);
    }
    let directory = match &options.directory {
        Some(directory) => directory.clone(),
        None => environment.cache_dir()?,
    };
    let disk_bytes = disk_bytes(&directory)
        .map_err(|error| ConfigError::CacheDisk { path: directory.clone(), why: error.desc().to_owned() })?;
    let size_bytes = match options.size {
        Some(size) => size.bytes_of(disk_bytes),
        None => CACHE_SHARE_DEFAULT.bytes_of(disk_bytes).min(CACHE_BYTES_DEFAULT_MAX),
    };
    let min_free_bytes = options.min_free.unwrap_or(MIN_FREE_DEFAULT).bytes_of(disk_bytes);
    let config = CacheConfig {
        directory,
        size_bytes,
        min_free_ratio: min_free_bytes as f64 / disk_bytes.max(1) as f64,
        segment_bytes: None,
    };
    Ok(Some(CacheChoice { config, is_explicit: options.directory.is_some() }))
}

/// Returns the size of the file system that has `directory`, or will have it.
fn disk_bytes(directory: &Path) -> nix::Result<u64> {
    let mut last = nix::errno::Errno::ENOENT;
    for existing in directory.ancestors() {
        match nix::sys::statvfs::statvfs(existing) {
            Ok(found) => return Ok(found.blocks() * found.fragment_size()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the bytes of `memory_target=` on this machine.
fn memory_bytes(target: Option<Size>) -> u64 {
    let bytes = match target {
        None => MEMORY_BYTES_DEFAULT,
        Some(Size::Bytes(bytes)) => bytes,
        Some(share) => share.bytes_of(machine_memory_bytes()),
    };
    bytes.max(MEMORY_BYTES_MIN)
}

/// Returns the memory of the machine, or the limit of the control group if it is lower.
fn machine_memory_bytes() -> u64 {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let kib = text("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    let total = kib.map_or(MEMORY_BYTES_DEFAULT, |kib: u64| kib * 1024);
    text("/sys/fs/cgroup/memory.max").trim().parse().map_or(total, |limit: u64| limit.min(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accounts, LocalAccounts};
    use crate::fs::DedupWish;
    use crate::mount::IdMapping;
    use std::collections::BTreeSet;

    use crate::proto::TicketSecret;
    use crate::transport::{CongestionKind, HostContact, Identity, TransportChoice, TransportKind};

    fn config_of(source: MountSource, list: &str) -> Result<MountConfig, ConfigError> {
        let environment =
            Environment { uid: 1000, gid: 100, home: Some("/home/ann".into()), ..Environment::default() };
        let accounts: &dyn Accounts = &LocalAccounts;
        let options = MountOptions::parse([list], false, &environment, accounts).unwrap().options;
        let target =
            MountTarget { source, label: "nas:/m".to_owned(), mountpoint: "/mnt".into(), state_dir: None };
        mount_config(target, &options, &environment)
    }

    fn ticket() -> Ticket {
        let address = HostAddress::new("nas", 4433).unwrap();
        let key = Identity::generate().unwrap().public_key();
        Ticket::new(vec![address], key, "m".to_owned(), TicketSecret([7; 16])).unwrap()
    }

    fn config(list: &str) -> MountConfig {
        config_of(MountSource::Ticket(ticket()), list).unwrap()
    }

    #[test]
    fn no_options_mean_the_defaults() {
        let config = config("");
        assert_eq!(config.link.deadline, Duration::from_secs(60));
        assert_eq!(config.link.connections, 1);
        assert_eq!(config.link.tuning, TransportTuning::default());
        assert_eq!(config.fetch, FetchConfig::default());
        assert_eq!(config.freshness, Freshness::default());
        assert_eq!(config.ownership, Ownership::default());
        assert_eq!(config.identity_file, Path::new("/home/ann/.local/state/wormhole/client/identity"));
        assert!(config.remote.secret.is_some());
        let cache = config.cache.unwrap();
        assert!(!cache.is_explicit && cache.config.size_bytes <= CACHE_BYTES_DEFAULT_MAX);
        assert!((cache.config.min_free_ratio - 0.05).abs() < 0.001);
    }

    #[test]
    fn every_option_reaches_its_setting() {
        assert_eq!(config("timeo=50,retrans=3").link.deadline, Duration::from_secs(15));
        assert_eq!(config("hard").link.deadline, FOREVER);
        let usual = config("");
        assert!(usual.serves_stale && !usual.offline);
        assert!(!config("nosoftreval").serves_stale);
        assert!(config("offline").offline);
        assert_eq!(usual.locks, RemoteLocks::ALL);
        assert_eq!(config("nolock").locks, RemoteLocks::NONE);
        assert_eq!(config("local_lock=flock").locks, RemoteLocks { flock: false, fcntl: true });
        assert_eq!(config("local_lock=posix").locks, RemoteLocks { flock: true, fcntl: false });
        assert_eq!(config("nconnect=4").link.connections, 4);
        assert_eq!(config("compress=on").link.compression, CompressionWish::Always);
        assert_eq!(config("compress=off").link.compression, CompressionWish::Never);
        assert_eq!(config("").link.compression, CompressionWish::Worthwhile);
        assert_eq!(config("").dedup, DedupWish::Worthwhile);
        assert_eq!(config("dedup=on").dedup, DedupWish::Always);
        assert_eq!(config("dedup=off").dedup, DedupWish::Never);
        let tcp = TransportChoice::Only(TransportKind::Tcp);
        assert_eq!(config("transport=tcp").link.tuning.transport, tcp);
        assert_eq!(config("cc=cubic").link.tuning.congestion, CongestionKind::Cubic);
        assert_eq!(config("memory_target=256M").fetch.memory_bytes, 192 << 20);
        assert_eq!(config("memory_target=256M").link.tuning, TransportTuning::for_memory(64 << 20));
        assert!(config("memory_target=50%").fetch.memory_bytes > MEMORY_BYTES_MIN / 2);
        assert_eq!(config("memory_target=1").fetch.memory_bytes, MEMORY_BYTES_MIN / 4 * 3);
        assert_eq!(config("read_ahead=8M").fetch.ahead_requests_max, 8);
        assert_eq!(config("read_ahead=0").fetch.ahead_requests_max, 0);
        assert_eq!(config("identity=/k").identity_file, Path::new("/k"));
        assert_eq!(config("known_hosts=/h").known_hosts.path(), Path::new("/h"));
        let owned = config("uid=1,gid=2,umask=022,fmask=0133").ownership;
        let expected = Ownership {
            uid: Some(1),
            gid: Some(2),
            file_mask: 0o133,
            directory_mask: 0o022,
            ..Ownership::default()
        };
        assert_eq!(owned, expected);
        assert_eq!(config("").id_mapping, IdMapping::None);
        assert_eq!(config("idmap=user").id_mapping, IdMapping::User { uid: 1000, gid: 100 });
        for list in ["idmap=file", "uidfile=/u", "idmap=user,gidfile=/g", "idmap=file,uidfile=/nowhere"] {
            let error = config_of(MountSource::Ticket(ticket()), list).unwrap_err();
            assert!(matches!(error, ConfigError::IdMap(_)), "{list}: {error}");
        }
    }

    #[test]
    fn kernel_options_reach_the_kernel() {
        let fuse = |list| config(list).fuse;
        let usual = fuse("");
        let expected = FuseConfig {
            source: "nas:/m".to_owned(),
            default_permissions: false,
            read_only: false,
            ..FuseConfig::default()
        };
        assert_eq!(usual, expected);
        assert!(!usual.allows_devices && !usual.allows_set_uid);
        assert_eq!(fuse("ro"), FuseConfig { read_only: true, ..usual.clone() });
        assert_eq!(fuse("ro,rw"), usual);
        assert_eq!(fuse("noexec"), FuseConfig { allows_exec: false, ..usual.clone() });
        assert_eq!(fuse("allow_root").access, Access::RootAndOwner);
        let open = fuse("allow_other");
        assert!(open.access == Access::All && open.default_permissions);
        let checked = FuseConfig { default_permissions: true, acls: true, ..usual.clone() };
        assert_eq!(fuse("default_permissions"), checked);
        for list in [
            "allow_other,uid=1",
            "allow_other,gid=1",
            "allow_other,umask=022",
            "allow_other,dmask=0",
            "allow_other,offline",
        ] {
            assert!(!fuse(list).acls, "{list}");
        }
        assert_eq!(fuse("read_ahead=0"), FuseConfig { read_ahead_bytes: 0, ..usual.clone() });
        assert_eq!(fuse("read_ahead=1G"), usual);
    }

    #[test]
    fn cache_options_reach_the_cache() {
        assert!(config("cache=none").cache.is_none());
        let cache = config("cache_dir=/,cache_size=1G,cache_min_free=20%").cache.unwrap();
        assert!(cache.is_explicit);
        assert_eq!((cache.config.directory.as_path(), cache.config.size_bytes), (Path::new("/"), 1 << 30));
        assert!((cache.config.min_free_ratio - 0.2).abs() < 0.001);
    }

    #[test]
    fn offline_needs_something_to_show() {
        for list in ["offline,cache=none", "offline,nosoftreval"] {
            let error = config_of(MountSource::Ticket(ticket()), list).unwrap_err().to_string();
            assert!(error.contains(list.trim_start_matches("offline,")), "{error}");
        }
    }

    #[test]
    fn attribute_times_become_one() {
        let ms = |list| {
            let times = config(list).freshness;
            [times.attributes, times.entries, times.absence].map(|time| time.as_millis())
        };
        for (list, expected) in [
            ("", [1000, 1000, 500]),
            ("noac", [0, 0, 0]),
            ("actimeo=30", [30000, 30000, 500]),
            ("acregmin=3", [3000, 3000, 500]),
            ("acregmin=3,acdirmin=30,acregmax=60,acdirmax=10", [10000, 10000, 500]),
            ("acregmax=60", [1000, 1000, 500]),
            ("actimeo=0", [0, 0, 0]),
            ("attr_timeout=5,entry_timeout=0.25,negative_timeout=2", [5000, 250, 2000]),
            ("cache=loose", [60000, 60000, 500]),
            ("cache=loose,acregmax=5", [5000, 5000, 500]),
        ] {
            assert_eq!(ms(list), expected, "{list}");
        }
    }

    #[test]
    fn a_host_by_name_must_be_known_or_have_a_ticket() {
        let directory = tempfile::tempdir().unwrap();
        let (hosts, credentials) = (directory.path().join("hosts"), directory.path().join("ticket"));
        let source: MountSource = "nas:/m/films".parse().unwrap();
        let list = format!("known_hosts={},port=7000", hosts.display());
        let error = config_of(source.clone(), &list).unwrap_err();
        assert!(error.to_string().contains("nas:7000 is not known here"), "{error}");

        let ticket = ticket();
        fs::write(&credentials, format!("{ticket}\n")).unwrap();
        let vouched = format!("{list},credentials={}", credentials.display());
        let remote = config_of(source.clone(), &vouched).unwrap().remote;
        let right = ExpectedHost::Key(ticket.host_key());
        assert_eq!((&remote.expected, remote.secret), (&right, Some(ticket.secret())));
        assert_eq!((remote.export.as_str(), remote.sub_path.as_slice()), ("m", b"films".as_slice()));
        assert_eq!(remote.addresses, [HostAddress::new("nas", 7000).unwrap()]);

        // Known under another name, then under this one.
        let known = KnownHosts::at(&hosts);
        let mut contact =
            HostContact { key: ticket.host_key(), query: None, vouched: false, answered_at: Vec::new() };
        known.record(&contact).unwrap();
        let remote = config_of(source.clone(), &list).unwrap().remote;
        assert_eq!(remote.expected, ExpectedHost::OneOf(Arc::new(BTreeSet::from([ticket.host_key()]))));
        assert_eq!(remote.secret, None);
        contact.query = remote.query;
        known.record(&contact).unwrap();
        assert_eq!(config_of(source.clone(), &list).unwrap().remote.expected, right);

        let missing = format!("{list},credentials=/nowhere");
        assert!(matches!(config_of(source, &missing), Err(ConfigError::Credentials { .. })));
    }
}
