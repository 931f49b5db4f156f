//! Handles to a TCP connection and to both ends of a stream, for the rest of the transport.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::mux::{Mux, ReadProgress};
use crate::io::sys::TcpInfo;
use crate::proto::Lane;
use crate::transport::connection::{CloseReason, LinkStats};
use crate::transport::error::TransportError;
use crate::transport::stream::StreamError;

/// State shared by the task of the socket and all handles.
#[derive(Debug)]
pub(super) struct Shared {
    mux: Mutex<Mux>,
    /// Tells the task of the socket that there is work.
    pub(super) work: Notify,
    /// True once the peer may use the full limits.
    is_admitted: AtomicBool,
    pub(super) counters: Counters,
}

/// Counters kept by the task of the socket.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) reads: AtomicU64,
    /// Last counters of the kernel.
    pub(super) info: Mutex<TcpInfo>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(mux: Mux) -> Self {
        let is_admitted = AtomicBool::new(false);
        Self { mux: Mutex::new(mux), work: Notify::new(), is_admitted, counters: Counters::default() }
    }

    /// Returns true once the peer may use the full limits.
    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }

    /// Lets the peer use the full limits.
    pub(super) fn admit(&self) {
        self.is_admitted.store(true, Ordering::Relaxed);
        self.with_notify(Mux::admit);
    }

    /// Runs `act` on the streams for the task of the socket. Wakes the waiting tasks after the lock is
    /// released.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        let mut mux = locked(&self.mux);
        let result = act(&mut mux);
        let wakes = mux.take_wakes();
        drop(mux);
        wakes.into_iter().for_each(std::task::Waker::wake);
        result
    }

    /// Runs `act` for any other task, and notifies the task of the socket if there is something to send.
    fn with_notify<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        let (result, has_work) = self.with(|mux| {
            let had_work = mux.has_work();
            let result = act(mux);
            (result, mux.has_work() && !had_work)
        });
        if has_work {
            self.work.notify_one();
        }
        result
    }

    async fn wait<T>(&self, mut poll: impl FnMut(&mut Mux, &Context<'_>) -> Poll<T>) -> T {
        poll_fn(|context| self.with_notify(|mux| poll(mux, context))).await
    }
}

/// Closes the connection when the last handle is dropped.
struct ConnectionHandle(Arc<Shared>);

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.0.with_notify(|mux| mux.close(0, ""));
    }
}

/// A connection. Clones are handles to the same one.
#[derive(Clone)]
pub(in crate::transport) struct TcpConnection {
    hold: Arc<ConnectionHandle>,
    peer: SocketAddr,
}

impl TcpConnection {
    pub(super) fn new(shared: Arc<Shared>, peer: SocketAddr) -> Self {
        Self { hold: Arc::new(ConnectionHandle(shared)), peer }
    }

    fn shared(&self) -> &Shared {
        &self.hold.0
    }

    pub(in crate::transport) fn remote_address(&self) -> SocketAddr {
        self.peer
    }

    pub(in crate::transport) fn admit(&self) {
        self.shared().admit();
    }

    pub(in crate::transport) fn rtt(&self) -> Duration {
        locked(&self.shared().counters.info).rtt
    }

    pub(in crate::transport) fn reads(&self) -> u64 {
        self.shared().counters.reads.load(Ordering::Relaxed)
    }

