//! A host in memory, to run the layers above [`Client`] without a network.
//!
//! It keeps the guarantees of the protocol exactly: versions change with content, nodes are unknown after a
//! restart until they are looked up, chunks or exact ranges come as requested. Tests build a tree, change it
//! during reads, hold answers, cut the link, and count requests.
//!
//! Paths are names joined by `/` below the root. A built tree looks an hour old, so its versions are settled.
//! A changed file gets the time of the model's clock, which moves by a microsecond at each change and by
//! [`MemoryHost::advance`]. Methods that build or change panic on missing paths, because the test is wrong.

mod answer;
mod change;
mod content;
mod counters;
mod gate;
mod known;
mod locks;
mod serve;
mod tree;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use self::answer::boot_of;
use self::content::Content;
pub use self::counters::Counters;
use self::gate::Gate;
pub use self::gate::Stage;
use self::serve::Writing;
use self::tree::{Body, Node, Tree};
use super::{
    CallError, CallFuture, Client, ContentPart, FirstSession, Lane, LinkState, ListPart, PARTS_QUEUED_MAX,
    synced,
};
use crate::chunk::ByteRange;
use crate::proto::{
    Attributes, BootId, Change, ChangeRequest, Errno, FileKind, InstanceId, LockAnswer, LockCall, NodeId,
    Operation, OperationId, ReadRequest, Reply, Request, SessionRun, Trust, WireError, WriteAt, WriteRequest,
    Written,
};

/// Default time for which a call waits for a host without a link, as in a real client.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// A host in memory, which is its own client. Clones are the same host.
#[derive(Clone)]
pub struct MemoryHost {
    shared: Arc<Shared>,
    /// Number of this client on the host.
    client: u64,
    run: Arc<watch::Sender<Option<SessionRun>>>,
}

struct Shared {
    tree: Mutex<Tree>,
    counters: Mutex<Counters>,
    gate: Gate,
    settings: Mutex<Settings>,
    connected: watch::Sender<Connection>,
    changes: watch::Sender<()>,
    restarts: AtomicU64,
    operations: AtomicU64,
    /// Writes under way, with their files.
    writing: Mutex<BTreeMap<OperationId, NodeId>>,
    clients: AtomicU64,
    runs: Mutex<Vec<Weak<watch::Sender<Option<SessionRun>>>>>,
    locks: Mutex<locks::Locks>,
}

type DelayOf = Arc<dyn Fn(&Request) -> Duration + Send + Sync>;
type ErrorOf = Arc<dyn Fn(&Request) -> Option<WireError> + Send + Sync>;

#[derive(Clone)]
struct Settings {
    delay: Option<DelayOf>,
    error: Option<ErrorOf>,
    deadline: Duration,
    rtt: Duration,
    bytes_per_second: u64,
    sent_bytes_per_second: u64,
    window_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Up,
    Cut,
    Closed,
}

impl Default for MemoryHost {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryHost {
    /// Returns a connected host with an empty root.
    pub fn new() -> Self {
        let settings = Settings {
            delay: None,
            error: None,
            deadline: DEADLINE_DEFAULT,
            rtt: Duration::from_millis(1),
            bytes_per_second: 0,
            sent_bytes_per_second: 0,
            window_bytes: 0,
        };
        let host = Self {
            shared: Arc::new(Shared {
                tree: Mutex::new(Tree::new()),
                counters: Mutex::default(),
                gate: Gate::default(),
                settings: Mutex::new(settings),
                connected: watch::channel(Connection::Up).0,
                changes: watch::channel(()).0,
                restarts: AtomicU64::new(0),
                operations: AtomicU64::new(0),
                writing: Mutex::default(),
                clients: AtomicU64::new(0),
                runs: Mutex::default(),
                locks: Mutex::default(),
            }),
            client: 0,
            run: Arc::new(watch::channel(None).0),
        };
        host.another_client()
    }

    /// Returns this host as a [`Client`].
    pub fn client(&self) -> Arc<dyn Client> {
        Arc::new(self.clone())
    }

    /// Returns the node of the root.
    pub fn root_node(&self) -> NodeId {
        self.tree().root
    }

    /// Creates a directory, unless it exists.
    pub fn create_dir(&self, path: impl AsRef<[u8]>) -> NodeId {
        let mut tree = self.tree();
        match tree.find(path.as_ref()) {
            Some(id) if tree.entries(id).is_some() => id,
            _ => tree.create(path.as_ref(), Body::Directory(BTreeMap::new())),
        }
    }

