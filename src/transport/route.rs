//! Properties of the route to a peer, from the kernel: if it leaves this machine, and the largest packet.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{getsockopt, sockopt};

/// Smallest UDP payload that every QUIC path must carry (RFC 9000).
pub const UDP_PAYLOAD_BYTES_MIN: u16 = 1_200;
/// Largest UDP payload of one packet over IPv4: 65,535 less 20 (IP) and 8 (UDP). IPv6 could carry 20 more.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 65_507;
/// Interface MTU assumed when the kernel does not tell: that of Ethernet.
const INTERFACE_MTU_BYTES_UNKNOWN: u32 = 1_500;

/// The route to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// True if the peer is this machine. Only full buffers lose packets on such a route.
    pub same_machine: bool,
    /// Largest UDP payload that fits the interface to the peer, 1,200..=65,507.
    pub udp_payload_bytes_max: u16,
}

impl Route {
    /// Returns a route of which nothing is known, with the packet size of Ethernet.
    pub fn unknown(peer: IpAddr) -> Self {
        Self {
            same_machine: false,
            udp_payload_bytes_max: udp_payload_bytes(peer, INTERFACE_MTU_BYTES_UNKNOWN),
        }
    }

    /// Asks the kernel for its route to `peer`. Sends nothing. Any failure gives [`Route::unknown`].
    pub fn to(peer: SocketAddr) -> Self {
        Self::ask(peer).unwrap_or_else(|_| Self::unknown(peer.ip().to_canonical()))
    }

    /// Does the same as [`Route::to`], but returns the error.
    pub fn ask(peer: SocketAddr) -> io::Result<Self> {
        Self::probe(SocketAddr::new(peer.ip().to_canonical(), peer.port().max(1)), peer)
    }

    fn probe(canonical: SocketAddr, given: SocketAddr) -> io::Result<Self> {
        let (any, target) = match canonical {
            SocketAddr::V4(_) => (SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), canonical),
            // The given address keeps its scope, which a link-local address needs.
            SocketAddr::V6(_) => (SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), given),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        let source = socket.local_addr()?.ip();
        let mtu = interface_mtu_bytes(&socket, source).unwrap_or(INTERFACE_MTU_BYTES_UNKNOWN);
        Ok(Self {
            same_machine: canonical.ip().is_loopback() || source == canonical.ip(),
            udp_payload_bytes_max: udp_payload_bytes(canonical.ip(), mtu),
        })
    }
}

/// Returns the payload that an interface MTU leaves after the IP header (20 or 40) and the UDP header (8).
fn udp_payload_bytes(peer: IpAddr, mtu_bytes: u32) -> u16 {
    let headers = if peer.is_ipv4() { 28 } else { 48 };
    let payload = mtu_bytes.saturating_sub(headers);
    let payload = u16::try_from(payload).unwrap_or(u16::MAX);
    payload.clamp(UDP_PAYLOAD_BYTES_MIN, UDP_PAYLOAD_BYTES_MAX)
}

fn interface_mtu_bytes(socket: &UdpSocket, source: IpAddr) -> Option<u32> {
    match source {
        IpAddr::V4(_) => u32::try_from(getsockopt(socket, sockopt::IpMtu).ok()?).ok(),
        IpAddr::V6(address) => {
            let table = fs::read_to_string("/proc/net/if_inet6").ok()?;
            let name = interface_of(&table, address)?;
            fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse().ok()
        }
    }
}

/// Returns the interface with `address`, from the text of `/proc/net/if_inet6`. The address is the first word
/// of a line in 32 hex digits, the name the last.
fn interface_of(table: &str, address: Ipv6Addr) -> Option<&str> {
    let wanted = format!("{:032x}", u128::from(address));
    let line = table.lines().find(|line| line.split_ascii_whitespace().next() == Some(wanted.as_str()))?;
    line.split_ascii_whitespace().nth(5).filter(|name| !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_and_carries_large_packets() {
        let route = Route::to("127.0.0.1:4433".parse().unwrap());
        assert!(route.same_machine);
        assert!(route.udp_payload_bytes_max > 16_000, "{route:?}");
        assert_eq!(Route::to("[::ffff:127.0.0.1]:4433".parse().unwrap()), route);
    }

    #[test]
    fn payload_is_the_mtu_without_headers() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(udp_payload_bytes(v4, 1_500), 1_472);
        assert_eq!(udp_payload_bytes(v6, 1_500), 1_452);
        assert_eq!(udp_payload_bytes(v4, 9_000), 8_972);
        assert_eq!(udp_payload_bytes(v4, 65_536), UDP_PAYLOAD_BYTES_MAX);
        assert_eq!(udp_payload_bytes(v4, 576), UDP_PAYLOAD_BYTES_MIN);
        assert_eq!(udp_payload_bytes(v6, u32::MAX), UDP_PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn unroutable_peer_is_an_unknown_path() {
        let route = Route::to("0.0.0.0:0".parse().unwrap());
        assert!(route.udp_payload_bytes_max >= UDP_PAYLOAD_BYTES_MIN);
    }

    #[test]
    fn interface_is_found_by_its_address() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(interface_of(table, "::1".parse().unwrap()), Some("lo"));
        assert_eq!(interface_of(table, "fe80::1".parse().unwrap()), Some("eth0"));
        assert_eq!(interface_of(table, "fe80::2".parse().unwrap()), None);
    }
}
