//! Metadata records in the disk cache: read on demand, written by a background thread.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{
    self, Body, Scope, Seen, SeenActsAs, SeenLink, SeenListing, SeenName, SeenNode, SeenStatistics, Subject,
};
use super::record_queue::{Next, RecordQueue};
use crate::cache::{ChunkCache, FileKey};
use crate::chunk::{ChunkHash, ChunkIndex, VerifiedChunk};
use crate::proto::{ActingUser, Attributes, DirectoryEntry, FsStatistics, NodeId, Timestamp};

/// Most names and nodes whose record in the cache is known to be current. They take some 100 bytes each.
const WRITTEN_MAX: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");

/// Metadata reported by the host, to be written as a record.
#[derive(Debug)]
pub(super) enum MetadataRecord {
    Root(Vec<u8>, Attributes),
    Node(Attributes),
    Name(NodeId, Vec<u8>, Option<Attributes>),
    Listing(NodeId, Vec<DirectoryEntry>),
    Link(NodeId, Vec<u8>),
    Statistics(FsStatistics),
    ActsAs(ActingUser),
}

impl MetadataRecord {
    /// Returns its approximate size in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Root(bytes, _) | Self::Name(_, bytes, _) | Self::Link(_, bytes) => bytes.len(),
                Self::Listing(_, entries) => entries.iter().map(entry_bytes).sum(),
                Self::Node(_) | Self::Statistics(_) | Self::ActsAs(_) => 0,
            }
    }
}

/// Returns the approximate size of an entry in memory.
pub(super) const fn entry_bytes(entry: &DirectoryEntry) -> usize {
    size_of::<DirectoryEntry>() + entry.name.len()
}

/// Reader of records.
#[derive(Clone)]
pub(super) struct Records {
    cache: Arc<dyn ChunkCache>,
    scope: Scope,
    /// Last searched listing, with its head. Names of one directory are often looked up in a row.
    last_listing: Arc<Mutex<Option<LastListing>>>,
}

/// Directory of a decoded listing, the hash of its record's head, and the listing.
type LastListing = (NodeId, ChunkHash, Arc<SeenListing>);

impl Records {
    pub(super) fn new(cache: Arc<dyn ChunkCache>, scope: Scope) -> Self {
        Self { cache, scope, last_listing: Arc::default() }
    }

    /// Reads a record. Blocks on the disk, like all methods below.
    fn get<T: DeserializeOwned>(&self, subject: &Subject<'_>) -> Option<Seen<T>> {
        self.read(subject, self.head(subject)?)
    }

    fn read<T: DeserializeOwned>(&self, subject: &Subject<'_>, head: ChunkHash) -> Option<Seen<T>> {
        match self.body(subject, head)? {
            Body::Here(body) => record::decode_body(&body),
            Body::Parts(hashes) => {
                let mut body = Vec::new();
                for part in self.cache.load_run(&hashes) {
                    body.extend_from_slice(part?.bytes());
                }
                record::decode_body(&body)
            }
        }
    }

    fn head(&self, subject: &Subject<'_>) -> Option<ChunkHash> {
        self.cache.known_hash(&subject.key(self.scope), ChunkIndex(0))
    }

    fn body(&self, subject: &Subject<'_>, head: ChunkHash) -> Option<Body> {
        record::decode_head(&subject.key(self.scope), self.cache.load(head)?.bytes())
    }

