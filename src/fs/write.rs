//! Writing: `write`, `fallocate`, `copy_file_range`, `flush`, `fsync`.
//!
//! A write is answered when it is queued (`sending`); one that appends, or is synchronous, when the host has accepted it. `close` returns
//! when the host has everything, `fsync` when its disk has.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::files::OpenFile;
use super::inodes::{Inode, Record};
use super::{FileSystem, FsError, lock};
use crate::chunk::ByteRange;
use crate::client::Client;
use crate::proto::{AllocateHow, Change, WRITE_BYTES_MAX, WriteAt, Written};

impl FileSystem {
    /// Writes `bytes` at `offset`, or, if the handle appends and this is not a page that was changed in memory (`from_page`), at the end of
    /// the file. How many bytes were written: all.
    pub async fn write(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        bytes: Bytes,
        from_page: bool,
    ) -> Result<u32, FsError> {
        let file = self.file_to_write(handle)?;
        let len = bytes.len() as u32;
        if bytes.len() as u64 > WRITE_BYTES_MAX {
            return Err(FsError::Invalid);
        }
        self.unheard_failure(&file)?;
        if !bytes.is_empty() && !file.syncs && (!file.appends || from_page) {
            let under = self.locked_in(&file, handle);
            self.send_behind(file.inode, under, offset, bytes).await?;
            return Ok(len);
        }
        self.sent(file.inode).await?;
        let at = if file.appends && !from_page {
            let believed = self.with_record(file.inode, |record| record.attributes.size)?;
            WriteAt::End { believed }
        } else {
            let under = self.locked_in(&file, handle);
            under.map_or(WriteAt::Offset(offset), |run| WriteAt::Under { run, offset })
        };
        let call = |client: Arc<dyn Client>, [node]: [_; 1]| {
            let bytes = bytes.clone();
            async move { client.write(node, at, bytes).await }
        };
        let begun = Instant::now();
        let answer = self.ask_to_change([file.inode], call).await;
        self.written(file.inode, begun, answer)?;
        if file.syncs {
            self.sync_file(&file, false).await?;
        }
        Ok(len)
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
        let call = |client: Arc<dyn Client>, [from, to]: [_; 2]| async move {
            client.copy(Change::CopyRange { from, range, to, offset }).await
        };
        let begun = Instant::now();
        let answer = self.ask_to_change([from.inode, to.inode], call).await;
        self.written(to.inode, begun, answer).map(|written| written.len)
    }

    /// A descriptor of the handle is closed: the host has everything when this returns, and what failed is told here at the
    /// latest.
    pub async fn flush(&self, handle: u64) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.sent(file.inode).await?;
        self.unheard_failure(&file)
    }

    /// Returns when the host's disk has everything that was written to the file.
    pub async fn fsync(&self, handle: u64, data_only: bool) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.sync_file(&file, data_only).await
    }

    /// Returns when the host's disk has the directory's entries.
    pub async fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<(), FsError> {
        if self.config.read_only {
            return Ok(());
        }
        let inode = self.directory_of(handle)?;
        self.ask(inode, |client, node| async move { client.sync(node, data_only).await }).await.map(drop)
    }

    async fn sync_file(&self, file: &OpenFile, data_only: bool) -> Result<(), FsError> {
        self.sent(file.inode).await?;
        if !self.config.read_only {
            let begun = self.with_record(file.inode, |record| record.writes.sync_begins())?;
            let call = |client: Arc<dyn Client>, node| async move { client.sync(node, data_only).await };
            let boot = self.ask(file.inode, call).await?;
            self.with_record(file.inode, |record| record.writes.synced(begun, boot))?;
        }
        self.unheard_failure(file)
    }

    /// Bytes that the host has accepted and that no sync has brought to its disk, of the files that are known.
    pub fn unsynced_bytes(&self) -> u64 {
        lock(&self.inodes).records().map(|record| record.writes.unsynced_bytes()).sum()
    }

    /// Takes note of what became of a write.
    pub(super) fn written(
        &self,
        inode: Inode,
        begun: Instant,
        answer: Result<Written, FsError>,
    ) -> Result<Written, FsError> {
        let completed = Instant::now();
        match &answer {
            Ok(written) => {
                self.learn_own([&written.attributes], begun, completed);
                self.with_record(inode, |record| {
                    record.pages = None;
                    record.writes.accepted(written.boot, written.len);
                })?;
            }
            // Some of it may have been written.
            Err(_) => lock(&self.inodes).outdate(inode, completed),
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

    fn unheard_failure(&self, file: &OpenFile) -> Result<(), FsError> {
        let mut heard = lock(&file.failures_heard);
        let inodes = lock(&self.inodes);
        inodes.get(file.inode).and_then(|record| record.writes.unheard(&mut heard)).map_or(Ok(()), Err)
    }

    fn with_record<T>(&self, inode: Inode, work: impl FnOnce(&mut Record) -> T) -> Result<T, FsError> {
        lock(&self.inodes).get_mut(inode).map(work).ok_or(FsError::UnknownInode(inode.0))
    }
}
