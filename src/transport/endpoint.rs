//! Endpoints: a host that accepts QUIC and TCP at one port, or a client that connects to a host.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio::time::timeout;

use super::{
    connection::Connection,
    error::TransportError,
    identity::Identity,
    quic::{QuicEndpoint, QuicIncoming, socket::SocketBuffers},
    tcp::{self, Connected, Registry, TcpAcceptor, TcpIncoming},
    tls::{self, CertifiedIdentity, ExpectedHost},
    tuning::{TransportChoice, TransportKind, TransportTuning},
};

/// Largest number of ports tried until one is free for both UDP and TCP, if the port is not given.
const PORTS_TRIED_MAX: usize = 32;
/// Deadline of a client's handshake. It bounds the time for which an unknown client occupies resources.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Endpoint for connections. Must be made inside a tokio runtime.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quic: Option<QuicEndpoint>,
    acceptor: Option<Arc<TcpAcceptor>>,
    registry: Registry,
    identity: CertifiedIdentity,
    tuning: Arc<TransportTuning>,
    local_address: SocketAddr,
    closed: watch::Sender<bool>,
    alpn: &'static [u8],
}

impl Endpoint {
    /// Listens on `listen` for QUIC and TCP, unless the tuning allows only one. `[::]:PORT` serves both
    /// address families. Port 0 picks a port.
    pub fn host(
        listen: SocketAddr,
        identity: &Identity,
        tuning: &TransportTuning,
    ) -> Result<Self, TransportError> {
        let (identity, alpn) = (CertifiedIdentity::new(identity)?, tls::ALPN);
        let server = || tls::server(&identity, alpn);
        let mut tries = if listen.port() == 0 { PORTS_TRIED_MAX } else { 1 };
        let (quic, acceptor, local_address) = loop {
            tries -= 1;
            let quic = if tuning.transport.allows(TransportKind::Quic) {
                Some(QuicEndpoint::host(listen, server()?, tuning)?)
            } else {
                None
            };
            let address = quic.as_ref().map_or(listen, QuicEndpoint::local_address);
            if !tuning.transport.allows(TransportKind::Tcp) {
                break (quic, None, address);
            }
            let bind = |source| TransportError::Bind { protocol: "TCP", address, source };
            match TcpAcceptor::open(address, server()?) {
                Ok(acceptor) => {
                    let address = acceptor.local_address().map_err(bind)?;
                    break (quic, Some(Arc::new(acceptor)), address);
                }
                // Another program has the TCP port of the number that was picked for UDP.
                Err(_) if tries > 0 => {}
                Err(error) => return Err(bind(error)),
            }
        };
        Ok(Self::new(quic, acceptor, identity, tuning, local_address, alpn))
    }

    /// Returns an endpoint to reach `peer`: over TCP if the tuning allows only TCP, else over QUIC. It may
    /// open several connections. Use another endpoint for another peer, because packet sizes depend on the
    /// route.
    pub fn client(
        identity: &Identity,
        tuning: &TransportTuning,
        peer: SocketAddr,
    ) -> Result<Self, TransportError> {
        Self::client_speaking(tls::ALPN, identity, tuning, peer)
    }

    pub(super) fn client_speaking(
        alpn: &'static [u8],
        identity: &Identity,
        tuning: &TransportTuning,
        peer: SocketAddr,
    ) -> Result<Self, TransportError> {
        let identity = CertifiedIdentity::new(identity)?;
        let quic = match tuning.transport {
            TransportChoice::Only(TransportKind::Tcp) => None,
            _ => Some(QuicEndpoint::client(tuning, peer)?),
        };
        let local_address = quic.as_ref().map_or(peer, QuicEndpoint::local_address);
        Ok(Self::new(quic, None, identity, tuning, local_address, alpn))
    }

    fn new(
        quic: Option<QuicEndpoint>,
        acceptor: Option<Arc<TcpAcceptor>>,
        identity: CertifiedIdentity,
        tuning: &TransportTuning,
        local_address: SocketAddr,
        alpn: &'static [u8],
    ) -> Self {
        Self {
            quic,
            acceptor,
            registry: Registry::new(),
            identity,
            tuning: Arc::new(tuning.clone()),
            local_address,
            closed: watch::channel(false).0,
            alpn,
        }
    }

    /// Waits for the next client. Returns `None` once the endpoint is closed.
    ///
    /// No part of the handshake has been done. Do it in a task of its own.
    pub async fn accept(&self) -> Option<Incoming> {
        let over_quic = async {
            match &self.quic {
                Some(quic) => quic.accept().await.map(|quic| Pending::Quic(Box::new(quic))),
                None => std::future::pending().await,
            }
        };
        let over_tcp = async {
            match &self.acceptor {
                Some(acceptor) => Pending::Tcp(acceptor.accept().await),
                None => std::future::pending().await,
            }
        };
        let mut closed = self.closed.subscribe();
        let pending = tokio::select! {
            _ = closed.wait_for(|closed| *closed) => None,
            pending = over_quic => pending,
            pending = over_tcp => Some(pending),
        }?;
        Some(Incoming { pending, tuning: Arc::clone(&self.tuning), registry: self.registry.clone() })
    }

