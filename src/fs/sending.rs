//! What programs have written, on its way to the host behind their backs.
//!
//! A write is answered when its bytes are queued; a writer who is ahead of the link by the budget waits. Everything that looks at
//! a file's content or times, or changes them, first waits until the host has what was written before; `close` does, too, and tells
//! what went wrong. `fsync` only waits until everything is with the client: the host waits for the rest, so both are one round trip.
//!
//! How one extent is sent says `extent`: of what the host has already only hashes (`offers`). What is written front to back stays in the cache (`own_content`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

use super::behind::{Behind, Extent, ExtentId, Place};
use super::config::DedupWish;
use super::extent::at_offset;
use super::inodes::Inode;
use super::offers::{Offers, Way};
use super::own_content::OwnContent;
use super::unsynced::Attempt;
use super::{FileSystem, FsError, lock};
use crate::chunk::ChunkIndex;
use crate::client::CallError;
use crate::proto::{Attributes, FileKind, Growth, SessionRun, WriteAt};

/// Bytes that may be queued and under way, of all files together: 50 ms of 5 Gbit/s.
const BUDGET_BYTES: usize = 32 * 1024 * 1024;

/// Extents of one file under way at once: what joins in the queue meanwhile makes larger ones of small writes.
const UNDER_WAY_MAX: usize = 16;

/// The same while somebody waits for them: nothing more will join.
const UNDER_WAY_HURRIED_MAX: usize = 64;

/// How long the end of a file that goes as hashes waits for what makes up a chunk with it, once nothing else of the file is under way: until
/// then the link is busy, and its writer perhaps waits for room.
const HOLD: Duration = Duration::from_millis(100);

/// The unaccepted writes of all files.
pub(super) struct Sending {
    pub(super) files: Mutex<HashMap<Inode, File>>,
    /// Writes so far.
    writes: AtomicU64,
    budget: Semaphore,
    pub(super) offers: Mutex<Offers>,
    own_content: Mutex<OwnContent>,
    pub(super) deduplicated_bytes: AtomicU64,
    /// Told when somebody waits for what is held back.
    awaited: Arc<Notify>,
    /// Changes whenever something was accepted, or went to the client.
    pub(super) progress: watch::Sender<()>,
}

#[derive(Default)]
pub(super) struct File {
    pub(super) behind: Behind,
    under_way: usize,
    /// How many wait for it.
    hurries: usize,
    /// Up to this write nothing is held back.
    due: u64,
    has_timer: bool,
}

impl File {
    const fn may_send(&self) -> bool {
        self.under_way < if self.hurries > 0 { UNDER_WAY_HURRIED_MAX } else { UNDER_WAY_MAX }
    }
}

impl Sending {
    pub(super) fn new(dedup: DedupWish) -> Self {
        Self {
            files: Mutex::default(),
            writes: AtomicU64::new(0),
            budget: Semaphore::new(BUDGET_BYTES),
            offers: Mutex::new(Offers::new(dedup)),
            own_content: Mutex::default(),
            deduplicated_bytes: AtomicU64::new(0),
            awaited: Arc::default(),
            progress: watch::channel(()).0,
        }
    }
}

/// Somebody waits for a file's writes, until dropped.
pub(super) struct Hurry<'a> {
    fs: &'a FileSystem,
    inode: Inode,
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        if let Some(file) = lock(&self.fs.sending.files).get_mut(&self.inode) {
            // It may be another one since.
            file.hurries = file.hurries.saturating_sub(1);
        }
    }
}

impl FileSystem {
    /// Queues a write; waits while too much is queued.
    pub(super) async fn send_behind(
        self: &Arc<Self>,
        inode: Inode,
        under: Option<SessionRun>,
        place: Place,
        bytes: Bytes,
    ) -> Result<(), FsError> {
        let room = self.sending.budget.acquire_many(bytes.len() as u32);
        match timeout(self.patience(), room).await {
            Ok(Ok(room)) => room.forget(),
            // Nobody closes the semaphore.
            Ok(Err(_)) => {}
            Err(_) => return Err(self.too_late()),
        }
        self.queue(inode, under, place, bytes);
        Ok(())
    }

    /// Queues a write if there is room; whether there was.
    pub(super) fn send_now(
        self: &Arc<Self>,
        inode: Inode,
        under: Option<SessionRun>,
        place: Place,
        bytes: &[u8],
    ) -> bool {
        let Ok(room) = self.sending.budget.try_acquire_many(bytes.len() as u32) else { return false };
        room.forget();
        self.queue(inode, under, place, Bytes::copy_from_slice(bytes));
        true
    }

