//! Wiring of the mount side, with its order of start and shutdown.
//!
//! ```text
//! kernel -> fuse session -> FileSystem -> Fetcher -> CachingClient -> RemoteClient -> host
//!                                            |-----------'--> StandbyCache -> DiskCache
//! ```
//!
//! Offline there is no `RemoteClient`.
//!
//! A [`Mount`] starts from right to left, so every request can be answered. It shuts down from left to right:
//! first no more calls of the kernel, then no more requests, then learned data is written to the disk, then
//! the host gets a goodbye. The control socket ends last, so `wormhole status` sees all of it.

mod attempt;
mod handle;
mod memory;
mod sync;
mod trust;
mod warm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

pub use attempt::Attempt;
pub use handle::MountHandle;
use handle::{Link, RequestedState};

use crate::cache::{CacheConfig, CacheError, ChunkCache, NoCache, StandbyCache};
use crate::client::Client as _;
use crate::client::remote::{ClientConfig, ConnectError, RemoteClient};
use crate::control::{ControlSocket, Unsent};
use crate::fetch::{FetchConfig, Fetcher};
use crate::fs::{DedupWish, FileSystem, Freshness, FsConfig, FsError, IdMap, Ownership, RemoteLocks};
use crate::fuse::{self, Claim, ClaimError, FuseConfig, FuseError, Mounted, UnmountError, UnmountHow};
use crate::metadata_cache::{CachingClient, Scope};
use crate::proto::{CompressionWish, SessionId, TicketSecret};
use crate::transport::identity::{IdentityError, random_bytes};
use crate::transport::known_hosts::KnownHostsError;
use crate::transport::{
    DEFAULT_PORT, ExpectedHost, HostAddress, HostQuery, Identity, KnownHosts, MountSource, PublicKey,
    TransportTuning,
};

/// Time for users of a mount to leave it after the order to end.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Interval of messages about unsent data.
const UNSENT_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Time for the cache to write its data. Unwritten data is fetched again, nothing more.
const CACHE_FLUSH_WAIT: Duration = Duration::from_secs(5);

/// Time for the host to get the goodbye.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// Configuration of a mount.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// Host and folder.
    pub remote: Remote,
    /// True if the host is never asked, and only cached data is shown.
    pub offline: bool,
    /// True if cached data is served while the host is away.
    pub serves_stale: bool,
    /// Search for content on the host before it is sent.
    pub dedup: DedupWish,
    /// File with the keys of known hosts.
    pub known_hosts: KnownHosts,
    /// File with the key of this machine. Created if missing.
    pub identity_file: PathBuf,
    /// Source as text, without secrets.
    pub label: String,
    /// Mountpoint, absolute and without symbolic links.
    pub mountpoint: PathBuf,
    /// Directory of the control socket.
    pub control_dir: PathBuf,
    /// Link to the host.
    pub link: LinkConfig,
    /// Disk cache, if any.
    pub cache: Option<CacheChoice>,
    /// Memory and read-ahead.
    pub fetch: FetchConfig,
    /// Cache times of attributes and names.
    pub freshness: Freshness,
    /// Owners and permissions.
    pub ownership: Ownership,
    /// Mapping of numeric ids.
    pub id_mapping: IdMapping,
    /// Kinds of file locks that are held on the host.
    pub locks: RemoteLocks,
    /// Behaviour of the kernel for the mount.
    pub fuse: FuseConfig,
}

/// Host and folder.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Addresses of the host.
    pub addresses: Vec<HostAddress>,
    /// Key that the host must prove.
    pub expected: ExpectedHost,
    /// Target as typed, `None` with a ticket.
    pub query: Option<HostQuery>,
    /// Name of the export.
    pub export: String,
    /// Path below the export, without a leading `/`.
    pub sub_path: Vec<u8>,
    /// Secret for the first contact.
    pub secret: Option<TicketSecret>,
}

/// Link to the host.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Deadline of an operation.
    pub deadline: Duration,
    /// Number of connections.
    pub connections: usize,
    /// Compression of content.
    pub compression: CompressionWish,
    /// Parameters of the transport.
    pub tuning: TransportTuning,
}

/// Mapping of numeric ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum IdMapping {
    /// Ids are those of the host.
    #[default]
    None,
    /// The user as which the host acts appears as this user and group.
    User {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Files define the mapping.
    File(Arc<IdMap>),
}

/// Disk cache.
#[derive(Debug, Clone)]
pub struct CacheChoice {
    /// Directory and size.
    pub config: CacheConfig,
    /// True if the user named the directory. Then it is an error if the directory cannot be used, not only a
    /// warning.
    pub is_explicit: bool,
}

