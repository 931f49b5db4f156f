//! `wormhole host`: serves folders until it is told to end.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::pair::Lifetime;
use super::{CliError, index_progress, threads};
use crate::config::{Environment, Side};
use crate::control::{
    CLIENTS_MAX, ClientReport, ControlSocket, Controlled, DaemonKind, FileSystemReport, KeyUse, LinkWord,
    StatusReport, Unsent,
};
use crate::host::{
    ADVERTISED_NAMES_MAX, ClientStatus, Export, FileSystemStatus, Host, HostConfig, HostError, HostObserver,
    HostStatus, KeyLimits, KeyStatus, TicketTerms,
};
use crate::io::EngineKind;
use crate::metrics::{Metric, Readings};
use crate::transport::{AdvertisedName, CongestionKind};

/// What was typed.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Arguments {
    /// Folders to serve, each under its own name or the one given
    #[arg(required = true, value_name = "[NAME=]PATH")]
    folders: Vec<OsString>,

    /// Address and port to listen on, for UDP and TCP; port 0 picks one
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:4433")]
    listen: SocketAddr,

    /// Name under which clients are to look for this machine, for tickets; may be repeated
    #[arg(long, value_name = "NAME[:PORT]")]
    advertise: Vec<AdvertisedName>,

    /// Refuse every change
    #[arg(long)]
    read_only: bool,

    /// Where to keep the host's key, the authorised keys and the tickets
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// How to read the disk: auto, uring or blocking
    #[arg(long, value_name = "KIND", default_value = "auto")]
    io: EngineKind,

    /// Congestion control: delivery, cubic, bbr or newreno
    #[arg(long, value_name = "NAME", default_value = "delivery")]
    cc: CongestionKind,

    /// Hash all files ahead, while nobody else needs the machine, so that clients need not wait for it
    #[arg(long)]
    index: bool,

    /// How long the ticket is good, such as 30m, 24h, 7d or never
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ticket_expires: Lifetime,

    /// As whom the key acts that the ticket lets in: a user of this machine, if the host runs as root
    #[arg(long, value_name = "USER")]
    ticket_user: Option<String>,

    /// Make and print no ticket, as a service should; `wormhole pair new` makes one
    #[arg(long, conflicts_with_all = ["ticket_expires", "ticket_user"])]
    no_ticket: bool,

    /// Print what is said at the start as one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed when the daemon answers.
#[derive(Debug, Serialize)]
struct Ready {
    listening: String,
    identity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let exports = arguments.folders.iter().map(|folder| Export::parse(folder)).collect::<Result<_, _>>();
    let mut config = HostConfig::new(exports.map_err(CliError::usage)?, state_dir(arguments.state_dir)?);
    config.listen = arguments.listen;
    if arguments.advertise.len() > ADVERTISED_NAMES_MAX {
        return Err(CliError::usage(format!(
            "--advertise: a ticket has room for {ADVERTISED_NAMES_MAX} names"
        )));
    }
    config.advertise = arguments.advertise;
    config.read_only = arguments.read_only;
    config.engine = arguments.io;
    config.tuning.congestion = arguments.cc;
    config.index_ahead = arguments.index;
    let terms = TicketTerms {
        expires_seconds: arguments.ticket_expires.seconds(),
        keys_max: 1,
        user: arguments.ticket_user,
        ..TicketTerms::default()
    };
    let terms = (!arguments.no_ticket).then_some(terms);
    let runtime = threads::runtime()?;
    let served = runtime.block_on(serve(config, terms, arguments.json));
    // Not waited for: a thread that is stuck in a file system that hangs would keep the daemon.
    runtime.shutdown_background();
    served
}

/// Where the host's state lies: as said, or where the system keeps such things.
pub(super) fn state_dir(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    given.map_or_else(|| Environment::of_process().state_dir(Side::Host).map_err(CliError::usage), Ok)
}

async fn serve(config: HostConfig, terms: Option<TicketTerms>, json: bool) -> Result<(), CliError> {
    // Before anybody knows of the daemon, so that no signal is missed.
    let cannot_listen = |error| CliError::system(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_listen)?;
    let first = config.exports.first().map(|export| export.name.clone()).unwrap_or_default();
    let index = config.index_ahead;
    let host = Host::start(config).map_err(describe)?;
    let ticket = terms.map(|terms| host.ticket_at_start(&first, &terms)).transpose().map_err(describe)?;
    let ready = Ready {
        listening: host.listening().to_string(),
        identity: host.identity().to_string(),
        ticket: ticket.map(|ticket| ticket.to_string()),
    };
    let (wanted, mut is_wanted) = watch::channel(Ending::NotYet);
    let daemon = Daemon { host: host.observer(), wanted: wanted.clone(), started: Instant::now() };
    let control = ControlSocket::open(&Environment::of_process().control_dir(), None, Arc::new(daemon))
        .inspect_err(|error| tracing::warn!("{error}; `wormhole status` will not show this host"));
    // A reader that is gone does not keep the daemon from serving.
    let _ = announce(&ready, json);
    let progress = index.then(|| tokio::spawn(index_progress::show(host.observer())));
    loop {
        tokio::select! {
            () = either(&mut terminate, &mut interrupt) => break,
            _ = is_wanted.wait_for(|ending| *ending != Ending::NotYet) => break,
            Some(()) = hangup.recv() => {
                tracing::info!("looking at the keys and tickets anew");
                host.reload();
            }
        }
    }
    progress.inspect(JoinHandle::abort);
    tracing::info!("ending; another signal ends at once");
    tokio::select! {
        () = host.shutdown() => {}
        () = either(&mut terminate, &mut interrupt) => {}
        _ = is_wanted.wait_for(|ending| *ending == Ending::Now) => {}
    }
    drop(control);
    Ok(())
}

