//! Where clients reach the daemon: what to write into tickets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::transport::interfaces::{self, InterfaceAddress};
use crate::transport::ticket::TICKET_ADDRESSES_MAX;
use crate::transport::{AdvertisedName, HostAddress};

/// Names that a host may be told to advertise: half of what a ticket carries.
pub const ADVERTISED_NAMES_MAX: usize = TICKET_ADDRESSES_MAX / 2;

/// Names and addresses that reach a daemon which listens on `listening`: the advertised ones first, then that address, or where it
/// stands for all addresses those of the machine's interfaces.
pub(super) fn reachable(listening: SocketAddr, advertised: &[AdvertisedName]) -> Vec<HostAddress> {
    let interfaces = if listening.ip().is_unspecified() { interfaces::addresses() } else { Vec::new() };
    let names = advertised.iter().map(|name| name.with_port(listening.port()));
    let mut all: Vec<HostAddress> = Vec::new();
    for address in names.chain(choose(listening, &interfaces).into_iter().map(Into::into)) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all.truncate(TICKET_ADDRESSES_MAX);
    all
}

/// IPv4 before IPv6, as it works wherever there is any; this machine itself last, which clients on it find anyway. Bridges to
/// containers and virtual machines of this machine lead nobody here, unless there is nothing else.
fn choose(listening: SocketAddr, interfaces: &[InterfaceAddress]) -> Vec<SocketAddr> {
    let port = listening.port();
    if !listening.ip().is_unspecified() {
        return vec![listening];
    }
    let is_usable = |interface: &&InterfaceAddress| match interface.ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        // A link-local address says nothing without the client's interface.
        IpAddr::V6(v6) => {
            listening.is_ipv6() && !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local()
        }
    };
    let usable: Vec<&InterfaceAddress> = interfaces.iter().filter(is_usable).collect();
    let leads_out = usable.iter().any(|interface| !interface.is_inner_bridge);
    let mut chosen: Vec<IpAddr> = usable
        .into_iter()
        .filter(|interface| !(leads_out && interface.is_inner_bridge))
        .map(|interface| interface.ip)
        .collect();
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

    fn interface(ip: &str, is_inner_bridge: bool) -> InterfaceAddress {
        InterfaceAddress { ip: ip.parse().unwrap(), prefix_bits: 24, is_inner_bridge }
    }

    fn chosen(listening: &str, interfaces: &[&str]) -> Vec<String> {
        let interfaces: Vec<_> = interfaces.iter().map(|ip| interface(ip, false)).collect();
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
    fn bridges_to_containers_are_left_out_where_there_is_another_way() {
        let listening = "0.0.0.0:7".parse().unwrap();
        let docker = interface("172.17.0.1", true);
        let texts = |interfaces: &[InterfaceAddress]| -> Vec<String> {
            choose(listening, interfaces).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&[docker, interface("192.0.2.1", false)]), ["192.0.2.1:7", "127.0.0.1:7"]);
        assert_eq!(texts(&[docker]), ["172.17.0.1:7", "127.0.0.1:7"]);
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
    fn advertised_names_come_first_with_the_port_of_the_host_unless_they_have_one() {
        let names = ["nas", "nas.example:443", "192.0.2.1"].map(|name| name.parse().unwrap());
        let texts: Vec<String> =
            reachable("192.0.2.1:7".parse().unwrap(), &names).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["nas:7", "nas.example:443", "192.0.2.1:7"]);
        for wrong in ["", "nas:0", "nas:x", "-nas", "a/b", "nas media"] {
            assert!(wrong.parse::<AdvertisedName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn this_machine_has_an_address() {
        assert!(!reachable("[::]:7".parse().unwrap(), &[]).is_empty());
    }
}