    fn listing_to_search(&self, directory: NodeId) -> Option<Arc<SeenListing>> {
        let subject = Subject::Listing(directory);
        let head = self.head(&subject)?;
        let last = self.last_listing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, _, listing)) = last.filter(|(of, known, _)| (*of, *known) == (directory, head)) {
            return Some(listing);
        }
        let listing = Arc::new(self.read(&subject, head)?);
        *self.last_listing.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((directory, head, Arc::clone(&listing)));
        Some(listing)
    }

    pub(super) fn root(&self, sub_path: &[u8]) -> Option<SeenNode> {
        self.get(&Subject::Root(sub_path))
    }

    /// Returns the attributes of a node if they were seen later than `than`.
    fn node_newer(&self, node: NodeId, than: Timestamp) -> Option<SeenNode> {
        self.get::<Attributes>(&Subject::Node(node)).filter(|seen| seen.at > than && seen.value.node == node)
    }

    pub(super) fn node(&self, node: NodeId) -> Option<Attributes> {
        Some(self.node_newer(node, Timestamp(i64::MIN))?.value)
    }

    /// Returns the recorded target of a name.
    pub(super) fn name(&self, parent: NodeId, name: &[u8]) -> Option<SeenName> {
        let alone: Option<SeenName> = self.get(&Subject::Name(parent, name));
        let listed = self.listing_to_search(parent).map(|listing| {
            let found = listing.value.iter().find(|entry| entry.name == name);
            Seen { at: listing.at, value: found.map(|entry| entry.attributes) }
        });
        let newest = alone.into_iter().chain(listed).max_by_key(|seen| seen.at)?;
        let value = newest.value.map(|attributes| self.newest(attributes, newest.at));
        Some(Seen { at: newest.at, value })
    }

    /// Returns all entries of a directory if a complete listing is recorded.
    pub(super) fn listing(&self, node: NodeId) -> Option<Vec<DirectoryEntry>> {
        let listing: SeenListing = self.get(&Subject::Listing(node))?;
        let as_seen_last = |mut entry: DirectoryEntry| {
            let later: Option<SeenName> = self.get(&Subject::Name(node, &entry.name));
            let (at, found) = match later.filter(|later| later.at > listing.at) {
                Some(later) => (later.at, later.value?),
                None => (listing.at, entry.attributes),
            };
            entry.attributes = self.newest(found, at);
            Some(entry)
        };
        Some(listing.value.into_iter().filter_map(as_seen_last).collect())
    }

    pub(super) fn link(&self, node: NodeId) -> Option<Vec<u8>> {
        self.get(&Subject::Link(node)).map(|seen: SeenLink| seen.value)
    }

    pub(super) fn acts_as(&self) -> Option<ActingUser> {
        self.get(&Subject::ActsAs).map(|seen: SeenActsAs| seen.value)
    }

    pub(super) fn statistics(&self) -> Option<FsStatistics> {
        self.get(&Subject::Statistics).map(|seen: SeenStatistics| seen.value)
    }

    /// Returns newer attributes of the node if there are any. A file opened after its directory was listed
    /// has those of its open, which match its cached content.
    fn newest(&self, attributes: Attributes, at: Timestamp) -> Attributes {
        self.node_newer(attributes.node, at).map_or(attributes, |seen| seen.value)
    }
}

/// Queue of records with the thread that writes them.
pub(super) struct RecordWriter {
    queue: Arc<Queue>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<WriterState>,
    changed: Condvar,
}

#[derive(Default)]
struct WriterState {
    queue: RecordQueue,
    is_writing: bool,
    /// Number of callers in [`RecordWriter::flush`].
    flush_waiters: usize,
    is_closed: bool,
}

impl RecordWriter {
    /// Starts the writer thread.
    pub(super) fn new(records: Records) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let for_writer = Arc::clone(&queue);
        let mut writer = Writer { records, written: LruCache::new(WRITTEN_MAX), hasher: RandomState::new() };
        let thread = std::thread::Builder::new().name("metadata-cache".to_owned()).spawn(move || {
            while let Some((at, record)) = for_writer.next() {
                writer.write(at, &record);
            }
        })?;
        Ok(Self { queue, writer: Mutex::new(Some(thread)) })
    }

    /// Queues a record. Never waits, and drops the record if the queue is full.
    pub(super) fn take(&self, record: MetadataRecord) {
        self.queue.lock().queue.take(now(), record);
        self.queue.changed.notify_all();
    }

    /// Queues the attributes of files that this client changed.
    pub(super) fn take_changed(&self, files: impl IntoIterator<Item = Attributes>) {
        let mut state = self.queue.lock();
        let mut is_sooner = false;
        for attributes in files {
            is_sooner |= state.queue.take_changed(Instant::now(), attributes);
        }
        if is_sooner {
            self.queue.changed.notify_all();
        }
    }

    /// Waits up to `wait` until the queue is written. Returns `true` if it is. Blocks.
    pub(super) fn flush(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.queue.lock();
        state.flush_waiters += 1;
        self.queue.changed.notify_all();
        while state.is_writing || !state.queue.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.queue.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.flush_waiters -= 1;
        !state.is_writing && state.queue.is_empty()
    }
}

