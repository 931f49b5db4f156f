//! Resolves host names to socket addresses.

use std::net::SocketAddr;

use super::{error::TransportError, mount_source::HostAddress};

/// Addresses tried of one name. A resolver may return hundreds.
const ADDRESSES_PER_NAME_MAX: usize = 8;

/// Returns the addresses of `host`, at most eight. The families alternate, and the first choice of the
/// resolver comes first.
pub async fn resolve(host: &HostAddress) -> Result<Vec<SocketAddr>, TransportError> {
    let error = |source| TransportError::Resolve { host: host.host().to_owned(), source };
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((host.host(), host.port())).await.map_err(error)?.collect();
    if found.is_empty() {
        return Err(error(std::io::Error::other("the name has no address")));
    }
    Ok(alternate_families(&found))
}

/// Alternates between IPv6 and IPv4, so a broken family costs one attempt and not all.
fn alternate_families(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let mut first = found.iter().filter(|address| address.is_ipv6() == first_is_v6);
    let mut second = found.iter().filter(|address| address.is_ipv6() != first_is_v6);
    let mut ordered = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || ordered.len() >= ADDRESSES_PER_NAME_MAX {
            ordered.truncate(ADDRESSES_PER_NAME_MAX);
            return ordered;
        }
        for &address in pair.into_iter().flatten() {
            if !ordered.contains(&address) {
                ordered.push(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &[&str]) -> Vec<SocketAddr> {
        text.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_and_doubles_go() {
        let found = addresses(&["[::1]:1", "[::2]:1", "[::2]:1", "10.0.0.1:1", "10.0.0.2:1"]);
        let wanted = addresses(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "10.0.0.2:1"]);
        assert_eq!(alternate_families(&found), wanted);
    }

    #[test]
    fn count_is_bounded() {
        let many: Vec<SocketAddr> = (0..100).map(|last| SocketAddr::from(([10, 0, 0, last], 1))).collect();
        assert_eq!(alternate_families(&many), many[..ADDRESSES_PER_NAME_MAX]);
        assert_eq!(alternate_families(&[]), []);
    }

    #[tokio::test]
    async fn literal_addresses_need_no_resolver() {
        let host: HostAddress = "127.0.0.1:77".parse().unwrap();
        assert_eq!(resolve(&host).await.unwrap(), addresses(&["127.0.0.1:77"]));
    }
}