    /// Connects to the host at `address`, which must prove the key `expected`.
    ///
    /// Fails after the idle timeout of the tuning. Drop the future to stop earlier.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: ExpectedHost,
    ) -> Result<Connection, TransportError> {
        let Some(quic) = &self.quic else {
            return self.secure(address, expected, self.connect_tcp(address).await?).await;
        };
        let tls = tls::client(&self.identity, expected.clone(), self.alpn)?;
        match quic.connect(address, tls.config, &self.tuning).await {
            Ok((connection, key)) => Ok(Connection::quic(connection, key)),
            Err(reason) => Err(refused(address, &expected, &tls.presented, reason)),
        }
    }

    /// Connects over TCP. No key is proved yet.
    pub(super) async fn connect_tcp(&self, address: SocketAddr) -> Result<Connected, TransportError> {
        tcp::connect(address, &self.tuning)
            .await
            .map_err(|reason| TransportError::Connect { address, reason: format!("TCP: {reason}") })
    }

    /// Does the TLS handshake on `connected`. The host must prove the key `expected`.
    pub(super) async fn secure(
        &self,
        address: SocketAddr,
        expected: ExpectedHost,
        connected: Connected,
    ) -> Result<Connection, TransportError> {
        let tls = tls::client(&self.identity, expected.clone(), self.alpn)?;
        let secured = tcp::secure(connected, tls.config, &self.tuning, &self.registry).await;
        secured.map(Connection::tcp).map_err(|reason| refused(address, &expected, &tls.presented, reason))
    }

    /// Returns the bound address, with the port that was picked.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Returns the buffer sizes that the kernel granted the UDP socket, if there is one.
    pub fn buffers(&self) -> Option<SocketBuffers> {
        self.quic.as_ref().map(QuicEndpoint::buffers)
    }

    /// Returns the number of open connections.
    pub fn open_connections(&self) -> usize {
        let over_quic = self.quic.as_ref().map_or(0, QuicEndpoint::open_connections);
        over_quic + self.registry.open_connections()
    }

    /// Closes all connections at once and accepts no more. The peers read `text`.
    pub fn close(&self, code: u32, text: &str) {
        self.closed.send_replace(true);
        self.registry.close(code, text);
        if let Some(quic) = &self.quic {
            quic.close(code, text);
        }
    }

    /// Waits until the peers know of the close, at most a few round trips.
    pub async fn wait_idle(&self) {
        let over_quic = async {
            if let Some(quic) = &self.quic {
                quic.wait_idle().await;
            }
        };
        tokio::join!(over_quic, self.registry.wait_idle());
    }
}

/// Returns the error of a failed handshake. A wrong key gets an error of its own, because users must hear of
/// it.
fn refused(
    address: SocketAddr,
    expected: &ExpectedHost,
    presented: &tls::PresentedKey,
    reason: String,
) -> TransportError {
    match (expected, presented.get()) {
        (&ExpectedHost::Key(expected), Some(presented)) if expected != presented => {
            TransportError::WrongHostKey { address, expected, presented }
        }
        (ExpectedHost::OneOf(known), Some(presented)) if !known.contains(&presented) => {
            TransportError::UnknownHostKey { address, presented }
        }
        _ => TransportError::Connect { address, reason },
    }
}

/// A client that wants to connect. Dropping it refuses the client.
#[derive(Debug)]
pub struct Incoming {
    pending: Pending,
    tuning: Arc<TransportTuning>,
    registry: Registry,
}

#[derive(Debug)]
enum Pending {
    Quic(Box<QuicIncoming>),
    Tcp(TcpIncoming),
}

impl Incoming {
    /// Returns the address of the client.
    pub fn remote_address(&self) -> SocketAddr {
        let address = match &self.pending {
            Pending::Quic(quic) => quic.remote_address(),
            Pending::Tcp(tcp) => tcp.remote_address(),
        };
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// Returns the protocol of the client.
    pub fn kind(&self) -> TransportKind {
        match &self.pending {
            Pending::Quic(_) => TransportKind::Quic,
            Pending::Tcp(_) => TransportKind::Tcp,
        }
    }

    /// Returns true if the client has proved its address. Over TCP it always has.
    pub fn is_address_proved(&self) -> bool {
        match &self.pending {
            Pending::Quic(quic) => quic.is_proved(),
            Pending::Tcp(_) => true,
        }
    }

    /// Makes the client prove its address, which costs it a round trip. It then connects again.
    pub fn ask_for_proof(self) {
        if let Pending::Quic(quic) = self.pending {
            quic.ask_for_proof();
        }
    }

    /// Does the handshake. The client has then proved the key [`Connection::peer_key`]. The caller decides if
    /// the key is welcome, and then calls [`Connection::admit`].
    pub async fn handshake(self) -> Result<Connection, TransportError> {
        let address = self.remote_address();
        let handshake = async {
            match self.pending {
                Pending::Quic(quic) => quic
                    .handshake(&self.tuning)
                    .await
                    .map(|(connection, key)| Connection::quic(connection, key)),
                Pending::Tcp(tcp) => tcp.handshake(&self.tuning, &self.registry).await.map(Connection::tcp),
            }
        };
        let late = |_| Err(format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()));
        let connection = timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(late);
        let connection = connection.map_err(|reason| TransportError::Handshake { address, reason })?;
        Ok(connection.with_admission(self.tuning))
    }

    /// Refuses the client.
    pub fn refuse(self) {
        if let Pending::Quic(quic) = self.pending {
            quic.refuse();
        }
    }
}
