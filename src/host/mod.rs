//! The daemon that serves folders.
//!
//! In reading order:
//!
//! 1. `exports`, `keys`, `tickets`, `admission`, `actor`, `state`: what is served to whom, as whom, and where that is written
//! 2. `confine`, `crossing`, `attributes`, `nodes`, `handles`, `closing`, `tree`: from a client's node to a descriptor, never outside
//! 3. `sessions`, `session`, `opens`: what outlives a connection
//! 4. `core`, `door`, `refusals`, `entry`, `limits`, `shares`, `turns`, `budget`, `connection`, `greeting`, `context`: a client from its knock to its end
//! 5. `requests`, `answer`, `metadata`, `directory`: streams and their answers; `leases`, `events`: changes told to clients
//! 6. `content`, `ahead`, `lending`, `compress`, `packing`, `blocks`, `manifest`, `sum`: from the disk engine to the stream
//! 7. `index`: hashes that outlive the daemon; `operations`, `once`, `change`, `write`: what clients change, each change once; `locks`
//! 8. `keeping`, `addresses`, `counters`, `status`: the daemon itself
//!
//! System calls that may wait for a disk run on tokio's blocking threads; content comes through [`crate::io::Engine`].

mod actor;
mod addresses;
mod admission;
mod ahead;
mod answer;
mod attributes;
mod blocks;
mod budget;
mod change;
mod closing;
mod compress;
mod confine;
mod connection;
mod content;
mod context;
mod core;
mod counters;
mod crossing;
mod current;
mod directory;
mod door;
mod entry;
mod events;
mod exports;
mod file_systems;
mod greeting;
mod growing;
mod growth;
mod handles;
mod held;
mod index;
mod keeping;
mod keys;
mod leases;
mod lending;
mod limits;
mod locks;
mod manifest;
mod metadata;
mod nodes;
mod once;
mod opens;
mod operations;
mod packing;
mod places;
mod refusals;
mod requests;
mod session;
mod sessions;
mod shares;
mod state;
mod status;
mod sum;
mod tickets;
mod tree;
mod trust;
mod turns;
mod write;

#[cfg(test)]
mod tests;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::io::{Engine, EngineConfig, EngineKind, IoError};
use crate::proto::{InstanceId, close};
use crate::transport::identity::{IdentityError, random_bytes};
use crate::transport::{
    AdvertisedName, DEFAULT_PORT, Endpoint, HostAddress, Identity, PublicKey, SocketBuffers, Ticket,
    TransportError, TransportTuning, ticket::TicketError,
};

pub use actor::{UserError, is_as_root};
pub use addresses::ADVERTISED_NAMES_MAX;
pub use exports::{Export, ExportError};
pub use keys::{AuthorizedKey, AuthorizedKeys, Rights};
pub use limits::KeyLimits;
pub use state::{RunningHost, StateDir, StateError};
pub use status::{ClientStatus, ExportStatus, FileSystemStatus, HostStatus, KeyStatus};
pub use tickets::{EXPIRES_SECONDS_DEFAULT, TicketBook, TicketRecord, TicketState, ticket_id};

use self::connection::SHUTDOWN_TEXT;
use self::core::{Core, seconds_now};

/// How long running requests may take to finish when the daemon ends.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long clients may take to be told of the end.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// Descriptors of each kind that are kept open between requests: files, folders, and what was just looked up.
const HANDLES_MAX: usize = 4096;

/// Connections that were let in, or will be as their key is known.
const CONNECTIONS_MAX: usize = 1024;

/// Strangers over each transport at a time: what all of them hold together is then some 40 MiB.
const STRANGERS_MAX: usize = 256;

/// Descriptors the process asks for at most: far more than clients use, and less than would slow a kernel down.
const DESCRIPTORS_WANTED: u64 = 1 << 20;

/// What a daemon is made of.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// What to serve; at least one, each name once.
    pub exports: Vec<Export>,
    /// Address and port, for UDP and TCP; port 0 picks one.
    pub listen: SocketAddr,
    /// Folder for key, authorised keys and tickets.
    pub state_dir: PathBuf,
    /// Names under which clients are to look for it, besides its addresses; at most [`ADVERTISED_NAMES_MAX`].
    pub advertise: Vec<AdvertisedName>,
    /// Whether to refuse every change in every export.
    pub read_only: bool,
    /// What reads the disk.
    pub engine: EngineKind,
    /// How connections behave.
    pub tuning: TransportTuning,
    /// Whether to hash everything ahead, while nobody else needs the machine.
    pub index_ahead: bool,
}

