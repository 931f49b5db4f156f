//! The UDP socket under an endpoint: large buffers, both address families, and packets in batches the kernel accepts.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use nix::sys::socket::{setsockopt, sockopt};
use quinn::{
    AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::transport::{error::TransportError, route::UDP_PAYLOAD_BYTES_MAX};

/// Socket buffer asked for, each way. Between two wake-ups of a busy receiver a fast link brings megabytes; what does not
/// fit is lost and must be sent again. 16 MiB is where the measured throughput stops growing.
pub const SOCKET_BUFFER_BYTES_WANTED: usize = 16 << 20;

/// Datagrams quinn puts into one batch at most; its own limit, asked of every socket.
const BATCH_DATAGRAMS_MAX: usize = 10;

/// What the kernel granted of the buffers asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// `SO_RCVBUF` granted, in bytes of payload (the kernel doubles it for its book-keeping).
    pub receive_bytes: usize,
    /// `SO_SNDBUF` granted, in bytes of payload.
    pub send_bytes: usize,
    /// What was asked for, each way.
    pub wanted_bytes: usize,
}

impl SocketBuffers {
    /// What a socket of this process is granted.
    pub fn granted() -> Result<Self, TransportError> {
        bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).map(|(_, buffers)| buffers)
    }

    /// Whether the kernel granted less than was asked for.
    pub fn clamped(&self) -> bool {
        self.receive_bytes < self.wanted_bytes || self.send_bytes < self.wanted_bytes
    }

    /// The smaller of both.
    pub fn smaller_bytes(&self) -> usize {
        self.receive_bytes.min(self.send_bytes)
    }

    /// What to type so that the buffers may be as large as wanted.
    pub fn help(&self) -> String {
        buffers_help(self.wanted_bytes)
    }
}

/// What to type so that socket buffers may have so many bytes.
pub fn buffers_help(wanted_bytes: usize) -> String {
    format!("sysctl -w net.core.rmem_max={wanted_bytes} net.core.wmem_max={wanted_bytes}")
}

