//! What can go wrong between two machines, in words a user can act on.

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
        /// What the system said.
        source: io::Error,
    },
    /// A socket could not be set up.
    #[error("cannot set up the socket ({what}): {source}")]
    Socket {
        /// The step that failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS configuration was refused.
    #[error("cannot set up TLS with this identity: {0}")]
    Tls(String),
    /// The host proved another key than the pinned one.
    #[error(
        "the host at {address} presents the key {presented}, but {expected} was expected: \
         it is another machine, or its identity was made anew; nothing was sent to it"
    )]
    WrongHostKey {
        /// Where the host was reached.
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
        /// Where the host was reached.
        address: SocketAddr,
        /// The key it presented.
        presented: PublicKey,
    },
    /// A handshake with a host did not succeed.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Where the host was looked for.
        address: SocketAddr,
        /// Why, in words.
        reason: String,
    },
    /// A handshake with a client did not succeed.
    #[error("handshake with {address} failed: {reason}")]
    Handshake {
        /// Where the client was.
        address: SocketAddr,
        /// Why, in words.
        reason: String,
    },
    /// A host name has no address.
    #[error("cannot find the address of {host}: {source}; check the name, or use an IP address")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// There was nothing to dial.
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
    /// The key of a host that answered and is not the right one.
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
