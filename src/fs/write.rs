//! Writing: `write`, `fallocate`, `copy_file_range`, `flush`, `fsync`.
//!
//! A write is answered when it is queued (`sending`); where the host's disk is nearly full (`room`), when the host has it;
//! one that is synchronous, when the host's disk has it. `close` returns when the host
//! has everything, `fsync` when its disk has.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::behind::Place;
use super::change::Unanswered;
use super::files::OpenFile;
use super::inodes::{Inode, Record};
use super::unsynced::{Attempt, Teller};
use super::{FileSystem, FsError, lock};
use crate::chunk::ByteRange;
use crate::client::{Client, FirstSession};
use crate::proto::{AllocateHow, Change, WRITE_BYTES_MAX, Written};

/// How a program writes. Nothing of it is the handle's: `fcntl` changes `O_APPEND`, and one call of `pwritev2` can be synchronous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteHow {
    /// At the end of the file, wherever that is by then.
    pub appends: bool,
    /// The host's disk has it when the write returns.
    pub syncs: bool,
    /// The writer is none who may keep the file's set-user-id and set-group-id bits.
    pub drops_set_id: bool,
}

impl FileSystem {
    /// Writes `bytes` at `offset`, or at the end of the file. How many bytes were written: all.
    pub async fn write(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        bytes: Bytes,
        how: WriteHow,
    ) -> Result<u32, FsError> {
        let file = self.file_to_write(handle)?;
        let len = bytes.len() as u32;
        self.check_write(&file, bytes.len())?;
        if bytes.is_empty() {
            return Ok(0);
        }
        if how.drops_set_id {
            self.drop_set_id(file.inode).await?;
        }
        let (under, place) = (self.locked_in(&file, handle), self.place_for(&file, offset, how)?);
        if self.is_short_of_room(file.inode, bytes.len()) {
            self.send_through(file.inode, under, place, bytes).await?;
            // What was under way before it is over, too.
            self.unheard_failure(&file, Teller::Write)?;
        } else {
            self.send_behind(file.inode, under, place, bytes).await?;
        }
        if how.syncs {
            self.sync_file(&file, false, Teller::Write).await?;
        }
        Ok(len)
    }