/// Opens a UDP socket bound to `address` with buffers as large as the kernel grants.
///
/// `[::]` serves IPv4 too; on a machine without IPv6 it becomes `0.0.0.0`.
pub(super) fn bind(address: SocketAddr) -> Result<(std::net::UdpSocket, SocketBuffers), TransportError> {
    let socket = match bind_exactly(address) {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            bind_exactly(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    };
    let socket = socket.map_err(|source| TransportError::Bind { protocol: "UDP", address, source })?;
    let buffers =
        enlarge_buffers(&socket).map_err(|source| TransportError::Socket { what: "buffer size", source })?;
    Ok((socket.into(), buffers))
}

fn bind_exactly(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn enlarge_buffers(socket: &Socket) -> io::Result<SocketBuffers> {
    let wanted = SOCKET_BUFFER_BYTES_WANTED;
    // The FORCE forms pass the system-wide limits and need CAP_NET_ADMIN; without it the plain ones grant up to the limit.
    if setsockopt(socket, sockopt::RcvBufForce, &wanted).is_err() {
        socket.set_recv_buffer_size(wanted)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &wanted).is_err() {
        socket.set_send_buffer_size(wanted)?;
    }
    Ok(SocketBuffers {
        receive_bytes: socket.recv_buffer_size()? / 2,
        send_bytes: socket.send_buffer_size()? / 2,
        wanted_bytes: wanted,
    })
}

/// Hands `socket` to quinn, wrapped in [`BatchLimit`].
pub(super) fn wrap(
    socket: std::net::UdpSocket,
    datagram_bytes_max: u16,
) -> Result<Arc<dyn AsyncUdpSocket>, TransportError> {
    let error = |source| TransportError::Socket { what: "registration with the runtime", source };
    socket.set_nonblocking(true).map_err(error)?;
    let inner = TokioRuntime.wrap_udp_socket(socket).map_err(error)?;
    Ok(Arc::new(BatchLimit {
        inner,
        batch_datagrams_max: AtomicUsize::new(BATCH_DATAGRAMS_MAX),
        receive_segments: receive_segments(datagram_bytes_max),
    }))
}

/// A receive coalesced by the kernel (GRO) is never longer than one IP packet, so a buffer of that size is enough however
/// small the datagrams are. quinn multiplies this number by the largest datagram (and by 32) to size its buffer.
fn receive_segments(datagram_bytes_max: u16) -> usize {
    usize::from(UDP_PAYLOAD_BYTES_MAX).div_ceil(usize::from(datagram_bytes_max).max(1))
}

/// Keeps batches within what the kernel takes in one send.
///
/// quinn fills up to ten datagrams of the connection's MTU into one send (GSO). The kernel refuses a send beyond one IP
/// packet's 64 KiB with EMSGSIZE, which quinn takes for a lost packet: with jumbo frames every full batch would vanish,
/// the black-hole detector would blame the path and fall back to 1,200 bytes. So a batch that is too long is sent in
/// pieces here, and the endpoint is told to make shorter ones from then on. The limit is learnt and not set, because one
/// socket carries connections of different MTUs. (Connections whose MTU allows less than two datagrams a batch
/// do without GSO from the start, see `tuning`, so that they do not drag the limit down for all others.)
struct BatchLimit {
    inner: Arc<dyn AsyncUdpSocket>,
    batch_datagrams_max: AtomicUsize,
    receive_segments: usize,
}

impl BatchLimit {
    fn send_in_pieces(&self, transmit: &Transmit<'_>, datagram_bytes: usize) -> io::Result<()> {
        let datagrams = datagrams_per_send(datagram_bytes);
        self.batch_datagrams_max.fetch_min(datagrams.max(2), Ordering::Relaxed);
        for piece in transmit.contents.chunks(datagrams * datagram_bytes) {
            // When the socket fills up half way quinn sends the whole batch again: the peer drops the doubled packets.
            self.inner.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents: piece,
                segment_size: (piece.len() > datagram_bytes).then_some(datagram_bytes),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }
}

/// How many datagrams of a size fit one send; at least one.
fn datagrams_per_send(datagram_bytes: usize) -> usize {
    (usize::from(UDP_PAYLOAD_BYTES_MAX) / datagram_bytes.max(1)).max(1)
}

impl AsyncUdpSocket for BatchLimit {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match transmit.segment_size {
            Some(datagram_bytes) if transmit.contents.len() > usize::from(UDP_PAYLOAD_BYTES_MAX) => {
                self.send_in_pieces(transmit, datagram_bytes)
            }
            _ => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.batch_datagrams_max.load(Ordering::Relaxed))
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments().min(self.receive_segments)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for BatchLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BatchLimit")
            .field("inner", &self.inner)
            .field("batch_datagrams_max", &self.batch_datagrams_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_serves_both_families_or_falls_back() {
        let (socket, buffers) = bind("[::]:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let mut received = [0; 8];
        assert_eq!(socket.recv(&mut received).unwrap(), 5);
        assert!(buffers.receive_bytes > 0 && buffers.send_bytes > 0);
        assert_eq!(buffers.wanted_bytes, SOCKET_BUFFER_BYTES_WANTED);
    }

    #[test]
    fn clamped_buffers_come_with_the_command_that_helps() {
        let granted = SocketBuffers { receive_bytes: 10, send_bytes: 10, wanted_bytes: 10 };
        assert!(!granted.clamped());
        let clamped = SocketBuffers { receive_bytes: 9, ..granted };
        assert!(clamped.clamped());
        assert_eq!(clamped.help(), "sysctl -w net.core.rmem_max=10 net.core.wmem_max=10");
    }

    #[test]
    fn receive_buffers_hold_one_whole_packet_and_little_more() {
        for datagram_bytes in [1_200, 1_472, 8_972, UDP_PAYLOAD_BYTES_MAX] {
            let bytes = receive_segments(datagram_bytes) * usize::from(datagram_bytes);
            let whole = usize::from(UDP_PAYLOAD_BYTES_MAX);
            assert!((whole..2 * whole).contains(&bytes), "{datagram_bytes}: {bytes}");
        }
    }

    #[test]
    fn a_send_never_exceeds_what_the_kernel_takes() {
        for datagram_bytes in [1, 1_200, 8_952, 40_000, 65_507] {
            let datagrams = datagrams_per_send(datagram_bytes);
            assert!(datagrams >= 1);
            assert!(datagrams == 1 || datagrams * datagram_bytes <= usize::from(UDP_PAYLOAD_BYTES_MAX));
        }
    }
}