    /// Writes when the host has everything before it, and waits for the host. A failure is this write's own, and nobody
    /// else is told.
    pub(super) async fn send_through(
        self: &Arc<Self>,
        inode: Inode,
        under: Option<SessionRun>,
        place: Place,
        bytes: Bytes,
    ) -> Result<(), FsError> {
        self.sent(inode).await?;
        let at = match place {
            Place::Offset(offset) => {
                self.keep_chunks(inode, offset, &bytes);
                at_offset(offset, Growth::default(), under)
            }
            Place::End(_) => {
                WriteAt::End { believed: self.with_record(inode, |record| record.attributes().size)? }
            }
        };
        let written = self.send_bytes(inode, None, at, bytes, &Mutex::default()).await;
        written.inspect_err(|error| self.note_full(inode, error))
    }

    fn queue(self: &Arc<Self>, inode: Inode, under: Option<SessionRun>, place: Place, bytes: Bytes) {
        if let Place::Offset(offset) = place {
            self.keep_chunks(inode, offset, &bytes);
        }
        {
            let mut files = lock(&self.sending.files);
            let number = self.sending.writes.fetch_add(1, Ordering::Relaxed) + 1;
            files.entry(inode).or_default().behind.push_under(under, number, place, bytes);
        }
        self.send_next(inode);
    }

