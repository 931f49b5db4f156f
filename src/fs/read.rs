//! Reading: every call is answered from one version of its file.
//!
//! A read names the version that it wants. If the file has another by then, the host says so; the new attributes are
//! asked for and the whole call begins again. Bytes of two versions never meet in one answer. That holds for what
//! the kernel asks in one request: past the page cache that is one `read(2)` of up to 1 MiB (see `open_mode`).
//!
//! A file whose last change is so young that its next one may bear the same stamp is read with one request for each call,
//! past everything that is kept: parts that were fetched apart could belong to two states that look alike.
//!
//! What lies in memory is served without asking as long as the attributes hold. A reader that goes on reading never waits
//! for them: they are asked for anew, behind its back, when half of their time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::events::FsEvent;
use super::files::OpenFile;
use super::inodes::Inode;
use super::nodes::Age;
use super::{FileSystem, FsError, attributes, lock};
use crate::cache::FileKey;
use crate::chunk::ByteRange;
use crate::client::{CallError, ContentPart, Lane};
use crate::fetch::{FetchError, FileContent, OwnerId};
use crate::prefetch::{Demand, Limits, Plan, Prefetcher, window_limit};
use crate::proto::{Attributes, ReadRequest, SeekTarget, Version};

/// How often a read call begins again because the file changed, by way of the cache.
const ATTEMPTS_MAX: u32 = 8;

/// How often it then begins again with a single request for all of its bytes, which leaves the writer the least time.
const SINGLE_ATTEMPTS_MAX: u32 = 24;

