//! Where clients reach the daemon: what to write into tickets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::transport::ticket::TICKET_ADDRESSES_MAX;

/// The addresses that reach a daemon which listens on `listening`: that one, or where it stands for all addresses those
/// of the machine's interfaces.
pub(super) fn reachable(listening: SocketAddr) -> Vec<SocketAddr> {
    let interfaces = if listening.ip().is_unspecified() { interface_addresses() } else { Vec::new() };
    choose(listening, &interfaces)
}

/// Those of interfaces that are up. A machine that does not tell has none.
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let up = interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
    up.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    })
    .collect()
}

/// IPv4 before IPv6, as it works wherever there is any; this machine itself last, which clients on it find anyway.
fn choose(listening: SocketAddr, interfaces: &[IpAddr]) -> Vec<SocketAddr> {
    let port = listening.port();
    if !listening.ip().is_unspecified() {
        return vec![listening];
    }
    let is_usable = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        // A link-local address says nothing without the client's interface.
        IpAddr::V6(v6) => {
            listening.is_ipv6() && !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local()
        }
    };
    let mut chosen: Vec<IpAddr> = interfaces.iter().filter(is_usable).copied().collect();
    chosen
        .sort_by_key(|address| (address.is_ipv6(), matches!(address, IpAddr::V4(v4) if v4.is_link_local())));
    chosen.dedup();
    let mut loopback: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    if listening.is_ipv6() {
        loopback.push(Ipv6Addr::LOCALHOST.into());
    }
    chosen.truncate(TICKET_ADDRESSES_MAX - loopback.len());
    chosen.extend(loopback);
    chosen.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(listening: &str, interfaces: &[&str]) -> Vec<String> {
        let interfaces: Vec<IpAddr> = interfaces.iter().map(|text| text.parse().unwrap()).collect();
        choose(listening.parse().unwrap(), &interfaces).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_named_address_stands_for_itself() {
        assert_eq!(chosen("192.0.2.1:7", &["10.0.0.1"]), ["192.0.2.1:7"]);
    }

    #[test]
    fn all_addresses_are_those_of_the_interfaces_and_this_machine_last() {
        let interfaces = ["127.0.0.1", "::1", "fe80::1", "2001:db8::1", "169.254.1.1", "192.0.2.1"];
        assert_eq!(
            chosen("[::]:7", &interfaces),
            ["192.0.2.1:7", "169.254.1.1:7", "[2001:db8::1]:7", "127.0.0.1:7", "[::1]:7"]
        );
        assert_eq!(chosen("0.0.0.0:7", &interfaces), ["192.0.2.1:7", "169.254.1.1:7", "127.0.0.1:7"]);
    }

    #[test]
    fn there_are_no_more_than_a_ticket_carries() {
        let many: Vec<String> = (1..100).map(|i| format!("192.0.2.{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let chosen = chosen("[::]:7", &many);
        assert_eq!(chosen.len(), TICKET_ADDRESSES_MAX);
        assert_eq!(chosen.last().unwrap(), "[::1]:7");
    }

    #[test]
    fn this_machine_has_an_address() {
        assert!(!reachable("[::]:7".parse().unwrap()).is_empty());
    }
}