    pub(in crate::transport) fn stats(&self) -> LinkStats {
        let counters = &self.shared().counters;
        let info = *locked(&counters.info);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            rtt: info.rtt,
            rtt_min: info.rtt_min,
            bytes_sent: count(&counters.bytes_sent),
            bytes_received: count(&counters.bytes_received),
            datagrams_sent: count(&counters.writes),
            datagrams_received: count(&counters.reads),
            sent_packets: info.segments_sent,
            lost_packets: info.segments_lost,
            congestion_events: 0,
            congestion_window_bytes: info.congestion_window_bytes,
            mtu_bytes: u16::try_from(info.segment_bytes).unwrap_or(u16::MAX),
            black_holes: 0,
        }
    }

    pub(in crate::transport) async fn open(
        &self,
        lane: Lane,
    ) -> Result<(TcpSendStream, TcpRecvStream), TransportError> {
        let opened = self.shared().wait(|mux, context| mux.poll_open(lane, context)).await;
        self.stream(opened)
    }

    pub(in crate::transport) async fn accept(
        &self,
    ) -> Result<(TcpSendStream, TcpRecvStream), TransportError> {
        let accepted = self.shared().wait(Mux::poll_accept).await;
        self.stream(accepted)
    }

    fn stream(&self, id: Result<u32, CloseReason>) -> Result<(TcpSendStream, TcpRecvStream), TransportError> {
        let id = id.map_err(TransportError::Closed)?;
        let end = || StreamHandle { hold: Arc::clone(&self.hold), id };
        Ok((TcpSendStream(end()), TcpRecvStream(end())))
    }

    pub(in crate::transport) fn close(&self, code: u32, text: &str) {
        self.shared().with_notify(|mux| mux.close(code, text));
    }

    pub(in crate::transport) async fn closed(&self) -> CloseReason {
        self.shared().wait(Mux::poll_closed).await
    }

    pub(in crate::transport) fn close_reason(&self) -> Option<CloseReason> {
        self.shared().with(|mux| mux.close_reason().cloned())
    }
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TcpConnection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Either end of a stream. It keeps the connection open.
struct StreamHandle {
    hold: Arc<ConnectionHandle>,
    id: u32,
}

impl StreamHandle {
    fn shared(&self) -> &Shared {
        &self.hold.0
    }
}

/// The sending end. On drop it finishes the written bytes.
pub(in crate::transport) struct TcpSendStream(StreamHandle);

impl TcpSendStream {
    pub(in crate::transport) async fn write(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        let id = self.0.id;
        self.0.shared().wait(|mux, context| mux.poll_write(id, &mut bytes, context)).await
    }

    pub(in crate::transport) fn finish(&mut self) -> bool {
        self.0.shared().with_notify(|mux| mux.finish(self.0.id))
    }

    pub(in crate::transport) fn reset(&mut self, code: u32) -> bool {
        self.0.shared().with_notify(|mux| mux.reset(self.0.id, code))
    }

    pub(in crate::transport) fn set_lane(&self, lane: Lane) {
        self.0.shared().with_notify(|mux| mux.set_lane(self.0.id, lane));
    }

    pub(in crate::transport) fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<u32>, StreamError>> + Send + 'static + use<> {
        let (hold, id) = (Arc::clone(&self.0.hold), self.0.id);
        async move { hold.0.wait(|mux, context| mux.poll_stopped(id, context)).await }
    }
}

impl Drop for TcpSendStream {
    fn drop(&mut self) {
        self.0.shared().with_notify(|mux| mux.drop_sending(self.0.id));
    }
}

/// The receiving end. On drop it asks for no more data.
pub(in crate::transport) struct TcpRecvStream(StreamHandle);

impl TcpRecvStream {
    pub(in crate::transport) async fn read(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        let id = self.0.id;
        self.0.shared().wait(|mux, context| mux.poll_read(id, max, context)).await
    }

    pub(in crate::transport) fn use_memory(&mut self, room: BytesMut) {
        self.0.shared().with_notify(|mux| mux.use_memory(self.0.id, room));
    }

    pub(in crate::transport) async fn read_bytes(
        &mut self,
        len: usize,
        mut arrived: impl FnMut(u64),
    ) -> Result<BytesMut, StreamError> {
        let (id, mut told) = (self.0.id, 0);
        loop {
            let step =
                self.0.shared().wait(|mux, context| mux.poll_read_exact(id, len, told, context)).await?;
            let (now, all) = match step {
                ReadProgress::Part(bytes) => (bytes, None),
                ReadProgress::All(bytes) => (len, Some(bytes)),
            };
            arrived((now - told) as u64);
            told = now;
            if let Some(bytes) = all {
                return Ok(bytes);
            }
        }
    }

    pub(in crate::transport) fn stop(&mut self, code: u32) -> bool {
        self.0.shared().with_notify(|mux| mux.stop(self.0.id, code))
    }
}

impl Drop for TcpRecvStream {
    fn drop(&mut self) {
        self.0.shared().with_notify(|mux| mux.drop_receiving(self.0.id));
    }
}