impl Drop for RecordWriter {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.changed.notify_all();
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // The writer checks for the end between two records, and a record only goes to memory: the
            // cache has its own thread for the disk.
            let _ = writer.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next record; `None` to end the thread.
    fn next(&self) -> Option<(Timestamp, MetadataRecord)> {
        let mut state = self.lock();
        state.is_writing = false;
        self.changed.notify_all();
        while !state.is_closed {
            let is_flushing = state.flush_waiters > 0;
            state = match state.queue.next(Instant::now(), now(), is_flushing) {
                Next::Write(at, record) => {
                    state.is_writing = true;
                    return Some((at, record));
                }
                Next::Wait(None) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Next::Wait(Some(until)) => {
                    let wait = until.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        None
    }
}

/// State of a subject in the cache: a digest of its value, and the head of the record that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    /// `None` if the same value must be written again, because another record superseded it.
    digest: Option<u64>,
    head: ChunkHash,
    /// Time at which it was seen.
    at: Timestamp,
}

struct Writer {
    records: Records,
    /// By the key of a subject. A listing also counts for its names and their nodes.
    written: LruCache<FileKey, Written>,
    hasher: RandomState,
}

impl Writer {
    fn write(&mut self, at: Timestamp, record: &MetadataRecord) {
        match record {
            MetadataRecord::Root(path, attributes) => {
                self.put(at, &Subject::Root(path), attributes, at.0);
            }
            MetadataRecord::Node(attributes) => self.write_node(at, *attributes),
            MetadataRecord::Name(parent, name, attributes) => self.write_name(at, *parent, name, *attributes),
            MetadataRecord::Listing(node, entries) => self.write_listing(at, *node, entries),
            MetadataRecord::Link(node, target) => {
                self.put(at, &Subject::Link(*node), target, target);
            }
            MetadataRecord::ActsAs(user) => {
                self.put(at, &Subject::ActsAs, user, *user);
            }
            MetadataRecord::Statistics(statistics) => {
                self.put(at, &Subject::Statistics, statistics, *statistics);
            }
        }
    }

    fn write_node(&mut self, at: Timestamp, attributes: Attributes) {
        self.put(at, &Subject::Node(attributes.node), &attributes, record::stable_part(attributes));
    }

    fn write_name(&mut self, at: Timestamp, parent: NodeId, name: &[u8], found: Option<Attributes>) {
        let target = found.map(|attributes| attributes.node);
        self.invalidate_older(parent, name, self.digest(&target));
        let is_news = self.put(at, &Subject::Name(parent, name), &found, target);
        if let Some(attributes) = found {
            if is_news {
                self.add_to_listing(parent, name, attributes);
            }
            self.write_node(at, attributes);
        }
    }

    /// Invalidates the digest of an older record. A name and the listing of its directory describe the same
    /// fact, and the later one holds. So a known name must be written again after a listing without it, and
    /// a known listing after one of its names changed.
    fn invalidate_older(&mut self, parent: NodeId, name: &[u8], digest: u64) {
        let scope = self.records.scope;
        let (key, listing) = (Subject::Name(parent, name).key(scope), Subject::Listing(parent).key(scope));
        let Some(listed) = self.written.get_mut(&listing) else { return };
        let listed_at = listed.at;
        match self.written.get_mut(&key) {
            Some(named) if named.at < listed_at => named.digest = None,
            Some(named) if named.digest != Some(digest) => self.forget_digest(&listing),
            _ => {}
        }
    }

    fn forget_digest(&mut self, key: &FileKey) {
        if let Some(written) = self.written.get_mut(key) {
            written.digest = None;
        }
    }

    /// Adds a name found after its directory was listed to the listing. A listing longer than its head
    /// stays unchanged, because rewriting it for each name would cost too much.
    fn add_to_listing(&mut self, parent: NodeId, name: &[u8], attributes: Attributes) {
        let subject = Subject::Listing(parent);
        let head = self.records.head(&subject);
        let body = head.and_then(|head| self.records.body(&subject, head));
        let Some(Body::Here(body)) = body else { return };
        let Some(mut listing) = record::decode_body::<SeenListing>(&body) else { return };
        if !listing.value.iter().any(|entry| entry.name == name) {
            listing.value.push(DirectoryEntry { name: name.to_vec(), attributes });
            self.store(listing.at, &subject, &listing.value);
            // The next listing from the host must be written in any case.
            self.forget_digest(&subject.key(self.records.scope));
        }
    }

    fn write_listing(&mut self, at: Timestamp, directory: NodeId, entries: &[DirectoryEntry]) {
        let stable_part: Vec<_> =
            entries.iter().map(|entry| (&entry.name, record::stable_part(entry.attributes))).collect();
        let digest = self.digest(&stable_part);
        let subject = Subject::Listing(directory);
        let key = subject.key(self.records.scope);
        if self.is_current(&key, digest) && self.is_complete(&subject) {
            return;
        }
        let Some(head) = self.store(at, &subject, &entries) else { return };
        for entry in entries {
            let target = self.digest(&Some(entry.attributes.node));
            let name = Subject::Name(directory, &entry.name).key(self.records.scope);
            self.written.put(name, Written { digest: Some(target), head, at });
            let (node, digest) = self.node_digest(&entry.attributes);
            self.written.put(node, Written { digest: Some(digest), head, at });
        }
        self.written.put(key, Written { digest: Some(digest), head, at });
    }

    /// Returns `true` if a record can be read. Its key, head or parts may have been evicted.
    fn is_complete(&self, subject: &Subject<'_>) -> bool {
        let head = self.records.head(subject);
        match head.and_then(|head| self.records.body(subject, head)) {
            Some(Body::Here(_)) => true,
            Some(Body::Parts(parts)) => parts.iter().all(|part| self.records.cache.contains(*part)),
            None => false,
        }
    }

    fn node_digest(&self, attributes: &Attributes) -> (FileKey, u64) {
        let key = Subject::Node(attributes.node).key(self.records.scope);
        (key, self.digest(&record::stable_part(*attributes)))
    }

    /// Writes a record unless the cache has the same value. Returns `true` if it was written.
    fn put<T: Serialize>(
        &mut self,
        at: Timestamp,
        subject: &Subject<'_>,
        value: &T,
        stable_part: impl Serialize,
    ) -> bool {
        let (key, digest) = (subject.key(self.records.scope), self.digest(&stable_part));
        if self.is_current(&key, digest) {
            return false;
        }
        let head = self.store(at, subject, value);
        if let Some(head) = head {
            self.written.put(key, Written { digest: Some(digest), head, at });
        }
        head.is_some()
    }

    fn is_current(&mut self, key: &FileKey, digest: u64) -> bool {
        let same = self.written.get(key).filter(|written| written.digest == Some(digest)).copied();
        // The record may have been evicted since, or dropped before it reached the disk.
        same.is_some_and(|written| self.records.cache.contains(written.head))
    }

    fn store<T: Serialize>(&self, at: Timestamp, subject: &Subject<'_>, value: &T) -> Option<ChunkHash> {
        let (cache, key) = (&self.records.cache, subject.key(self.records.scope));
        let chunks = record::encode(&key, &Seen { at, value })?;
        let mut chunks: Vec<VerifiedChunk> = chunks.into_iter().map(VerifiedChunk::compute).collect();
        let head = chunks.remove(0);
        let hash = head.hash();
        for part in chunks {
            cache.insert(part);
        }
        cache.insert(head);
        cache.record_hash(&key, ChunkIndex(0), hash);
        cache.flush_file(&key);
        Some(hash)
    }

    fn digest(&self, value: &impl Serialize) -> u64 {
        // Serializing to memory does not fail. If it did, two failures would count as the same value.
        self.hasher.hash_one(postcard::to_stdvec(value).unwrap_or_default())
    }
}

/// Returns the time of this machine's clock.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