/// Reason why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The key of this machine cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The key of the host is not the expected one, or not known.
    #[error(transparent)]
    Trust(#[from] KnownHostsError),
    /// The cache has several hosts that fit, and none can be asked.
    #[error(
        "the cache has {label} of {count} hosts, and none of them was mounted by this name: mount it once while the host is reachable"
    )]
    AnyOfSeveral {
        /// The source.
        label: String,
        /// Number of hosts.
        count: usize,
    },
    /// The cache cannot be used.
    #[error("cache: {0}; name another directory with --cache-dir, or disable it with -o cache=none")]
    Cache(#[from] CacheError),
    /// The cache does not have the root.
    #[error("the cache in {} has nothing of {label}: mount it once while the host is reachable", directory.display())]
    NothingKnown {
        /// The source.
        label: String,
        /// Directory of the cache.
        directory: PathBuf,
    },
    /// The user as which the host acts is unknown.
    #[error(
        "the cache does not know the user as which the host acts for {0}: mount it once while the host is reachable, or use idmap=none"
    )]
    UnknownUser(String),
    /// The root of the mount cannot be shown.
    #[error("the owner of {label} has no mapping: {unmapped}; add a line, or use nomap=ignore")]
    RootUnmapped {
        /// The source.
        label: String,
        /// The id without a mapping.
        unmapped: FsError,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The folder is claimed by another mount.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// FUSE failed.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The process is ending.
    #[error("mounting was interrupted")]
    Interrupted,
}

impl MountError {
    /// Returns true if a later attempt may succeed without any action.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::NoAnswer { .. } | ConnectError::Transport(_)))
    }
}

/// A mount that answers.
pub struct Mount {
    session: Arc<Mounted>,
    file_system: Arc<FileSystem>,
    cache: Arc<dyn ChunkCache>,
    metadata: Arc<CachingClient>,
    client: Option<Arc<RemoteClient>>,
    handle: Arc<MountHandle>,
    control: Option<ControlSocket>,
}

impl Mount {
    /// Connects (unless offline) and mounts, if the claim to the folder still holds. When this returns the
    /// mount answers, and has the control socket.
    async fn start(
        mut config: MountConfig,
        claim: &Claim,
        control: &mut Option<ControlSocket>,
    ) -> Result<Self, MountError> {
        let client = connect(&config).await?;
        if let Some(client) = &client {
            config.remote.expected = ExpectedHost::Key(client.host_key());
        }
        let may_write = client.as_ref().is_some_and(|client| !client.read_only());
        if !may_write && !config.fuse.read_only {
            tracing::info!("{}: the host allows no changes; mounted read-only", config.label);
            config.fuse.read_only = true;
        }
        let standby = open_cache(&config).await?;
        let cache: Arc<dyn ChunkCache> = match &standby {
            Some(standby) => Arc::clone(standby) as _,
            None => Arc::new(NoCache),
        };
        let (metadata, host_key) = open_metadata_cache(&config, client.clone(), Arc::clone(&cache)).await?;
        if let Some(standby) = &standby {
            record_root_when_available(standby, &metadata, client.as_deref());
        }
        config.ownership.ids = id_map(&config, client.as_deref(), Arc::clone(&metadata)).await?;
        let fetcher = Fetcher::new(Arc::clone(&metadata) as _, Arc::clone(&cache), config.fetch);
        let file_system =
            FileSystem::new(Arc::clone(&metadata) as _, Arc::clone(&fetcher), fs_config(&config, host_key));
        tokio::spawn(memory::watch(Arc::downgrade(&file_system)));
        claim.check()?;
        let session = Arc::new(mount_on(Arc::clone(&file_system), &config).await?);
        let link = Link { client: client.clone(), metadata: Arc::clone(&metadata) };
        let handle = MountHandle::new(&config, link, fetcher, Arc::clone(&cache), &file_system, &session);
        let handle = Arc::new(handle);
        Ok(Self { session, file_system, cache, metadata, client, handle, control: control.take() })
    }

    /// Returns the handle for orders.
    pub const fn handle(&self) -> &Arc<MountHandle> {
        &self.handle
    }

