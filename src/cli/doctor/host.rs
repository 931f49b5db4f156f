//! Whether a host can be reached, and whether it is known. It is not asked for anything, so a ticket stays unused.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Row;
use crate::cli::CliError;
use crate::cli::mount::read_source;
use crate::config::{Environment, Side};
use crate::transport::{
    Connection, DEFAULT_PORT, ExpectedHost, HostAddress, Identity, KnownHosts, PublicKey, QUIC_HEAD_START,
    Source, TransportError, TransportTuning, connect_any, resolve,
};

/// How long a host may take to answer: three lost packets and a far away continent.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

pub(super) fn rows(typed: String, state_dir: Option<PathBuf>) -> Result<Vec<Row>, CliError> {
    let source: Source = read_source(typed)?.parse().map_err(CliError::usage)?;
    let (addresses, key, key_row) = match &source {
        Source::Ticket(ticket) => {
            let row = Row::ok("host key", format!("{}, says the ticket", ticket.host_key()));
            (ticket.addresses().to_vec(), Some(ticket.host_key()), row)
        }
        Source::Address { host, port, .. } => {
            let address = HostAddress::new(host, port.unwrap_or(DEFAULT_PORT)).map_err(CliError::usage)?;
            let (key, row) = known_key(&address, state_dir)?;
            (vec![address], key, row)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::system(format!("cannot start: {error}")))?;
    let expected = key.map_or(ExpectedHost::Any, ExpectedHost::Key);
    Ok(vec![key_row, runtime.block_on(reach(&addresses, expected))])
}

/// What this machine knows of a host by name.
fn known_key(
    address: &HostAddress,
    state_dir: Option<PathBuf>,
) -> Result<(Option<PublicKey>, Row), CliError> {
    const CHECK: &str = "host key";
    let state = state_dir.map_or_else(|| Environment::of_process().state_dir(Side::Client), Ok);
    let file = state.map_err(CliError::usage)?.join("known_hosts");
    let help = "mount it once by a ticket (on the host: `wormhole pair new`)";
    Ok(match KnownHosts::at(&file).lookup(address) {
        Ok(Some(key)) => (Some(key), Row::ok(CHECK, format!("{key}, as before"))),
        Ok(None) => (None, Row::fail(CHECK, format!("{address} is not known here"), help)),
        Err(error) => (None, Row::fail(CHECK, error.to_string(), format!("mend {}", file.display()))),
    })
}

async fn reach(addresses: &[HostAddress], expected: ExpectedHost) -> Row {
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
            Row::ok(CHECK, found)
        }
        Ok(Err(error @ TransportError::WrongHostKey { .. })) => Row::fail(
            CHECK,
            error.to_string(),
            "somebody else has its address, or it has a new key: ask who runs it for a new ticket",
        ),
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => format!("{} did not answer within {} s", names.join(", "), ANSWER_WAIT.as_secs()),
            };
            let help = "does `wormhole host` run there, and do firewalls on the way let its port through, UDP or at least TCP?";
            Row::fail(CHECK, why, help)
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
