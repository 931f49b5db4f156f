//! TCP sockets: of a host, which listens, and of a client, which connects.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::congestion::KernelCongestion;
use super::driver::{Driver, Timeouts, set_congestion};
use super::handle::{Shared, TcpConnection, locked};
use super::handshake::{self, Established, HandshakeError};
use super::mux::{Limits, Mux, Side};
use crate::io::sys::tcp_info;
use crate::transport::identity::PublicKey;
use crate::transport::tuning::TransportTuning;

/// Connections that the kernel holds before they are accepted.
const BACKLOG: i32 = 1_024;
/// Pause after a failed accept. The system has no descriptors now, and will have some later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Unsent bytes that the kernel may hold. Urgent data waits behind them.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Text of an error that prevented a connection.
pub(in crate::transport) type TcpErrorText = String;

/// Connections of one endpoint, to close them all and to wait until they have ended.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Registry {
    connections: Arc<Mutex<Vec<Weak<Shared>>>>,
    active: watch::Sender<usize>,
}

impl Registry {
    pub(in crate::transport) fn new() -> Self {
        Self { connections: Arc::default(), active: watch::channel(0).0 }
    }

    pub(in crate::transport) fn open_connections(&self) -> usize {
        *self.active.borrow()
    }

    pub(in crate::transport) fn close(&self, code: u32, text: &str) {
        let connections = locked(&self.connections).clone();
        for shared in connections.iter().filter_map(Weak::upgrade) {
            shared.with(|mux| mux.close(code, text));
            shared.work.notify_one();
        }
    }

    pub(in crate::transport) async fn wait_idle(&self) {
        // The sender lives as long as `self`.
        let _ = self.active.subscribe().wait_for(|active| *active == 0).await;
    }

    fn add(&self, shared: &Arc<Shared>) -> Active {
        let mut connections = locked(&self.connections);
        connections.retain(|shared| shared.strong_count() > 0);
        connections.push(Arc::downgrade(shared));
        self.active.send_modify(|active| *active += 1);
        Active(self.active.clone())
    }
}

/// Counts a connection until its task has ended.
struct Active(watch::Sender<usize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active -= 1);
    }
}

/// Listening socket of a host.
#[derive(Debug)]
pub(in crate::transport) struct TcpAcceptor {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl TcpAcceptor {
    /// Listens at `address`. `[::]` serves IPv4 too, and becomes `0.0.0.0` on a machine without IPv6.
    pub(in crate::transport) fn open(address: SocketAddr, mut config: ServerConfig) -> io::Result<Self> {
        config.enable_secret_extraction = true;
        let listener = match listen(address) {
            Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
                listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
            }
            listener => listener,
        };
        Ok(Self { listener: TcpListener::from_std(listener?)?, config: Arc::new(config) })
    }

    pub(in crate::transport) fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Waits for the next client.
    pub(in crate::transport) async fn accept(&self) -> TcpIncoming {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    return TcpIncoming { stream, address, config: Arc::clone(&self.config) };
                }
                Err(error) => {
                    tracing::debug!("cannot accept a TCP connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of a host that ended a moment ago still use the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A client that connected.
#[derive(Debug)]
pub(in crate::transport) struct TcpIncoming {
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
}

impl TcpIncoming {
    pub(in crate::transport) fn remote_address(&self) -> SocketAddr {
        self.address
    }

    /// Does the handshake.
    pub(in crate::transport) async fn handshake(
        self,
        tuning: &TransportTuning,
        registry: &Registry,
    ) -> Result<(TcpConnection, PublicKey), TcpErrorText> {
        let mut connected =
            Connected::new(self.stream, self.address, tuning).map_err(|error| error.to_string())?;
        let established = Box::pin(handshake::host(&mut connected.stream, self.config));
        let established = established.await.map_err(|error| error.to_string())?;
        Ok(start(connected, established, Side::Host, tuning, registry))
    }
}

/// A TCP connection before TLS.
#[derive(Debug)]
pub(in crate::transport) struct Connected {
    stream: TcpStream,
    address: SocketAddr,
    /// Round trip as measured by the kernel.
    pub(in crate::transport) rtt: Duration,
    congestion: KernelCongestion,
}

impl Connected {
    /// Sets the options of the socket.
    fn new(stream: TcpStream, address: SocketAddr, tuning: &TransportTuning) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let rtt = tcp_info(&stream).map_or(Duration::MAX, |info| info.rtt);
        let congestion = KernelCongestion::new(tuning.congestion, rtt <= tuning.tcp_rtt_max);
        set_congestion(&stream, congestion.first());
        let socket = SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(tuning.idle_timeout))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Self { stream, address, rtt, congestion })
    }
}

