//! SOURCE of a mount, as users type it: a ticket, `HOST:/EXPORT/PATH`, or `wormhole://HOST/EXPORT/PATH`.
//! Pure: text in, values out. Nothing is resolved.
//!
//! ```text
//! whm1aeaq…                            a ticket: one word
//! nas:/media/films                     export `media`, folder `films` in it, port 4433
//! [2001:db8::1]:/media                 an IPv6 address needs brackets
//! wormhole://nas:7000/media/films      with a port; %XX stands for a byte
//! ssh://me@nas/media                   recognised, not yet supported
//! ```

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::{fmt, str::FromStr};

use thiserror::Error;

use super::ticket::{TICKET_PREFIX, Ticket, TicketError, without_pieces_of_tickets};
use crate::proto::words;

/// Port of a host if none is given.
pub const DEFAULT_PORT: u16 = 4433;
/// Longest DNS name, in bytes.
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a DNS name, in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Longest export name and longest path, in bytes: `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4_096;

/// Name or address of a host, and its UDP port. Shown as `HOST:PORT`, IPv6 in brackets, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostAddress {
    host: String,
    port: u16,
}

impl HostAddress {
    /// Checks `host`: a DNS name, or an IPv4 or IPv6 address without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, SourceError> {
        let bad = || SourceError::BadHost { host: cut(host) };
        let is_name = |text: &str| {
            !text.starts_with('-')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        // A ticket is longer than any label. So a ticket with a suffix is not taken for a host.
        let fits = !host.is_empty()
            && host.len() <= HOST_BYTES_MAX
            && host.split('.').all(|label| label.len() <= LABEL_BYTES_MAX);
        if !fits || !(is_name(host) || is_v6(host)) {
            return Err(bad());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// Returns the name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the scope in which this identifies a host.
    pub fn kind(&self) -> AddressKind {
        let (address, zone) = self.host.split_once('%').unwrap_or((&self.host, ""));
        match address.parse::<IpAddr>() {
            Ok(ip) if is_local_scope(ip) || !zone.is_empty() => AddressKind::Local,
            Ok(_) => AddressKind::Address,
            Err(_) if is_this_machine(&self.host) => AddressKind::Local,
            Err(_) => AddressKind::Name,
        }
    }
}

/// Scope in which the name or address of a host identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// A name, which people give to one machine.
    Name,
    /// An address, which is lent to a machine for some time.
    Address,
    /// An address with another meaning on every machine: loopback, link-local, a bridge of virtual machines.
    Local,
}

/// Returns true for addresses with another meaning on every machine: loopback, link-local, unspecified.
pub fn is_local_scope(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Returns true for names that every machine has for itself (RFC 6761, and the `/etc/hosts` of
/// distributions).
fn is_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let first = name.split('.').next().unwrap_or_default();
    ["localhost", "ip6-localhost", "ip6-loopback"].contains(&first) || name.ends_with(".localhost")
}

/// A name at which a host can be reached. Its port is that of the host unless one is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvertisedName {
    host: String,
    port: Option<u16>,
}

impl AdvertisedName {
    /// Returns the address with the port on which the host listens.
    pub fn with_port(&self, listening: u16) -> HostAddress {
        HostAddress { host: self.host.clone(), port: self.port.unwrap_or(listening) }
    }
}

impl FromStr for AdvertisedName {
    type Err = SourceError;

    /// Reads `NAME[:PORT]`. An address may replace the name, an IPv6 one in brackets if a port follows.
    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (host, port) = split_port(text)?;
        let address = HostAddress::new(host, port.unwrap_or(DEFAULT_PORT))?;
        Ok(Self { host: address.host, port })
    }
}

/// Returns true for an IPv6 address, also with a zone (`fe80::1%eth0`).
fn is_v6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    let zone_is_name =
        !zone.is_empty() && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    zone_is_name && address.parse::<Ipv6Addr>().is_ok()
}

impl fmt::Display for HostAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostAddress {
    type Err = SourceError;

    /// Reads `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT` or a bare IPv6 address. The default port is 4433.
    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (host, port) = split_port(text)?;
        Self::new(host, port.unwrap_or(DEFAULT_PORT))
    }
}

impl From<SocketAddr> for HostAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// Splits an authority into the host without brackets and the port, if there is one.
fn split_port(text: &str) -> Result<(&str, Option<u16>), SourceError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| SourceError::BadHost { host: cut(text) })?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(SourceError::BadHost { host: cut(text) }),
        }
    } else if is_v6(text) {
        (text, None)
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map(|port| parse_port(port).ok_or_else(|| SourceError::BadPort { port: cut(port) }));
    Ok((host, port.transpose()?))
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port != 0)
}

/// The SOURCE of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A ticket: addresses, key, export and secret in one word.
    Ticket(Ticket),
    /// An export of a known host.
    Address {
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Port, if one is given.
        port: Option<u16>,
        /// Name of the export, empty for the only one of a host.
        export: String,
        /// Folder within the export, such as `a/b`, empty for its root.
        sub_path: String,
    },
}

impl FromStr for MountSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("wormhole://") {
            return parse_url(rest);
        }
        if text.starts_with("ssh://") {
            return Err(SourceError::SshNotYet);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(SourceError::UnknownScheme { scheme: cut(scheme) });
        }
        if text.to_ascii_lowercase().starts_with(TICKET_PREFIX) && !text.contains([':', '/']) {
            return Ok(Self::Ticket(text.parse()?));
        }
        let (host, path) =
            text.split_once(":/").ok_or_else(|| SourceError::NotASource { text: cut(text) })?;
        let (bare, port) = split_port(host)?;
        if is_v6(bare) != host.starts_with('[') || port.is_some() {
            return Err(SourceError::BadHost { host: cut(host) });
        }
        address(bare, None, path)
    }
}

fn parse_url(rest: &str) -> Result<MountSource, SourceError> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = split_port(authority)?;
    address(host, port, &percent_decoded(path)?)
}

fn address(host: &str, port: Option<u16>, path: &str) -> Result<MountSource, SourceError> {
    let host = HostAddress::new(host, port.unwrap_or(DEFAULT_PORT))?.host;
    if path.len() > PATH_BYTES_MAX {
        return Err(SourceError::BadPath { path: cut(path), why: "longer than 4,096 bytes" });
    }
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(SourceError::BadPath { path: cut(path), why: "`..` leads out of the export" });
        }
        if part.contains('\0') {
            return Err(SourceError::BadPath { path: cut(path), why: "it contains a NUL" });
        }
        parts.push(part);
    }
    let (export, below) = parts.split_first().map_or(("", &[][..]), |(export, below)| (*export, below));
    Ok(MountSource::Address { host, port, export: export.to_owned(), sub_path: below.join("/") })
}

fn percent_decoded(path: &str) -> Result<String, SourceError> {
    let bad = || SourceError::BadPath {
        path: cut(path),
        why: "`%` needs two hex digits, and the result must be UTF-8",
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits =
                after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(bad)?;
            let both_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| both_hex).ok_or_else(bad)?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Returns the beginning of the typed text for an error message. It never contains a part of a ticket.
fn cut(text: &str) -> String {
    words::line(&without_pieces_of_tickets(text), 80).into_owned()
}

/// Error: text that is no valid source.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// None of the forms.
    #[error(
        "`{text}` is not a source: use a ticket, HOST:/EXPORT[/PATH], or wormhole://HOST[:PORT]/EXPORT[/PATH]"
    )]
    NotASource {
        /// The text, cut.
        text: String,
    },
    /// A ticket that cannot be read.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// ssh is planned.
    #[error(
        "ssh:// sources are not yet supported: run `wormhole host` on the other machine and mount its ticket"
    )]
    SshNotYet,
    /// Another scheme.
    #[error("unknown scheme `{scheme}://`: use wormhole://HOST[:PORT]/EXPORT[/PATH]")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// The host is neither a name nor an address.
    #[error(
        "`{host}` is not a host name or address (an IPv6 address needs brackets, a port needs wormhole:// or -o port=)"
    )]
    BadHost {
        /// The text, cut.
        host: String,
    },
    /// The port is not 1 to 65535.
    #[error("`{port}` is not a port: use 1 to 65535")]
    BadPort {
        /// The text.
        port: String,
    },
    /// The path cannot be within an export.
    #[error("the path `{path}` cannot be used: {why}")]
    BadPath {
        /// The text, cut.
        path: String,
        /// Reason.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (String, Option<u16>, String, String) {
        match text.parse().unwrap() {
            MountSource::Address { host, port, export, sub_path } => (host, port, export, sub_path),
            MountSource::Ticket(_) => panic!("{text} is a ticket"),
        }
    }

    fn expected(
        host: &str,
        port: Option<u16>,
        export: &str,
        sub_path: &str,
    ) -> (String, Option<u16>, String, String) {
        (host.to_owned(), port, export.to_owned(), sub_path.to_owned())
    }

    #[test]
    fn forms_of_an_address() {
        assert_eq!(parsed("nas:/media"), expected("nas", None, "media", ""));
        assert_eq!(parsed("NAS.home:/media//films/./new/"), expected("nas.home", None, "media", "films/new"));
        assert_eq!(parsed("10.0.0.1:/"), expected("10.0.0.1", None, "", ""));
        assert_eq!(parsed("[fe80::1%eth0]:/m"), expected("fe80::1%eth0", None, "m", ""));
        assert_eq!(parsed("wormhole://nas/media"), expected("nas", None, "media", ""));
        assert_eq!(parsed("wormhole://[::1]:70/a/b/c"), expected("::1", Some(70), "a", "b/c"));
        assert_eq!(parsed("wormhole://nas:7000/a%20b/%C3%A9"), expected("nas", Some(7000), "a b", "é"));
        assert_eq!(parsed("nas:/a%20b"), expected("nas", None, "a%20b", ""));
    }

    #[test]
    fn errors_name_the_mistake() {
        let error = |text: &str| text.parse::<MountSource>().unwrap_err();
        assert_eq!(error("ssh://me@nas/x"), SourceError::SshNotYet);
        assert!(matches!(error("http://nas/x"), SourceError::UnknownScheme { .. }));
        for text in ["", "nas", "nas:media", "/media"] {
            assert!(matches!(error(text), SourceError::NotASource { .. }), "{text}");
        }
        for text in [":/x", "::1:/x", "a b:/x", "nas:70:/x", "[nas]:/x", "[::1:/x", "-o:/x"] {
            assert!(matches!(error(text), SourceError::BadHost { .. }), "{text} {:?}", error(text));
        }
        for text in
            ["wormhole://nas:0/x", "wormhole://nas:65536/x", "wormhole://nas:/x", "wormhole://nas:+1/x"]
        {
            assert!(matches!(error(text), SourceError::BadPort { .. }), "{text}");
        }
        for text in [
            "nas:/a/../b",
            "wormhole://nas/%2e%2E/b",
            "wormhole://nas/%4",
            "wormhole://nas/%ff",
            "wormhole://nas/%+1",
        ] {
            assert!(matches!(error(text), SourceError::BadPath { .. }), "{text}");
        }
    }

    #[test]
    fn a_host_may_be_called_like_a_ticket() {
        assert_eq!(parsed("whm1:/x").0, "whm1");
        assert!(matches!("whm1aaaa".parse::<MountSource>(), Err(SourceError::Ticket(_))));
    }

    #[test]
    fn host_address_text() {
        for (text, shown) in [
            ("nas", "nas:4433"),
            ("Nas:1", "nas:1"),
            ("::1", "[::1]:4433"),
            ("[::1]", "[::1]:4433"),
            ("[::1]:9", "[::1]:9"),
            ("1.2.3.4:5", "1.2.3.4:5"),
        ] {
            assert_eq!(text.parse::<HostAddress>().unwrap().to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<MountSource>();
            let _ = format!("wormhole://{text}").parse::<MountSource>();
            let _ = format!("h:/{text}").parse::<MountSource>();
        }

        #[test]
        fn displayed_addresses_can_be_read(host in "[a-z0-9][a-z0-9.-]{0,20}", port in 1..=u16::MAX) {
            let address = HostAddress::new(&host, port).unwrap();
            prop_assert_eq!(address.to_string().parse::<HostAddress>().unwrap(), address);
        }

        #[test]
        fn sub_path_never_leaves_the_export(path in "[a./]{0,30}") {
            if let Ok(MountSource::Address { export, sub_path, .. }) = format!("h:/{path}").parse() {
                let inside = export.split('/').chain(sub_path.split('/')).all(|part| part != ".." && part != ".");
                prop_assert!(inside);
            }
        }
    }
}
