//! A connection between two keys that both ends have proved, over QUIC or TCP.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{ConnectionError, VarInt};

use super::{
    error::TransportError,
    identity::PublicKey,
    stream::{RecvStream, SendStream},
    tcp::TcpConnection,
    tuning::{TransportKind, TransportTuning, var_int},
};
use crate::proto::{Lane, words};

/// An open connection. Clones are handles to the same one. It closes when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Inner,
    peer_key: PublicKey,
    /// Limits of the peer after its admission, unless they held from the start.
    admitted: Option<Arc<TransportTuning>>,
}

#[derive(Clone, Debug)]
enum Inner {
    Quic(quinn::Connection),
    Tcp(TcpConnection),
}

impl Connection {
    pub(super) fn quic(quinn: quinn::Connection, peer_key: PublicKey) -> Self {
        Self { inner: Inner::Quic(quinn), peer_key, admitted: None }
    }

    /// Returns the same connection, with small limits until the peer is admitted.
    pub(super) fn with_admission(self, admitted: Arc<TransportTuning>) -> Self {
        Self { admitted: Some(admitted), ..self }
    }

    pub(super) fn tcp((tcp, peer_key): (TcpConnection, PublicKey)) -> Self {
        Self { inner: Inner::Tcp(tcp), peer_key, admitted: None }
    }

    /// Gives the client the windows and streams of the tuning. Before this call an unadmitted client can make
    /// the host hold at most 64 KiB.
    pub fn admit(&self) {
        let Some(tuning) = &self.admitted else { return };
        match &self.inner {
            Inner::Quic(quinn) => {
                quinn.set_receive_window(var_int(tuning.receive_window_bytes));
                quinn.set_max_concurrent_bi_streams(tuning.bidirectional_streams_max.into());
                quinn.set_max_concurrent_uni_streams(tuning.unidirectional_streams_max.into());
            }
            Inner::Tcp(tcp) => tcp.admit(),
        }
    }

    /// Returns the protocol below.
    pub fn kind(&self) -> TransportKind {
        match &self.inner {
            Inner::Quic(_) => TransportKind::Quic,
            Inner::Tcp(_) => TransportKind::Tcp,
        }
    }

    /// Returns the key that the peer has proved.
    pub fn peer_key(&self) -> PublicKey {
        self.peer_key
    }

    /// Returns the present address of the peer. Over QUIC it may change.
    pub fn remote_address(&self) -> SocketAddr {
        let address = match &self.inner {
            Inner::Quic(quinn) => quinn.remote_address(),
            Inner::Tcp(tcp) => tcp.remote_address(),
        };
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Returns the smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        match &self.inner {
            Inner::Quic(quinn) => quinn.rtt(),
            Inner::Tcp(tcp) => tcp.rtt(),
        }
    }

    /// Returns the counters of the link.
    pub fn stats(&self) -> LinkStats {
        let quinn = match &self.inner {
            Inner::Quic(quinn) => quinn,
            Inner::Tcp(tcp) => return tcp.stats(),
        };
        let stats = quinn.stats();
        LinkStats {
            rtt: stats.path.rtt,
            rtt_min: stats.path.min_rtt,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            datagrams_sent: stats.udp_tx.datagrams,
            datagrams_received: stats.udp_rx.datagrams,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            congestion_events: stats.path.congestion_events,
            congestion_window_bytes: stats.path.cwnd,
            mtu_bytes: stats.path.current_mtu,
            black_holes: stats.path.black_holes_detected,
        }
    }

    /// Returns the count of datagrams received so far (over TCP: reads from the socket). Keep-alive (1 s)
    /// makes it grow at least once a second on a live link. A caller that sees it stand still for longer
    /// knows that the link is dead.
    pub fn datagrams_received(&self) -> u64 {
        match &self.inner {
            Inner::Quic(quinn) => quinn.stats().udp_rx.datagrams,
            Inner::Tcp(tcp) => tcp.reads(),
        }
    }

    /// Opens a bidirectional stream for one request. Waits while the stream limit of the peer is reached.
    ///
    /// The peer learns of the stream with the first byte written. `lane` orders our writes.
    pub async fn open_stream(&self, lane: Lane) -> Result<(SendStream, RecvStream), TransportError> {
        match &self.inner {
            Inner::Quic(quinn) => {
                let (send, receive) = quinn.open_bi().await.map_err(closed)?;
                let send = SendStream::quic(send);
                send.set_lane(lane);
                Ok((send, RecvStream::quic(receive)))
            }
            Inner::Tcp(tcp) => tcp.open(lane).await.map(over_tcp),
        }
    }

