//! Connections between a client and a host over QUIC or TLS on TCP: identity, congestion control, streams.
//!
//! In reading order:
//!
//! 1. [`identity`], [`ticket`], [`mount_source`], [`host_key_table`], [`known_hosts`]: names and keys
//! 2. [`tls`]: both ends prove their keys
//! 3. [`route`]: properties of the route to the peer, from the kernel
//! 4. [`tuning`], [`congestion`]: the choice of protocol, and every number given to quinn, with its reason
//! 5. `quic`, `tcp`: the two protocols
//! 6. [`endpoint`], [`connection`], [`stream`]: the interface to the rest of wormhole
//! 7. [`interfaces`], [`mod@resolve`], [`dial`], [`backoff`]: from names of a host to an open connection, and
//!    again after an interruption
//!
//! A request is one bidirectional stream. Opening one costs no round trip, streams do not block each other, a
//! reset cancels, and [`Lane`] orders them. `proto` defines the content of streams.

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
pub use stream::{RecvStream, SendStream, StreamError, freeze};
pub use ticket::Ticket;
pub use tls::ExpectedHost;
pub use tuning::{TransportChoice, TransportKind, TransportTuning};

#[cfg(test)]
mod tests;
