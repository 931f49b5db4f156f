//! One QUIC connection between two proven keys.

use std::{fmt, net::SocketAddr, time::Duration};

use quinn::{ConnectionError, RecvStream, SendStream, VarInt};

use super::{error::TransportError, identity::PublicKey};
use crate::proto::Lane;

/// A live connection. Clones are handles to the same one; it closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    quinn: quinn::Connection,
    peer_key: PublicKey,
}

impl Connection {
    pub(super) fn new(quinn: quinn::Connection, peer_key: PublicKey) -> Self {
        Self { quinn, peer_key }
    }

    /// The key that the peer has proved.
    pub fn peer_key(&self) -> PublicKey {
        self.peer_key
    }

    /// Where the peer is now; it may move (QUIC migration).
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.quinn.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.quinn.rtt()
    }

    /// A number that no other connection of this endpoint has at the same time.
    pub fn id(&self) -> usize {
        self.quinn.stable_id()
    }

    /// What the link does.
    pub fn stats(&self) -> LinkStats {
        let stats = self.quinn.stats();
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

    /// Datagrams that have arrived from the peer since the start. With keep-alive (1 s) a live link makes this grow at
    /// least once a second: a poller that sees it stand still for longer knows that the link is dead.
    pub fn datagrams_received(&self) -> u64 {
        self.quinn.stats().udp_rx.datagrams
    }

    /// Opens a stream in both directions for one request. Waits while the peer's limit of streams is reached.
    ///
    /// The peer learns of the stream with the first byte written. `lane` orders what we write.
    pub async fn open_stream(&self, lane: Lane) -> Result<(SendStream, RecvStream), TransportError> {
        let (send, receive) = self.quinn.open_bi().await.map_err(closed)?;
        set_lane(&send, lane);
        Ok((send, receive))
    }

    /// The next stream that the peer opened, in both directions. Its answer starts in [`Lane::Demand`]; see [`set_lane`].
    pub async fn accept_stream(&self) -> Result<(SendStream, RecvStream), TransportError> {
        self.quinn.accept_bi().await.map_err(closed)
    }

    /// Opens a stream on which only we write.
    pub async fn open_uni(&self, lane: Lane) -> Result<SendStream, TransportError> {
        let send = self.quinn.open_uni().await.map_err(closed)?;
        set_lane(&send, lane);
        Ok(send)
    }

    /// The next stream on which only the peer writes.
    pub async fn accept_uni(&self) -> Result<RecvStream, TransportError> {
        self.quinn.accept_uni().await.map_err(closed)
    }

    /// Closes at once: streams in flight are lost, the peer reads `code` and `text`.
    pub fn close(&self, code: u32, text: &str) {
        self.quinn.close(VarInt::from_u32(code), text.as_bytes());
    }

    /// Waits until the connection is over, whoever ended it, and says why.
    pub async fn closed(&self) -> CloseReason {
        self.quinn.closed().await.into()
    }

    /// Why the connection is over, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.quinn.close_reason().map(Into::into)
    }
}

/// Orders what is written on `stream` from now on. On a stream that is already finished there is nothing to order.
pub fn set_lane(stream: &SendStream, lane: Lane) {
    // The only failure is that the stream is closed.
    let _ = stream.set_priority(lane.priority());
}

fn closed(error: ConnectionError) -> TransportError {
    TransportError::Closed(error.into())
}

/// What a link does, counted since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Smallest round-trip time seen.
    pub rtt_min: Duration,
    /// UDP payload sent, in bytes: content, headers, what was sent twice.
    pub bytes_sent: u64,
    /// UDP payload received, in bytes.
    pub bytes_received: u64,
    /// UDP datagrams sent.
    pub datagrams_sent: u64,
    /// UDP datagrams received.
    pub datagrams_received: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets deemed lost.
    pub lost_packets: u64,
    /// Times the congestion control was told of loss or congestion.
    pub congestion_events: u64,
    /// Bytes that may be in flight now.
    pub congestion_window_bytes: u64,
    /// UDP payload of a full packet now, in bytes.
    pub mtu_bytes: u16,
    /// Times quinn believed that the path swallows large packets.
    pub black_holes: u64,
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer's application closed it.
    ByPeer {
        /// The application's code.
        code: u64,
        /// Its words.
        text: String,
    },
    /// This side closed it.
    ByUs,
    /// Nothing was heard for the idle timeout.
    TimedOut,
    /// The peer does not know this connection any more: it restarted.
    Reset,
    /// TLS or QUIC failed.
    Failed {
        /// Why, in words.
        text: String,
    },
}

impl From<ConnectionError> for CloseReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::ByPeer {
                code: close.error_code.into_inner(),
                text: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::LocallyClosed => Self::ByUs,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            other => Self::Failed { text: other.to_string() },
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
