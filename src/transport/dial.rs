//! Connects to one of several addresses. It tries all, each a little after the last, and keeps the first
//! handshake.
//!
//! At one address QUIC and TCP race, unless one of them is configured. The TCP packet goes first. The kernel
//! answers it, so it measures the route and not the load of the machines. On a short route TCP continues.
//! Elsewhere QUIC does, and TCP takes over if UDP gets no answer in time.

use std::{net::SocketAddr, time::Duration};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    connection::Connection,
    endpoint::Endpoint,
    error::TransportError,
    identity::Identity,
    mount_source::is_local_scope,
    tcp::Connected,
    tls::ExpectedHost,
    tuning::{TransportChoice, TransportTuning},
};

/// Head start of one address over the next (RFC 8305 names 250 ms). Most hosts answer sooner, so only one
/// attempt is made.
const STAGGER: Duration = Duration::from_millis(250);
/// Largest number of addresses tried. A ticket or a resolver might name any number.
const ADDRESSES_MAX: usize = 32;

/// Head start of the TCP packet over QUIC. On a short route the answer arrives within it.
const TCP_AHEAD: Duration = Duration::from_millis(5);
/// Head start of QUIC where the route is not short. Its first packet is repeated after 300 ms, so one may be
/// lost.
pub const QUIC_HEAD_START: Duration = Duration::from_millis(700);

/// Tries all `addresses`, 250 ms apart (at once when an earlier one fails). Keeps the first that proves the
/// expected key, and drops the others. Each attempt has its own endpoint.
///
/// If both protocols are allowed, QUIC has the head start `head_start` unless the route is short.
///
/// Fails when all attempts have failed. Drop the future to stop earlier.
pub async fn connect_any(
    identity: &Identity,
    tuning: &TransportTuning,
    addresses: &[SocketAddr],
    expected: ExpectedHost,
    head_start: Duration,
) -> Result<(Endpoint, Connection), TransportError> {
    let mut waiting = addresses.iter().copied().take(ADDRESSES_MAX);
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            match Endpoint::client(identity, tuning, address) {
                Ok(endpoint) => {
                    let target = Target {
                        endpoint,
                        address,
                        expected: expected.clone(),
                        choice: tuning.transport,
                        tcp_rtt_max: tuning.tcp_rtt_max,
                    };
                    attempts.spawn(target.connect(head_start));
                }
                Err(error) => failures.push(error),
            }
        }
        let more = waiting.len() > 0;
        let wait = if more { STAGGER } else { Duration::MAX };
        match timeout(wait, attempts.join_next()).await {
            Ok(Some(Ok(Ok(connected)))) => return Ok(connected),
            Ok(Some(Ok(Err(error)))) => failures.push(error),
            Ok(Some(Err(_panicked_or_cancelled))) => {}
            Ok(None) if !more => return Err(summary(without_false_alarms(failures, addresses))),
            Ok(None) | Err(_) => {}
        }
    }
}

/// An address, and the key expected there.
struct Target {
    endpoint: Endpoint,
    address: SocketAddr,
    expected: ExpectedHost,
    choice: TransportChoice,
    tcp_rtt_max: Duration,
}

impl Target {
    async fn connect(self, head_start: Duration) -> Result<(Endpoint, Connection), TransportError> {
        let connection = match self.choice {
            TransportChoice::Auto => self.race(head_start).await?,
            TransportChoice::Only(_) => self.endpoint.connect(self.address, self.expected.clone()).await?,
        };
        Ok((self.endpoint, connection))
    }

    async fn race(&self, head_start: Duration) -> Result<Connection, TransportError> {
        let deadline = Instant::now() + head_start;
        let mut tcp = std::pin::pin!(self.endpoint.connect_tcp(self.address));
        let early = timeout(TCP_AHEAD, &mut tcp).await;
        match early {
            Ok(Ok(connected)) if connected.rtt <= self.tcp_rtt_max => {
                match timeout(head_start, self.secure(connected)).await {
                    Ok(Err(TransportError::Connect { .. })) | Err(_) => self.over_quic().await,
                    Ok(end) => end,
                }
            }
            Ok(Ok(connected)) => self.both(deadline, async { Ok(connected) }).await,
            Ok(Err(error)) => self.over_quic().await.map_err(|other| summary(vec![other, error])),
            Err(_) => self.both(deadline, tcp).await,
        }
    }

    /// Tries QUIC now and TCP from `deadline` on. Keeps the first that succeeds.
    async fn both(
        &self,
        deadline: Instant,
        tcp: impl Future<Output = Result<Connected, TransportError>>,
    ) -> Result<Connection, TransportError> {
        let over_tcp = async {
            let connected = tcp.await?;
            sleep_until(deadline).await;
            self.secure(connected).await
        };
        let (mut over_quic, mut over_tcp) = (std::pin::pin!(self.over_quic()), std::pin::pin!(over_tcp));
        let (first, is_quic) = tokio::select! {
            end = &mut over_quic => (end, true),
            end = &mut over_tcp => (end, false),
        };
        let error = match first {
            Ok(_) => return first,
            Err(error) if error.wrong_key().is_some() => return Err(error),
            Err(error) => error,
        };
        let second = if is_quic { over_tcp.await } else { over_quic.await };
        second.map_err(|other| summary(vec![error, other]))
    }

    async fn over_quic(&self) -> Result<Connection, TransportError> {
        self.endpoint.connect(self.address, self.expected.clone()).await
    }

    async fn secure(&self, connected: Connected) -> Result<Connection, TransportError> {
        self.endpoint.secure(self.address, self.expected.clone(), connected).await
    }
}

/// Turns wrong keys at loopback and link-local addresses into plain connection errors, if the host has other
/// addresses. Another host may answer there.
fn without_false_alarms(failures: Vec<TransportError>, addresses: &[SocketAddr]) -> Vec<TransportError> {
    if addresses.iter().all(|address| is_local_scope(address.ip())) {
        return failures;
    }
    let calm = |failure: TransportError| match failure {
        TransportError::WrongHostKey { address, .. } | TransportError::UnknownHostKey { address, .. }
            if is_local_scope(address.ip()) =>
        {
            TransportError::Connect { address, reason: "another host answers there".to_owned() }
        }
        other => other,
    };
    failures.into_iter().map(calm).collect()
}

/// Joins all errors into one. A wrong key matters more than an address that does not answer.
fn summary(mut failures: Vec<TransportError>) -> TransportError {
    if let Some(index) = failures.iter().position(|error| error.wrong_key().is_some()) {
        return failures.swap_remove(index);
    }
    match failures.len() {
        0 => TransportError::NoAddress,
        1 => failures.swap_remove(0),
        _ => {
            let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
            TransportError::NoneAnswered { reasons: reasons.join("; ") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::PublicKey;

    fn wrong(address: SocketAddr) -> TransportError {
        TransportError::WrongHostKey { address, expected: PublicKey([1; 32]), presented: PublicKey([2; 32]) }
    }

    #[test]
    fn another_host_on_this_machine_is_no_alarm_where_the_host_is_elsewhere() {
        let (here, there): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        let silent = || TransportError::Connect { address: there, reason: "no answer".to_owned() };
        let told = |failures, addresses: &[SocketAddr]| summary(without_false_alarms(failures, addresses));
        let elsewhere = told(vec![silent(), wrong(here)], &[there, here]);
        assert!(matches!(elsewhere, TransportError::NoneAnswered { .. }), "{elsewhere}");
        assert!(told(vec![wrong(here)], &[here]).wrong_key().is_some());
        assert!(told(vec![wrong(there), wrong(here)], &[there, here]).wrong_key().is_some());
    }
}
