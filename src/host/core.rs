//! What all connections of a daemon share: exports, state, sessions, the disk engine, and who is connected.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use super::Descriptors;
use super::actor::{Actor, UserError};
use super::attributes::system_error;
use super::budget::Budgets;
use super::confine::open_beneath;
use super::counters::Counters;
use super::crossing;
use super::entry::Entry;
use super::exports::{Export, ExportError};
use super::file_systems::{self, FileSystem};
use super::index::{HashIndex, Progress};
use super::keys::Rights;
use super::leases::Watches;
use super::lending::Lending;
use super::locks::Locks;
use super::nodes::NODE_BYTES;
use super::packing::Codec;
use super::session::Session;
use super::sessions::Sessions;
use super::state::StateDir;
use super::tree::{Known, Tree};
use crate::io::Engine;
use crate::proto::{Errno, InstanceId, NodeId, SessionId, SessionRun, WireError};
use crate::transport::{Connection, PublicKey};

/// An export and the descriptor of its folder.
#[derive(Debug)]
pub(super) struct OpenExport {
    pub(super) export: Export,
    /// What the folder lies on, as far as that could be told.
    pub(super) file_system: Option<FileSystem>,
    root: OwnedFd,
}

impl OpenExport {
    /// Whether a mounted folder lies in this one.
    pub(super) fn has(&self, tree: &Tree) -> bool {
        tree.is_in(self.root.as_fd())
    }

    /// Whom a key with these rights acts as here. Blocks.
    pub(super) fn actor(&self, rights: &Rights) -> Result<Actor, UserError> {
        Actor::of_key(rights, self.root.as_fd())
    }
}

/// A connection that was let in.
#[derive(Debug, Clone)]
pub(super) struct LiveClient {
    pub(super) key: PublicKey,
    pub(super) session: SessionId,
    pub(super) export: String,
    pub(super) sub_path: Vec<u8>,
    /// What its key said that it may do.
    pub(super) rights: Rights,
    /// What people call its key.
    pub(super) name: String,
    /// What it has mounted.
    pub(super) tree: Arc<Tree>,
    pub(super) since: Instant,
    pub(super) connection: Connection,
}

/// Memory of a connection, in bytes, about.
const CONNECTION_BYTES: usize = 128 * 1024;

/// The daemon's common ground.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) exports: Vec<OpenExport>,
    pub(super) state: StateDir,
    pub(super) instance: InstanceId,
    pub(super) engine: Engine,
    pub(super) counters: Arc<Counters>,
    /// Who is at the door, and who is in.
    pub(super) entry: Arc<Entry>,
    /// What keys use and may use.
    pub(super) budgets: Budgets,
    pub(super) codec: Arc<Codec>,
    pub(super) known: Arc<Known>,
    pub(super) index: Arc<HashIndex>,
    /// Of hashing everything ahead.
    pub(super) index_progress: Arc<Progress>,
    /// What clients have locked.
    pub(super) locks: Arc<Locks>,
    /// Directories that clients hold leases on.
    pub(super) watches: Arc<Watches>,
    sessions: Mutex<Sessions<PublicKey, SessionId, Session>>,
    trees: Mutex<HashMap<(usize, NodeId, Actor), Weak<Tree>>>,
    clients: Mutex<HashMap<u64, LiveClient>>,
    clients_made: AtomicU64,
    sessions_made: AtomicU64,
}

/// Takes a client off the list when its connection is served no more.
pub(super) struct Listed {
    core: Arc<Core>,
    id: u64,
}

impl Core {
    /// Opens the exports' folders. Made inside a tokio runtime.
    pub(super) fn new(
        exports: Vec<Export>,
        state: StateDir,
        instance: InstanceId,
        engine: Engine,
        descriptors: Descriptors,
    ) -> Result<Self, ExportError> {
        Export::check_all(&exports)?;
        let open = |export: Export| {
            let root = export.open()?;
            let file_system = file_systems::of_folder(root.as_fd()).ok();
            Ok(OpenExport { export, file_system, root })
        };
        let exports = exports.into_iter().map(open).collect::<Result<_, ExportError>>()?;
        let counters = Arc::new(Counters::default());
        let lending = Lending::new(engine.stats().pool_buffers as usize);
        Ok(Self {
            exports,
            index: Arc::new(HashIndex::open(state.path())),
            index_progress: Arc::default(),
            state,
            instance,
            entry: Arc::new(Entry::new(
                descriptors.strangers,
                descriptors.connections,
                Arc::clone(&counters),
            )),
            counters,
            budgets: Budgets::new(descriptors.files, lending, turns_max()),
            codec: Arc::new(Codec::new()),
            engine,
            known: Arc::new(Known::new(descriptors.handles)),
            locks: Arc::default(),
            watches: Watches::start(),
            sessions: Mutex::new(Sessions::new()),
            trees: Mutex::default(),
            clients: Mutex::default(),
            clients_made: AtomicU64::new(0),
            sessions_made: AtomicU64::new(0),
        })
    }

