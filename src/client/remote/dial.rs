//! Makes connections: from addresses to a welcome of the host.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::config::{ClientConfig, ConnectError};
use super::stream::{Exchange, Fault};
use crate::proto::{
    ErrorCode, Features, Hello, PROTOCOL_VERSION, Reply, Request, Welcome, WireError, close, encode_frame,
};
use crate::transport::{
    Connection, Endpoint, ExpectedHost, HostAddress, Lane, QUIC_HEAD_START, TransportError, TransportKind,
    connect_any, resolve,
};

/// Time for resolving names again while older addresses are known.
const RESOLVE_AGAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for resolving further names once one address is known.
const OTHER_NAMES_WAIT: Duration = Duration::from_secs(1);
/// Attempts after which names are resolved again. During a network failure every resolution hangs.
const RESOLVE_AGAIN_EVERY: u64 = 4;

/// Head start of QUIC over TCP if the last connection used TCP. Where UDP is blocked, a reconnect must not
/// wait long for QUIC each time.
const QUIC_HEAD_START_AGAIN: Duration = Duration::from_millis(250);

/// A welcomed connection that is not in use yet.
pub(super) struct Established {
    /// Names that lead to the address of the host.
    pub(super) names: Vec<HostAddress>,
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    pub(super) welcome: Welcome,
}

/// Makes connections to the host.
pub(super) struct Dialer {
    config: ClientConfig,
    state: Mutex<DialState>,
}

/// State learnt from earlier connections.
struct DialState {
    /// Result of the last resolution: names and their addresses.
    names: Vec<(HostAddress, SocketAddr)>,
    addresses: Vec<SocketAddr>,
    expected: ExpectedHost,
    /// Head start of QUIC over TCP.
    head_start: Duration,
}

impl Dialer {
    pub(super) fn new(config: ClientConfig) -> Self {
        let known = DialState {
            names: Vec::new(),
            addresses: Vec::new(),
            expected: config.expected.clone(),
            head_start: QUIC_HEAD_START,
        };
        Self { config, state: Mutex::new(known) }
    }

    /// Makes the first connection within the configured time.
    pub(super) async fn dial_first(&self) -> Result<Established, ConnectError> {
        let waited = self.config.connect_timeout;
        let no_answer = |_| ConnectError::NoAnswer { addresses: self.config.addresses_text(), waited };
        timeout(waited, self.dial(0)).await.map_err(no_answer)?
    }

    /// Makes attempt `number`. Drop the future to stop it.
    pub(super) async fn dial(&self, number: u64) -> Result<Established, ConnectError> {
        let addresses = self.addresses(number).await?;
        let expected = self.with_state(|known| known.expected.clone());
        let head_start = self.with_state(|known| known.head_start);
        let (endpoint, connection) =
            connect_any(&self.config.identity, &self.config.tuning, &addresses, expected, head_start).await?;
        let address = connection.remote_address();
        let welcome = match self.hello(&connection).await {
            Ok(welcome) => welcome,
            Err(error) => {
                connection.close(close::REPLACED, "not welcome");
                return Err(error);
            }
        };
        let names = self.with_state(|known| {
            known.expected = ExpectedHost::Key(connection.peer_key());
            known.addresses.retain(|other| *other != address);
            known.addresses.insert(0, address);
            known.head_start = match connection.kind() {
                TransportKind::Quic => QUIC_HEAD_START,
                TransportKind::Tcp => QUIC_HEAD_START_AGAIN,
            };
            let leads_there = |(_, other): &&(HostAddress, SocketAddr)| is_same(*other, address);
            known.names.iter().filter(leads_there).map(|(name, _)| name.clone()).collect()
        });
        Ok(Established { names, endpoint, connection, welcome })
    }

