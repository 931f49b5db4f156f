//! Whether a host can be reached, and whether it is known. It is not asked for anything, so a ticket stays unused.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Row;
use crate::cli::CliError;
use crate::cli::mount::read_source;
use crate::config::{Environment, Side};
use crate::transport::interfaces::address_kind;
use crate::transport::known_hosts::KnownHostsError;
use crate::transport::{
    Connection, DEFAULT_PORT, Expected, ExpectedHost, HostAddress, HostQuery, Identity, KnownHosts,
    MountSource, PublicKey, QUIC_HEAD_START, TransportError, TransportTuning, connect_any, resolve,
};

/// The check of a host's key.
const KEY_CHECK: &str = "host key";

/// How long a host may take to answer: three lost packets and a far away continent.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

pub(super) fn rows(typed: String, state_dir: Option<PathBuf>) -> Result<Vec<Row>, CliError> {
    let source: MountSource = read_source(typed)?.parse().map_err(CliError::usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::system(format!("cannot start: {error}")))?;
    match source {
        MountSource::Ticket(ticket) => {
            let key = Row::ok(KEY_CHECK, format!("{}, says the ticket", ticket.host_key()));
            let expected = ExpectedHost::Key(ticket.host_key());
            let (_, host) = runtime.block_on(reach(ticket.addresses(), expected));
            Ok(vec![key, host])
        }
        MountSource::Address { host, port, export, .. } => {
            let address = HostAddress::new(&host, port.unwrap_or(DEFAULT_PORT)).map_err(CliError::usage)?;
            let query = HostQuery { kind: address_kind(&address), address: address.clone(), export };
            let state = state_dir.map_or_else(|| Environment::of_process().state_dir(Side::Client), Ok);
            let known = KnownHosts::at(state.map_err(CliError::usage)?.join("known_hosts"));
            let (presented, host) = runtime.block_on(reach(&[address], ExpectedHost::Any));
            Ok(vec![key_row(&known, &query, presented), host])
        }
    }
}

/// What this machine knows of the host that answers to a name, or would be content with.
fn key_row(known: &KnownHosts, query: &HostQuery, presented: Option<PublicKey>) -> Row {
    let help = "mount it once by a ticket (on the host: `wormhole pair new`)";
    let mend = || format!("mend {}", known.path().display());
    let Some(presented) = presented else {
        return match known.expected(query) {
            Ok(Expected::Only(key)) => Row::ok(KEY_CHECK, format!("{key} is expected")),
            Ok(Expected::AnyKnown(keys)) if keys.is_empty() => {
                Row::fail(KEY_CHECK, format!("{} is not known here", query.address), help)
            }
            Ok(Expected::AnyKnown(keys)) => {
                Row::ok(KEY_CHECK, format!("any of {} known hosts would be let in by this name", keys.len()))
            }
            Err(error) => Row::fail(KEY_CHECK, error.to_string(), mend()),
        };
    };
    match known.check(query, presented) {
        Ok(name) if name == presented.to_string() => Row::ok(KEY_CHECK, format!("{presented}, as before")),
        Ok(name) => Row::ok(KEY_CHECK, format!("{presented}, as before: known as {name}")),
        Err(error @ KnownHostsError::UnknownHost { .. }) => Row::fail(KEY_CHECK, error.to_string(), help),
        Err(error @ (KnownHostsError::KeyMismatch(_) | KnownHostsError::AddressMoved(_))) => {
            Row::fail(KEY_CHECK, error.to_string(), "ask who runs the host for a new ticket")
        }
        Err(error) => Row::fail(KEY_CHECK, error.to_string(), mend()),
    }
}

/// Whether a host answers, and with which key.
async fn reach(addresses: &[HostAddress], expected: ExpectedHost) -> (Option<PublicKey>, Row) {
    const CHECK: &str = "host";
    let began = Instant::now();
    let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match timeout(ANSWER_WAIT, connect(addresses, expected)).await {
        Ok(Ok(connection)) => {
            let rtt_ms = connection.rtt().as_secs_f64() * 1e3;
            let took_ms = began.elapsed().as_millis();
            let address = connection.remote_address();
            let transport = connection.kind().name();
            let found =
                format!("{address} answers over {transport} within {took_ms} ms, round trip {rtt_ms:.1} ms");
            (Some(connection.peer_key()), Row::ok(CHECK, found))
        }
        Ok(Err(error @ TransportError::WrongHostKey { .. })) => {
            let help = "somebody else has its address, or it has a new key: ask who runs it for a new ticket";
            (None, Row::fail(CHECK, error.to_string(), help))
        }
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => format!("{} did not answer within {} s", names.join(", "), ANSWER_WAIT.as_secs()),
            };
            let help = "does `wormhole host` run there, and do firewalls on the way let its port through, UDP or at least TCP?";
            (None, Row::fail(CHECK, why, help))
        }
    }
}

/// With a key that nobody knows: this proves only that somebody answers, and who.
async fn connect(addresses: &[HostAddress], expected: ExpectedHost) -> Result<Connection, TransportError> {
    let identity = Identity::generate().map_err(|error| TransportError::Tls(error.to_string()))?;
    let (mut found, mut unresolved) = (Vec::new(), None);
    for address in addresses {
        match resolve(address).await {
            Ok(more) => found.extend(more),
            Err(error) => unresolved = Some(error),
        }
    }
    if let (true, Some(error)) = (found.is_empty(), unresolved) {
        return Err(error);
    }
    let (_, connection) =
        connect_any(&identity, &TransportTuning::default(), &found, expected, QUIC_HEAD_START).await?;
    Ok(connection)
}
