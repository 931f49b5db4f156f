//! Several addresses, one connection: all are tried, each a little after the last, and the first handshake wins.

use std::{net::SocketAddr, time::Duration};

use tokio::task::JoinSet;

use super::{
    connection::Connection, endpoint::Endpoint, error::TransportError, identity::Identity, tls::ExpectedHost,
    tuning::TransportTuning,
};

/// Head start of one address over the next (RFC 8305 names 250 ms): most hosts answer within, so one attempt is made.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses tried at most; a ticket or a resolver might name any number.
const ADDRESSES_MAX: usize = 32;

/// Tries all `addresses`, staggered by 250 ms (at once when an earlier one fails), and keeps the first that answers with
/// the expected key. The others are dropped. The endpoint is the winner's own.
///
/// Gives up when all have failed; drop the future to give up earlier.
pub async fn connect_any(
    identity: &Identity,
    tuning: &TransportTuning,
    addresses: &[SocketAddr],
    expected: ExpectedHost,
) -> Result<(Endpoint, Connection), TransportError> {
    let mut waiting = addresses.iter().copied().take(ADDRESSES_MAX);
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            match Endpoint::client(identity, tuning, address) {
                Ok(endpoint) => drop(attempts.spawn(attempt(endpoint, address, expected))),
                Err(error) => failures.push(error),
            }
        }
        let more = waiting.len() > 0;
        let wait = if more { STAGGER } else { Duration::MAX };
        match tokio::time::timeout(wait, attempts.join_next()).await {
            Ok(Some(Ok(Ok(connected)))) => return Ok(connected),
            Ok(Some(Ok(Err(error)))) => failures.push(error),
            Ok(Some(Err(_panicked_or_cancelled))) => {}
            Ok(None) if !more => return Err(summary(failures)),
            Ok(None) | Err(_) => {}
        }
    }
}

async fn attempt(
    endpoint: Endpoint,
    address: SocketAddr,
    expected: ExpectedHost,
) -> Result<(Endpoint, Connection), TransportError> {
    let connection = endpoint.connect(address, expected).await?;
    Ok((endpoint, connection))
}

/// One error for all: a wrong key is worth more than a silence elsewhere.
fn summary(mut failures: Vec<TransportError>) -> TransportError {
    if let Some(index) =
        failures.iter().position(|error| matches!(error, TransportError::WrongHostKey { .. }))
    {
        return failures.swap_remove(index);
    }
    match failures.len() {
        0 => TransportError::NoAddress,
        1 => failures.swap_remove(0),
        count => {
            let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
            TransportError::NoneAnswered { count, reasons: reasons.join("; ") }
        }
    }
}