    /// The same, if nothing has to be waited for. What is not written is not copied.
    pub fn write_now(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        how: WriteHow,
    ) -> Option<Result<u32, FsError>> {
        let file = self.file_to_write(handle).ok().filter(|_| !how.syncs && !bytes.is_empty())?;
        if how.drops_set_id && self.has_set_id(file.inode).ok()? {
            return None;
        }
        let place = self.check_write(&file, bytes.len()).and_then(|()| self.place_for(&file, offset, how));
        match place {
            Ok(_) if self.is_short_of_room(file.inode, bytes.len()) => None,
            Ok(place) => {
                let under = self.locked_in(&file, handle);
                self.send_now(file.inode, under, place, bytes).then_some(Ok(bytes.len() as u32))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Whether so much can be written at once, and the handle has nothing to hear of an earlier write.
    fn check_write(&self, file: &OpenFile, len: usize) -> Result<(), FsError> {
        if len as u64 > WRITE_BYTES_MAX {
            return Err(FsError::Invalid);
        }
        self.unheard_failure(file, Teller::Write)
    }

    fn place_for(&self, file: &OpenFile, offset: u64, how: WriteHow) -> Result<Place, FsError> {
        if how.appends {
            self.with_record(file.inode, |record| Place::End(record.attributes().size))
        } else {
            Ok(Place::Offset(offset))
        }
    }

    /// Reserves room, or makes holes and zeroes.
    pub async fn allocate(&self, handle: u64, range: ByteRange, how: AllocateHow) -> Result<(), FsError> {
        let file = self.file_to_write(handle)?;
        self.sent(file.inode).await?;
        self.change([file.inode], &[], |[node]| Change::Allocate { node, range, how }).await.map(drop)
    }

    /// Copies within the host. How many bytes were copied: fewer than asked where the source ends, or the host has worked long
    /// enough.
    pub async fn copy_range(
        &self,
        (from, range): (u64, ByteRange),
        (to, offset): (u64, u64),
    ) -> Result<u64, FsError> {
        let from = lock(&self.files).get(from).ok_or(FsError::BadHandle(from))?;
        let to = self.file_to_write(to)?;
        self.sent(from.inode).await?;
        self.sent(to.inode).await?;
        let first = FirstSession::default();
        let call = |client: Arc<dyn Client>, [from, to]: [_; 2]| {
            let first = first.clone();
            async move { client.copy(Change::CopyRange { from, range, to, offset }, &first).await }
        };
        let asked = Instant::now();
        let unanswered = Unanswered { fs: self, inodes: &[to.inode], directories: &[] };
        let answer = self.ask_to_change([from.inode, to.inode], call).await;
        unanswered.answered();
        self.written(to.inode, asked, (None, 0), answer).map(|written| written.len)
    }

    /// A descriptor of the handle is closed: the host has everything when this returns, and what failed is told here at the
    /// latest.
    pub async fn flush(self: &Arc<Self>, handle: u64) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        let _hurry = self.hurry(file.inode);
        self.keep_last_chunk(file.inode);
        self.sent(file.inode).await?;
        // What the host has accepted may be lost already; asked for under the table's lock, as the answer to a write may be newer.
        self.with_record(file.inode, |record| {
            if let Some(boot) = self.client.boot() {
                record.heard_of(boot);
            }
        })?;
        self.unheard_failure(&file, Teller::Close)
    }

    /// Returns when the host's disk has everything that was written to the file.
    pub async fn fsync(self: &Arc<Self>, handle: u64, data_only: bool) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.sync_file(&file, data_only, Teller::Sync).await
    }

    /// Returns when the host's disk has the directory's entries.
    pub async fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<(), FsError> {
        if self.config.read_only {
            return Ok(());
        }
        let inode = self.directory_of(handle)?;
        self.ask(inode, |client, node| async move { client.sync(node, data_only).await }).await.map(drop)
    }

    /// Has the host sync as soon as it has what is under way: one round trip for both.
    async fn sync_file(
        self: &Arc<Self>,
        file: &OpenFile,
        data_only: bool,
        teller: Teller,
    ) -> Result<(), FsError> {
        if !self.config.read_only {
            self.sync_content(file.inode, self.writes_so_far(), data_only).await?;
        }
        self.unheard_failure(file, teller)
    }

    /// Has the first `writes` to a file brought to the host's disk.
    pub(super) async fn sync_content(
        self: &Arc<Self>,
        inode: Inode,
        writes: u64,
        data_only: bool,
    ) -> Result<(), FsError> {
        let _hurry = self.hurry(inode);
        let repeated = self.with_record(inode, |record| record.writes().repeated())?;
        self.begun_until(inode, writes).await?;
        self.sync_until(inode, writes, data_only).await?;
        if self.with_record(inode, |record| record.writes().repeated())? != repeated {
            // What had to be sent anew may have come behind the sync.
            self.sync_until(inode, writes, data_only).await?;
        }
        Ok(())
    }

    /// A sync of what is under way, of which the first `writes` are over then.
    async fn sync_until(&self, inode: Inode, writes: u64, data_only: bool) -> Result<(), FsError> {
        let begun = self.with_record(inode, |record| record.writes().sync_begins())?;
        let boot = self.ask(inode, |client, node| async move { client.sync(node, data_only).await }).await?;
        self.sent_until(inode, writes).await?;
        self.with_record(inode, |record| record.writes_mut().synced(begun, boot))
    }

    /// Bytes that the host has accepted and that no sync has brought to its disk, of the files that are known.
    pub fn unsynced_bytes(&self) -> u64 {
        lock(&self.inodes).records().map(|record| record.writes().unsynced_bytes()).sum()
    }

    /// Takes note of what became of a write, of which `len` bytes were sent in an attempt, or of a copy within the host.
    pub(super) fn written(
        &self,
        inode: Inode,
        asked: Instant,
        (attempt, len): (Option<Attempt>, u64),
        answer: Result<Written, FsError>,
    ) -> Result<Written, FsError> {
        let completed = Instant::now();
        if let Ok(written) = &answer {
            self.learn_own([&written.attributes], asked, completed);
            self.with_record(inode, |record| {
                record.more_mut().pages = None;
                match attempt {
                    Some(attempt) => record.writes_mut().accepted(attempt, written.boot, len),
                    None => record.writes_mut().changed(written.boot, written.len),
                }
            })?;
        } else {
            // Some of it may have been written.
            lock(&self.inodes).outdate(inode, completed);
            if attempt.is_some() {
                let _ = self.with_record(inode, |record| record.writes_mut().not_accepted(len));
            }
        }
        answer
    }

    fn file_to_write(&self, handle: u64) -> Result<Arc<OpenFile>, FsError> {
        if self.config.read_only {
            return Err(FsError::ReadOnly);
        }
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.check_locked(&file)?;
        Ok(file)
    }

    fn unheard_failure(&self, file: &OpenFile, teller: Teller) -> Result<(), FsError> {
        let mut heard = lock(&file.failures_heard);
        let inodes = lock(&self.inodes);
        inodes
            .get(file.inode)
            .and_then(|record| record.writes().unheard(&mut heard, teller))
            .map_or(Ok(()), Err)
    }

    pub(super) fn with_record<T>(
        &self,
        inode: Inode,
        work: impl FnOnce(&mut Record) -> T,
    ) -> Result<T, FsError> {
        lock(&self.inodes).get_mut(inode).map(work).ok_or(FsError::UnknownInode(inode.0))
    }
}
