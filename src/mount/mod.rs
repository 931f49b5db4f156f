//! The mount side wired on one screen, with its shutdown order.
//!
//! ```text
//! kernel -> fuse session -> FileSystem -> Fetcher -> CachingClient -> RemoteClient -> host
//!                                            |-----------'--> StandbyCache -> DiskCache
//! ```
//!
//! Offline there is no `RemoteClient`.
//!
//! A [`Mount`] is started from the right to the left, so that nothing is asked before it can be answered, and shut down from the
//! left to the right: no more questions from the kernel, then no more requests, then what was learned goes to the disk, then the
//! host is told goodbye, and the control socket goes last, so that `wormhole status` sees all of it.

mod attempt;
mod handle;
mod sync;
mod trust;
mod warm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

pub use attempt::Attempt;
pub use handle::MountHandle;
use handle::{Link, Wanted};

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

/// How long those who are still in a mount that was told to end may take to leave it.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// How often it is told what is left to be sent.
const REST_TOLD_EVERY: Duration = Duration::from_secs(10);

/// How long the cache may take to write what it holds: what is not written is fetched again, that is all.
const CACHE_FLUSH_WAIT: Duration = Duration::from_secs(5);

/// How long the host is given to hear the goodbye.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// Everything a mount has to know.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// Which folder of which host.
    pub remote: Remote,
    /// Whether the host is never asked, and only what the cache knows is shown.
    pub offline: bool,
    /// Whether what is known is served while the host is out of reach.
    pub serves_stale: bool,
    /// Whether the host is asked for content before it is sent.
    pub dedup: DedupWish,
    /// Where the host's key is kept for the next time.
    pub known_hosts: KnownHosts,
    /// Where this machine's key is; made if it does not exist.
    pub identity_file: PathBuf,
    /// What is mounted, for people.
    pub label: String,
    /// Where, absolute and without symbolic links.
    pub mountpoint: PathBuf,
    /// Where the control socket is made.
    pub control_dir: PathBuf,
    /// The way to the host.
    pub link: LinkConfig,
    /// What is kept on disk; nothing if `None`.
    pub cache: Option<CacheChoice>,
    /// What is kept in memory and asked ahead.
    pub fetch: FetchConfig,
    /// How long attributes and names are believed.
    pub freshness: Freshness,
    /// Who appears to own what.
    pub ownership: Ownership,
    /// Who here stands for whom on the host.
    pub id_mapping: IdMapping,
    /// Which file locks are held on the host.
    pub locks: RemoteLocks,
    /// How the kernel treats the mount.
    pub fuse: FuseConfig,
}

/// Which folder of which host.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Where the host may be.
    pub addresses: Vec<HostAddress>,
    /// The key it must prove.
    pub expected: ExpectedHost,
    /// What was typed; `None` where a ticket was.
    pub query: Option<HostQuery>,
    /// The export.
    pub export: String,
    /// The path below it, without a leading `/`.
    pub sub_path: Vec<u8>,
    /// What lets us in the first time.
    pub secret: Option<TicketSecret>,
}

/// The way to the host.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// How long an operation may take.
    pub deadline: Duration,
    /// Connections to use.
    pub connections: usize,
    /// Whether content comes compressed.
    pub compression: CompressionWish,
    /// Numbers for QUIC.
    pub tuning: TransportTuning,
}

/// Who here stands for whom on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum IdMapping {
    /// Numbers are the host's.
    #[default]
    None,
    /// As whom the host acts is shown as this user and group.
    User {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// As was written down.
    File(Arc<IdMap>),
}

/// What is kept on disk.
#[derive(Debug, Clone)]
pub struct CacheChoice {
    /// Where and how much.
    pub config: CacheConfig,
    /// The directory was named: that it cannot be used is an error then, and not only a pity.
    pub is_explicit: bool,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// This machine's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The host.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The host that answered is not the one that was meant, or nobody knows.
    #[error(transparent)]
    Trust(#[from] KnownHostsError),
    /// Several hosts might be meant, and none can be asked.
    #[error(
        "the cache knows {label} of {count} hosts, and none of them was mounted by this name: mount it once while the host is there"
    )]
    AnyOfSeveral {
        /// What was to be mounted.
        label: String,
        /// How many hosts.
        count: usize,
    },
    /// The cache.
    #[error("cache: {0}; name another directory with --cache-dir, or do without by -o cache=none")]
    Cache(#[from] CacheError),
    /// The cache does not even know the root.
    #[error("the cache in {} knows nothing of {label}: mount it once while the host is there", directory.display())]
    NothingKnown {
        /// What was to be mounted.
        label: String,
        /// Where the cache is.
        directory: PathBuf,
    },
    /// Nobody says as whom the host acts.
    #[error(
        "the cache does not know as whom the host acts for {0}: mount it once while the host is there, or use idmap=none"
    )]
    UnknownUser(String),
    /// Nothing of the mount could be shown.
    #[error(
        "{label} belongs to somebody whom nobody here stands for: {unmapped}; add a line, or use nomap=ignore"
    )]
    RootUnmapped {
        /// What was to be mounted.
        label: String,
        /// Who.
        unmapped: FsError,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Others want the folder, or have it.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The kernel.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The process is ending.
    #[error("mounting was interrupted")]
    Interrupted,
}

