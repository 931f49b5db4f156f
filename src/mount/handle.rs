//! Handle of a running mount: its status and its orders.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::watch;

use super::MountConfig;
use super::sync::SyncJobs;
use super::warm::WarmJobs;
use crate::cache::ChunkCache;
use crate::client::remote::{ClientStatistics, RemoteClient};
use crate::control::{
    Controlled, DaemonKind, FileSystemReport, LinkWord, StatusReport, SyncReport, Unsent, WarmOrder,
    WarmReport,
};
use crate::fetch::Fetcher;
use crate::fs::FileSystem;
use crate::fuse::Mounted;
use crate::fuse::table::MountEntry;
use crate::metadata_cache::CachingClient;
use crate::metrics::{Metric, Readings};
use crate::proto::TrustReason;

/// Requested state of a mount. A later variant overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RequestedState {
    /// Serve.
    Run,
    /// End in order.
    Stop,
    /// End at once.
    Abort,
}

/// Link to the host.
pub(super) struct Link {
    /// `None` if the mount is offline.
    pub client: Option<Arc<RemoteClient>>,
    pub metadata: Arc<CachingClient>,
}

/// A running mount, for `status` and for orders to end it.
pub struct MountHandle {
    label: String,
    mountpoint: PathBuf,
    device: Option<String>,
    cache_limit_bytes: Option<u64>,
    cache_dir: Option<PathBuf>,
    warm_jobs: WarmJobs,
    sync_jobs: SyncJobs,
    started: Instant,
    link: Link,
    /// Weak, because the file system ends with the mount, and the control socket later.
    file_system: Weak<FileSystem>,
    fetcher: Arc<Fetcher>,
    cache: Arc<dyn ChunkCache>,
    requested: watch::Sender<RequestedState>,
    ended: AtomicBool,
}

impl MountHandle {
    pub(super) fn new(
        config: &MountConfig,
        link: Link,
        fetcher: Arc<Fetcher>,
        cache: Arc<dyn ChunkCache>,
        file_system: &Arc<FileSystem>,
        session: &Mounted,
    ) -> Self {
        Self {
            device: session.entry().map(MountEntry::device_text),
            label: config.label.clone(),
            mountpoint: config.mountpoint.clone(),
            cache_limit_bytes: config.cache.as_ref().map(|cache| cache.config.size_bytes),
            cache_dir: config.cache.as_ref().map(|cache| cache.config.directory.clone()),
            warm_jobs: WarmJobs::new(Arc::clone(file_system)),
            sync_jobs: SyncJobs::default(),
            started: Instant::now(),
            link,
            file_system: Arc::downgrade(file_system),
            fetcher,
            cache,
            requested: watch::Sender::new(RequestedState::Run),
            ended: AtomicBool::new(false),
        }
    }

    /// Returns the requested state.
    pub(super) fn requested(&self) -> RequestedState {
        *self.requested.borrow()
    }

