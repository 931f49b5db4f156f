//! Network interfaces of this machine, and the bridges that lead only to its virtual machines and containers.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::mount_source::{AddressKind, HostAddress};

/// Folder in which the kernel describes interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Kinds of interfaces that have no device of their own and still lead out of the machine.
const LEADS_OUT: [&str; 5] = ["vlan", "bond", "team", "wlan", "wwan"];

/// An address of an interface that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix_bits: u32,
    /// True for a bridge that connects only virtual machines or containers of this machine.
    pub is_inner_bridge: bool,
}

impl InterfaceAddress {
    /// Returns true if `other` is in the same network.
    fn is_beside(&self, other: IpAddr) -> bool {
        let (own, other) = match (self.ip.to_canonical(), other.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u128::from(own.to_bits()) << 96, u128::from(other.to_bits()) << 96)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits()),
            _ => return false,
        };
        let mask = u128::MAX.checked_shl(128 - self.prefix_bits.min(128)).unwrap_or(0);
        own & mask == other & mask
    }
}

/// Returns the addresses of all interfaces that are up, or none if the system does not tell.
pub fn addresses() -> Vec<InterfaceAddress> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let up = interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
    up.filter_map(|interface| {
        let ip_of = |address: Option<nix::sys::socket::SockaddrStorage>| {
            let address = address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        };
        let prefix_bits = match ip_of(interface.netmask) {
            Some(IpAddr::V4(mask)) => mask.to_bits().count_ones(),
            Some(IpAddr::V6(mask)) => mask.to_bits().count_ones(),
            None => 128,
        };
        let is_inner_bridge = is_inner_bridge(Path::new(INTERFACES), &interface.interface_name);
        Some(InterfaceAddress { ip: ip_of(interface.address)?, prefix_bits, is_inner_bridge })
    })
    .collect()
}

/// Returns true for a bridge (`docker0`, `virbr0`) without a port that leads out of the machine.
///
/// A machine with guests may reach its own network through a bridge with a network card, a bond or a VLAN.
fn is_inner_bridge(interfaces: &Path, name: &str) -> bool {
    let folder = interfaces.join(name);
    if !folder.join("bridge").exists() {
        return false;
    }
    let ports = fs::read_dir(folder.join("brif")).into_iter().flatten().flatten();
    !ports.map(|port| interfaces.join(port.file_name())).any(|port| {
        let event = fs::read_to_string(port.join("uevent")).unwrap_or_default();
        let kind = event.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).unwrap_or_default();
        port.join("device").exists() || LEADS_OUT.contains(&kind)
    })
}

/// Returns the scope in which the name or address of a host identifies it, seen from this machine. An address
/// behind an inner bridge belongs to a container, and the next container gets it.
pub fn address_kind(address: &HostAddress) -> AddressKind {
    let kind = address.kind();
    let Ok(ip) = address.host().parse::<IpAddr>() else { return kind };
    if kind == AddressKind::Address
        && addresses().iter().any(|interface| interface.is_inner_bridge && interface.is_beside(ip))
    {
        return AddressKind::Local;
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_containers_differ_from_those_of_the_network() {
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(folder.path().join(path)).unwrap();
        for path in
            ["docker0/bridge", "docker0/brif/veth1", "veth1", "empty/bridge", "empty/brif", "eth0/device"]
        {
            make(path);
        }
        for path in ["br0/bridge", "br0/brif/eth0", "br1/bridge", "br1/brif/bond0", "bond0"] {
            make(path);
        }
        fs::write(folder.path().join("bond0/uevent"), "DEVTYPE=bond\nINTERFACE=bond0\n").unwrap();
        for (name, inner) in [
            ("docker0", true),
            ("empty", true),
            ("br0", false),
            ("br1", false),
            ("eth0", false),
            ("gone", false),
        ] {
            assert_eq!(is_inner_bridge(folder.path(), name), inner, "{name}");
        }
    }

    #[test]
    fn networks() {
        let of = |ip: &str, prefix_bits| InterfaceAddress {
            ip: ip.parse().unwrap(),
            prefix_bits,
            is_inner_bridge: true,
        };
        for (network, other, beside) in [
            (of("172.17.0.1", 16), "172.17.200.2", true),
            (of("172.17.0.1", 16), "172.18.0.2", false),
            (of("172.17.0.1", 0), "8.8.8.8", true),
            (of("2001:db8::1", 64), "2001:db8::2:1", true),
            (of("2001:db8::1", 128), "2001:db8::2", false),
            (of("172.17.0.1", 16), "::1", false),
        ] {
            assert_eq!(network.is_beside(other.parse().unwrap()), beside, "{network:?} {other}");
        }
    }

    #[test]
    fn this_machine_has_loopback() {
        assert!(addresses().iter().any(|address| address.ip.is_loopback()));
    }
}
