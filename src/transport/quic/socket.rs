//! UDP socket under an endpoint: large buffers, both address families, and batches of a size that the kernel
//! accepts.

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

/// Socket buffer asked for, each way. A fast link delivers megabytes between two wake-ups of a busy receiver.
/// Bytes that do not fit are lost and must be sent again. Measured throughput stops growing at 16 MiB.
pub const SOCKET_BUFFER_BYTES_WANTED: usize = 16 << 20;

/// Largest number of datagrams in one batch: quinn's own limit.
const BATCH_DATAGRAMS_MAX: usize = 10;

/// Buffer sizes that the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// `SO_RCVBUF` granted, in bytes of payload (the kernel reports twice as much).
    pub receive_bytes: usize,
    /// `SO_SNDBUF` granted, in bytes of payload.
    pub send_bytes: usize,
    /// Size that was asked for, each way.
    pub wanted_bytes: usize,
}

impl SocketBuffers {
    /// Returns the buffer sizes that a socket of this process gets.
    pub fn granted() -> Result<Self, TransportError> {
        bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).map(|(_, buffers)| buffers)
    }

    /// Returns true if the kernel granted less than was asked for.
    pub fn clamped(&self) -> bool {
        self.receive_bytes < self.wanted_bytes || self.send_bytes < self.wanted_bytes
    }

    /// Returns the smaller of both.
    pub fn smaller_bytes(&self) -> usize {
        self.receive_bytes.min(self.send_bytes)
    }

    /// Returns the command that raises the limit to the wanted size.
    pub fn help(&self) -> String {
        buffers_help(self.wanted_bytes)
    }
}

/// Returns the command that allows socket buffers of `wanted_bytes`.
pub fn buffers_help(wanted_bytes: usize) -> String {
    format!("sysctl -w net.core.rmem_max={wanted_bytes} net.core.wmem_max={wanted_bytes}")
}

/// Opens a UDP socket bound to `address` with the largest buffers that the kernel grants.
///
/// `[::]` serves IPv4 too. On a machine without IPv6 it becomes `0.0.0.0`.
pub(super) fn bind(address: SocketAddr) -> Result<(std::net::UdpSocket, SocketBuffers), TransportError> {
    let socket = match bind_exactly(address) {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            bind_exactly(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    };
    let socket = socket.map_err(|source| TransportError::Bind { protocol: "UDP", address, source })?;
    let buffers =
        enlarge_buffers(&socket).map_err(|source| TransportError::Socket { step: "buffer size", source })?;
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
    // The FORCE options pass the system-wide limits and need CAP_NET_ADMIN. Without it the plain options
    // grant up to the limit.
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

/// Gives `socket` to quinn, wrapped in [`BatchLimit`].
pub(super) fn wrap(
    socket: std::net::UdpSocket,
    datagram_bytes_max: u16,
) -> Result<Arc<dyn AsyncUdpSocket>, TransportError> {
    let error = |source| TransportError::Socket { step: "registration with the runtime", source };
    socket.set_nonblocking(true).map_err(error)?;
    let inner = TokioRuntime.wrap_udp_socket(socket).map_err(error)?;
    Ok(Arc::new(BatchLimit {
        inner,
        batch_datagrams_max: AtomicUsize::new(BATCH_DATAGRAMS_MAX),
        receive_segments: receive_segments(datagram_bytes_max),
    }))
}

/// Returns the number of segments for quinn's receive buffer. A receive coalesced by the kernel (GRO) is
/// never longer than one IP packet, so a buffer of that size is enough for any datagram size. quinn
/// multiplies this number by the largest datagram (and by 32).
fn receive_segments(datagram_bytes_max: u16) -> usize {
    usize::from(UDP_PAYLOAD_BYTES_MAX).div_ceil(usize::from(datagram_bytes_max).max(1))
}

/// Socket that keeps batches within the limit of one send.
///
/// quinn puts up to ten datagrams of the connection's MTU into one send (GSO). The kernel refuses a send
/// beyond the 64 KiB of one IP packet with EMSGSIZE, and quinn takes that for a lost packet. With jumbo
/// frames every full batch would be lost. The black-hole detector would blame the route and fall back to
/// 1,200 bytes. So this socket splits a batch that is too long, and tells the endpoint to make shorter ones
/// from then on. The limit is learnt because one socket carries connections of different MTUs. Connections
/// whose MTU allows less than two datagrams a batch work without GSO from the start (see `tuning`), so they
/// do not lower the limit for all others.
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
            // If the socket becomes full half way, quinn sends the whole batch again. The peer drops the
            // duplicates.
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

/// Returns the number of datagrams of a size that fit one send, at least one.
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
    fn a_send_never_exceeds_the_limit_of_the_kernel() {
        for datagram_bytes in [1, 1_200, 8_952, 40_000, 65_507] {
            let datagrams = datagrams_per_send(datagram_bytes);
            assert!(datagrams >= 1);
            assert!(datagrams == 1 || datagrams * datagram_bytes <= usize::from(UDP_PAYLOAD_BYTES_MAX));
        }
    }
}