    /// Waits until the kernel has ended the mount. If the mount is ordered to end before, makes the kernel
    /// end it.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.served() => return,
            () = self.handle.until(RequestedState::Stop) => {}
        }
        let leave = async {
            let session = Arc::clone(&self.session);
            // Fails only while the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || leave_tree(&session)).await;
            if timeout(LEAVE_WAIT, self.served()).await.is_err() {
                tracing::warn!("{} is still in use: ending anyway", self.session.mountpoint().display());
            }
        };
        tokio::select! {
            () = leave => {}
            () = self.handle.until(RequestedState::Abort) => {}
        }
    }

    async fn served(&self) {
        if let Err(error) = self.session.ended().await {
            tracing::warn!("the kernel ended the mount: {error}");
        }
    }

    /// Ends everything in order, within some seconds.
    pub async fn shut_down(self) {
        self.handle.set_ended();
        drop(self.session);
        // This takes as long as the host is away, unless an abort is requested.
        tokio::select! {
            () = send_rest(&self.file_system) => {}
            () = self.handle.until(RequestedState::Abort) => {}
        }
        let lost = Unsent::new(self.file_system.unsent_files());
        if lost.bytes > 0 {
            let (bytes, files) = (lost.bytes, lost.files);
            tracing::error!("lost: {bytes} bytes of {files} files that the host has not confirmed");
            for file in lost.largest {
                tracing::error!("lost: {} bytes of {}", file.bytes, file.path);
            }
        }
        let waits = self.handle.requested() != RequestedState::Abort;
        if waits {
            let (metadata, cache) = (Arc::clone(&self.metadata), Arc::clone(&self.cache));
            let flushed = tokio::task::spawn_blocking(move || metadata.flush() & cache.flush());
            if !matches!(timeout(CACHE_FLUSH_WAIT, flushed).await, Ok(Ok(true))) {
                tracing::warn!("the cache could not write all its data: the rest will be fetched again");
            }
            // A host that misses the goodbye keeps the session for a while, nothing more.
            if let Some(client) = self.client {
                let _ = timeout(GOODBYE_WAIT, client.shutdown()).await;
            }
        }
        drop(self.control);
    }
}

/// Waits until the host has everything, and reports the unsent bytes now and then.
async fn send_rest(file_system: &FileSystem) {
    let mut all_sent = std::pin::pin!(file_system.all_sent());
    loop {
        let before = file_system.unsent_bytes();
        if before > 0 {
            tracing::warn!("ending: {before} bytes are not sent to the host yet");
        }
        if timeout(UNSENT_REPORT_INTERVAL, &mut all_sent).await.is_ok() {
            return;
        }
    }
}

