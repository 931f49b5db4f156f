//! Reading: every call is answered from one version of its file.
//!
//! A read names the version that it wants. If the file has another by then, the host says so; the new attributes are
//! asked for and the whole call begins again. Bytes of two versions never meet in one answer. That holds for what
//! the kernel asks in one request: past the page cache that is one `read(2)` of up to 1 MiB (see `open_mode`).
//!
//! A file whose last change is so young that its next one may bear the same stamp is read with one request for each call,
//! past everything that is kept: parts that were fetched apart could belong to two states that look alike. The same goes
//! for a file that changes faster than it can be asked for by version: the host reads it between two of its changes.
//!
//! What lies in memory is served without asking as long as the attributes hold. A reader that goes on reading never waits
//! for them: they are asked for anew, behind its back, when half of their time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::events::FsEvent;
use super::files::OpenFile;
use super::inodes::Inode;
use super::nodes::Age;
use super::open_mode::DIRECT_BYTES_MIN;
use super::recovering::Recovering;
use super::{FileSystem, FsError, attributes, lock};
use crate::cache::FileKey;
use crate::chunk::{ByteRange, ChunkIndex, ChunkRange};
use crate::fetch::{FetchError, FileContent, OpenPrefetch, StreamId};
use crate::prefetch::{Demand, Limits, Plan, Prefetcher, window_limit};
use crate::proto::{Attributes, CURRENT_BYTES_MAX, NodeId, SeekTarget, Trust, Version};

/// How often a version is asked for before the host is asked for the file as it is. A file that was replaced once is
/// read in its new version by the second attempt, and from the cache from then on.
const VERSIONS_MAX: u32 = 2;

/// How often the host is asked for the file as it is. Each time it tries for a while to catch the file holding still.
const CURRENT_MAX: u32 = 4;

/// Longest range of one call, in bytes; the kernel asks for 1 MiB at most. Longer ones are cut.
const READ_BYTES_MAX: u64 = CURRENT_BYTES_MAX;

/// From this round-trip time on the beginning of a large file is asked for with its opening. On a shorter way it gains nobody
/// anything that a program which reads elsewhere would not lose again: 64 KiB are half a millisecond of 1 Gbit/s.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(2);

/// A chunk of at most this many bytes is never fetched in pieces: what the kernel's own readahead asks for at once.
const SMALL_CHUNK_BYTES: u64 = 128 * 1024;

/// What a handle knows of how it is read.
#[derive(Debug)]
pub(super) struct ReadState {
    version: Version,
    prefetcher: Prefetcher,
}

impl ReadState {
    pub(super) fn new(attributes: &Attributes) -> Self {
        Self { version: attributes.version(), prefetcher: Prefetcher::new() }
    }
}

impl FileSystem {
    /// The bytes of a range, at once or not at all: from memory, if it is known that they are still the file's. Never
    /// waits.
    pub fn read_now(self: &Arc<Self>, handle: u64, range: ByteRange) -> Option<Bytes> {
        let file = lock(&self.files).get(handle)?;
        if self.is_behind(file.inode) || self.check_locked(&file).is_err() {
            return None;
        }
        let holds_on = self.config.serves_stale && !self.is_connected();
        let age = if holds_on { Age::Any } else { Age::Fresh };
        let (attributes, _) = self.attributes_copy(file.inode, age).ok()??;
        let range = cut(range).clamp_to(attributes.size);
        if range.is_empty() {
            return Some(Bytes::new());
        }
        if !attributes::tell_changes_apart(&attributes) {
            return None;
        }
        let content = self.content_of(file.inode, &attributes);
        let bytes = self.fetcher.read_memory(&content, range)?;
        self.adopt(handle, &file, &attributes);
        self.plan(handle, &file, &content, range);
        self.refresh_waning(file.inode);
        Some(bytes)
    }

