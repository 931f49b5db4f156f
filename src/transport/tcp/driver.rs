//! Task of one connection. It moves bytes between the socket and the streams, in steps as large as the socket
//! takes.
//!
//! It decides nothing: [`Mux`](super::mux::Mux) chooses the bytes to send, [`Records`] encrypts and decrypts,
//! [`BatchSize`] says how much at once.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::batch_size::BatchSize;
use super::congestion::KernelCongestion;
use super::handle::{Shared, locked};
use super::handshake::Established;
use super::mux::{Batch, Violation};
use super::record::{Opened, RECORD_BYTES_MAX, RecordError, Records};
use super::record_buffer::RecordBuffer;
use crate::io::sys::{TcpInfo, tcp_info};
use crate::transport::connection::CloseReason;

/// Bytes asked of the socket at once. Decrypted bytes are still in the processor's cache when they are
/// verified.
const RECEIVE_BYTES: usize = 512 << 10;
/// The same before the peer is admitted: one record. So a thousand unadmitted peers use little memory.
const UNADMITTED_RECEIVE_BYTES: usize = RECORD_BYTES_MAX;
/// Interval at which the kernel is asked for `TCP_INFO` while the connection is busy.
const INFO_EVERY: Duration = Duration::from_millis(100);
/// Deadline for sending the close and for the peer to read it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Times of silence after which a ping is sent, and after which the connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) keep_alive: Duration,
    pub(super) idle_timeout: Duration,
}

/// Reason for the end of the connection.
enum ExitReason {
    /// Either side closed it.
    Closed,
    /// The connection broke without a close.
    Failed(CloseReason),
}

impl From<io::Error> for ExitReason {
    fn from(error: io::Error) -> Self {
        Self::Failed(match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::Reset,
            io::ErrorKind::TimedOut => CloseReason::TimedOut,
            _ => CloseReason::Failed { text: error.to_string() },
        })
    }
}

impl From<RecordError> for ExitReason {
    fn from(error: RecordError) -> Self {
        Self::Failed(CloseReason::Failed { text: error.to_string() })
    }
}

impl From<Violation> for ExitReason {
    fn from(violation: Violation) -> Self {
        Self::Failed(CloseReason::Failed { text: violation.to_string() })
    }
}

/// Sets the congestion control of the kernel. If the kernel lacks it or reserves it, the connection keeps its
/// own.
pub(super) fn set_congestion(stream: &TcpStream, name: &str) {
    let _ = setsockopt(stream, sockopt::TcpCongestion, &OsString::from(name));
}

/// Changes the congestion control if the route is lossy.
fn update_congestion(stream: &TcpStream, congestion: &mut KernelCongestion, info: &TcpInfo) {
    if let Some(name) = congestion.update(info) {
        tracing::debug!("this route is lossy: changing its congestion control to {name}");
        set_congestion(stream, name);
    }
}

/// Returns the number of content bytes in a record.
fn content(opened: Opened) -> Result<usize, ExitReason> {
    match opened {
        Opened::Content(len) => Ok(len),
        Opened::Nothing => Ok(0),
        Opened::End => {
            let text = "the other side ended the connection".to_owned();
            Err(ExitReason::Failed(CloseReason::Failed { text }))
        }
    }
}

