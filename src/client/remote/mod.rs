//! Client of a real host, over QUIC or TCP.
//!
//! In reading order:
//!
//! 1. [`link`], [`supervisor`]: detect a dead connection and make the next one
//! 2. [`dial`]: from addresses to a welcome
//! 3. [`stream`]: one request on one stream
//! 4. [`call`], [`list`], [`read`], [`current`], [`progress_timeout`]: requests that continue on the next
//!    connection
//! 5. [`operations`], [`change`]: the same for changes, each with one number
//! 6. [`events`]: the stream on which the host reports changes
//! 7. [`progress`], [`meter`], [`statistics`]: progress of a read, rates, counters
//!
//! A call waits for its answer over any number of connections, at most until its deadline. It does not wait
//! for a host that is away (`client::away`).

mod active_connection;
mod call;
mod change;
mod config;
mod current;
mod dial;
mod events;
mod link;
mod list;
mod meter;
mod operations;
mod progress;
mod progress_timeout;
mod read;
mod shared;
mod statistics;
mod stream;
mod supervisor;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::change::OperationGuard;
pub use self::config::{
    CONNECT_TIMEOUT_DEFAULT, CONNECTIONS_MAX, ClientConfig, ConnectError, DEADLINE_DEFAULT,
};
use self::dial::Dialer;
use self::shared::{Shared, locked};
pub use self::statistics::ClientStatistics;
use self::supervisor::ConnectionSupervisor;
use super::{
    CallError, CallFuture, Client, ClientEvent, ContentPart, FirstSession, LinkState, ListPart,
    PARTS_QUEUED_MAX,
};
use crate::chunk::ByteRange;
use crate::proto::{
    ActingUser, Attributes, BootId, Change, InstanceId, LockAnswer, LockCall, NodeId, ReadRequest, Reply,
    Request, SessionRun, WriteAt, Written,
};
use crate::transport::{HostAddress, Lane, PublicKey};

/// Largest number of events that wait for the file system. If it is reached, the host waits.
const EVENTS_QUEUED_MAX: usize = 64;

/// Client of one export of one host.
pub struct RemoteClient {
    shared: Arc<Shared>,
    supervisors: Mutex<Vec<JoinHandle<()>>>,
    host_key: PublicKey,
    answered_at: Vec<HostAddress>,
    read_only: bool,
    acts_as: ActingUser,
    chooses_owners: bool,
    events: Mutex<Option<mpsc::Receiver<ClientEvent>>>,
}

impl RemoteClient {
    /// Makes the first connection. Then the client keeps itself connected until [`Self::shutdown`] or its
    /// drop.
    pub async fn connect(config: ClientConfig) -> Result<Arc<Self>, ConnectError> {
        let (deadline, runs_from) = (config.deadline, config.runs_from_bytes_per_second);
        let connections = config.connections.clamp(1, CONNECTIONS_MAX);
        let dialer = Arc::new(Dialer::new(config));
        let first = dialer.dial_first().await?;
        let (host_key, read_only) = (first.connection.peer_key(), first.welcome.read_only);
        let answered_at = first.names.clone();
        let (acts_as, chooses_owners) = (first.welcome.acts_as, first.welcome.chooses_owners);
        let shared = Arc::new(Shared::new(deadline, runs_from, connections, &first.welcome));
        let mut first = Some(first);
        let supervisors = (0..connections)
            .map(|slot| {
                ConnectionSupervisor::new(Arc::clone(&shared), slot, Arc::clone(&dialer), first.take())
            })
            .map(|supervisor| tokio::spawn(supervisor.run()))
            .collect();
        let (told, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        tokio::spawn(events::follow(Arc::clone(&shared), told));
        Ok(Arc::new(Self {
            shared,
            events: Mutex::new(Some(events)),
            supervisors: Mutex::new(supervisors),
            host_key,
            answered_at,
            read_only,
            acts_as,
            chooses_owners,
        }))
    }

    /// Returns the key that the host proved at the first connection.
    pub const fn host_key(&self) -> PublicKey {
        self.host_key
    }

    /// Returns the configured names and addresses that lead to the first address of the host.
    pub fn answered_at(&self) -> &[HostAddress] {
        &self.answered_at
    }

    /// Returns true if the host refuses changes, as it said at the first connection.
    pub const fn read_only(&self) -> bool {
        self.read_only
    }

    /// Returns the user as which the host acts, as it said at the first connection.
    pub const fn acts_as(&self) -> ActingUser {
        self.acts_as
    }

    /// Returns true if new files belong to the requesting user instead.
    pub const fn chooses_owners(&self) -> bool {
        self.chooses_owners
    }

    /// Returns the instance of the host that answered last.
    pub fn instance(&self) -> InstanceId {
        self.shared.instance()
    }

    /// Counts the restarts of the host, and notifies of each.
    pub fn instance_changes(&self) -> watch::Receiver<u64> {
        self.shared.instance_changes.subscribe()
    }

    /// Returns the counters of the client and of its connections.
    pub fn statistics(&self) -> ClientStatistics {
        self.shared.statistics()
    }

    /// Closes the client. Calls fail with [`CallError::Closed`], and the host is told. Returns within a
    /// second.
    pub async fn shutdown(&self) {
        self.shared.close();
        let supervisors = std::mem::take(&mut *locked(&self.supervisors));
        for supervisor in supervisors {
            // A task that panicked has closed nothing.
            let _ = supervisor.await;
        }
    }
}

impl Drop for RemoteClient {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Client for RemoteClient {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { call::call(&shared, request, lane).await })
    }

    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        let operation = OperationGuard::begin(&self.shared, None, first);
        Box::pin(change::change(operation, change))
    }

    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, first: &FirstSession) -> CallFuture<Written> {
        let operation = OperationGuard::begin(&self.shared, Some(node), first);
        Box::pin(change::write(operation, node, at, bytes))
    }

    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        let shared = Arc::clone(&self.shared);
        let after = locked(&shared.operations).writing(node);
        Box::pin(async move { change::sync(&shared, node, data_only, after).await })
    }

    fn boot(&self) -> Option<BootId> {
        Some(self.shared.boot())
    }

    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { change::lock(&shared, call).await })
    }

    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        self.shared.run.subscribe()
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        tokio::spawn(list::list(Arc::clone(&self.shared), node, parts));
        receiver
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        tokio::spawn(read::read(Arc::clone(&self.shared), request, lane, parts));
        receiver
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { current::read(&shared, node, range).await })
    }

    fn events(&self) -> Option<mpsc::Receiver<ClientEvent>> {
        locked(&self.events).take()
    }

    fn root(&self) -> Attributes {
        self.shared.root()
    }

    fn link(&self) -> LinkState {
        let states: Vec<_> = self.shared.states().collect();
        let live = states.iter().find_map(|state| state.live.as_ref());
        let stats = live.map(|live| live.connection.stats());
        LinkState {
            connected: self.shared.is_connected(),
            silent: self.shared.silent_for(),
            rtt: stats.as_ref().map_or(Duration::ZERO, |stats| stats.rtt),
            bytes_per_second: self.shared.meter().bytes_per_second(),
            sent_bytes_per_second: self.shared.write_meter().bytes_per_second(),
            window_bytes: stats.map_or(0, |stats| stats.congestion_window_bytes),
        }
    }
}
