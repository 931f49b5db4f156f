//! Metadata cache: names and attributes from the host in the disk cache, for times without a connection.
//!
//! [`CachingClient`] wraps the client that reaches the host. It forwards every answer of the host and
//! records it in the background, off the paths on which programs wait. While the host is unreachable, and
//! in a mount that never asks one (`offline`), the records answer instead. A request without a record
//! fails: at the deadline of the call, or at once offline.
//!
//! Records are chunks of the disk cache like any others, so its bounds, eviction, sharing and verification
//! apply to them. The key of a record names its subject ([`record`]), and the latest record holds.

#[cfg(test)]
mod fuzz;
mod own_changes;
mod record;
mod record_queue;
mod store;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::cache::ChunkCache;
use crate::chunk::ByteRange;
use crate::client::{
    CallError, CallFuture, Client, ClientEvent, ContentPart, FirstSession, Lane, LinkState, ListPart,
    PARTS_QUEUED_MAX,
};
use crate::proto::{
    ActingUser, Attributes, BootId, Change, DirectoryEntry, Errno, ErrorCode, HostEvent, LockAnswer,
    LockCall, NodeId, ReadRequest, Reply, Request, SessionRun, WireError, WriteAt, Written,
};
use own_changes::{OwnChanges, RequestTime};
pub use record::Scope;
use store::{MetadataRecord, RecordWriter, Records, entry_bytes};

/// Time between two checks of the link during a call.
const LINK_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Longest listing that is recorded, in bytes of memory: some 80,000 entries.
const LISTING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Entries of a recorded listing that are sent in one part.
const BATCH_ENTRIES: usize = 1024;

/// Longest wait for the writer at the end of a mount.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// Longest wait of an answer for newer records that are still being written.
const CATCH_UP_WAIT: Duration = Duration::from_secs(1);

