//! `wormhole host`: serves folders until it is told to end.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;
use super::pair::Lifetime;
use crate::host::{Export, Host, HostConfig, HostError, TicketTerms};
use crate::io::EngineKind;
use crate::transport::CongestionKind;

/// What was typed.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders to serve, each under its own name or the one given
    #[arg(required = true, value_name = "[NAME=]PATH")]
    folders: Vec<OsString>,

    /// UDP address and port to listen on; port 0 picks one
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:4433")]
    listen: SocketAddr,

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

    /// How long the ticket is good, such as 30m, 24h, 7d or never
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ticket_expires: Lifetime,

    /// Print what is said at the start as one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed when the daemon answers.
#[derive(Debug, Serialize)]
struct Ready {
    listening: String,
    identity: String,
    ticket: String,
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let exports = arguments.folders.iter().map(|folder| Export::parse(folder)).collect::<Result<_, _>>();
    let mut config = HostConfig::new(exports.map_err(CliError::usage)?, state_dir(arguments.state_dir)?);
    config.listen = arguments.listen;
    config.read_only = arguments.read_only;
    config.engine = arguments.io;
    config.tuning.congestion = arguments.cc;
    let terms = TicketTerms { expires_seconds: arguments.ticket_expires.seconds(), keys_max: 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::system(format!("cannot start threads: {error}")))?;
    runtime.block_on(serve(config, terms, arguments.json))
}

/// Where the host's state lies when nobody says otherwise: of the system for root, else of the user.
pub(super) fn state_dir(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    if let Some(given) = given {
        return Ok(given);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/wormhole/host"));
    }
    let of_user = || {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))
    };
    let state = of_user().ok_or_else(|| {
        CliError::usage("no folder for the host's state: set HOME, or name one with --state-dir")
    })?;
    Ok(state.join("wormhole/host"))
}

async fn serve(config: HostConfig, terms: TicketTerms, json: bool) -> Result<(), CliError> {
    // Before anybody knows of the daemon, so that no signal is missed.
    let cannot_listen = |error| CliError::system(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let first = config.exports.first().map(|export| export.name.clone()).unwrap_or_default();
    let host = Host::start(config).map_err(describe)?;
    let ticket = host.ticket(&first, terms).map_err(describe)?;
    let ready = Ready {
        listening: host.listening().to_string(),
        identity: host.identity().to_string(),
        ticket: ticket.to_string(),
    };
    // A reader that is gone does not keep the daemon from serving.
    let _ = announce(&ready, json);
    either(&mut terminate, &mut interrupt).await;
    tracing::info!("ending; another signal ends at once");
    tokio::select! {
        () = host.shutdown() => {}
        () = either(&mut terminate, &mut interrupt) => {}
    }
    Ok(())
}

fn describe(error: HostError) -> CliError {
    match error {
        HostError::Export(error) => CliError::usage(error),
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
        writeln!(out, "ticket: {}", ready.ticket)?;
    }
    out.flush()
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