/// Connects to `address`. No key is proved yet.
pub(in crate::transport) async fn connect(
    address: SocketAddr,
    tuning: &TransportTuning,
) -> Result<Connected, TcpErrorText> {
    let words = |error: io::Error| error.to_string();
    let connected = timeout(tuning.idle_timeout, TcpStream::connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(words)?;
    if is_its_own_peer(&stream) {
        // Closed with a reset, so that a host that starts now finds its port free.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Err(words(io::ErrorKind::ConnectionRefused.into()));
    }
    Connected::new(stream, address, tuning).map_err(words)
}

/// Returns true if a socket is connected to itself. A client that dials an unused port of its own machine may
/// get that port as its source (RFC 9293, section 3.5, simultaneous open). It would keep the host from
/// listening there.
fn is_its_own_peer(stream: &TcpStream) -> bool {
    stream.local_addr().is_ok_and(|local| stream.peer_addr().is_ok_and(|peer| local == peer))
}

/// Does the TLS handshake on a connection.
pub(in crate::transport) async fn secure(
    mut connected: Connected,
    mut config: ClientConfig,
    tuning: &TransportTuning,
    registry: &Registry,
) -> Result<(TcpConnection, PublicKey), TcpErrorText> {
    config.enable_secret_extraction = true;
    let established = Box::pin(handshake::client(&mut connected.stream, Arc::new(config)));
    let established = within(tuning.idle_timeout, established).await?;
    Ok(start(connected, established, Side::Client, tuning, registry))
}

async fn within(
    time: Duration,
    handshake: impl Future<Output = Result<Established, HandshakeError>>,
) -> Result<Established, TcpErrorText> {
    let late = |_| Err(HandshakeError::Other(format!("no handshake within {} s", time.as_secs_f32())));
    timeout(time, handshake).await.unwrap_or_else(late).map_err(|error| error.to_string())
}

fn start(
    connected: Connected,
    mut established: Established,
    side: Side,
    tuning: &TransportTuning,
    registry: &Registry,
) -> (TcpConnection, PublicKey) {
    let bytes = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let limits = Limits {
        streams_max: tuning.bidirectional_streams_max,
        stream_bytes: bytes(tuning.stream_receive_window_bytes),
        connection_bytes: bytes(tuning.receive_window_bytes),
        send_bytes_max: tuning.send_window_bytes as usize,
    };
    let timeouts = Timeouts { keep_alive: tuning.keep_alive_interval, idle_timeout: tuning.idle_timeout };
    let shared = Arc::new(Shared::new(Mux::new(side, limits)));
    if side == Side::Client {
        // A client has chosen the host, so it admits it at once.
        shared.admit();
    }
    let active = registry.add(&shared);
    let (peer_key, content) = (established.peer_key, std::mem::take(&mut established.content));
    let Connected { stream, address, congestion, .. } = connected;
    let driver = Driver::new(stream, Arc::clone(&shared), established, timeouts, congestion);
    tokio::spawn(async move {
        driver.run(content).await;
        drop(active);
    });
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    (TcpConnection::new(shared, address), peer_key)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;
    use crate::transport::congestion::CongestionKind;

    #[tokio::test]
    async fn the_kernel_gets_the_congestion_control() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Every kernel has reno, and most have cubic.
        for (congestion, wanted) in [(CongestionKind::NewReno, "reno"), (CongestionKind::Delivery, "cubic")] {
            let tuning = TransportTuning {
                tcp_rtt_max: Duration::from_secs(1),
                congestion,
                ..TransportTuning::default()
            };
            let connected = connect(listener.local_addr().unwrap(), &tuning).await.unwrap();
            let used = getsockopt(&connected.stream, sockopt::TcpCongestion).unwrap();
            assert_eq!(used.to_string_lossy().trim_end_matches('\0'), wanted);
        }
    }

    #[tokio::test]
    async fn a_connection_to_itself_is_detected() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to_host = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(!is_its_own_peer(&to_host));
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let to_itself = socket.connect(address).await.unwrap();
        assert!(is_its_own_peer(&to_itself));
    }
}
