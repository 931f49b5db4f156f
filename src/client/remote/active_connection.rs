//! A welcomed connection, and the calls under way on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit};

use super::link::Sample;
use crate::proto::SessionRun;
use crate::transport::{Connection, Endpoint, Lane, TransportKind};

/// Open streams of metadata and demanded content on one connection.
const URGENT_STREAMS_MAX: usize = 128;
/// Open streams of read-ahead and background work. They have their own limit, so that urgent streams never
/// queue behind them. Together the limits stay below the 256 streams that a host allows.
const AHEAD_STREAMS_MAX: usize = 96;

/// A welcomed connection.
pub(super) struct ActiveConnection {
    /// Keeps the socket open.
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    /// Session epoch of the connection.
    pub(super) run: SessionRun,
    urgent: Semaphore,
    ahead: Semaphore,
    waiting: AtomicUsize,
    bytes_outstanding: AtomicU64,
    wake: Arc<Notify>,
}

impl ActiveConnection {
    /// Wraps a connection. `wake` is notified when the first call begins to wait.
    pub(super) fn new(
        endpoint: Endpoint,
        connection: Connection,
        run: SessionRun,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            endpoint,
            connection,
            run,
            urgent: Semaphore::new(URGENT_STREAMS_MAX),
            ahead: Semaphore::new(AHEAD_STREAMS_MAX),
            waiting: AtomicUsize::new(0),
            bytes_outstanding: AtomicU64::new(0),
            wake,
        }
    }

    /// Waits until one more stream of this priority may be opened.
    pub(super) async fn admit(&self, lane: Lane) -> Result<SemaphorePermit<'_>, AcquireError> {
        match lane {
            Lane::Metadata | Lane::Demand => self.urgent.acquire().await,
            Lane::Ahead | Lane::Background => self.ahead.acquire().await,
        }
    }

    /// Returns true if requests may still be sent.
    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Returns the smaller of the UDP socket's buffers, in bytes, for a connection over UDP.
    pub(super) fn udp_buffer_bytes(&self) -> Option<usize> {
        let goes_over_udp = self.connection.kind() == TransportKind::Quic;
        self.endpoint.buffers().filter(|_| goes_over_udp).map(|buffers| buffers.smaller_bytes())
    }

    /// Returns the load: outstanding bytes of content, then calls.
    pub(super) fn load(&self) -> (u64, usize) {
        (self.bytes_outstanding.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed))
    }

    /// Returns the measurements for the supervisor.
    pub(super) fn sample(&self) -> Sample {
        Sample {
            datagrams_received: self.connection.datagrams_received(),
            rtt: self.connection.rtt(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

/// A call that waits for the host on one connection. The wait ends on drop.
pub(super) struct Waiting<'a> {
    live: &'a ActiveConnection,
    bytes: u64,
    counted: bool,
}

impl<'a> Waiting<'a> {
    /// Starts a wait for `bytes` bytes of content.
    pub(super) fn new(live: &'a ActiveConnection, bytes: u64) -> Self {
        live.bytes_outstanding.fetch_add(bytes, Ordering::Relaxed);
        let mut waiting = Self { live, bytes, counted: false };
        waiting.resume();
        waiting
    }

    /// Counts bytes that arrived.
    pub(super) fn arrived(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.live.bytes_outstanding.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Marks that the call waits for its own reader, not for the host.
    pub(super) fn pause(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.live.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Marks that the call waits for the host again.
    pub(super) fn resume(&mut self) {
        if !std::mem::replace(&mut self.counted, true)
            && self.live.waiting.fetch_add(1, Ordering::Relaxed) == 0
        {
            self.live.wake.notify_one();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pause();
        self.arrived(self.bytes);
    }
}
