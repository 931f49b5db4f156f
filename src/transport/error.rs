//! Errors between two machines, in words that a user can act on.

use std::{io, net::SocketAddr};

use thiserror::Error;

use super::{connection::CloseReason, identity::PublicKey};

/// Failure to open a socket, reach a host, or keep a connection.
#[derive(Debug, Error)]
pub enum TransportError {
    /// A socket could not be opened or bound.
    #[error("cannot listen on {protocol} {address}: {source}{}", bind_help(.source))]
    Bind {
        /// UDP or TCP.
        protocol: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// A socket could not be set up.
    #[error("cannot set up the socket ({step}): {source}")]
    Socket {
        /// The step that failed.
        step: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The TLS configuration was refused.
    #[error("cannot set up TLS with this identity: {0}")]
    Tls(String),
    /// The host proved another key than the expected one.
    #[error(
        "the host at {address} presents the key {presented}, but {expected} was expected: \
         it is another machine, or its identity was made anew; nothing was sent to it"
    )]
    WrongHostKey {
        /// Address at which the host answered.
        address: SocketAddr,
        /// The pinned key.
        expected: PublicKey,
        /// The key it presented.
        presented: PublicKey,
    },
    /// The host proved a key that is none of the known ones.
    #[error(
        "the host at {address} presents the key {presented}, which is not known here; nothing was sent to it"
    )]
    UnknownHostKey {
        /// Address at which the host answered.
        address: SocketAddr,
        /// The key it presented.
        presented: PublicKey,
    },
    /// A handshake with a host failed.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Address that was tried.
        address: SocketAddr,
        /// Reason in words.
        reason: String,
    },
    /// A handshake with a client failed.
    #[error("handshake with {address} failed: {reason}")]
    Handshake {
        /// Address of the client.
        address: SocketAddr,
        /// Reason in words.
        reason: String,
    },
    /// A host name has no address.
    #[error("cannot find the address of {host}: {source}; check the name, or use an IP address")]
    Resolve {
        /// The name.
        host: String,
        /// Error of the resolver.
        source: io::Error,
    },
    /// No address was given.
    #[error("no address to connect to")]
    NoAddress,
    /// None of several addresses answered.
    #[error("the host did not answer: {reasons}")]
    NoneAnswered {
        /// Each address with its reason.
        reasons: String,
    },
    /// The connection is over.
    #[error("the connection is closed: {0}")]
    Closed(CloseReason),
}

impl TransportError {
    /// Returns the key of a host that answered with a wrong key.
    pub fn wrong_key(&self) -> Option<PublicKey> {
        match self {
            Self::WrongHostKey { presented, .. } | Self::UnknownHostKey { presented, .. } => Some(*presented),
            _ => None,
        }
    }
}

fn bind_help(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program uses this port: choose another with --listen, or port 0"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        _ => "",
    }
}