    async fn hello(&self, connection: &Connection) -> Result<Welcome, ConnectError> {
        let address = connection.remote_address();
        let hello = Request::Hello(Hello {
            protocol_version: PROTOCOL_VERSION,
            features: Features::SUPPORTED,
            session: self.config.session,
            export: self.config.export.clone(),
            sub_path: self.config.sub_path.clone(),
            ticket: self.config.ticket,
            compression: self.config.compression,
        });
        let answer = async {
            let mut exchange = Exchange::begin(connection, &encode_frame(&hello), Lane::Metadata).await?;
            let reply: Result<Reply, WireError> = exchange.frame().await?;
            exchange.complete();
            Ok(reply)
        };
        match answer.await {
            Ok(Ok(Reply::Welcome(welcome))) => Ok(welcome),
            Ok(Err(error)) => Err(ConnectError::Refused { address, error }),
            Ok(Ok(_)) => {
                Err(ConnectError::BadAnswer { address, reason: "no welcome to our hello".to_owned() })
            }
            Err(Fault::Broken(reason)) => Err(ConnectError::BadAnswer { address, reason }),
            Err(Fault::Lost) => Err(lost(connection)),
        }
    }

    /// Returns the addresses to try, the last good one first.
    async fn addresses(&self, number: u64) -> Result<Vec<SocketAddr>, ConnectError> {
        let known = self.with_state(|known| known.addresses.clone());
        if known.is_empty() {
            let found = self.resolve_all().await?;
            self.with_state(|known| known.addresses.clone_from(&found));
            return Ok(found);
        }
        if !number.is_multiple_of(RESOLVE_AGAIN_EVERY) {
            return Ok(known);
        }
        let Ok(Ok(found)) = timeout(RESOLVE_AGAIN_TIMEOUT, self.resolve_all()).await else {
            return Ok(known);
        };
        // The last good address stays first if the names still lead to it.
        let good = known.first().copied().filter(|address| found.contains(address));
        let others = found.iter().copied().filter(|address| Some(*address) != good);
        let addresses: Vec<_> = good.into_iter().chain(others).collect();
        self.with_state(|known| known.addresses.clone_from(&addresses));
        Ok(addresses)
    }

    /// Returns all addresses of all names, in their order. Fails if there is none. Does not wait long for a
    /// slow name if other names have addresses.
    async fn resolve_all(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut lookups = JoinSet::new();
        for (place, host) in self.config.addresses.iter().cloned().enumerate() {
            lookups.spawn(async move { (place, resolve(&host).await) });
        }
        let mut found: Vec<Vec<SocketAddr>> = vec![Vec::new(); self.config.addresses.len()];
        let mut failure = TransportError::NoAddress;
        let give_up_at = Instant::now() + OTHER_NAMES_WAIT;
        loop {
            let has_some = found.iter().any(|addresses| !addresses.is_empty());
            let next = lookups.join_next();
            let ended =
                if has_some { timeout_at(give_up_at, next).await.unwrap_or(None) } else { next.await };
            match ended {
                Some(Ok((place, Ok(addresses)))) => found[place] = addresses,
                Some(Ok((_, Err(error)))) => failure = error,
                Some(Err(_panicked)) => {}
                None => break,
            }
        }
        let names = self.config.addresses.iter().zip(&found);
        let names: Vec<_> =
            names.flat_map(|(name, found)| found.iter().map(|address| (name.clone(), *address))).collect();
        self.with_state(|known| known.names = names);
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() { Err(failure.into()) } else { Ok(addresses) }
    }

    fn with_state<T>(&self, look: impl FnOnce(&mut DialState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ConnectError {
    /// Returns the refusal of the host, if this is one. Any other failure may be over in a second.
    pub(super) fn refusal(&self) -> Option<WireError> {
        match self {
            Self::Refused { error, .. } if error.code != ErrorCode::Busy => Some(error.clone()),
            Self::Transport(error) if error.wrong_key().is_some() => {
                Some(WireError::new(ErrorCode::Refused, error.to_string()))
            }
            _ => None,
        }
    }
}

/// Returns true if two addresses are the same, in any form.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
}

fn lost(connection: &Connection) -> ConnectError {
    let reason =
        connection.close_reason().map_or_else(|| "no reason".to_owned(), |reason| reason.to_string());
    ConnectError::BadAnswer { address: connection.remote_address(), reason }
}
