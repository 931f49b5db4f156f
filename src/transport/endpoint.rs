//! A UDP socket with QUIC on it: a host's, which accepts, or a client's, which connects.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use quinn::{ClientConfig, ConnectionError, EndpointConfig, ServerConfig, TokioRuntime, VarInt};

use super::{
    connection::{CloseReason, Connection},
    error::TransportError,
    identity::Identity,
    path::{Path, UDP_PAYLOAD_BYTES_MAX},
    socket::{self, SocketBuffers},
    tls::{self, CertifiedIdentity, ExpectedHost},
    tuning::TransportTuning,
};

/// Name in the TLS handshake. Nobody looks at it: the key is the name, and it is not sent.
const TLS_NAME: &str = "wormhole";

/// Handshakes begun but not accepted that a host holds; further strangers are turned away.
const PENDING_HANDSHAKES_MAX: usize = 1_024;
/// Bytes of early packets kept for one of them, and for all.
const PENDING_BYTES_MAX: u64 = 64 << 10;
const PENDING_BYTES_TOTAL_MAX: u64 = 8 << 20;
/// From this many open connections on, a stranger must first prove that its address is its own (one more round trip), so
/// that forged addresses cannot fill the host.
const CONNECTIONS_BEFORE_ADDRESS_CHECK: usize = 256;

/// A socket with QUIC on it. Must be made inside a tokio runtime.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    identity: CertifiedIdentity,
    tuning: Arc<TransportTuning>,
    server: Option<Arc<ServerConfig>>,
    buffers: SocketBuffers,
    local_address: SocketAddr,
    alpn: &'static [u8],
}

impl Endpoint {
    /// Listens on `listen` (`[::]:PORT` serves both families; port 0 picks one).
    pub fn host(
        listen: SocketAddr,
        identity: &Identity,
        tuning: &TransportTuning,
    ) -> Result<Self, TransportError> {
        Self::host_speaking(tls::ALPN, listen, identity, tuning)
    }

    /// An endpoint to reach `peer` from. It may open several connections; one to another peer wants its own endpoint,
    /// because packet sizes follow the way to the peer.
    pub fn client(
        identity: &Identity,
        tuning: &TransportTuning,
        peer: SocketAddr,
    ) -> Result<Self, TransportError> {
        Self::client_speaking(tls::ALPN, identity, tuning, peer)
    }