    /// Names of the exports.
    pub(super) fn export_names(&self) -> Vec<&str> {
        self.exports.iter().map(|open| open.export.name.as_str()).collect()
    }

    /// Which export has this name.
    pub(super) fn export(&self, name: &str) -> Option<usize> {
        self.exports.iter().position(|open| open.export.name == name)
    }

    /// The tree below `sub_path` of an export; clients of the same folder share it who act as the same user, so that nobody meets
    /// what another was allowed to open. Blocks.
    ///
    /// The path's names have been checked.
    pub(super) fn tree(&self, export: usize, sub_path: &[u8], actor: &Actor) -> Result<Arc<Tree>, WireError> {
        let _assumed = actor.assume()?;
        let top = &self.exports[export].root;
        let root = if sub_path.is_empty() {
            top.try_clone().map_err(|_| WireError::system(Errno::EMFILE))?
        } else {
            open_beneath(top.as_fd(), sub_path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(system_error)?
        };
        crossing::check(top.as_fd(), root.as_fd())?;
        let fresh = Arc::new(Tree::new(root, Arc::clone(&self.known))?);
        let mut trees = lock(&self.trees);
        trees.retain(|_, tree| tree.strong_count() > 0);
        let place = trees.entry((export, fresh.root_node(), actor.clone())).or_default();
        if let Some(tree) = place.upgrade() {
            return Ok(tree);
        }
        *place = Arc::downgrade(&fresh);
        Ok(fresh)
    }

    /// The sessions, for a moment.
    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions<PublicKey, SessionId, Session>> {
        lock(&self.sessions)
    }

    /// Names a new session.
    pub(super) fn session_run(&self) -> SessionRun {
        let number = self.sessions_made.fetch_add(1, Ordering::Relaxed) + 1;
        SessionRun { instance: self.instance, number }
    }

    /// Puts a client on the list.
    pub(super) fn list(self: &Arc<Self>, client: LiveClient) -> Listed {
        let id = self.clients_made.fetch_add(1, Ordering::Relaxed);
        lock(&self.clients).insert(id, client);
        Listed { core: Arc::clone(self), id }
    }

    /// Memory that is in use for clients, in bytes, about: what falls when they leave.
    pub(super) fn table_bytes(&self) -> usize {
        let connections = lock(&self.clients).len() + self.entry.strangers();
        self.known.nodes() * NODE_BYTES + connections * CONNECTION_BYTES
    }

    /// Who is connected.
    pub(super) fn clients(&self) -> Vec<LiveClient> {
        lock(&self.clients).values().cloned().collect()
    }
}

impl Listed {
    /// The client has said goodbye: nobody will come back to its session.
    pub(super) fn end_session(&self) {
        let named = lock(&self.core.clients).get(&self.id).map(|client| (client.key, client.session));
        // Its files are closed when its connections are gone, outside of the lock.
        drop(named.and_then(|(key, session)| self.core.sessions().end(key, session)));
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let client = lock(&self.core.clients).remove(&self.id);
        if let Some(client) = client {
            self.core.sessions().detach(client.key, client.session, Instant::now());
        }
    }
}

/// Requests that have a turn at the processor at a time: enough that no thread is ever without work.
fn turns_max() -> usize {
    const PER_THREAD: usize = 2;
    PER_THREAD * tokio::runtime::Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}

/// Seconds since the epoch, by the host's clock.
pub(super) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// For logs: who, from where.
pub(super) fn who(key: PublicKey, address: SocketAddr) -> String {
    format!("{address} (key {key})")
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