    /// Accepts the next bidirectional stream of the peer. The answer starts in [`Lane::Demand`]. See
    /// [`SendStream::set_lane`].
    pub async fn accept_stream(&self) -> Result<(SendStream, RecvStream), TransportError> {
        match &self.inner {
            Inner::Quic(quinn) => {
                let (send, receive) = quinn.accept_bi().await.map_err(closed)?;
                Ok((SendStream::quic(send), RecvStream::quic(receive)))
            }
            Inner::Tcp(tcp) => tcp.accept().await.map(over_tcp),
        }
    }

    /// Closes at once. Streams in flight are lost, and the peer reads `code` and `text`.
    pub fn close(&self, code: u32, text: &str) {
        match &self.inner {
            Inner::Quic(quinn) => quinn.close(VarInt::from_u32(code), text.as_bytes()),
            Inner::Tcp(tcp) => tcp.close(code, text),
        }
    }

    /// Waits until the connection is closed by either side, and returns the reason.
    pub async fn closed(&self) -> CloseReason {
        match &self.inner {
            Inner::Quic(quinn) => quinn.closed().await.into(),
            Inner::Tcp(tcp) => tcp.closed().await,
        }
    }

    /// Returns the reason if the connection is closed.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match &self.inner {
            Inner::Quic(quinn) => quinn.close_reason().map(Into::into),
            Inner::Tcp(tcp) => tcp.close_reason(),
        }
    }
}

fn over_tcp(
    (send, receive): (super::tcp::TcpSendStream, super::tcp::TcpRecvStream),
) -> (SendStream, RecvStream) {
    (SendStream::tcp(send), RecvStream::tcp(receive))
}

fn closed(error: ConnectionError) -> TransportError {
    TransportError::Closed(error.into())
}

/// Counters of a link since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Smallest round-trip time seen.
    pub rtt_min: Duration,
    /// UDP payload sent, in bytes: content, headers and retransmissions. Over TCP the bytes given to the
    /// kernel.
    pub bytes_sent: u64,
    /// UDP payload received, in bytes. Over TCP the bytes read from the kernel.
    pub bytes_received: u64,
    /// UDP datagrams sent, or writes to a TCP socket.
    pub datagrams_sent: u64,
    /// UDP datagrams received, or reads from a TCP socket.
    pub datagrams_received: u64,
    /// QUIC packets or TCP segments sent.
    pub sent_packets: u64,
    /// Packets or segments declared lost.
    pub lost_packets: u64,
    /// Loss and congestion events reported to the congestion control.
    pub congestion_events: u64,
    /// Bytes that may be in flight now.
    pub congestion_window_bytes: u64,
    /// Payload of a full packet now, in bytes.
    pub mtu_bytes: u16,
    /// Times that quinn took the route for one that swallows large packets.
    pub black_holes: u64,
}

/// Reason for the end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The application of the peer closed it.
    ByPeer {
        /// Code of the application.
        code: u64,
        /// Text of the application.
        text: String,
    },
    /// This side closed it.
    ByUs,
    /// Nothing arrived within the idle timeout.
    TimedOut,
    /// The peer does not know this connection any more, because it restarted.
    Reset,
    /// TLS, QUIC or TCP failed.
    Failed {
        /// Description of the failure.
        text: String,
    },
}

impl From<ConnectionError> for CloseReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::ByPeer {
                code: close.error_code.into_inner(),
                text: words::of_peer(&String::from_utf8_lossy(&close.reason)).into_owned(),
            },
            ConnectionError::LocallyClosed => Self::ByUs,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            // It may contain the reason that the peer gave.
            other => Self::Failed { text: words::of_peer(&other.to_string()).into_owned() },
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer { code, text } if text.is_empty() => {
                write!(formatter, "the other side closed it (code {code})")
            }
            Self::ByPeer { text, .. } => write!(formatter, "the other side closed it: {text}"),
            Self::ByUs => formatter.write_str("closed by this side"),
            Self::TimedOut => formatter.write_str("no answer; the other side or the network is down"),
            Self::Reset => formatter.write_str("the other side restarted and does not know this connection"),
            Self::Failed { text } => formatter.write_str(text),
        }
    }
}