    /// Creates a file with this content.
    pub fn create_file(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> NodeId {
        self.tree().create(path.as_ref(), Body::File(Content::from_bytes(content.as_ref())))
    }

    /// Creates a file of `size` bytes that look random. Equal seeds give equal bytes. It takes no memory.
    pub fn create_generated(&self, path: impl AsRef<[u8]>, size: u64, seed: u64) -> NodeId {
        self.tree().create(path.as_ref(), Body::File(Content::generated(seed, size)))
    }

    /// Creates a file of `size` bytes that is a hole except for these extents (offset, bytes).
    pub fn create_sparse(&self, path: impl AsRef<[u8]>, size: u64, extents: &[(u64, &[u8])]) -> NodeId {
        let mut content = Content::default();
        for (offset, bytes) in extents {
            content.write(*offset, bytes);
        }
        content.truncate(size);
        self.tree().create(path.as_ref(), Body::File(content))
    }

    /// Creates a symbolic link.
    pub fn create_symlink(&self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> NodeId {
        self.tree().create(path.as_ref(), Body::Symlink(target.as_ref().to_vec()))
    }

    /// Creates a pipe, socket or device.
    pub fn create_special(&self, path: impl AsRef<[u8]>, kind: FileKind) -> NodeId {
        self.tree().create(path.as_ref(), Body::Special(kind))
    }

    /// Gives the file at `existing` a second name.
    pub fn create_hard_link(&self, existing: impl AsRef<[u8]>, new: impl AsRef<[u8]>) {
        let mut tree = self.tree();
        let id = found(tree.find(existing.as_ref()).ok_or(Errno::ENOENT), existing.as_ref());
        tree.link(id, new.as_ref());
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, path: impl AsRef<[u8]>, name: &[u8], value: &[u8]) {
        self.change_node(path.as_ref(), |node| {
            node.xattrs.insert(name.to_vec(), value.to_vec());
        });
    }

    /// Sets the permission bits.
    pub fn set_permissions(&self, path: impl AsRef<[u8]>, permissions: u16) {
        self.change_node(path.as_ref(), |node| node.permissions = permissions);
    }

    /// Sets owner and group.
    pub fn set_owner(&self, path: impl AsRef<[u8]>, uid: u32, gid: u32) {
        self.change_node(path.as_ref(), |node| node.owner = (uid, gid));
    }

    /// Writes into a file; its version changes.
    pub fn write(&self, path: impl AsRef<[u8]>, offset: u64, bytes: impl AsRef<[u8]>) {
        self.change_content(path.as_ref(), |content| content.write(offset, bytes.as_ref()));
    }

    /// Overwrites a part of a file without a new version, as on file systems with weak times.
    pub fn write_unnoticed(&self, path: impl AsRef<[u8]>, offset: u64, bytes: impl AsRef<[u8]>) {
        let write = |content: &mut Content| content.write(offset, bytes.as_ref());
        found(self.tree().change_unnoticed(path.as_ref(), write), path.as_ref());
    }

    /// Takes timestamps from now on from a clock that is ahead of the host's by so many nanoseconds, or
    /// behind.
    pub fn set_stamps_ahead(&self, by_ns: i64) {
        self.tree().set_stamps_ahead(by_ns);
    }

    /// Reports this trust class in attributes from now on.
    pub fn set_trust(&self, trust: Trust) {
        self.tree().set_trust(trust);
    }

    /// Appends to a file. Its version changes.
    pub fn append(&self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) {
        self.change_content(path.as_ref(), |content| content.write(content.size(), bytes.as_ref()));
    }

    /// Truncates or extends a file. Its version changes.
    pub fn truncate(&self, path: impl AsRef<[u8]>, size: u64) {
        self.change_content(path.as_ref(), |content| content.truncate(size));
    }

    /// Replaces the file at `path` by a new, young one, as editors do.
    pub fn replace(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> NodeId {
        self.tree().create_young(path.as_ref(), Body::File(Content::from_bytes(content.as_ref())))
    }

    /// Gives this number to the next file that is made, although another one may have had it.
    pub fn give_number_again(&self, inode: u64) {
        self.tree().give_number_again(inode);
    }

    /// Removes a name. An open file can be read until it is closed.
    pub fn unlink(&self, path: impl AsRef<[u8]>) {
        found(self.tree().unlink(path.as_ref()), path.as_ref());
    }

    /// Renames a file, also over another one.
    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) {
        found(self.tree().rename(from.as_ref(), to.as_ref()), from.as_ref());
    }

    /// Returns the present content of a file.
    pub fn content(&self, path: impl AsRef<[u8]>) -> Vec<u8> {
        self.content_at(path, 0, u64::MAX)
    }

    /// Returns `len` bytes from `offset` on of the present content, cut at the end of the file.
    pub fn content_at(&self, path: impl AsRef<[u8]>, offset: u64, len: u64) -> Vec<u8> {
        let tree = self.tree();
        let node = tree.find(path.as_ref()).and_then(|id| tree.nodes.get(&id));
        match node.map(|node| &node.body) {
            Some(Body::File(content)) => content.read(offset, len),
            _ => found(Err(Errno::ENOENT), path.as_ref()),
        }
    }

    /// Records the contents of files from now on, one for each change.
    pub fn record_contents(&self) {
        self.tree().recorded.get_or_insert_default();
    }

    /// Returns the number of recorded contents of a changed file. The last one is the present content.
    pub fn recorded_contents(&self, node: NodeId) -> usize {
        self.tree().recorded.as_ref().and_then(|all| all.get(&node)).map_or(0, Vec::len)
    }

    /// Returns `len` bytes from `offset` on of a recorded content, by its number from 0, cut at its end.
    pub fn recorded_content(&self, node: NodeId, number: usize, offset: u64, len: u64) -> Option<Vec<u8>> {
        let tree = self.tree();
        let content = tree.recorded.as_ref()?.get(&node)?.get(number)?;
        Some(content.read(offset, len))
    }

    /// Returns the node at a path, if there is one.
    pub fn node_at(&self, path: impl AsRef<[u8]>) -> Option<NodeId> {
        self.tree().find(path.as_ref())
    }

    /// Returns the present result of `stat`, without counting a request.
    pub fn attributes_of(&self, path: impl AsRef<[u8]>) -> Attributes {
        let tree = self.tree();
        let attributes = tree.find(path.as_ref()).and_then(|id| tree.attributes(id));
        found(attributes.ok_or(Errno::ENOENT), path.as_ref())
    }

    /// Returns the number of opens of a node.
    pub fn opens(&self, node: NodeId) -> usize {
        self.tree().nodes.get(&node).map_or(0, |node| node.opens.len())
    }

    /// Sets the number of looked-up nodes that the host holds without a name.
    pub fn set_pins_max(&self, pins_max: usize) {
        self.tree().pins_max = pins_max;
    }

    /// Moves the host's clock.
    pub fn advance(&self, by: Duration) {
        self.tree().advance(by);
    }

    /// Makes the host stamp changes in whole steps of this size, so that two changes may have one time.
    pub fn set_clock_granularity(&self, granularity: Duration) {
        self.tree().set_granularity(granularity);
    }

    /// Restarts the daemon. Opens are forgotten, and every node but the root is unknown until it is looked up
    /// again.
    pub fn restart(&self) {
        self.tree().restart();
        self.shared.restarts.fetch_add(1, Ordering::Relaxed);
        self.end_all_sessions();
    }

    /// Returns the instance of the host.
    pub fn instance(&self) -> InstanceId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.shared.restarts.load(Ordering::Relaxed).to_le_bytes());
        InstanceId(id)
    }