/// Detaches the mount from the tree, even if it is in use.
fn leave_tree(session: &Mounted) {
    match session.unmount(UnmountHow::Detach) {
        // It was detached before, and is still in use.
        Ok(()) | Err(UnmountError::NotMounted(_)) => {}
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Returns the source as text: `HOST:/EXPORT/PATH`, with the port if it is not the default. It contains no
/// secret.
pub fn label(source: &MountSource, port_option: Option<u16>) -> String {
    let (host, port, export, sub_path) = match source {
        MountSource::Ticket(ticket) => {
            let first = ticket.addresses().first();
            let host = first.map_or("?", HostAddress::host);
            (host, first.map_or(DEFAULT_PORT, HostAddress::port), ticket.export(), "")
        }
        MountSource::Address { host, port, export, sub_path } => {
            (host.as_str(), port.or(port_option).unwrap_or(DEFAULT_PORT), export.as_str(), sub_path.as_str())
        }
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let path =
        [export, sub_path].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/");
    let label = if port == DEFAULT_PORT {
        format!("{host}:/{path}")
    } else {
        format!("wormhole://{host}:{port}/{path}")
    };
    label.replace(char::is_control, "_")
}

/// Makes the first connection, unless offline.
async fn connect(config: &MountConfig) -> Result<Option<Arc<RemoteClient>>, MountError> {
    if config.offline {
        return Ok(None);
    }
    let client = RemoteClient::connect(client_config(config)?);
    let client = client.await.map_err(|error| trust::explain(config, error))?;
    trust::remember(config, &client);
    Ok(Some(client))
}

/// Returns the mapping of numeric ids.
async fn id_map(
    config: &MountConfig,
    client: Option<&RemoteClient>,
    metadata: Arc<CachingClient>,
) -> Result<Arc<IdMap>, MountError> {
    let root = metadata.root();
    if let Some(client) = client {
        metadata.record_acts_as(client.acts_as());
    }
    let mut ids = match config.id_mapping.clone() {
        IdMapping::None => return Ok(Arc::default()),
        IdMapping::File(ids) => IdMap::clone(&ids),
        IdMapping::User { uid, gid } => {
            let host = match client {
                Some(client) => Some(client.acts_as()),
                None => tokio::task::spawn_blocking(move || metadata.acts_as()).await.ok().flatten(),
            };
            let unknown = || MountError::UnknownUser(config.label.clone());
            let host = host.ok_or_else(unknown)?;
            IdMap::of_user((host.uid, host.gid), (uid, gid)).map_err(|_| unknown())?
        }
    };
    ids.callers_count = client.is_some_and(RemoteClient::chooses_owners);
    let ids = Arc::new(ids);
    let ownership = Ownership { ids: Arc::clone(&ids), ..config.ownership.clone() };
    match ownership.present(root) {
        Ok(_) => Ok(ids),
        Err(unmapped) => Err(MountError::RootUnmapped { label: config.label.clone(), unmapped }),
    }
}

/// Returns the metadata cache in front of the host, or in place of it offline, and the key of the host.
async fn open_metadata_cache(
    config: &MountConfig,
    client: Option<Arc<RemoteClient>>,
    cache: Arc<dyn ChunkCache>,
) -> Result<(Arc<CachingClient>, PublicKey), MountError> {
    let sub_path = config.remote.sub_path.clone();
    if let Some(client) = client {
        let key = client.host_key();
        let scope = Scope::new(key.as_bytes(), &config.remote.export);
        let metadata = CachingClient::new(client, cache, scope, &sub_path, config.serves_stale);
        return metadata.map(|metadata| (Arc::new(metadata), key)).map_err(MountError::Thread);
    }
    let (keys, export) = (trust::candidates(config)?, config.remote.export.clone());
    let look = move || {
        let known = keys.into_iter().filter_map(|key| {
            let scope = Scope::new(key.as_bytes(), &export);
            Some((Arc::new(CachingClient::offline(Arc::clone(&cache), scope, &sub_path)?), key))
        });
        known.collect::<Vec<_>>()
    };
    let mut known = tokio::task::spawn_blocking(look).await.map_err(|_| MountError::Interrupted)?;
    let (count, label) = (known.len(), config.label.clone());
    if count > 1 {
        return Err(MountError::AnyOfSeveral { label, count });
    }
    known.pop().ok_or_else(|| MountError::NothingKnown {
        label,
        directory: config.cache.as_ref().map(|cache| cache.config.directory.clone()).unwrap_or_default(),
    })
}

fn client_config(config: &MountConfig) -> Result<ClientConfig, MountError> {
    let identity = Arc::new(Identity::load_or_create(&config.identity_file)?);
    let (remote, link) = (&config.remote, &config.link);
    let mut client = ClientConfig::new(
        remote.addresses.clone(),
        remote.expected.clone(),
        remote.export.clone(),
        identity,
        SessionId(random_bytes()?),
    );
    client.sub_path.clone_from(&remote.sub_path);
    client.ticket = remote.secret;
    client.deadline = link.deadline;
    client.connections = link.connections;
    client.compression = link.compression;
    client.tuning = link.tuning.clone();
    Ok(client)
}

/// Opens the disk cache. One that cannot be used now is opened later. Returns `None` if there is to be none.
async fn open_cache(config: &MountConfig) -> Result<Option<Arc<StandbyCache>>, MountError> {
    let Some(choice) = config.cache.clone() else { return Ok(None) };
    let is_offline = config.offline;
    let opened = tokio::task::spawn_blocking(move || {
        // Offline nothing can be shown without it. A directory that the user named and that cannot work is
        // reported at once.
        let is_final = |error: &CacheError| is_offline || (choice.is_explicit && error.is_lasting());
        StandbyCache::open(choice.config, |error| !is_final(error))
    });
    // Fails only while the runtime shuts down.
    Ok(Some(Arc::new(opened.await.map_err(|_| MountError::Interrupted)??)))
}

/// Records the root again when the cache becomes available late.
fn record_root_when_available(
    standby: &StandbyCache,
    metadata: &Arc<CachingClient>,
    client: Option<&RemoteClient>,
) {
    let (metadata, acts_as) = (Arc::downgrade(metadata), client.map(RemoteClient::acts_as));
    standby.on_available(move || {
        if let Some(metadata) = metadata.upgrade() {
            metadata.record_root_again();
            if let Some(user) = acts_as {
                metadata.record_acts_as(user);
            }
        }
    });
}

/// Mounts on a thread that may block on the kernel or fusermount3.
async fn mount_on(file_system: Arc<FileSystem>, config: &MountConfig) -> Result<Mounted, MountError> {
    let (mountpoint, fuse) = (config.mountpoint.clone(), config.fuse.clone());
    match tokio::task::spawn_blocking(move || fuse::mount(&file_system, &mountpoint, &fuse)).await {
        Ok(mounted) => Ok(mounted?),
        Err(_) => Err(MountError::Interrupted),
    }
}

fn fs_config(config: &MountConfig, host_key: PublicKey) -> FsConfig {
    FsConfig {
        host_key: *host_key.as_bytes(),
        source: config.label.clone(),
        freshness: config.freshness,
        serves_stale: config.serves_stale,
        ownership: config.ownership.clone(),
        read_only: config.fuse.read_only,
        // Without a host the kernel keeps the locks.
        locks: if config.offline { RemoteLocks::NONE } else { config.locks },
        patience: config.link.deadline,
        default_permissions: config.fuse.default_permissions,
        dedup: config.dedup,
        ..FsConfig::default()
    }
}