impl HostConfig {
    /// The defaults: all addresses, port 4433.
    pub fn new(exports: Vec<Export>, state_dir: PathBuf) -> Self {
        Self {
            exports,
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT),
            state_dir,
            advertise: Vec::new(),
            read_only: false,
            engine: EngineKind::Auto,
            tuning: TransportTuning::default(),
            index_ahead: false,
        }
    }
}

/// Why a daemon does not start, or cannot make a ticket.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Something cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The folder of state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk engine does not start.
    #[error(transparent)]
    Engine(#[from] IoError),
    /// The socket cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A ticket cannot be made.
    #[error("cannot make a ticket: {0}")]
    Ticket(#[from] TicketError),
    /// A ticket for an export that is not served.
    #[error("cannot make a ticket: there is no export {export:?}; this host serves {served}")]
    UnknownExport {
        /// What was asked for.
        export: String,
        /// What there is.
        served: String,
    },
    /// A daemon that runs wrote down an address that is none.
    #[error("cannot make a ticket: the running host's address {0:?} cannot be understood")]
    Address(String),
    /// A ticket for keys that are to act as somebody as whom they cannot.
    #[error("cannot make a ticket: {0}")]
    User(#[from] UserError),
    /// The system gives no random bytes.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// How long a new ticket is good, for how many keys, and as whom they act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketTerms {
    /// In seconds from now; `None` for ever.
    pub expires_seconds: Option<u64>,
    /// Keys it lets in.
    pub keys_max: u32,
    /// A user of the host by name, by number, or as `UID:GID`; `None`: the user who runs the host.
    pub user: Option<String>,
    /// Whether the keys may only read.
    pub read_only: bool,
    /// What people call the keys; empty for nothing.
    pub name: String,
}

impl Default for TicketTerms {
    fn default() -> Self {
        Self {
            expires_seconds: Some(EXPIRES_SECONDS_DEFAULT),
            keys_max: 1,
            user: None,
            read_only: false,
            name: String::new(),
        }
    }
}

/// A daemon that runs. Dropping it ends it at once; [`Host::shutdown`] lets it finish what it is at.
#[derive(Debug)]
pub struct Host {
    core: Arc<Core>,
    endpoint: Endpoint,
    identity: PublicKey,
    advertise: Vec<AdvertisedName>,
    ending: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    keeping: [JoinHandle<()>; 2],
    reload: Arc<Notify>,
}

impl Host {
    /// Starts serving. Must be called inside a tokio runtime; blocks for a moment.
    pub fn start(config: HostConfig) -> Result<Self, HostError> {
        let state = StateDir::open(&config.state_dir)?;
        let identity = state.identity()?;
        let mut exports = config.exports;
        for export in &mut exports {
            export.read_only |= config.read_only;
        }
        let engine = Engine::start(&EngineConfig { kind: config.engine, ..EngineConfig::default() })?;
        let instance = InstanceId(random_bytes()?);
        // What clients make gets the permissions that they mask themselves; the daemon's own files name theirs.
        umask(Mode::empty());
        let core = Arc::new(Core::new(exports, state, instance, engine, Descriptors::raise())?);
        let root_exports = root_exports(&core);
        let endpoint = Endpoint::host(config.listen, &identity, &config.tuning)?;
        let names = core.exports.iter().map(|open| open.export.name.clone()).collect();
        let addresses = addresses::reachable(endpoint.local_address(), &config.advertise);
        core.state.write_running(&RunningHost {
            process: std::process::id(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            exports: names,
            root_exports,
        })?;
        if config.index_ahead {
            start_index(&core);
        }
        let (ending, is_ending) = watch::channel(false);
        let accepting = tokio::spawn(accept(Arc::clone(&core), endpoint.clone(), is_ending));
        let reload = Arc::new(Notify::new());
        let keeping = [
            tokio::spawn(keeping::run(Arc::clone(&core))),
            tokio::spawn(keeping::watch(Arc::clone(&core), Arc::clone(&reload))),
        ];
        let (identity, advertise) = (identity.public_key(), config.advertise);
        Ok(Self { core, endpoint, identity, advertise, ending, accepting, keeping, reload })
    }

    /// The address and port it listens on.
    pub fn listening(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// Its key, by which clients know it.
    pub fn identity(&self) -> PublicKey {
        self.identity
    }

    /// Makes a ticket for an export.
    pub fn ticket(&self, export: &str, terms: &TicketTerms) -> Result<Ticket, HostError> {
        let addresses = addresses::reachable(self.listening(), &self.advertise);
        let served: Vec<_> = self.core.exports.iter().map(|open| open.export.name.clone()).collect();
        issue(&self.core.state, self.identity, addresses, &served, export, terms)
    }

    /// The ticket that is shown at the start: the one of the last start, while nobody has used it and half of its time is left; else a new one.
    pub fn ticket_at_start(&self, export: &str, terms: &TicketTerms) -> Result<Ticket, HostError> {
        let state = &self.core.state;
        let rights = Rights { read_only: terms.read_only, user: terms.user.clone(), ..Rights::default() };
        let wanted = tickets::Wanted { export, rights: &rights, expires_seconds: terms.expires_seconds };
        if let Some(secret) = state.start_secret()
            && state.tickets()?.serves_again(secret, &wanted, seconds_now())
        {
            let addresses = addresses::reachable(self.listening(), &self.advertise);
            return Ok(Ticket::new(addresses, self.identity, export.to_owned(), secret)?);
        }
        let ticket = self.ticket(export, terms)?;
        state.write_start_secret(ticket.secret())?;
        Ok(ticket)
    }

    /// Has it look at the files of keys and tickets at once, and say again what is wrong with them.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// What it is doing.
    pub fn status(&self) -> HostStatus {
        self.observer().status()
    }

    /// Something that can be asked what it is doing, also while it ends.
    pub fn observer(&self) -> HostObserver {
        let (listening, buffers) = (self.listening(), self.endpoint.buffers());
        HostObserver { core: Arc::clone(&self.core), listening, buffers }
    }

    /// Ends: accepts nothing more, finishes what runs within 5 seconds, and tells clients why it goes.
    pub async fn shutdown(mut self) {
        // Nobody listening means that accepting has ended already.
        let _ = self.ending.send(true);
        if timeout(DRAIN_DEADLINE, &mut self.accepting).await.is_err() {
            tracing::warn!("requests still ran after {} s and were cut off", DRAIN_DEADLINE.as_secs());
        }
        self.endpoint.close(close::SHUTDOWN, SHUTDOWN_TEXT);
        let _ = timeout(GOODBYE_DEADLINE, self.endpoint.wait_idle()).await;
    }
}

/// Sees what a daemon does.
#[derive(Debug, Clone)]
pub struct HostObserver {
    core: Arc<Core>,
    listening: SocketAddr,
    buffers: Option<SocketBuffers>,
}

impl HostObserver {
    /// What it is doing.
    pub fn status(&self) -> HostStatus {
        HostStatus::of(&self.core, self.listening, self.buffers)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.accepting.abort();
        self.keeping.iter().for_each(JoinHandle::abort);
        self.core.index_progress.stop();
        self.core.index.close();
        self.endpoint.close(close::SHUTDOWN, SHUTDOWN_TEXT);
        self.core.state.clear_running(std::process::id());
    }
}

/// The exports in which plain keys act as root, because root runs the daemon and owns the folder; said in the log. Blocks.
fn root_exports(core: &Core) -> Vec<String> {
    let plain = Rights::default();
    let is_roots = |open: &&core::OpenExport| open.actor(&plain).is_ok_and(|actor| actor.is_root());
    let names: Vec<String> =
        core.exports.iter().filter(is_roots).map(|open| open.export.name.clone()).collect();
    if !names.is_empty() {
        tracing::warn!(
            "clients act as root in {}, because root owns the folder; `user=` in authorized_keys, or another owner of the folder, makes it \
             somebody else",
            names.join(", ")
        );
    }
    names
}

/// Hashes everything ahead. A daemon that cannot do so serves all the same.
fn start_index(core: &Core) {
    let builder = index::Builder {
        roots: core.exports.iter().map(|open| open.export.path.clone()).collect(),
        index: Arc::clone(&core.index),
        counters: Arc::clone(&core.counters),
        progress: Arc::clone(&core.index_progress),
    };
    if let Err(error) = builder.start() {
        tracing::warn!("nothing is hashed ahead: no thread can be started: {error}");
    }
}

/// Makes a ticket for an export of the daemon that runs with this state, without asking it.
pub fn issue_beside(
    state: &StateDir,
    running: &RunningHost,
    export: &str,
    terms: &TicketTerms,
) -> Result<Ticket, HostError> {
    let parse = |text: &String| text.parse().map_err(|_| HostError::Address(text.clone()));
    let addresses = running.addresses.iter().map(parse).collect::<Result<Vec<HostAddress>, _>>()?;
    let identity: Identity = state.identity()?;
    issue(state, identity.public_key(), addresses, &running.exports, export, terms)
}

fn issue(
    state: &StateDir,
    identity: PublicKey,
    addresses: Vec<HostAddress>,
    served: &[String],
    export: &str,
    terms: &TicketTerms,
) -> Result<Ticket, HostError> {
    if !served.iter().any(|name| name == export) {
        return Err(HostError::UnknownExport { export: export.to_owned(), served: served.join(", ") });
    }
    let user = terms.user.as_deref();
    actor::Actor::named(user)?;
    let secret = crate::proto::TicketSecret(random_bytes()?);
    let ticket = Ticket::new(addresses, identity, export.to_owned(), secret)?;
    let now = seconds_now();
    let expires = terms.expires_seconds.map(|seconds| now.saturating_add(seconds));
    let (keys_max, read_only, name) = (terms.keys_max, terms.read_only, terms.name.as_str());
    let terms = tickets::Terms { expires, keys_max, user, read_only, name };
    state.update(|_, tickets| tickets.issue(secret, export, terms, now))?;
    Ok(ticket)
}

/// Takes clients in until the daemon ends, then waits for them to finish.
async fn accept(core: Arc<Core>, endpoint: Endpoint, ending: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut until = ending.clone();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some((incoming, place)) = core.entry.knock(incoming) {
                        let core = Arc::clone(&core);
                        connections.spawn(connection::serve(core, incoming, place, ending.clone()));
                    }
                }
                None => break,
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a connection ended in disorder: {error}");
                }
            }
            _ = until.wait_for(|ends| *ends) => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

/// How many descriptors are for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptors {
    /// Of each of three kinds, kept open between requests.
    handles: usize,
    /// Open files of all clients.
    files: usize,
    /// Connections.
    connections: usize,
    /// Strangers over TCP.
    strangers: usize,
}

impl Descriptors {
    /// Shares of a limit of `limit` open files: half for clients' open files, an eighth for connections and kept descriptors each. What is
    /// left serves requests under way and the daemon itself.
    fn of(limit: usize) -> Self {
        Self {
            handles: HANDLES_MAX.min(limit / 24),
            files: limit / 2,
            connections: CONNECTIONS_MAX.min(limit / 8),
            strangers: STRANGERS_MAX.min(limit / 32).max(4),
        }
    }

    /// Raises the limit of open files as far as it goes, and shares it out.
    fn raise() -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let wanted = hard.min(DESCRIPTORS_WANTED).max(soft);
        let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            Ok(()) => wanted,
            Err(_) => soft,
        };
        Self::of(limit.min(DESCRIPTORS_WANTED) as usize)
    }
}

#[cfg(test)]
mod descriptor_tests {
    use super::*;

    #[test]
    fn what_clients_may_hold_leaves_descriptors_for_requests_and_the_daemon() {
        for limit in [256, 1_024, 4_096, 1 << 20] {
            let Descriptors { handles, files, connections, strangers } = Descriptors::of(limit);
            assert!(3 * handles + files + connections + strangers <= limit - limit / 8, "{limit}");
            assert!(files >= limit / 4 && connections > 0);
        }
    }
}