pub(super) struct Driver {
    stream: TcpStream,
    shared: Arc<Shared>,
    records: Records,
    timeouts: Timeouts,
    congestion: KernelCongestion,
    started_at: Instant,
    incoming: Vec<u8>,
    /// Length of the filled part of `incoming`.
    received: usize,
    /// Buffer for a decrypted record that does not belong to one piece only.
    opened: Vec<u8>,
    outgoing: RecordBuffer,
    /// Length of the part of `outgoing` that the socket has taken.
    sent: usize,
    batch: Batch,
    batch_size: BatchSize,
    last_heard: Instant,
    last_info: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Driver {
    pub(super) fn new(
        stream: TcpStream,
        shared: Arc<Shared>,
        established: Established,
        timeouts: Timeouts,
        congestion: KernelCongestion,
    ) -> Self {
        let now = Instant::now();
        let received = established.sealed.len();
        // Fresh zeroes: a connection that receives little touches only the first pages.
        let mut incoming = vec![0; received.max(RECEIVE_BYTES + RECORD_BYTES_MAX)];
        incoming[..received].copy_from_slice(&established.sealed);
        let mut driver = Self {
            stream,
            congestion,
            shared,
            records: established.records,
            timeouts,
            started_at: now,
            incoming,
            received,
            opened: vec![0; RECORD_BYTES_MAX],
            outgoing: RecordBuffer::default(),
            sent: 0,
            batch: Batch::default(),
            batch_size: BatchSize::new(),
            last_heard: now,
            last_info: now,
            timer: Box::pin(sleep_until(now + timeouts.keep_alive)),
        };
        driver.ask_kernel();
        driver
    }

    /// Runs until the connection is over. `content` arrived with the handshake.
    pub(super) async fn run(mut self, content: Vec<u8>) {
        let end = match self.begin(&content) {
            Ok(()) => self.carry().await,
            Err(end) => end,
        };
        if let ExitReason::Failed(reason) = end {
            self.shared.with(|mux| mux.fail(reason));
        }
        self.ask_kernel();
        let _ = timeout(CLOSE_TIMEOUT, self.send_close()).await;
    }

    fn begin(&mut self, content: &[u8]) -> Result<(), ExitReason> {
        self.shared.with(|mux| mux.receive(content, Duration::ZERO))?;
        self.open_records()
    }

    async fn carry(&mut self) -> ExitReason {
        loop {
            let moved = match self.send().and_then(|sent| Ok(self.receive()? || sent)) {
                Ok(moved) => moved,
                Err(end) => return end,
            };
            if self.shared.with(|mux| mux.close_reason().is_some()) {
                return ExitReason::Closed;
            }
            if moved {
                // Tasks that were woken find their bytes in the processor's cache.
                tokio::task::yield_now().await;
            } else if let Err(end) = self.wait().await {
                return end;
            }
        }
    }

    /// Sends until the socket is full. Returns true if the socket took bytes.
    fn send(&mut self) -> Result<bool, ExitReason> {
        let mut moved = false;
        loop {
            if self.sent == self.outgoing.len() && !self.seal_batch()? {
                return Ok(moved);
            }
            match self.stream.try_write(&self.outgoing[self.sent..]) {
                Ok(bytes) => {
                    self.sent += bytes;
                    moved = true;
                    let counters = &self.shared.counters;
                    counters.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
                    counters.writes.fetch_add(1, Ordering::Relaxed);
                    if self.sent == self.outgoing.len() {
                        self.batch_size.drained(self.started_at.elapsed());
                        return Ok(moved);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Encrypts the next batch. Returns true if there was one.
    fn seal_batch(&mut self) -> Result<bool, ExitReason> {
        let bytes_max = self.batch_size.batch_bytes();
        let (batch, shared) = (&mut self.batch, &self.shared);
        shared.with(|mux| {
            if mux.has_work() {
                mux.transmit(batch, bytes_max);
            }
        });
        self.sent = 0;
        self.outgoing.clear();
        if self.batch.parts.is_empty() {
            return Ok(false);
        }
        self.batch_size.begin(self.started_at.elapsed());
        self.records.seal(&self.batch, &mut self.outgoing)?;
        self.batch.parts.clear();
        self.batch.bytes = 0;
        Ok(true)
    }

    /// Reads from the socket once. Returns true if it had bytes.
    fn receive(&mut self) -> Result<bool, ExitReason> {
        let room = if self.shared.is_admitted() { self.incoming.len() } else { UNADMITTED_RECEIVE_BYTES };
        match self.stream.try_read(&mut self.incoming[self.received..room.max(self.received + 1)]) {
            Ok(0) => {
                let text = "the other side ended the connection without a close".to_owned();
                Err(ExitReason::Failed(CloseReason::Failed { text }))
            }
            Ok(bytes) => {
                self.received += bytes;
                self.last_heard = Instant::now();
                let counters = &self.shared.counters;
                counters.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
                counters.reads.fetch_add(1, Ordering::Relaxed);
                if self.last_heard - self.last_info >= INFO_EVERY {
                    self.last_info = self.last_heard;
                    self.ask_kernel();
                }
                self.open_records()?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Decrypts the complete records, and passes on their content.
    fn open_records(&mut self) -> Result<(), ExitReason> {
        let (now, mut start) = (self.last_heard - self.started_at, 0);
        while let Some(len) = Records::complete_len(&self.incoming[start..self.received])? {
            self.open_record(start..start + len, now)?;
            start += len;
        }
        self.incoming.copy_within(start..self.received, 0);
        self.received -= start;
        Ok(())
    }

    /// Decrypts one record, directly into its piece if it holds nothing else.
    fn open_record(&mut self, at: Range<usize>, now: Duration) -> Result<(), ExitReason> {
        let (record, records) = (&self.incoming[at], &mut self.records);
        let sealed_bytes = Records::sealed_bytes(record);
        let in_place = self
            .shared
            .with(|mux| mux.receive_in_place(sealed_bytes, now, |room| content(records.open(record, room)?)));
        if let Some(opened) = in_place {
            return opened;
        }
        let opened = &mut self.opened[..sealed_bytes];
        let len = content(records.open(record, opened)?)?;
        Ok(self.shared.with(|mux| mux.receive(&opened[..len], now))?)
    }

    /// Waits until the socket or a stream has work, or until the timer fires.
    async fn wait(&mut self) -> Result<(), ExitReason> {
        let mut interest = Interest::READABLE;
        if self.sent < self.outgoing.len() {
            interest |= Interest::WRITABLE;
        }
        tokio::select! {
            ready = self.stream.ready(interest) => {
                ready?;
            }
            () = self.shared.work.notified() => {}
            () = &mut self.timer => self.on_timer()?,
        }
        Ok(())
    }

    fn on_timer(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        let silence = now - self.last_heard;
        if silence >= self.timeouts.idle_timeout {
            return Err(ExitReason::Failed(CloseReason::TimedOut));
        }
        if silence >= self.timeouts.keep_alive {
            self.shared.with(super::mux::Mux::ping);
            self.timer.as_mut().reset(now + self.timeouts.keep_alive);
        } else {
            self.timer.as_mut().reset(self.last_heard + self.timeouts.keep_alive);
        }
        self.ask_kernel();
        Ok(())
    }

    fn ask_kernel(&mut self) {
        if let Ok(info) = tcp_info(&self.stream) {
            update_congestion(&self.stream, &mut self.congestion, &info);
            *locked(&self.shared.counters.info) = info;
        }
    }

    /// Sends the encrypted bytes and the close, and reads until the peer has closed too. A socket that is
    /// closed with unread bytes discards the bytes it sent.
    async fn send_close(mut self) -> io::Result<()> {
        self.stream.write_all(&self.outgoing[self.sent..]).await?;
        self.outgoing.clear();
        self.shared.with(|mux| mux.transmit(&mut self.batch, 0));
        if self.batch.parts.is_empty() {
            return Ok(());
        }
        let sealed = self.records.seal(&self.batch, &mut self.outgoing);
        sealed.and_then(|()| self.records.seal_end(&mut self.outgoing)).map_err(io::Error::other)?;
        self.stream.write_all(&self.outgoing).await?;
        self.stream.shutdown().await?;
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut self.incoming) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;
    use crate::transport::congestion::CongestionKind;

    #[tokio::test]
    async fn a_lossy_short_route_changes_its_congestion_control() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let used = || {
            let name = getsockopt(&stream, sockopt::TcpCongestion).unwrap();
            name.to_string_lossy().trim_end_matches('\0').to_owned()
        };
        set_congestion(&stream, "bbr");
        if used() != "bbr" {
            eprintln!("LEFT OUT: this kernel has no bbr");
            return;
        }
        let mut congestion = KernelCongestion::new(CongestionKind::Delivery, true);
        set_congestion(&stream, congestion.first());
        for (segments, expected) in [(20_000, "cubic"), (40_000, "cubic"), (60_000, "bbr")] {
            assert_eq!(used(), "cubic");
            let lost = if segments > 20_000 { segments / 10 } else { 0 };
            let info = TcpInfo { segments_sent: segments, segments_lost: lost, ..TcpInfo::default() };
            update_congestion(&stream, &mut congestion, &info);
            assert_eq!(used(), expected, "after {segments}");
        }
    }
}
