//! Connections between a client and a host, over QUIC or TLS over TCP: who is who, how fast, and what a stream is.
//!
//! In reading order:
//!
//! 1. [`identity`], [`ticket`], [`mount_source`], [`host_key_table`], [`known_hosts`]: names, for people and for machines
//! 2. [`tls`]: both ends prove the key that is their name
//! 3. [`route`]: what the kernel knows of the way to the peer
//! 4. [`tuning`], [`congestion`]: which of the two, and every number given to quinn, with its reason
//! 5. `quic`, `tcp`: the two that carry connections
//! 6. [`endpoint`], [`connection`], [`stream`]: what the rest of wormhole uses
//! 7. [`interfaces`], [`mod@resolve`], [`dial`], [`backoff`]: from a host's names to one live connection, and again after a cut
//!
//! A request is one bidirectional stream: opening one costs no round trip, streams do not block each other, a reset
//! cancels, and [`Lane`] orders them. What travels on a stream is `proto`'s affair.

pub mod backoff;
pub mod congestion;
pub mod connection;
pub mod dial;
pub mod endpoint;
pub mod error;
pub mod host_key_table;
pub mod identity;
pub mod interfaces;
pub mod known_hosts;
pub mod mount_source;
mod quic;
pub mod resolve;
pub mod route;
pub mod stream;
mod tcp;
pub mod ticket;
pub mod tls;
pub mod tuning;

pub use crate::proto::Lane;
pub use backoff::Backoff;
pub use congestion::CongestionKind;
pub use connection::{CloseReason, Connection, LinkStats};
pub use dial::{QUIC_HEAD_START, connect_any};
pub use endpoint::{Endpoint, Incoming};
pub use error::TransportError;
pub use host_key_table::{Expected, HostContact, HostQuery, KeyVerdict, Notice};
pub use identity::{Identity, PublicKey};
pub use known_hosts::KnownHosts;
pub use mount_source::{AddressKind, AdvertisedName, DEFAULT_PORT, HostAddress, MountSource};
pub use quic::socket::{SOCKET_BUFFER_BYTES_WANTED, SocketBuffers, buffers_help};
pub use resolve::resolve;
pub use stream::{RecvStream, SendStream, StreamError, share};
pub use ticket::Ticket;
pub use tls::ExpectedHost;
pub use tuning::{TransportChoice, TransportKind, TransportTuning};

#[cfg(test)]
mod tests;
