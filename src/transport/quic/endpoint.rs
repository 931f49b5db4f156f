//! UDP socket with QUIC: of a host, which accepts, or of a client, which connects.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ConnectionError, EndpointConfig, ServerConfig, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;

use super::socket::{self, SocketBuffers};
use crate::transport::connection::CloseReason;
use crate::transport::error::TransportError;
use crate::transport::identity::PublicKey;
use crate::transport::route::{Route, UDP_PAYLOAD_BYTES_MAX};
use crate::transport::tls;
use crate::transport::tuning::TransportTuning;

/// Server name in the TLS handshake. It is not sent and not checked, because the key is the identity.
const TLS_NAME: &str = "wormhole";

/// Pending handshakes that a host holds. Further clients are refused.
const PENDING_HANDSHAKES_MAX: usize = 1_024;
/// Bytes of early packets kept for one pending handshake, and for all.
const PENDING_BYTES_MAX: u64 = 64 << 10;
const PENDING_BYTES_TOTAL_MAX: u64 = 8 << 20;

/// Socket with QUIC.
#[derive(Clone, Debug)]
pub(in crate::transport) struct QuicEndpoint {
    quinn: quinn::Endpoint,
    server: Option<Arc<ServerConfig>>,
    buffers: SocketBuffers,
    local_address: SocketAddr,
}

impl QuicEndpoint {
    /// Listens at `listen`.
    pub(in crate::transport) fn host(
        listen: SocketAddr,
        tls: rustls::ServerConfig,
        tuning: &TransportTuning,
    ) -> Result<Self, TransportError> {
        let tls = QuicServerConfig::try_from(tls).map_err(|error| TransportError::Tls(error.to_string()))?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls));
        server
            .max_incoming(PENDING_HANDSHAKES_MAX)
            .incoming_buffer_size(PENDING_BYTES_MAX)
            .incoming_buffer_size_total(PENDING_BYTES_TOTAL_MAX)
            .transport_config(tuning.before_admission().transport_config(Route::unknown(listen.ip())));
        Self::open(listen, tuning, Some(server), UDP_PAYLOAD_BYTES_MAX)
    }

    /// Returns an endpoint to reach `peer`. Packet sizes follow the route to it.
    pub(in crate::transport) fn client(
        tuning: &TransportTuning,
        peer: SocketAddr,
    ) -> Result<Self, TransportError> {
        let any = match peer {
            SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        Self::open(any, tuning, None, Route::to(peer).udp_payload_bytes_max)
    }

    fn open(
        address: SocketAddr,
        tuning: &TransportTuning,
        server: Option<ServerConfig>,
        datagram_bytes_max: u16,
    ) -> Result<Self, TransportError> {
        let socket_error = |source| TransportError::Socket { step: "endpoint", source };
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
        Ok(Self { quinn, server: server.map(Arc::new), buffers, local_address })
    }

    /// Waits for the next client. Returns `None` once the endpoint is closed.
    pub(in crate::transport) async fn accept(&self) -> Option<QuicIncoming> {
        let quinn = self.quinn.accept().await?;
        let server = self.server.as_ref().map(Arc::clone)?;
        Some(QuicIncoming { quinn, server })
    }

    /// Connects to the host at `address`. Fails after the idle timeout of the tuning.
    pub(in crate::transport) async fn connect(
        &self,
        address: SocketAddr,
        tls: rustls::ClientConfig,
        tuning: &TransportTuning,
    ) -> Result<(quinn::Connection, PublicKey), String> {
        let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(tuning.transport_config(Route::to(address)));
        let connecting =
            self.quinn.connect_with(config, address, TLS_NAME).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(handshake_words)?;
        let key = peer_key(&connection).ok_or_else(|| "the host proved no key".to_owned())?;
        Ok((connection, key))
    }

    pub(in crate::transport) fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    pub(in crate::transport) fn buffers(&self) -> SocketBuffers {
        self.buffers
    }

    pub(in crate::transport) fn open_connections(&self) -> usize {
        self.quinn.open_connections()
    }

    pub(in crate::transport) fn close(&self, code: u32, text: &str) {
        self.quinn.close(VarInt::from_u32(code), text.as_bytes());
    }

    pub(in crate::transport) async fn wait_idle(&self) {
        self.quinn.wait_idle().await;
    }
}

/// Returns the key that the peer of an established connection proved.
fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let proven = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::key_of_chain(&proven)
}

/// Reports small socket buffers. A host warns at its start. A mount is made often, by users that cannot
/// change the limit, so they only see it in `status`.
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

/// A client that wants to connect. Dropping it refuses the client.
#[derive(Debug)]
pub(in crate::transport) struct QuicIncoming {
    quinn: quinn::Incoming,
    server: Arc<ServerConfig>,
}

impl QuicIncoming {
    pub(in crate::transport) fn remote_address(&self) -> SocketAddr {
        self.quinn.remote_address()
    }

    /// Returns true if the client has proved its address by an answer.
    pub(in crate::transport) fn is_proved(&self) -> bool {
        self.quinn.remote_address_validated()
    }

    /// Makes the client prove its address and connect again.
    pub(in crate::transport) fn ask_for_proof(self) {
        // The call fails only for packets that carry a proof already.
        let _ = self.quinn.retry();
    }

    /// Does the handshake.
    pub(in crate::transport) async fn handshake(
        self,
        tuning: &TransportTuning,
    ) -> Result<(quinn::Connection, PublicKey), String> {
        let mut config = ServerConfig::clone(&self.server);
        config.transport_config(
            tuning.before_admission().transport_config(Route::to(self.quinn.remote_address())),
        );
        let connecting = self.quinn.accept_with(Arc::new(config)).map_err(handshake_words)?;
        let connection = connecting.await.map_err(handshake_words)?;
        let key = peer_key(&connection).ok_or_else(|| "the client proved no key".to_owned())?;
        Ok((connection, key))
    }

    /// Refuses the client.
    pub(in crate::transport) fn refuse(self) {
        self.quinn.refuse();
    }
}

fn handshake_words(error: ConnectionError) -> String {
    CloseReason::from(error).to_string()
}