    /// The bytes of a range, fewer than asked only at the end of the file.
    pub async fn read(self: &Arc<Self>, handle: u64, range: ByteRange) -> Result<Bytes, FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        let range = cut(range);
        self.check_locked(&file)?;
        self.sent(file.inode).await?;
        let (mut attributes, _) = self.attributes_of(file.inode, Age::Fresh).await?;
        let mut recovering = Recovering::within(self.config.patience, Instant::now());
        let mut attempt = 0;
        while attempt < VERSIONS_MAX + CURRENT_MAX {
            self.adopt(handle, &file, &attributes);
            let (node, recoveries) = self.node_of(file.inode)?;
            let by_version = attempt < VERSIONS_MAX && attributes::tell_changes_apart(&attributes);
            let answer = if by_version {
                self.read_version(handle, &file, &attributes, range).await
            } else {
                self.client.read_current(node, range).await.map_err(FetchError::from)
            };
            match answer {
                Ok(bytes) => {
                    self.refresh_waning(file.inode);
                    return Ok(bytes);
                }
                Err(FetchError::VersionChanged) => {
                    attempt += 1;
                    if by_version {
                        attributes = self.attributes_from_host(file.inode).await?.0;
                    }
                }
                Err(FetchError::UnknownNode) => {
                    self.may_recover(&mut recovering, FetchError::UnknownNode)?;
                    self.recover(file.inode, recoveries, &mut recovering).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(FsError::KeepsChanging)
    }

    /// The next data or hole from `offset` on. Everything before the end is data where the host cannot tell.
    pub async fn lseek(&self, handle: u64, offset: u64, target: SeekTarget) -> Result<u64, FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.sent(file.inode).await?;
        self.ask(file.inode, |client, node| async move { client.seek(node, offset, target).await }).await
    }

    /// Asks for the beginning of a file while its open is still under way: who opens a file reads it, and one round
    /// trip is spared. If the file has changed since, the answer says so and is of no use. A large file that a program `copies` within
    /// the mount is read by the host alone.
    pub(super) fn read_first_ahead(&self, inode: Inode, handle: u64, copies: bool) -> Option<OpenPrefetch> {
        let (attributes, _) = self.attributes_copy(inode, Age::Any).ok()??;
        if attributes.size == 0 || !attributes::tell_changes_apart(&attributes) || !self.is_connected() {
            return None;
        }
        let content = self.content_of(inode, &attributes);
        if attributes.size < DIRECT_BYTES_MIN {
            let owner = StreamId { handle, cursor: u64::MAX };
            self.fetcher.read_ahead(&content, ChunkRange::new(ChunkIndex(0), 1), owner);
            return None;
        }
        self.fetcher.probe_open(&content);
        let is_worth_it = !copies && self.client.link().rtt >= LONG_ROUND_TRIP;
        if is_worth_it { self.fetcher.open_prefetch(&content) } else { None }
    }

    /// One attempt to read one version.
    async fn read_version(
        &self,
        handle: u64,
        file: &OpenFile,
        attributes: &Attributes,
        range: ByteRange,
    ) -> Result<Bytes, FetchError> {
        let range = range.clamp_to(attributes.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let content = self.content_of(file.inode, attributes);
        let plan = self.plan(handle, file, &content, range);
        let demand = whole_if_small(plan.demand, attributes.size);
        let first = lock(&file.first).take();
        if let (Some(first), Demand::Piece(_)) = (first, demand)
            && let Some(bytes) = first.read(&content, range).await?
        {
            return Ok(bytes);
        }
        self.fetcher.read(&content, range, demand).await
    }

    /// Tells the prefetcher of a read, and has done what it says should be done besides.
    fn plan(&self, handle: u64, file: &OpenFile, content: &FileContent, range: ByteRange) -> Plan {
        let link = self.client.link();
        let window_bytes_max = window_limit(self.fetcher.share_bytes(), link.rtt, link.bytes_per_second);
        let limits = Limits { window_bytes_max };
        let plan = lock(&file.reads).prefetcher.on_read(Instant::now(), range, content.version.size, limits);
        for cursor in &plan.cancel {
            self.fetcher.cancel(StreamId { handle, cursor: cursor.0 });
        }
        if let Some(ahead) = plan.ahead {
            self.fetcher.read_ahead(content, ahead.range, StreamId { handle, cursor: ahead.cursor.0 });
        }
        if let Some(consumed) = plan.consumed {
            self.fetcher.mark_consumed(content, consumed);
        }
        plan
    }

    /// Makes the handle read this version. If it read another, what was asked ahead is of no use, and the kernel's
    /// pages do not hold.
    fn adopt(&self, handle: u64, file: &OpenFile, attributes: &Attributes) {
        {
            let mut reads = lock(&file.reads);
            if reads.version == attributes.version() {
                return;
            }
            *reads = ReadState::new(attributes);
        }
        self.fetcher.cancel_handle(handle);
        self.drop_pages(file.inode, attributes);
    }

    /// Tells the kernel to drop its pages, once for each version.
    pub(super) fn drop_pages(&self, inode: Inode, attributes: &Attributes) {
        let version = attributes.is_settled().then(|| attributes.version());
        let had = match lock(&self.inodes).get_mut(inode) {
            Some(record) => std::mem::replace(&mut record.more_mut().pages, version),
            None => return,
        };
        if had.is_none() || had != version {
            self.events.send(FsEvent::InvalidateContent { inode });
        }
    }

    /// Asks for attributes behind the reader's back when they will soon not hold any more.
    fn refresh_waning(self: &Arc<Self>, inode: Inode) {
        let Ok(Some((attributes, learned))) = self.attributes_copy(inode, Age::Any) else { return };
        let now = Instant::now();
        let is_leased = lock(&self.leases).covers_attributes(learned.lease, &attributes, now);
        if is_leased || !self.config.freshness.attributes_wane(learned, now) || !self.is_connected() {
            return;
        }
        let refreshing = match lock(&self.inodes).get_mut(inode) {
            Some(record) => record.refreshing(),
            None => return,
        };
        if refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let fs = Arc::clone(self);
        self.runtime.spawn(async move {
            let _done = Cleared(refreshing);
            if let Err(error) = fs.attributes_from_host(inode).await {
                tracing::debug!(inode = inode.0, %error, "attributes were not refreshed");
            }
        });
    }

    /// The content of an open file. Where its version proves nothing, what was read before it was opened last is another one.
    pub(super) fn content_of(&self, inode: Inode, attributes: &Attributes) -> FileContent {
        let epoch = match attributes.trust {
            Trust::Full => 0,
            Trust::Weak => lock(&self.inodes).get(inode).map_or(0, |record| record.more().epoch),
        };
        FileContent { epoch, ..self.content_kept(attributes) }
    }

    /// The content of a file as the disk cache knows it.
    pub(super) fn content_kept(&self, attributes: &Attributes) -> FileContent {
        FileContent {
            node: attributes.node,
            version: attributes.version(),
            key: FileKey::from_bytes(content_key(&self.config.host_key, attributes)),
            history: FileKey::from_bytes(history_key(&self.config.host_key, &attributes.node)),
            settled: attributes.is_settled(),
            epoch: 0,
        }
    }
}

/// Clears a flag at its end, also when its task is dropped.
struct Cleared(Arc<AtomicBool>);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Small files, and small ends of files, are fetched as chunks whatever the plan says: a piece is not kept, and one
/// that is nearly the whole chunk spares the link nothing.
fn whole_if_small(demand: Demand, size: u64) -> Demand {
    match demand {
        Demand::Piece(piece)
            if piece.chunks().iter().all(|chunk| chunk.bytes_in(size).len <= SMALL_CHUNK_BYTES) =>
        {
            Demand::Chunks(piece.chunks())
        }
        demand => demand,
    }
}

const fn cut(range: ByteRange) -> ByteRange {
    let len = if range.len < READ_BYTES_MAX { range.len } else { READ_BYTES_MAX };
    ByteRange::new(range.offset, len)
}

/// Names one version of one file of one host, for a cache that outlives the mount and serves several hosts.
fn content_key(host_key: &[u8; 32], attributes: &Attributes) -> [u8; 32] {
    let version = attributes.version();
    let mut hasher = blake3::Hasher::new_derive_key("wormhole 2026-11 content of one version of one file");
    hash_node(&mut hasher, host_key, &attributes.node);
    hasher.update(&version.size.to_le_bytes());
    for stamp in [version.mtime.0, version.ctime.0] {
        hasher.update(&stamp.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Names one file of one host, whichever version it has.
fn history_key(host_key: &[u8; 32], node: &NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("wormhole 2026-11 content that a file had last");
    hash_node(&mut hasher, host_key, node);
    *hasher.finalize().as_bytes()
}

fn hash_node(hasher: &mut blake3::Hasher, host_key: &[u8; 32], node: &NodeId) {
    hasher.update(host_key).update(&node.device.to_le_bytes()).update(&node.inode.to_le_bytes());
    hasher.update(&node.birth_ns.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::CHUNK_BYTES;
    use crate::fs::tests::attributes;
    use crate::proto::{FileKind, Timestamp};

    #[test]
    fn every_part_of_a_name_makes_another_key() {
        let file = attributes(7, FileKind::Regular);
        let mut others = [file; 6];
        others[0].node.device += 1;
        others[1].node.inode += 1;
        others[2].node.birth_ns += 1;
        others[3].size += 1;
        others[4].mtime = Timestamp(1);
        others[5].ctime = Timestamp(1);
        let mut keys = vec![content_key(&[0; 32], &file), content_key(&[1; 32], &file)];
        keys.extend(others.iter().map(|other| content_key(&[0; 32], other)));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 8);
        let mut histories: Vec<_> = others.iter().map(|other| history_key(&[0; 32], &other.node)).collect();
        histories.extend([history_key(&[0; 32], &file.node), history_key(&[1; 32], &file.node)]);
        histories.sort_unstable();
        histories.dedup();
        assert_eq!(histories.len(), 5, "of nodes, not of versions");
    }

    #[test]
    fn small_files_and_ends_are_not_fetched_in_pieces() {
        let piece = |offset, len| Demand::Piece(ByteRange::new(offset, len));
        let whole = |demand, size| matches!(whole_if_small(demand, size), Demand::Chunks(_));
        assert!(whole(piece(0, 7), 7));
        assert!(whole(piece(0, 4096), SMALL_CHUNK_BYTES));
        assert!(!whole(piece(0, 4096), SMALL_CHUNK_BYTES + 1));
        assert!(whole(piece(CHUNK_BYTES, 100), CHUNK_BYTES + 200));
        assert!(!whole(piece(CHUNK_BYTES - 100, 200), CHUNK_BYTES + 200));
    }
}