    fn operation(&self) -> Operation {
        let id = OperationId(self.shared.operations.fetch_add(1, Ordering::Relaxed) + 1);
        let sent_first = SessionRun { instance: self.instance(), number: 1 };
        Operation { id, answered_below: OperationId(0), sent_first }
    }

    /// Cuts or restores the link. Without it calls wait, calls under way at their next part.
    pub fn set_connected(&self, connected: bool) {
        self.shared.connected.send_replace(if connected { Connection::Up } else { Connection::Cut });
    }

    /// Makes all present and later calls fail with [`CallError::Closed`].
    pub fn close(&self) {
        self.shared.connected.send_replace(Connection::Closed);
    }

    /// Sets the time after which a call fails with [`CallError::TimedOut`], for streams the time of each
    /// part.
    pub fn set_deadline(&self, deadline: Duration) {
        self.settings().deadline = deadline;
    }

    /// Sets the link state that [`Client::link`] reports. It slows nothing down.
    pub fn set_link(&self, rtt: Duration, bytes_per_second: u64) {
        let mut settings = self.settings();
        (settings.rtt, settings.bytes_per_second) = (rtt, bytes_per_second);
    }

    /// Sets the reported rate of the link to the host, and its window.
    pub fn set_upload(&self, sent_bytes_per_second: u64, window_bytes: u64) {
        let mut settings = self.settings();
        (settings.sent_bytes_per_second, settings.window_bytes) = (sent_bytes_per_second, window_bytes);
    }

