//! QUIC between a client and a host: who is who, how fast, and what a stream is.
//!
//! In reading order:
//!
//! 1. [`identity`], [`ticket`], [`source`], [`known_hosts`]: names, for people and for machines
//! 2. [`tls`]: both ends prove the key that is their name
//! 3. [`socket`], [`path`]: the UDP socket and what the kernel knows of the way to the peer
//! 4. [`tuning`], [`congestion`]: every number given to quinn, with its reason
//! 5. [`endpoint`], [`connection`]: what the rest of wormhole uses
//! 6. [`mod@resolve`], [`dial`], [`backoff`]: from a host's names to one live connection, and again after a cut
//!
//! A request is one bidirectional stream: opening one costs no round trip, streams do not block each other, a reset
//! cancels, and [`Lane`] orders them. What travels on a stream is `proto`'s affair.

pub mod backoff;
pub mod congestion;
pub mod connection;
pub mod dial;
pub mod endpoint;
pub mod error;
pub mod identity;
pub mod known_hosts;
pub mod path;
pub mod resolve;
pub mod socket;
pub mod source;
pub mod ticket;
pub mod tls;
pub mod tuning;

pub use crate::proto::Lane;
pub use backoff::Backoff;
pub use congestion::CongestionKind;
pub use connection::{CloseReason, Connection, LinkStats};
pub use dial::connect_any;
pub use endpoint::{Endpoint, Incoming};
pub use error::TransportError;
pub use identity::{Identity, PublicKey};
pub use known_hosts::KnownHosts;
pub use quinn::{
    ReadError, ReadExactError, ReadToEndError, RecvStream, ResetError, SendStream, StoppedError, WriteError,
};
pub use resolve::resolve;
pub use socket::{SOCKET_BUFFER_BYTES_WANTED, SocketBuffers, buffers_help};
pub use source::{DEFAULT_PORT, HostAddress, Source};
pub use ticket::Ticket;
pub use tls::ExpectedHost;
pub use tuning::TransportTuning;

#[cfg(test)]
mod tests;