    fn host_speaking(
        alpn: &'static [u8],
        listen: SocketAddr,
        identity: &Identity,
        tuning: &TransportTuning,
    ) -> Result<Self, TransportError> {
        let identity = CertifiedIdentity::new(identity)?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls::server(&identity, alpn)?));
        server
            .max_incoming(PENDING_HANDSHAKES_MAX)
            .incoming_buffer_size(PENDING_BYTES_MAX)
            .incoming_buffer_size_total(PENDING_BYTES_TOTAL_MAX)
            .transport_config(tuning.transport_config(Path::unknown(listen.ip())));
        Self::open(listen, identity, tuning, Some(server), UDP_PAYLOAD_BYTES_MAX, alpn)
    }

    pub(super) fn client_speaking(
        alpn: &'static [u8],
        identity: &Identity,
        tuning: &TransportTuning,
        peer: SocketAddr,
    ) -> Result<Self, TransportError> {
        let any = match peer {
            SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        let datagram_bytes_max = Path::to(peer).udp_payload_bytes_max;
        Self::open(any, CertifiedIdentity::new(identity)?, tuning, None, datagram_bytes_max, alpn)
    }

    fn open(
        address: SocketAddr,
        identity: CertifiedIdentity,
        tuning: &TransportTuning,
        server: Option<ServerConfig>,
        datagram_bytes_max: u16,
        alpn: &'static [u8],
    ) -> Result<Self, TransportError> {
        let socket_error = |source| TransportError::Socket { what: "endpoint", source };
        let (udp, buffers) = socket::bind(address)?;
        tell_if_clamped(buffers, server.is_some());
        let local_address = udp.local_addr().map_err(socket_error)?;
        let datagram_bytes_max = datagram_bytes_max.min(tuning.datagram_bytes_max);
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(datagram_bytes_max)
            .map_err(|error| TransportError::Tls(error.to_string()))?;
        let socket = socket::wrap(udp, datagram_bytes_max)?;
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(config, server.clone(), socket, Arc::new(TokioRuntime))
                .map_err(socket_error)?;
        let server = server.map(Arc::new);
        Ok(Self { quinn, identity, tuning: Arc::new(tuning.clone()), server, buffers, local_address, alpn })
    }

    /// The next client that wants to connect, or `None` once the endpoint is closed.
    ///
    /// Nothing of the handshake has been done: do it in a task of its own.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let quinn = self.quinn.accept().await?;
            if quinn.remote_address_validated()
                || self.quinn.open_connections() < CONNECTIONS_BEFORE_ADDRESS_CHECK
            {
                let server = self.server.as_ref().map(Arc::clone)?;
                return Some(Incoming { quinn, server, tuning: Arc::clone(&self.tuning) });
            }
            // Refused only for packets that bear a token already, and those are validated.
            let _ = quinn.retry();
        }
    }

    /// Connects to the host at `address`, which must prove the key `expected`.
    ///
    /// Gives up after the tuning's idle timeout; drop the future to give up earlier.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: ExpectedHost,
    ) -> Result<Connection, TransportError> {
        let failed = |reason: String| TransportError::Connect { address, reason };
        let tls = tls::client(&self.identity, expected, self.alpn)?;
        let mut config = ClientConfig::new(Arc::new(tls.config));
        config.transport_config(self.tuning.transport_config(Path::to(address)));
        let connecting =
            self.quinn.connect_with(config, address, TLS_NAME).map_err(|error| failed(error.to_string()))?;
        match connecting.await {
            Ok(connection) => {
                let key =
                    tls::peer_key(&connection).ok_or_else(|| failed("the host proved no key".to_owned()))?;
                Ok(Connection::new(connection, key))
            }
            Err(error) => Err(match (expected, tls.presented.get()) {
                (ExpectedHost::Key(expected), Some(presented)) if expected != presented => {
                    TransportError::WrongHostKey { address, expected, presented }
                }
                _ => failed(handshake_words(error)),
            }),
        }
    }

    /// The address the socket is bound to, with the port that was picked.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// What the kernel granted of the socket buffers.
    pub fn buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// Connections open at this moment.
    pub fn open_connections(&self) -> usize {
        self.quinn.open_connections()
    }

    /// Closes all connections at once and accepts no more; peers read `text`.
    pub fn close(&self, code: u32, text: &str) {
        self.quinn.close(VarInt::from_u32(code), text.as_bytes());
    }

    /// Waits until the peers have been told of the close (at most a few round trips).
    pub async fn wait_idle(&self) {
        self.quinn.wait_idle().await;
    }
}

/// A host is told at its start. A mount is made often, and by people who cannot change it: they see it in `status`.
fn tell_if_clamped(buffers: SocketBuffers, is_host: bool) {
    let help = || {
        let (granted, wanted) = (buffers.smaller_bytes(), buffers.wanted_bytes);
        format!(
            "the kernel limits UDP socket buffers to {granted} of {wanted} bytes, which costs throughput; `{}` helps",
            buffers.help()
        )
    };
    match (buffers.clamped(), is_host) {
        (true, true) => tracing::warn!("{}", help()),
        (true, false) => tracing::info!("{}", help()),
        (false, _) => {}
    }
}

/// A client at the door. Dropping it refuses the client.
#[derive(Debug)]
pub struct Incoming {
    quinn: quinn::Incoming,
    server: Arc<ServerConfig>,
    tuning: Arc<TransportTuning>,
}

impl Incoming {
    /// Where the client is.
    pub fn remote_address(&self) -> SocketAddr {
        let address = self.quinn.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Does the handshake. The client has then proved the key that [`Connection::peer_key`] tells; whether that key is
    /// welcome is the caller's decision.
    pub async fn handshake(self) -> Result<Connection, TransportError> {
        let address = self.remote_address();
        let failed = |reason: String| TransportError::Handshake { address, reason };
        let mut config = ServerConfig::clone(&self.server);
        config.transport_config(self.tuning.transport_config(Path::to(self.quinn.remote_address())));
        let connecting =
            self.quinn.accept_with(Arc::new(config)).map_err(|error| failed(handshake_words(error)))?;
        let connection = connecting.await.map_err(|error| failed(handshake_words(error)))?;
        let key = tls::peer_key(&connection).ok_or_else(|| failed("the client proved no key".to_owned()))?;
        Ok(Connection::new(connection, key))
    }

    /// Tells the client that it is not wanted.
    pub fn refuse(self) {
        self.quinn.refuse();
    }
}

fn handshake_words(error: ConnectionError) -> String {
    CloseReason::from(error).to_string()
}
