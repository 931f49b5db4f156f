//! What a client of a real host must know before it begins, and why it may not get in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::client::FAST_BYTES_PER_SECOND;
use crate::proto::{CompressionWish, SessionId, TicketSecret, WireError};
use crate::transport::{ExpectedHost, HostAddress, Identity, TransportError, TransportTuning};

/// Time a call may take when nobody says otherwise: NFS's `timeo=600`, in tenths of a second.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);
/// Time the first connection may take when nobody says otherwise: a person is waiting at the prompt.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Connections to one host at most; NFS's `nconnect` has the same bound.
pub const CONNECTIONS_MAX: usize = 16;

/// Which host, which folder of it, and as whom.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where the host may be; names are looked up again from time to time.
    pub addresses: Vec<HostAddress>,
    /// The key it must prove. After the first connection the key it proved then, in any case.
    pub expected: ExpectedHost,
    /// Name of the export.
    pub export: String,
    /// Path below the export that is to be the root, without a leading `/`; empty for the export itself.
    pub sub_path: Vec<u8>,
    /// Lets in a key that the host has not seen.
    pub ticket: Option<TicketSecret>,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Our session, which outlives connections.
    pub session: SessionId,
    /// Time a call may take, from when it was made; a read or a listing, from its last sign of progress.
    pub deadline: Duration,
    /// Time the first connection may take.
    pub connect_timeout: Duration,
    /// Connections to use, 1 to [`CONNECTIONS_MAX`]: one connection is one core's worth of encryption.
    pub connections: usize,
    /// From this rate on the chunks of a short read come as a run once all are there, in bytes per second; 0: always. On a slower
    /// link whoever waits for the first one should not wait for the others.
    pub runs_from_bytes_per_second: u64,
    /// Whether content comes compressed.
    pub compression: CompressionWish,
    /// What carries connections, and its numbers.
    pub tuning: TransportTuning,
}

impl ClientConfig {
    /// Everything that has no default; `session` are random bytes.
    pub fn new(
        addresses: Vec<HostAddress>,
        expected: ExpectedHost,
        export: impl Into<String>,
        identity: Arc<Identity>,
        session: SessionId,
    ) -> Self {
        Self {
            addresses,
            expected,
            export: export.into(),
            sub_path: Vec::new(),
            ticket: None,
            identity,
            session,
            deadline: DEADLINE_DEFAULT,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            connections: 1,
            runs_from_bytes_per_second: FAST_BYTES_PER_SECOND,
            compression: CompressionWish::Worthwhile,
            tuning: TransportTuning::default(),
        }
    }

    /// The addresses for people.
    pub(super) fn addresses_text(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host answered, and said no.
    #[error("the host at {address} refuses: {error}")]
    Refused {
        /// Where it answered.
        address: SocketAddr,
        /// In its words.
        error: WireError,
    },
    /// Another key than the pinned one, a name without address, a socket that cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Nobody answered.
    #[error(
        "no answer from {addresses} within {} s: the host is not running there, or a firewall drops what is sent to its port",
        .waited.as_secs_f32()
    )]
    NoAnswer {
        /// Where was asked.
        addresses: String,
        /// How long.
        waited: Duration,
    },
    /// Somebody answered who does not speak as a host should.
    #[error("{address} does not answer as a wormhole host: {reason}")]
    BadAnswer {
        /// Where it answered.
        address: SocketAddr,
        /// What was wrong.
        reason: String,
    },
}
