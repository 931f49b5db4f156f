//! What is known of a running mount from outside, and what it can be told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Detach, MountConfig, UnmountError, table, unmount};
use crate::cache::ChunkCache;
use crate::client::quic::{ClientStatistics, QuicClient};
use crate::control::{Controlled, DaemonKind, LinkWord, StatusReport};
use crate::fetch::Fetcher;
use crate::metrics::{Metric, Readings};

/// How long those who are still in a mount that was told to end may take to leave it.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// A running mount, for `status` and for whoever ends it.
pub struct MountHandle {
    label: String,
    mountpoint: PathBuf,
    /// Tells our mount from another one at the same place, later.
    device_minor: Option<u32>,
    cache_limit_bytes: Option<u64>,
    started: Instant,
    client: Arc<QuicClient>,
    fetcher: Arc<Fetcher>,
    cache: Arc<dyn ChunkCache>,
    aborted: AtomicBool,
    stopping: AtomicBool,
    gave_up: watch::Sender<bool>,
}

impl MountHandle {
    pub(super) fn new(
        config: &MountConfig,
        client: Arc<QuicClient>,
        fetcher: Arc<Fetcher>,
        cache: Arc<dyn ChunkCache>,
    ) -> Self {
        let entry = table::mount_at(&config.mountpoint).ok().flatten();
        Self {
            label: config.label.clone(),
            mountpoint: config.mountpoint.clone(),
            device_minor: entry.map(|entry| entry.device_minor),
            cache_limit_bytes: config.cache.as_ref().map(|cache| cache.config.size_bytes),
            started: Instant::now(),
            client,
            fetcher,
            cache,
            aborted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            gave_up: watch::Sender::new(false),
        }
    }

    /// Whether it is to end without waiting for anything.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Completes when the mount is to end although the kernel still holds it.
    pub(super) async fn gave_up(&self) {
        // The sender lives as long as this.
        let _ = self.gave_up.subscribe().wait_for(|gave_up| *gave_up).await;
    }

    /// Begins to end: out of the tree when nobody is in it, else lazily, and some seconds later whoever is in it.
    pub fn stop(self: &Arc<Self>) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        let handle = Arc::clone(self);
        tokio::spawn(async move {
            let unmounting = Arc::clone(&handle);
            // Fails only while the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || unmounting.leave_tree()).await;
            tokio::time::sleep(LEAVE_WAIT).await;
            handle.gave_up.send_replace(true);
        });
    }

    fn leave_tree(&self) {
        if !self.is_ours() {
            return;
        }
        let outcome = match unmount(&self.mountpoint, Detach::WhenIdle) {
            Err(UnmountError::Busy(_)) => {
                tracing::info!("{} is in use: taking it out of the tree", self.mountpoint.display());
                unmount(&self.mountpoint, Detach::Lazily)
            }
            other => other,
        };
        if let Err(error) = outcome {
            tracing::warn!("{error}");
        }
    }

    fn is_ours(&self) -> bool {
        let entry = table::mount_at(&self.mountpoint).ok().flatten();
        entry.is_some_and(|entry| entry.is_wormhole() && Some(entry.device_minor) == self.device_minor)
    }

    fn readings(&self, client: &ClientStatistics) -> Readings {
        let (fetch, cache) = (self.fetcher.statistics(), self.cache.stats());
        let mut readings = Readings::default();
        readings.set(Metric::UptimeSeconds, self.started.elapsed().as_secs());
        readings.set(Metric::RttMs, client.rtt_ms);
        readings.set(Metric::LinkBytesPerSecond, client.bytes_per_second);
        readings.set(Metric::WireSentBytes, client.bytes_sent);
        readings.set(Metric::WireReceivedBytes, client.bytes_received);
        readings.set(Metric::PacketsSent, client.packets_sent);
        readings.set(Metric::PacketsLost, client.packets_lost);
        readings.set(Metric::PacketBytes, u64::from(client.mtu_bytes));
        readings.set(Metric::Connections, client.connections);
        readings.set(Metric::Reconnects, client.reconnects);
        readings.set(Metric::HostRestarts, client.instance_changes);
        readings.set(Metric::BadAnswers, client.bad_answers);
        readings.set(Metric::Requests, client.requests);
        readings.set(Metric::RequestsInFlight, client.requests_in_flight);
        readings.set(Metric::HostBytes, fetch.host_bytes);
        readings.set(Metric::HostChunks, fetch.host_chunks);
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
        }
        readings
    }
}

/// What to tell of a link: a silent one may only be slow, the others are down.
fn link_word(state: &str) -> LinkWord {
    match state {
        "connected" | "silent" => LinkWord::Connected,
        _ => LinkWord::Disconnected,
    }
}

/// Behind the control socket.
impl Controlled for Arc<MountHandle> {
    fn status(&self) -> StatusReport {
        let client = self.client.statistics();
        StatusReport {
            kind: DaemonKind::Mount,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: vec![self.label.clone()],
            mountpoint: Some(self.mountpoint.clone()),
            state: link_word(client.state),
            address: client.address.clone(),
            transport: client.transport.to_owned(),
            engine: None,
            readings: self.readings(&client),
        }
    }

    fn stop(&self) {
        MountHandle::stop(self);
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.gave_up.send_replace(true);
    }
}