/// Client that caches metadata of the host.
pub struct CachingClient {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` in an offline mount.
    host: Option<Arc<dyn Client>>,
    records: Records,
    record_writer: Option<Arc<RecordWriter>>,
    sub_path: Vec<u8>,
    root: Attributes,
    /// True if records answer while the host is unreachable.
    answers: bool,
    stale_answers: AtomicU64,
    own: Mutex<OwnChanges>,
    /// Time of the host's last answer, or of the start.
    last_answer: Mutex<Instant>,
    /// Silence of the host before `last_answer`, from an earlier mount.
    silent_before: Duration,
}

impl CachingClient {
    /// Creates a client that forwards to `host` and records its answers. `sub_path` is the mounted folder
    /// below the export. With `answers` the records answer while the host is unreachable.
    ///
    /// # Errors
    /// Failure to start a thread.
    pub fn new(
        host: Arc<dyn Client>,
        cache: Arc<dyn ChunkCache>,
        scope: Scope,
        sub_path: &[u8],
        answers: bool,
    ) -> std::io::Result<Self> {
        let is_writable = cache.is_writable();
        let records = Records::new(cache, scope);
        // A read-only cache cannot store records.
        let record_writer =
            is_writable.then(|| RecordWriter::new(records.clone()).map(Arc::new)).transpose()?;
        let root = host.root();
        let shared = Shared {
            host: Some(host),
            records,
            record_writer,
            sub_path: sub_path.to_vec(),
            root,
            answers,
            stale_answers: AtomicU64::new(0),
            own: Mutex::default(),
            last_answer: Mutex::new(Instant::now()),
            silent_before: Duration::ZERO,
        };
        shared.record(|| MetadataRecord::Root(sub_path.to_vec(), root));
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Creates a client that answers from records alone; `None` if the mounted root is not recorded. Blocks
    /// on the disk.
    pub fn offline(cache: Arc<dyn ChunkCache>, scope: Scope, sub_path: &[u8]) -> Option<Self> {
        let records = Records::new(cache, scope);
        let root = records.root(sub_path)?;
        let silent_ns = u64::try_from(store::now().0.saturating_sub(root.at.0)).unwrap_or(0);
        let shared = Shared {
            host: None,
            records,
            record_writer: None,
            sub_path: sub_path.to_vec(),
            root: root.value,
            answers: true,
            stale_answers: AtomicU64::new(0),
            own: Mutex::default(),
            last_answer: Mutex::new(Instant::now()),
            silent_before: Duration::from_nanos(silent_ns),
        };
        Some(Self { shared: Arc::new(shared) })
    }

    /// Records the mounted root again, because the cache could not store it before.
    pub fn record_root_again(&self) {
        self.shared.record(|| MetadataRecord::Root(self.shared.sub_path.clone(), self.shared.root));
    }

    /// Records the user as which the host acts.
    pub fn record_acts_as(&self, user: ActingUser) {
        self.shared.record(|| MetadataRecord::ActsAs(user));
    }

    /// Returns the user as which the host last acted, if it is recorded. Blocks on the disk.
    pub fn acts_as(&self) -> Option<ActingUser> {
        self.shared.records.acts_as()
    }

    /// Returns the number of answers from records.
    pub fn stale_answers(&self) -> u64 {
        self.shared.stale_answers.load(Ordering::Relaxed)
    }

    /// Returns the time since the host last answered; zero while it is connected.
    pub fn silence(&self) -> Duration {
        if self.link().connected {
            return Duration::ZERO;
        }
        let last_answer = *self.shared.last_answer.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.silent_before + last_answer.elapsed()
    }

    /// Waits up to some seconds until all records are in the cache. Returns `true` if they are. Blocks.
    pub fn flush(&self) -> bool {
        let connected = self.link().connected;
        // A later mount reads from it when the host was last reachable.
        self.shared.record_if(connected, || MetadataRecord::Root(self.shared.sub_path.clone(), self.root()));
        self.shared.record_writer.as_ref().is_none_or(|record_writer| record_writer.flush(FLUSH_WAIT))
    }
}

impl Client for CachingClient {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = shared.host.clone() else {
            return Box::pin(async move { shared.answer_offline(request).await });
        };
        if !is_recorded(&request) {
            return host.call(request, lane);
        }
        Box::pin(async move { shared.call_host(host, request, lane).await })
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            // Dropping the receiver cancels the listing.
            tokio::select! {
                () = parts.closed() => {}
                () = shared.list(node, &parts) => {}
            }
        });
        receiver
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        match &self.shared.host {
            Some(host) => host.read(request, lane),
            None => failed(CallError::Offline),
        }
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        match &self.shared.host {
            Some(host) => host.read_current(node, range),
            None => Box::pin(async { Err(CallError::Offline) }),
        }
    }

    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = &self.shared.host else { return Box::pin(async { Err(CallError::Offline) }) };
        let in_progress = ChangeGuard::begin(Arc::clone(&shared));
        let change_to_record = shared.record_writer.is_some().then(|| change.clone());
        let answer = host.change(change, first);
        Box::pin(async move {
            let answer = answer.await;
            shared.record_own_change(change_to_record, &answer);
            drop(in_progress);
            answer
        })
    }

    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, first: &FirstSession) -> CallFuture<Written> {
        let shared = Arc::clone(&self.shared);
        let Some(host) = &self.shared.host else { return Box::pin(async { Err(CallError::Offline) }) };
        let written = host.write(node, at, bytes, first);
        Box::pin(async move {
            let written = written.await;
            shared.record_changed(written.iter().map(|written| written.attributes));
            written
        })
    }

    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        match &self.shared.host {
            Some(host) => host.sync(node, data_only),
            None => Box::pin(async { Err(CallError::Offline) }),
        }
    }

    fn boot(&self) -> Option<BootId> {
        self.shared.host.as_ref().and_then(|host| host.boot())
    }

    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        match &self.shared.host {
            Some(host) => host.lock(call),
            None => Box::pin(async { Err(CallError::Offline) }),
        }
    }

    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        self.shared.host.as_ref().map_or_else(|| watch::channel(None).1, |host| host.runs())
    }

    fn events(&self) -> Option<mpsc::Receiver<ClientEvent>> {
        let mut told = self.shared.host.as_ref()?.events()?;
        let (passed, receiver) = mpsc::channel(1);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                shared.record_event(&event);
                if passed.send(event).await.is_err() {
                    return;
                }
            }
        });
        Some(receiver)
    }

    fn root(&self) -> Attributes {
        self.shared.host.as_ref().map_or(self.shared.root, |host| host.root())
    }

    fn link(&self) -> LinkState {
        const NONE: LinkState = LinkState {
            connected: false,
            silent: Duration::ZERO,
            rtt: Duration::ZERO,
            bytes_per_second: 0,
            sent_bytes_per_second: 0,
            window_bytes: 0,
        };
        self.shared.host.as_ref().map_or(NONE, |host| host.link())
    }
}

/// Returns a channel with one error in it.
fn failed<T>(error: CallError) -> mpsc::Receiver<Result<T, CallError>> {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for one.
    let _ = sender.try_send(Err(error));
    receiver
}

/// Returns `true` if the answer to this request is recorded, or can come from records.
const fn is_recorded(request: &Request) -> bool {
    matches!(
        request,
        Request::Lookup { .. }
            | Request::LookupMany { .. }
            | Request::GetAttributes { .. }
            | Request::Open { .. }
            | Request::ReadLink { .. }
            | Request::StatFs { .. }
            | Request::Access { .. }
    )
}

/// Returns `true` if the host is unreachable, so that records may answer.
const fn is_out_of_reach(error: &CallError) -> bool {
    matches!(error, CallError::TimedOut(_) | CallError::Offline)
}

impl Shared {
    fn record(&self, record: impl FnOnce() -> MetadataRecord) {
        self.record_if(true, record);
    }

    fn record_if(&self, condition: bool, record: impl FnOnce() -> MetadataRecord) {
        if let Some(record_writer) = self.record_writer.as_ref().filter(|_| condition) {
            record_writer.take(record());
        }
    }

    fn record_changed(&self, files: impl IntoIterator<Item = Attributes>) {
        if let Some(record_writer) = &self.record_writer {
            record_writer.take_changed(files);
        }
    }

    /// Records a change that the host reported. Under a lease no program asks for it.
    fn record_event(&self, event: &ClientEvent) {
        let ClientEvent::Event(event) = event else { return };
        self.note_answer();
        let HostEvent::Changed(change) = event else { return };
        for (name, found) in &change.entries {
            self.record(|| MetadataRecord::Name(change.directory, name.clone(), *found));
        }
        let found = change.entries.iter().filter_map(|(_, found)| *found);
        self.record_changed(found.chain(change.attributes));
    }

    fn own(&self) -> MutexGuard<'_, OwnChanges> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of a change by this client.
    fn record_own_change(&self, change: Option<Change>, answer: &Result<Reply, CallError>) {
        match (answer, change) {
            (Ok(Reply::Changed(changed)), Some(change)) => {
                for record in own_changes::records(change, changed) {
                    self.record(|| record);
                }
                self.record_changed(changed.node.iter().chain(&changed.others).copied());
            }
            (Ok(Reply::Written(written) | Reply::Taken { written, .. }), _) => {
                self.record_changed([written.attributes]);
            }
            _ => {}
        }
    }

    fn note_answer(&self) {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Sends a request to the host. Records answer as soon as the host is unreachable.
    async fn call_host(
        self: Arc<Self>,
        host: Arc<dyn Client>,
        request: Request,
        lane: Lane,
    ) -> Result<Reply, CallError> {
        let request_time = self.own().ask();
        let mut answer = host.call(request.clone(), lane);
        let mut may_use_records = self.answers;
        loop {
            if may_use_records && !host.link().connected {
                may_use_records = false;
                if let Some(known) = self.recorded_answer(&request).await {
                    return known;
                }
            }
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return match answer {
                        Err(error) if is_out_of_reach(&error) && self.answers =>
                            self.recorded_answer(&request).await.unwrap_or(Err(error)),
                        answer => {
                            self.record_answer(request, &answer, request_time);
                            answer
                        }
                    };
                }
                () = tokio::time::sleep(LINK_CHECK_INTERVAL) => {}
            }
        }
    }

    /// Records the answer of the host.
    fn record_answer(&self, request: Request, answer: &Result<Reply, CallError>, request_time: RequestTime) {
        match answer {
            Ok(_) | Err(CallError::Host(_)) => self.note_answer(),
            Err(_) => return,
        }
        if !self.own().is_sound(request_time) {
            return;
        }
        match (request, answer) {
            (
                Request::Lookup { parent, name },
                Ok(Reply::Attributes(found) | Reply::Entry { attributes: found, .. }),
            ) => {
                self.record(|| MetadataRecord::Name(parent, name, Some(*found)));
            }
            (Request::Lookup { parent, name }, Err(error)) if is_not_found(error) => {
                self.record(|| MetadataRecord::Name(parent, name, None));
            }
            (Request::LookupMany { parent, names }, Ok(Reply::Entries(found))) => {
                for (name, found) in names.into_iter().zip(found) {
                    // An entry that could not be read need not be gone.
                    self.record_if(found.is_some(), || MetadataRecord::Name(parent, name, *found));
                }
            }
            (Request::GetAttributes { .. } | Request::Open { .. }, Ok(Reply::Attributes(found))) => {
                self.record(|| MetadataRecord::Node(*found));
            }
            (Request::ReadLink { node }, Ok(Reply::Bytes(target))) => {
                self.record(|| MetadataRecord::Link(node, target.clone()));
            }
            (Request::StatFs { .. }, Ok(Reply::FsStatistics(statistics))) => {
                self.record(|| MetadataRecord::Statistics(*statistics));
            }
            _ => {}
        }
    }

    /// Returns the recorded answer to a request, if there is one.
    async fn recorded_answer(&self, request: &Request) -> Option<Result<Reply, CallError>> {
        let request = request.clone();
        let known = self.read_records(move |records| recorded_answer(records, &request)).await;
        self.count(known.is_some());
        known
    }

    /// Reads records, including those that are still being written if that takes a short time only.
    async fn read_records<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Records) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let (records, record_writer) = (self.records.clone(), self.record_writer.clone());
        let look = move || {
            if let Some(record_writer) = record_writer {
                record_writer.flush(CATCH_UP_WAIT);
            }
            look(&records)
        };
        // The read blocks on the disk. The task fails only if the runtime shuts down.
        tokio::task::spawn_blocking(look).await.ok().flatten()
    }

    async fn answer_offline(&self, request: Request) -> Result<Reply, CallError> {
        match request {
            Request::Close { .. } => Ok(Reply::Done),
            // Programs then read the whole file instead of searching for holes.
            Request::Seek { .. } => Err(WireError::system(Errno::EOPNOTSUPP).into()),
            request => self.recorded_answer(&request).await.unwrap_or(Err(CallError::Offline)),
        }
    }

    fn count(&self, answered: bool) {
        self.stale_answers.fetch_add(u64::from(answered), Ordering::Relaxed);
    }

    /// Sends a listing from the host or from records.
    async fn list(&self, node: NodeId, to: &mpsc::Sender<Result<ListPart, CallError>>) {
        let Some(host) = &self.host else {
            if !self.list_from_records(node, to).await {
                // If the receiver was dropped, the error has no recipient.
                let _ = to.send(Err(CallError::Offline)).await;
            }
            return;
        };
        let request_time = self.own().ask();
        let mut parts = host.list(node);
        let mut kept = Some((Vec::new(), 0));
        let mut may_use_records = self.answers;
        loop {
            if may_use_records && !host.link().connected {
                may_use_records = false;
                if self.list_from_records(node, to).await {
                    return;
                }
            }
            let part = tokio::select! {
                biased;
                part = parts.recv() => part.unwrap_or(Err(CallError::Closed)),
                () = tokio::time::sleep(LINK_CHECK_INTERVAL) => continue,
            };
            if let Err(error) = &part
                && is_out_of_reach(error)
                && may_use_records
                && self.list_from_records(node, to).await
            {
                return;
            }
            // The recorded listing cannot continue that of the host, which may differ by now.
            may_use_records = false;
            let goes_on = matches!(part, Ok(ListPart::Begin { .. } | ListPart::Entries(_)));
            self.collect_listing(node, &part, &mut kept, request_time);
            if to.send(part).await.is_err() || !goes_on {
                return;
            }
        }
    }

    /// Collects a listing while it is forwarded, and records it when it is complete.
    fn collect_listing(
        &self,
        node: NodeId,
        part: &Result<ListPart, CallError>,
        kept: &mut Option<(Vec<DirectoryEntry>, usize)>,
        request_time: RequestTime,
    ) {
        let Some((entries, bytes)) = kept.as_mut().filter(|_| self.record_writer.is_some()) else { return };
        match part {
            Ok(ListPart::Entries(batch)) => {
                self.note_answer();
                *bytes += batch.iter().map(entry_bytes).sum::<usize>();
                entries.extend_from_slice(batch);
                if *bytes > LISTING_BYTES_MAX {
                    *kept = None;
                }
            }
            Ok(ListPart::Begin { .. }) => self.note_answer(),
            Ok(ListPart::End) => {
                let entries = std::mem::take(entries);
                self.record_if(self.own().is_sound(request_time), || MetadataRecord::Listing(node, entries));
            }
            Err(_) => {}
        }
    }

    /// Sends the recorded listing of a directory. Returns `true` if there was one.
    async fn list_from_records(&self, node: NodeId, to: &mpsc::Sender<Result<ListPart, CallError>>) -> bool {
        let known = self.read_records(move |records| records.listing(node)).await;
        let Some(mut entries) = known else { return false };
        self.count(true);
        while !entries.is_empty() {
            let rest = entries.split_off(entries.len().min(BATCH_ENTRIES));
            if to.send(Ok(ListPart::Entries(std::mem::replace(&mut entries, rest)))).await.is_err() {
                return true;
            }
        }
        let _ = to.send(Ok(ListPart::End)).await;
        true
    }
}

/// A change in progress, also if its call is dropped early.
struct ChangeGuard(Arc<Shared>);

impl ChangeGuard {
    fn begin(shared: Arc<Shared>) -> Self {
        shared.own().begin();
        Self(shared)
    }
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        self.0.own().end();
    }
}

fn is_not_found(error: &CallError) -> bool {
    error.code() == Some(ErrorCode::System(Errno::ENOENT))
}

/// Reads the recorded answer to a request. Blocks on the disk.
fn recorded_answer(records: &Records, request: &Request) -> Option<Result<Reply, CallError>> {
    let reply = match request {
        Request::Lookup { parent, name } => match records.name(*parent, name)?.value {
            Some(attributes) => Reply::Attributes(attributes),
            None => return Some(Err(WireError::system(Errno::ENOENT).into())),
        },
        Request::GetAttributes { node } => Reply::Attributes(records.node(*node)?),
        Request::ReadLink { node } => Reply::Bytes(records.link(*node)?),
        Request::StatFs { .. } => Reply::FsStatistics(records.statistics()?),
        // Without read access there is nothing recorded to return. Otherwise no program could change into a
        // directory.
        Request::Access { .. } => Reply::Done,
        _ => return None,
    };
    Some(Ok(reply))
}

impl std::fmt::Debug for CachingClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_offline = self.shared.host.is_none();
        f.debug_struct("CachingClient").field("is_offline", &is_offline).finish_non_exhaustive()
    }
}