    /// Has more of a file sent at once as long as somebody waits.
    pub(super) fn hurry(self: &Arc<Self>, inode: Inode) -> Hurry<'_> {
        if let Some(file) = lock(&self.sending.files).get_mut(&inode) {
            file.hurries += 1;
        }
        self.send_next(inode);
        Hurry { fs: self, inode }
    }

    /// Counts the writes so far.
    pub(super) fn writes_so_far(&self) -> u64 {
        self.sending.writes.load(Ordering::Relaxed)
    }

    /// Returns when the host has, or will not have, all that was written to the file until now. An error says that the host is
    /// away; what was written stays on its way.
    pub(super) async fn sent(&self, inode: Inode) -> Result<(), FsError> {
        self.sent_until(inode, self.writes_so_far()).await
    }

    /// The same for the first `writes`.
    pub(super) async fn sent_until(&self, inode: Inode, writes: u64) -> Result<(), FsError> {
        self.hold_nothing_back(inode, writes);
        self.wait_while(inode, |behind| behind.oldest().is_some_and(|oldest| oldest <= writes)).await
    }

    /// Returns when the client has the first `writes`, so that a sync waits for them; what goes as hashes the host has then.
    pub(super) async fn begun_until(&self, inode: Inode, writes: u64) -> Result<(), FsError> {
        self.hold_nothing_back(inode, writes);
        self.wait_while(inode, |behind| behind.oldest_unbegun().is_some_and(|oldest| oldest <= writes)).await
    }

    async fn wait_while(&self, inode: Inode, is_so: impl Fn(&Behind) -> bool) -> Result<(), FsError> {
        let mut progress = self.sending.progress.subscribe();
        while lock(&self.sending.files).get(&inode).is_some_and(|file| is_so(&file.behind)) {
            // The sender lives as long as `self`.
            let went_on = timeout(self.patience(), progress.changed()).await;
            went_on.map_err(|_| self.too_late())?.map_err(|_| FsError::Invalid)?;
        }
        Ok(())
    }

    const fn too_late(&self) -> FsError {
        FsError::Call(CallError::TimedOut(self.config.patience))
    }

    /// Returns when the host has everything.
    pub async fn all_sent(&self) {
        let mut progress = self.sending.progress.subscribe();
        while self.unsent_bytes() > 0 {
            let _ = progress.changed().await;
        }
    }

    /// Bytes that programs have written and the host has not accepted.
    pub fn unsent_bytes(&self) -> u64 {
        lock(&self.sending.files).values().map(|file| file.behind.bytes()).sum()
    }

    /// Bytes that programs have written and the host had already, so that they were not sent.
    pub fn deduplicated_bytes(&self) -> u64 {
        self.sending.deduplicated_bytes.load(Ordering::Relaxed)
    }

    /// The files of which the host lacks something, by their paths below the root, and how many bytes of each.
    pub fn unsent_files(&self) -> Vec<(Vec<u8>, u64)> {
        let unsent: Vec<_> =
            lock(&self.sending.files).iter().map(|(inode, file)| (*inode, file.behind.bytes())).collect();
        let inodes = lock(&self.inodes);
        let named = unsent.into_iter().map(|(inode, bytes)| (inodes.path(inode), bytes));
        let mut files: Vec<_> = named.collect();
        files.sort();
        files
    }

    /// Whether the host lacks something that was written to the file.
    pub(super) fn is_behind(&self, inode: Inode) -> bool {
        lock(&self.sending.files).contains_key(&inode)
    }

    /// A file as it will be when everything has arrived, as far as that can be guessed; `None` if the host has everything.
    pub(super) fn with_unsent(
        &self,
        inode: Inode,
        attributes: Attributes,
        seen: Instant,
    ) -> Option<Attributes> {
        if attributes.kind != FileKind::Regular {
            return None;
        }
        let files = lock(&self.sending.files);
        let file = files.get(&inode)?;
        let now = attributes.observed.0.saturating_add(seen.elapsed().as_nanos() as i64);
        let touched = |time: crate::proto::Timestamp| crate::proto::Timestamp(time.0.max(now));
        Some(Attributes {
            size: attributes.size.max(file.behind.end()),
            mtime: touched(attributes.mtime),
            ctime: touched(attributes.ctime),
            ..attributes
        })
    }

    /// Sends what may be sent.
    pub(super) fn send_next(self: &Arc<Self>, inode: Inode) {
        while let Some((id, extent, way)) = self.next_extent(inode) {
            let fs = Arc::clone(self);
            self.runtime.spawn(async move { fs.send(inode, id, extent, way).await });
        }
    }

    /// Somebody waits for what was written up to write number `due`.
    fn hold_nothing_back(&self, inode: Inode, due: u64) {
        if let Some(file) = lock(&self.sending.files).get_mut(&inode) {
            file.due = file.due.max(due);
            if file.has_timer {
                self.sending.awaited.notify_waiters();
            }
        }
    }

    fn next_extent(self: &Arc<Self>, inode: Inode) -> Option<(ExtentId, Extent, Way)> {
        if !lock(&self.sending.files).get(&inode).is_some_and(File::may_send) {
            return None;
        }
        let link = self.client.link();
        let mut files = lock(&self.sending.files);
        let mut offers = lock(&self.sending.offers);
        let file = files.get_mut(&inode).filter(|file| file.may_send())?;
        if file.behind.bytes_under_way() >= offers.under_way_bytes_max(inode.0, &link) {
            return None;
        }
        let held_after = offers.goes_as_hashes(inode.0, &link).then_some(file.due);
        let Some((id, extent)) = file.behind.next(held_after) else {
            if held_after.is_some() && !file.behind.is_all_sent() && !file.has_timer {
                file.has_timer = true;
                self.send_held_later(inode);
            }
            return None;
        };
        file.under_way += 1;
        // What the host must put in its place by other rules goes as it is.
        let is_plain = !extent.appends && extent.under.is_none();
        let way = if is_plain { offers.way(inode.0, extent.range, &link) } else { Way::Bytes };
        Some((id, extent, way))
    }

    fn send_held_later(self: &Arc<Self>, inode: Inode) {
        let (fs, due) = (Arc::clone(self), self.writes_so_far());
        // From here on, and not only from when the task runs.
        let awaited = Arc::clone(&self.sending.awaited).notified_owned();
        self.runtime.spawn(async move {
            // Whoever waits has said up to where.
            let is_awaited = timeout(HOLD, awaited).await.is_ok();
            if let Some(file) = lock(&fs.sending.files).get_mut(&inode) {
                file.has_timer = false;
                if !is_awaited && file.under_way == 0 {
                    file.due = file.due.max(due);
                }
            }
            fs.send_next(inode);
        });
    }

    async fn send(self: Arc<Self>, inode: Inode, id: ExtentId, extent: Extent, way: Way) {
        let Extent { appends, range, parts, under, growth, .. } = extent;
        // Whatever becomes of it, also in a panic: nobody may wait for it for ever.
        let mut ended =
            Ended { fs: Arc::clone(&self), inode, id, len: range.len as usize, is_decided: false };
        let bytes = match <[Bytes; 1]>::try_from(parts) {
            Ok([one]) => one,
            Err(parts) => parts.concat().into(),
        };
        if way == Way::BytesAndQuestion {
            let (fs, content) = (Arc::clone(&self), bytes.clone());
            self.runtime.spawn(async move { fs.ask_about(inode, range.offset, &content).await });
        }
        let sent = if appends {
            // Nothing else of the file is under way: what is known of it has all that went before.
            let believed = lock(&self.inodes).get(inode).map_or(0, |record| record.attributes().size);
            self.send_bytes(inode, Some(id), WriteAt::End { believed }, bytes, &Mutex::default()).await
        } else {
            self.send_in_turn((inode, id), (range.offset, growth, under), &bytes, way).await
        };
        if let Err(error) = sent {
            tracing::warn!(inode = inode.0, ?range, %error, "what was written could not be sent");
            self.note_full(inode, &error);
            self.write_failed(inode, error);
            if appends {
                self.drop_appends(inode);
            } else if let Some(file) = lock(&self.sending.files).get_mut(&inode) {
                file.behind.failed(id);
            }
        }
        ended.is_decided = true;
    }

    /// An extent, or some of one, is with the client.
    pub(super) fn begun(
        &self,
        inode: Inode,
        id: Option<ExtentId>,
        len: u64,
        attempt: &Mutex<Option<Attempt>>,
    ) {
        if let Some(record) = lock(&self.inodes).get_mut(inode) {
            let mut attempt = lock(attempt);
            *attempt = Some(record.writes_mut().begins(len, attempt.is_some()));
        }
        if let (Some(file), Some(id)) = (lock(&self.sending.files).get_mut(&inode), id) {
            file.behind.begun(id);
        }
        self.sending.progress.send_replace(());
    }

    /// Gives up what waits behind an append that failed.
    fn drop_appends(&self, inode: Inode) {
        let file_bytes = lock(&self.sending.files).get_mut(&inode).map(|file| file.behind.drop_appends());
        let bytes = file_bytes.unwrap_or(0);
        if bytes > 0 {
            tracing::warn!(inode = inode.0, bytes, "what was to be appended behind it is not sent either");
            self.sending.budget.add_permits(bytes as usize);
        }
    }

    /// Has whole chunks that are written kept for those who read them again.
    fn keep_chunks(self: &Arc<Self>, inode: Inode, offset: u64, bytes: &Bytes) {
        if !self.fetcher.keeps_written() {
            return;
        }
        let whole = lock(&self.sending.own_content).take(inode.0, offset, bytes);
        if !whole.is_empty() {
            let fs = Arc::clone(self);
            self.runtime.spawn(async move { fs.keep_written(inode, whole) });
        }
    }

    /// The same for the end of a file.
    pub(super) fn keep_last_chunk(&self, inode: Inode) {
        let last = lock(&self.sending.own_content).end(inode.0);
        self.keep_written(inode, last);
    }

    fn keep_written(&self, inode: Inode, chunks: impl IntoIterator<Item = (ChunkIndex, Bytes)>) {
        let Some(attributes) = lock(&self.inodes).get(inode).map(|record| record.attributes()) else {
            return;
        };
        let history = self.content_kept(&attributes).history;
        for (index, content) in chunks {
            self.fetcher.insert_written(&history, index, content);
        }
    }

    fn write_failed(&self, inode: Inode, error: FsError) {
        if let Some(record) = lock(&self.inodes).get_mut(inode) {
            record.writes_mut().failed(error);
        }
    }
}

/// Takes an extent off the table when its task ends.
struct Ended {
    fs: Arc<FileSystem>,
    inode: Inode,
    id: ExtentId,
    len: usize,
    /// Whether the host has it, or its writers are told that it has not.
    is_decided: bool,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if !self.is_decided {
            // The task panicked, or the mount ends: what was written is not where it should be.
            let lost = CallError::BadAnswer("what was written was lost on its way".to_owned());
            self.fs.write_failed(self.inode, FsError::Call(lost));
        }
        {
            let mut files = lock(&self.fs.sending.files);
            if let Some(file) = files.get_mut(&self.inode) {
                file.behind.done(self.id);
                file.under_way -= 1;
                if file.behind.is_empty() {
                    files.remove(&self.inode);
                }
            }
        }
        self.fs.sending.budget.add_permits(self.len);
        self.fs.send_next(self.inode);
        self.fs.sending.progress.send_replace(());
    }
}