/// Longest range of one call, in bytes; the kernel asks for 1 MiB at most. Longer ones are cut.
pub(super) const READ_BYTES_MAX: u64 = 1024 * 1024;

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
        let age = if self.is_connected() { Age::Fresh } else { Age::Any };
        let (attributes, _) = self.attributes_copy(file.inode, age).ok()??;
        let range = cut(range).clamp_to(attributes.size);
        if range.is_empty() {
            return Some(Bytes::new());
        }
        if !attributes::tell_changes_apart(&attributes) {
            return None;
        }
        let content = self.content_of(&attributes);
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
        let (mut attributes, _) = self.attributes_of(file.inode, Age::Fresh).await?;
        let mut may_recover = true;
        for attempt in 0..ATTEMPTS_MAX + SINGLE_ATTEMPTS_MAX {
            self.adopt(handle, &file, &attributes);
            let recoveries = self.node_of(file.inode)?.1;
            let answer = if attempt < ATTEMPTS_MAX && attributes::tell_changes_apart(&attributes) {
                self.read_version(handle, &file, &attributes, range).await
            } else {
                self.read_single(&attributes, range).await
            };
            let error = match answer {
                Ok(bytes) => {
                    self.refresh_waning(file.inode);
                    return Ok(bytes);
                }
                Err(error) => error,
            };
            match error {
                FetchError::VersionChanged => attributes = self.attributes_from_host(file.inode).await?.0,
                FetchError::UnknownNode if may_recover => {
                    may_recover = false;
                    self.recover(file.inode, recoveries).await?;
                }
                error => return Err(error.into()),
            }
        }
        Err(FsError::KeepsChanging(ATTEMPTS_MAX + SINGLE_ATTEMPTS_MAX))
    }

    /// The next data or hole from `offset` on. Everything before the end is data where the host cannot tell.
    pub async fn lseek(&self, handle: u64, offset: u64, target: SeekTarget) -> Result<u64, FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.ask(file.inode, |client, node| async move { client.seek(node, offset, target).await }).await
    }

    /// Asks for the content of a small file while its open is still under way: who opens a file reads it, and one round
    /// trip is spared. If the file has changed since, the answer says so and is of no use.
    pub(super) fn read_small_ahead(&self, inode: Inode, handle: u64) {
        let Ok(Some((attributes, _))) = self.attributes_copy(inode, Age::Any) else { return };
        let whole = ByteRange::new(0, attributes.size);
        let is_small = (1..=SMALL_CHUNK_BYTES).contains(&attributes.size);
        if is_small && attributes.is_settled() && self.is_connected() {
            let owner = OwnerId { handle, cursor: u64::MAX };
            self.fetcher.ahead(&self.content_of(&attributes), whole.chunks(), owner);
        }
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
        let content = self.content_of(attributes);
        let plan = self.plan(handle, file, &content, range);
        self.fetcher.read(&content, range, whole_if_small(plan.demand, attributes.size)).await
    }

    /// One attempt to read one version with one request for everything, past everything that is kept.
    async fn read_single(&self, attributes: &Attributes, range: ByteRange) -> Result<Bytes, FetchError> {
        let range = range.clamp_to(attributes.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let mut parts = self.client.read(ReadRequest::chunks_of(attributes, range), Lane::Demand);
        let mut bytes = BytesMut::zeroed(range.len as usize);
        let mut missing = range.len;
        loop {
            match parts.recv().await.unwrap_or(Err(CallError::Closed))? {
                ContentPart::Chunk { index, chunk } => {
                    missing -= copy_part(&mut bytes, range, index.offset(), chunk.bytes());
                }
                ContentPart::Piece { offset, bytes: piece } => {
                    missing -= copy_part(&mut bytes, range, offset, &piece);
                }
                ContentPart::End { .. } if missing == 0 => return Ok(bytes.freeze()),
                ContentPart::End { .. } => {
                    return Err(CallError::BadAnswer("a part of the file is missing".into()).into());
                }
                ContentPart::Same { .. } => {}
            }
        }
    }

    /// Tells the prefetcher of a read, and has done what it says should be done besides.
    fn plan(&self, handle: u64, file: &OpenFile, content: &FileContent, range: ByteRange) -> Plan {
        let link = self.client.link();
        let window_bytes_max = window_limit(self.fetcher.share_bytes(), link.rtt, link.bytes_per_second);
        let limits = Limits { window_bytes_max };
        let plan = lock(&file.reads).prefetcher.on_read(Instant::now(), range, content.version.size, limits);
        for cursor in &plan.cancel {
            self.fetcher.cancel(OwnerId { handle, cursor: cursor.0 });
        }
        if let Some(ahead) = plan.ahead {
            self.fetcher.ahead(content, ahead.range, OwnerId { handle, cursor: ahead.cursor.0 });
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
    fn drop_pages(&self, inode: Inode, attributes: &Attributes) {
        let version = attributes.is_settled().then(|| attributes.version());
        let had = match lock(&self.inodes).get_mut(inode) {
            Some(record) => std::mem::replace(&mut record.pages, version),
            None => return,
        };
        if had.is_none() || had != version {
            self.events.send(FsEvent::InvalidateContent { inode });
        }
    }

    /// Asks for attributes behind the reader's back when they will soon not hold any more.
    fn refresh_waning(self: &Arc<Self>, inode: Inode) {
        let Ok(Some((_, learned))) = self.attributes_copy(inode, Age::Any) else { return };
        if !self.config.freshness.attributes_wane(learned, Instant::now()) || !self.is_connected() {
            return;
        }
        let refreshing = match lock(&self.inodes).get(inode) {
            Some(record) => Arc::clone(&record.refreshing),
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

    pub(super) fn content_of(&self, attributes: &Attributes) -> FileContent {
        FileContent {
            node: attributes.node,
            version: attributes.version(),
            key: FileKey::from_bytes(content_key(&self.config.host_key, attributes)),
            settled: attributes.is_settled(),
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

/// Copies what `part`, which begins at `offset` of the file, has of `range` into `bytes`. Returns how much that was.
fn copy_part(bytes: &mut [u8], range: ByteRange, offset: u64, part: &[u8]) -> u64 {
    let Some(both) = range.intersect(ByteRange::new(offset, part.len() as u64)) else { return 0 };
    let from = (both.offset - offset) as usize;
    let to = (both.offset - range.offset) as usize;
    let len = both.len as usize;
    bytes[to..to + len].copy_from_slice(&part[from..from + len]);
    both.len
}

/// Names one version of one file of one host, for a cache that outlives the mount and serves several hosts.
fn content_key(host_key: &[u8; 32], attributes: &Attributes) -> [u8; 32] {
    let version = attributes.version();
    let mut hasher = blake3::Hasher::new_derive_key("wormhole 2026-11 content of one version of one file");
    hasher.update(host_key);
    for number in [attributes.node.device, attributes.node.inode, version.size] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [attributes.node.birth_ns, version.mtime.0, version.ctime.0] {
        hasher.update(&number.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
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

    #[test]
    fn parts_are_copied_where_they_belong() {
        let range = ByteRange::new(10, 5);
        let mut bytes = [0; 5];
        assert_eq!(copy_part(&mut bytes, range, 0, &[1; 12]), 2);
        assert_eq!(copy_part(&mut bytes, range, 12, &[2; 100]), 3);
        assert_eq!(copy_part(&mut bytes, range, 200, &[3; 1]), 0);
        assert_eq!(bytes, [1, 1, 2, 2, 2]);
    }
}