    /// Delays every answer by this time.
    pub fn set_delay(&self, delay: impl Fn(&Request) -> Duration + Send + Sync + 'static) {
        self.settings().delay = Some(Arc::new(delay));
    }

    /// Makes requests fail for which this returns an error.
    pub fn set_errors(&self, error: impl Fn(&Request) -> Option<WireError> + Send + Sync + 'static) {
        self.settings().error = Some(Arc::new(error));
    }

    /// Holds requests that `predicate` selects until they are released. It is called at every stage of every
    /// request.
    pub fn hold(&self, predicate: impl Fn(&Request, Stage) -> bool + Send + Sync + 'static) {
        self.shared.gate.hold(Box::new(predicate));
    }

    /// Releases the oldest held request. Returns false if there was none.
    pub fn release_one(&self) -> bool {
        self.shared.gate.release_one()
    }

    /// Releases all held requests and holds no more.
    pub fn release_all(&self) {
        self.shared.gate.open();
    }

    /// Returns the held requests, oldest first.
    pub fn held(&self) -> Vec<(Request, Stage)> {
        self.shared.gate.held()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets the counters.
    pub fn reset_counters(&self) {
        self.count(|counters| *counters = Counters::default());
    }

    /// Waits until `condition` holds. It is checked after every counted or held request.
    ///
    /// `host.until(|host| host.held().len() == 2).await` waits until two requests have arrived.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if condition(self) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn change_content(&self, path: &[u8], change: impl FnOnce(&mut Content)) {
        found(self.tree().change_content(path, change), path);
    }

    fn change_node(&self, path: &[u8], change: impl FnOnce(&mut Node)) {
        found(self.tree().change_node(path, change), path);
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.changes.send_replace(());
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.shared.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, BTreeMap<OperationId, NodeId>> {
        self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client for MemoryHost {
    fn call(&self, request: Request, _lane: Lane) -> CallFuture<Reply> {
        let host = self.clone();
        Box::pin(async move { host.serve_call(request).await })
    }

    fn change(&self, change: Change, _first: &FirstSession) -> CallFuture<Reply> {
        let host = self.clone();
        let request = Request::Change(ChangeRequest { operation: self.operation(), change });
        Box::pin(async move { host.serve_call(request).await })
    }

    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, _first: &FirstSession) -> CallFuture<Written> {
        let host = self.clone();
        let (operation, hash) = (self.operation(), at.proof(&bytes).hash);
        let writing = Writing::begin(self, operation.id, node);
        let request = WriteRequest { operation, node, at, len: bytes.len() as u32, hash };
        Box::pin(async move { host.serve_write(request, bytes, writing).await })
    }

    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        let host = self.clone();
        let writing =
            self.writing().iter().filter(|(_, written)| **written == node).map(|(id, _)| *id).collect();
        let request = Request::Sync { node, data_only, after: writing };
        Box::pin(async move { synced(&host.serve_call(request).await?) })
    }

    fn boot(&self) -> Option<BootId> {
        Some(boot_of(self.instance()))
    }

    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        let host = self.clone();
        Box::pin(async move { host.serve_lock(call).await })
    }

    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        self.run.subscribe()
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        let host = self.clone();
        tokio::spawn(async move { host.serve_list(node, parts).await });
        receiver
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        let host = self.clone();
        tokio::spawn(async move { host.serve_read(request, lane, parts).await });
        receiver
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        let host = self.clone();
        Box::pin(async move { host.serve_current(node, range).await })
    }

    fn root(&self) -> Attributes {
        let tree = self.tree();
        tree.attributes(tree.root).expect("the root is always there")
    }

    fn link(&self) -> LinkState {
        let settings = self.settings();
        LinkState {
            connected: *self.shared.connected.borrow() == Connection::Up,
            silent: Duration::ZERO,
            rtt: settings.rtt,
            bytes_per_second: settings.bytes_per_second,
            sent_bytes_per_second: settings.sent_bytes_per_second,
            window_bytes: settings.window_bytes,
        }
    }
}

fn found<T>(result: Result<T, Errno>, path: &[u8]) -> T {
    result.unwrap_or_else(|errno| {
        panic!("{}: {}", String::from_utf8_lossy(path), std::io::Error::from_raw_os_error(errno.0))
    })
}

#[cfg(test)]
mod tests;