/// How the daemon was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    NotYet,
    Orderly,
    Now,
}

/// Behind the control socket.
struct Daemon {
    host: HostObserver,
    wanted: watch::Sender<Ending>,
    started: Instant,
}

impl Controlled for Daemon {
    fn status(&self) -> StatusReport {
        let status = self.host.status();
        StatusReport {
            kind: DaemonKind::Host,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: status.exports.iter().map(|export| format!("{}={}", export.name, export.path)).collect(),
            mountpoint: None,
            device: None,
            state: LinkWord::Serving,
            problem: None,
            address: Some(status.listening.clone()),
            transport: "quic, tcp".to_owned(),
            engine: Some(status.engine.clone()),
            cache_dir: None,
            clients_connected: clients(&status),
            keys: status.keys.iter().map(key_use).collect(),
            cache_problem: None,
            file_systems: status.file_systems.iter().map(file_system).collect(),
            readings: readings(&status, self.started.elapsed().as_secs()),
        }
    }

    fn stop(&self) {
        self.wanted.send_replace(Ending::Orderly);
    }

    fn abort(&self) -> Unsent {
        self.wanted.send_replace(Ending::Now);
        Unsent::default()
    }
}

/// Who is connected, as people are told.
fn clients(status: &HostStatus) -> Vec<ClientReport> {
    let report = |client: &ClientStatus| ClientReport {
        key: client.key.clone(),
        name: client.name.clone(),
        address: client.address.clone(),
        export: client.export.clone(),
        rights: client.rights.clone(),
        connected_seconds: client.connected_seconds,
    };
    status.clients.iter().take(CLIENTS_MAX).map(report).collect()
}

fn key_use(key: &KeyStatus) -> KeyUse {
    let KeyLimits { max_connections, max_sessions, max_open, max_requests, max_threads } = key.limits;
    KeyUse {
        key: key.key.clone(),
        connections: (key.connections, max_connections),
        sessions: (key.sessions, max_sessions),
        open: (key.open_files, max_open),
        requests: (key.requests, max_requests),
        threads: (key.threads, max_threads),
    }
}

fn file_system(found: &FileSystemStatus) -> FileSystemReport {
    FileSystemReport {
        path: Some(found.path.clone()),
        file_system: Some(found.name.to_owned()),
        trust: found.trust.to_owned(),
        reason: found.reason.to_owned(),
    }
}

fn readings(status: &HostStatus, uptime_seconds: u64) -> Readings {
    let clients: BTreeSet<&str> = status.clients.iter().map(|client| client.key.as_str()).collect();
    let mut readings = Readings::default();
    readings.set(Metric::UptimeSeconds, uptime_seconds);
    readings.set(Metric::Clients, clients.len());
    readings.set(Metric::Connections, status.clients.len());
    readings.set(Metric::Requests, status.requests);
    readings.set(Metric::RequestsInFlight, status.requests_inflight);
    readings.set(Metric::Refused, status.refused);
    readings.set(Metric::Strangers, status.strangers);
    readings.set(Metric::ServedBytes, status.content_bytes_sent);
    readings.set(Metric::ServedSavedBytes, status.content_bytes_saved);
    readings.set(Metric::LocksHeld, status.locks_held);
    readings.set(Metric::Leases, status.leases);
    readings.set(Metric::DiskInFlight, status.disk_inflight);
    readings.set(Metric::DiskInFlightMax, status.disk_inflight_max);
    readings.set(Metric::SendInFlight, status.send_inflight);
    readings.set(Metric::SendInFlightMax, status.send_inflight_max);
    if let Some(bytes) = status.udp_buffer_bytes {
        readings.set(Metric::UdpBufferBytes, bytes);
    }
    readings.set(Metric::IndexHits, status.index_hits);
    readings.set(Metric::IndexMisses, status.index_misses);
    readings.set(Metric::IndexUsedBytes, status.index_used_bytes);
    readings.set(Metric::IndexLimitBytes, status.index_limit_bytes);
    if status.index_ahead_runs || status.index_ahead_total_bytes > 0 {
        readings.set(Metric::IndexAheadBytes, status.index_ahead_bytes);
        readings.set(Metric::IndexAheadTotalBytes, status.index_ahead_total_bytes);
    }
    readings
}

fn describe(error: HostError) -> CliError {
    match error {
        HostError::Export(error) => CliError::usage(error),
        HostError::User(_) => CliError::usage(error),
        error => CliError::system(error),
    }
}

fn announce(ready: &Ready, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(ready)?)?;
    } else {
        writeln!(out, "listening: {}", ready.listening)?;
        writeln!(out, "identity: {}", ready.identity)?;
        if let Some(ticket) = &ready.ticket {
            writeln!(out, "ticket: {ticket}")?;
        }
    }
    out.flush()
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