    /// Records that the mount has left the tree.
    pub(super) fn set_ended(&self) {
        self.warm_jobs.end();
        self.sync_jobs.end();
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Waits until at least this state is requested.
    pub(super) async fn until(&self, least: RequestedState) {
        // Fails only if the sender is dropped, and `self` holds the sender.
        let _ = self.requested.subscribe().wait_for(|requested| *requested >= least).await;
    }

    /// The file system, while it is mounted.
    fn served(&self) -> Result<Arc<FileSystem>, String> {
        let is_there = !self.ended.load(Ordering::Relaxed);
        let file_system = self.file_system.upgrade().filter(|_| is_there);
        file_system.ok_or_else(|| "the mount is being taken down".to_owned())
    }

    fn request(&self, more: RequestedState) {
        self.requested.send_if_modified(|requested| {
            let changed = more > *requested;
            *requested = more.max(*requested);
            changed
        });
    }

    fn readings(&self, client: Option<&ClientStatistics>) -> Readings {
        let (fetch, cache) = (self.fetcher.statistics(), self.cache.stats());
        let mut readings = Readings::default();
        readings.set(Metric::UptimeSeconds, self.started.elapsed().as_secs());
        let mut stale = self.link.metadata.stale_answers();
        if let Some(file_system) = self.file_system.upgrade() {
            stale += file_system.stale_answers();
            readings.set(Metric::UnsentBytes, file_system.unsent_bytes());
            readings.set(Metric::UnsyncedBytes, file_system.unsynced_bytes());
            let (held, lost) = file_system.lock_counts();
            readings.set(Metric::LocksHeld, held);
            readings.set(Metric::LocksLost, lost);
            let gauges = file_system.gauges();
            readings.set(Metric::Leases, gauges.leases as u64);
            readings.set(Metric::Inodes, gauges.inodes as u64);
            readings.set(Metric::DeduplicatedBytes, file_system.deduplicated_bytes());
        }
        readings.set(Metric::StaleAnswers, stale);
        readings.set(Metric::LastContactSeconds, self.link.metadata.silence().as_secs());
        if let Some(client) = client {
            add_link(&mut readings, client);
        }
        readings.set(Metric::HostBytes, fetch.host_bytes);
        readings.set(Metric::HostChunks, fetch.host_chunks);
        readings.set(Metric::MovedBytes, fetch.moved_bytes);
        readings.set(Metric::DiskChunks, fetch.hits_disk);
        readings.set(Metric::MemoryReads, fetch.hits_memory);
        readings.set(Metric::MemoryUsedBytes, fetch.memory_bytes);
        readings.set(Metric::FetchInFlightBytes, fetch.inflight_bytes);
        readings.set(Metric::PrefetchInFlight, fetch.ahead_requests);
        readings.set(Metric::PrefetchQueued, fetch.ahead_queued);
        readings.set(Metric::PrefetchWastedChunks, fetch.ahead_wasted_chunks);
        if let Some(limit_bytes) = self.cache_limit_bytes {
            readings.set(Metric::CacheLimitBytes, limit_bytes);
            readings.set(Metric::CacheUsedBytes, cache.bytes);
            readings.set(Metric::CacheEntries, cache.entries);
            readings.set(Metric::CacheHits, cache.hits);
            readings.set(Metric::CacheMisses, cache.misses);
            readings.set(Metric::CacheDamaged, cache.corrupt);
            readings.set(Metric::CacheDropped, cache.dropped);
            readings.set(Metric::CacheEvictedBytes, cache.evicted_bytes);
            readings.set(Metric::ManifestChunks, fetch.manifest_chunks);
            readings.set(Metric::ManifestChunksHeld, fetch.manifest_chunks_held);
        }
        readings
    }
}

fn add_link(readings: &mut Readings, client: &ClientStatistics) {
    readings.set(Metric::RttMs, client.rtt_ms);
    readings.set(Metric::LinkBytesPerSecond, client.bytes_per_second);
    readings.set(Metric::WireSentBytes, client.bytes_sent);
    readings.set(Metric::WireReceivedBytes, client.bytes_received);
    readings.set(Metric::PacketsSent, client.packets_sent);
    readings.set(Metric::PacketsLost, client.packets_lost);
    readings.set(Metric::PacketBytes, u64::from(client.mtu_bytes));
    if let Some(bytes) = client.udp_buffer_bytes {
        readings.set(Metric::UdpBufferBytes, bytes);
    }
    readings.set(Metric::Connections, client.connections);
    readings.set(Metric::Reconnects, client.reconnects);
    readings.set(Metric::HostRestarts, client.instance_changes);
    readings.set(Metric::BadAnswers, client.bad_answers);
    readings.set(Metric::Requests, client.requests);
    readings.set(Metric::RequestsInFlight, client.requests_in_flight);
}

/// Returns the state of a link for reports. A silent link counts as disconnected, because cached data is
/// served meanwhile.
fn link_word(state: Option<&str>) -> LinkWord {
    match state {
        Some("connected") => LinkWord::Connected,
        Some(_) => LinkWord::Disconnected,
        None => LinkWord::Offline,
    }
}

fn file_system(reason: TrustReason) -> FileSystemReport {
    let (trust, reason) = (reason.trust().word().to_owned(), reason.words().to_owned());
    FileSystemReport { path: None, file_system: None, trust, reason }
}

/// Orders of the control socket.
impl Controlled for MountHandle {
    fn status(&self) -> StatusReport {
        let client = self.link.client.as_ref().map(|client| client.statistics());
        let client = client.as_ref();
        StatusReport {
            kind: DaemonKind::Mount,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: vec![self.label.clone()],
            mountpoint: Some(self.mountpoint.clone()),
            // After the end of a mount the kernel gives its number to the next one.
            device: self.device.clone().filter(|_| !self.ended.load(Ordering::Relaxed)),
            state: if self.ended.load(Ordering::Relaxed) {
                LinkWord::Ending
            } else {
                link_word(client.map(|client| client.state))
            },
            problem: None,
            address: client.and_then(|client| client.address.clone()),
            transport: client.map_or("none", |client| client.transport).to_owned(),
            engine: None,
            cache_dir: self.cache_dir.clone(),
            clients_connected: Vec::new(),
            keys: Vec::new(),
            cache_problem: self.cache.problem(),
            file_systems: client.map(|client| file_system(client.trust_reason)).into_iter().collect(),
            readings: self.readings(client),
        }
    }

    fn stop(&self) {
        self.request(RequestedState::Stop);
    }

    fn abort(&self) -> Unsent {
        let unsent = self.file_system.upgrade().map(|file_system| file_system.unsent_files());
        self.request(RequestedState::Abort);
        Unsent::new(unsent.unwrap_or_default())
    }

    fn warm(&self, order: &WarmOrder) -> Result<WarmReport, String> {
        if self.cache_dir.is_none() {
            return Err("this mount has no disk cache (cache=none)".to_owned());
        }
        self.warm_jobs.begin(order)
    }

    fn sync(&self) -> Result<SyncReport, String> {
        self.sync_jobs.begin(&self.served()?)
    }

    fn sync_progress(&self, id: u64) -> Result<SyncReport, String> {
        self.sync_jobs.report(id, &*self.served()?)
    }

    fn warm_progress(&self, id: u64) -> Result<WarmReport, String> {
        self.warm_jobs.report(id)
    }
}
