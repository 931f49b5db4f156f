//! Configuration of a client of a real host, and errors of its first connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::client::FAST_BYTES_PER_SECOND;
use crate::proto::{CompressionWish, SessionId, TicketSecret, WireError};
use crate::transport::{ExpectedHost, HostAddress, Identity, TransportError, TransportTuning};

/// Default deadline of a call: `timeo=600` of NFS, in tenths of a second.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);
/// Default time for the first connection. A user waits at the prompt.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Largest number of connections to one host, as in `nconnect` of NFS.
pub const CONNECTIONS_MAX: usize = 16;

/// Host, folder and identity of a client.
#[derive(Clone)]
pub struct ClientConfig {
    /// Addresses of the host. Names are resolved again from time to time.
    pub addresses: Vec<HostAddress>,
    /// Key that the host must prove. After the first connection only the key of that connection is accepted.
    pub expected: ExpectedHost,
    /// Name of the export.
    pub export: String,
    /// Path of the root below the export, without a leading `/`, empty for the export itself.
    pub sub_path: Vec<u8>,
    /// Secret that admits a key that the host does not know.
    pub ticket: Option<TicketSecret>,
    /// Key of this client.
    pub identity: Arc<Identity>,
    /// Session of this client, which survives connections.
    pub session: SessionId,
    /// Deadline of a call, from its start. For reads and listings from their last progress.
    pub deadline: Duration,
    /// Time for the first connection.
    pub connect_timeout: Duration,
    /// Number of connections, 1 to [`CONNECTIONS_MAX`]. Encryption of one connection uses one core.
    pub connections: usize,
    /// Link rate from which the chunks of a short read are delivered together as a run, in bytes per second,
    /// 0 for always. On a slower link a reader of the first chunk should not wait for the others.
    pub runs_from_bytes_per_second: u64,
    /// Wish for compressed content.
    pub compression: CompressionWish,
    /// Protocol and parameters of connections.
    pub tuning: TransportTuning,
}

impl ClientConfig {
    /// Returns a configuration with defaults. `session` are random bytes.
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

    /// Returns the addresses as text.
    pub(super) fn addresses_text(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Reason why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host answered and refused.
    #[error("the host at {address} refuses: {error}")]
    Refused {
        /// Address of the host.
        address: SocketAddr,
        /// Error of the host.
        error: WireError,
    },
    /// A wrong key, a name without address, or a socket that cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No answer.
    #[error(
        "no answer from {addresses} within {} s: the host is not running there, or a firewall drops what is sent to its port",
        .waited.as_secs_f32()
    )]
    NoAnswer {
        /// Addresses that were tried.
        addresses: String,
        /// Time that was waited.
        waited: Duration,
    },
    /// The answer is not that of a wormhole host.
    #[error("{address} does not answer as a wormhole host: {reason}")]
    BadAnswer {
        /// Address of the answer.
        address: SocketAddr,
        /// Error in the answer.
        reason: String,
    },
}