impl MountError {
    /// Whether it may go better a little later, without anybody doing anything.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::NoAnswer { .. } | ConnectError::Transport(_)))
    }
}

/// A mount that answers.
pub struct Mount {
    session: Arc<Mounted>,
    file_system: Arc<FileSystem>,
    cache: Arc<dyn ChunkCache>,
    recall: Arc<CachingClient>,
    client: Option<Arc<RemoteClient>>,
    handle: Arc<MountHandle>,
    control: Option<ControlSocket>,
}

impl Mount {
    /// Connects, unless it is to be offline, and mounts, if the claim to the folder still holds. When this returns the mount answers,
    /// and has the control socket.
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
            tracing::info!("{}: nothing can be changed from here; mounted read-only", config.label);
            config.fuse.read_only = true;
        }
        let standby = open_cache(&config).await?;
        let cache: Arc<dyn ChunkCache> = match &standby {
            Some(standby) => Arc::clone(standby) as _,
            None => Arc::new(NoCache),
        };
        let (recall, host_key) = recall(&config, client.clone(), Arc::clone(&cache)).await?;
        if let Some(standby) = &standby {
            note_when_taken_up(standby, &recall, client.as_deref());
        }
        config.ownership.ids = id_map(&config, client.as_deref(), Arc::clone(&recall)).await?;
        let fetcher = Fetcher::new(Arc::clone(&recall) as _, Arc::clone(&cache), config.fetch);
        let file_system =
            FileSystem::new(Arc::clone(&recall) as _, Arc::clone(&fetcher), fs_config(&config, host_key));
        claim.check()?;
        let session = Arc::new(mount_on(Arc::clone(&file_system), &config).await?);
        let link = Link { client: client.clone(), recall: Arc::clone(&recall) };
        let handle = MountHandle::new(&config, link, fetcher, Arc::clone(&cache), &file_system, &session);
        let handle = Arc::new(handle);
        Ok(Self { session, file_system, cache, recall, client, handle, control: control.take() })
    }

    /// What tells this mount to end.
    pub const fn handle(&self) -> &Arc<MountHandle> {
        &self.handle
    }

    /// Waits until the kernel has let go of the mount; if it is told to end before, makes the kernel let go.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.served() => return,
            () = self.handle.until(Wanted::Stop) => {}
        }
        let leave = async {
            let session = Arc::clone(&self.session);
            // Fails only while the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || leave_tree(&session)).await;
            if timeout(LEAVE_WAIT, self.served()).await.is_err() {
                tracing::warn!(
                    "{} is still in use: ending all the same",
                    self.session.mountpoint().display()
                );
            }
        };
        tokio::select! {
            () = leave => {}
            () = self.handle.until(Wanted::Abort) => {}
        }
    }

    async fn served(&self) {
        if let Err(error) = self.session.ended().await {
            tracing::warn!("the kernel ended the mount: {error}");
        }
    }

    /// Ends everything in its order, within some seconds.
    pub async fn shut_down(self) {
        self.handle.set_ended();
        drop(self.session);
        // As long as it takes, however long the host is away; but not against a will.
        tokio::select! {
            () = send_rest(&self.file_system) => {}
            () = self.handle.until(Wanted::Abort) => {}
        }
        let lost = Unsent::new(self.file_system.unsent_files());
        if lost.bytes > 0 {
            let (bytes, files) = (lost.bytes, lost.files);
            tracing::error!("lost: {bytes} bytes of {files} files that the host has not confirmed");
            for file in lost.largest {
                tracing::error!("lost: {} bytes of {}", file.bytes, file.path);
            }
        }
        let waits = self.handle.wanted() != Wanted::Abort;
        if waits {
            let (recall, cache) = (Arc::clone(&self.recall), Arc::clone(&self.cache));
            let flushed = tokio::task::spawn_blocking(move || recall.flush() & cache.flush());
            if !matches!(timeout(CACHE_FLUSH_WAIT, flushed).await, Ok(Ok(true))) {
                tracing::warn!("the cache could not write all it held: it will be fetched again");
            }
            // Who does not hear it keeps our session for a while, nothing more.
            if let Some(client) = self.client {
                let _ = timeout(GOODBYE_WAIT, client.shutdown()).await;
            }
        }
        drop(self.control);
    }
}

/// Waits until the host has everything, and says now and then how much is left.
async fn send_rest(file_system: &FileSystem) {
    let mut all_sent = std::pin::pin!(file_system.all_sent());
    loop {
        let before = file_system.unsent_bytes();
        if before > 0 {
            tracing::warn!("ending: {before} bytes are not at the host yet");
        }
        if timeout(REST_TOLD_EVERY, &mut all_sent).await.is_ok() {
            return;
        }
    }
}

/// Takes the mount out of the tree, whoever is in it.
fn leave_tree(session: &Mounted) {
    match session.unmount(UnmountHow::Detach) {
        // Somebody has detached it, and still uses it.
        Ok(()) | Err(UnmountError::NotMounted(_)) => {}
        Err(error) => tracing::warn!("{error}"),
    }
}

/// What is mounted, as people write it: `HOST:/EXPORT/PATH`, with the port where it is not the usual one. Never a secret.
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

/// The first connection, unless the host is not to be asked.
async fn connect(config: &MountConfig) -> Result<Option<Arc<RemoteClient>>, MountError> {
    if config.offline {
        return Ok(None);
    }
    let client = RemoteClient::connect(client_config(config)?);
    let client = client.await.map_err(|error| trust::explain(config, error))?;
    trust::remember(config, &client);
    Ok(Some(client))
}

/// Who here stands for whom on the host.
async fn id_map(
    config: &MountConfig,
    client: Option<&RemoteClient>,
    recall: Arc<CachingClient>,
) -> Result<Arc<IdMap>, MountError> {
    let root = recall.root();
    if let Some(client) = client {
        recall.record_acts_as(client.acts_as());
    }
    let mut ids = match config.id_mapping.clone() {
        IdMapping::None => return Ok(Arc::default()),
        IdMapping::File(ids) => IdMap::clone(&ids),
        IdMapping::User { uid, gid } => {
            let host = match client {
                Some(client) => Some(client.acts_as()),
                None => tokio::task::spawn_blocking(move || recall.acts_as()).await.ok().flatten(),
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

/// What remembers for the host, or instead of it, and the host's key.
async fn recall(
    config: &MountConfig,
    client: Option<Arc<RemoteClient>>,
    cache: Arc<dyn ChunkCache>,
) -> Result<(Arc<CachingClient>, PublicKey), MountError> {
    let sub_path = config.remote.sub_path.clone();
    if let Some(client) = client {
        let key = client.host_key();
        let scope = Scope::new(key.as_bytes(), &config.remote.export);
        let recall = CachingClient::new(client, cache, scope, &sub_path, config.serves_stale);
        return recall.map(|recall| (Arc::new(recall), key)).map_err(MountError::Thread);
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

/// The cache on disk. One that cannot be used now is done without until it can be; `None`: there is to be none.
async fn open_cache(config: &MountConfig) -> Result<Option<Arc<StandbyCache>>, MountError> {
    let Some(choice) = config.cache.clone() else { return Ok(None) };
    let is_offline = config.offline;
    let opened = tokio::task::spawn_blocking(move || {
        // Offline there is nothing to show without it; and what was typed and cannot work is said at once.
        let is_final = |error: &CacheError| is_offline || (choice.is_explicit && error.is_lasting());
        StandbyCache::open(choice.config, |error| !is_final(error))
    });
    // Fails only while the runtime shuts down.
    Ok(Some(Arc::new(opened.await.map_err(|_| MountError::Interrupted)??)))
}

/// Has what is mounted noted again when the cache is taken up late.
fn note_when_taken_up(standby: &StandbyCache, recall: &Arc<CachingClient>, client: Option<&RemoteClient>) {
    let (recall, acts_as) = (Arc::downgrade(recall), client.map(RemoteClient::acts_as));
    standby.on_available(move || {
        if let Some(recall) = recall.upgrade() {
            recall.record_root_again();
            if let Some(user) = acts_as {
                recall.record_acts_as(user);
            }
        }
    });
}

/// Waits for the kernel, or for fusermount3, on a thread that may.
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
        // Without a host they are kept by the kernel.
        locks: if config.offline { RemoteLocks::NONE } else { config.locks },
        patience: config.link.deadline,
        default_permissions: config.fuse.default_permissions,
        dedup: config.dedup,
        ..FsConfig::default()
    }
}
