//! One extent on its way to the host: as bytes, or as hashes of what the host has already.
//!
//! An extent may make its file longer once everything that was written before it has (`behind`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::behind::ExtentId;
use super::inodes::Inode;
use super::offers::Way;
use super::unsynced::Attempt;
use super::{FileSystem, FsError, lock};
use crate::chunk::{CHUNK_BYTES, ChunkHash};
use crate::client::{CallError, Client, FirstSession};
use crate::proto::{ErrorCode, Growth, KnownChunk, SessionRun, WriteAt};

impl FileSystem {
    /// Sends content to its place. Where something before it fails, or the host refuses it as too early, it goes once
    /// everything before it is over, unless it would make the file longer behind what failed.
    pub(super) async fn send_in_turn(
        self: &Arc<Self>,
        (inode, id): (Inode, ExtentId),
        (offset, growth, under): (u64, Growth, Option<SessionRun>),
        bytes: &Bytes,
        way: Way,
    ) -> Result<(), FsError> {
        let (mut growth, attempt, mut is_alone) = (growth, Mutex::default(), false);
        loop {
            if is_alone || self.has_failed(inode) {
                is_alone = true;
                growth = self.growth_alone(inode, id).await;
                self.check_growth(inode, growth, offset + bytes.len() as u64)?;
            }
            let sent = match way {
                Way::Hashes => self.send_as_hashes(inode, (offset, growth), bytes, &attempt).await,
                Way::Bytes | Way::BytesAndQuestion => {
                    let at = at_offset(offset, growth, under);
                    self.send_bytes(inode, Some(id), at, bytes.clone(), &attempt).await
                }
            };
            match sent {
                Err(error) if is_too_early(&error) && !is_alone => is_alone = true,
                Err(error) if is_too_early(&error) => {
                    return Err(self.earlier_failure(inode).unwrap_or(error));
                }
                sent => return sent,
            }
        }
    }

    fn has_failed(&self, inode: Inode) -> bool {
        lock(&self.sending.files).get(&inode).is_some_and(|file| file.behind.has_failed())
    }

    /// Waits until nothing before an extent is under way.
    async fn growth_alone(&self, inode: Inode, id: ExtentId) -> Growth {
        let mut progress = self.sending.progress.subscribe();
        loop {
            let alone = match lock(&self.sending.files).get(&inode) {
                Some(file) => file.behind.growth_alone(id),
                None => Some(Growth::default()),
            };
            if let Some(growth) = alone {
                return growth;
            }
            // The sender lives as long as `self`.
            let _ = progress.changed().await;
        }
    }

    /// Gives up what would make the file longer behind a failure. Nothing before it is under way, so the size is known.
    fn check_growth(&self, inode: Inode, growth: Growth, end: u64) -> Result<(), FsError> {
        let size = lock(&self.inodes).get(inode).map_or(0, |record| record.attributes().size);
        match self.earlier_failure(inode) {
            Some(earlier) if size < growth.from.min(end) => Err(earlier),
            _ => Ok(()),
        }
    }

    fn earlier_failure(&self, inode: Inode) -> Option<FsError> {
        lock(&self.inodes).get(inode).and_then(|record| record.writes().last_failure())
    }

    /// Sends content: all of extent `id`, or some of one.
    pub(super) async fn send_bytes(
        &self,
        inode: Inode,
        id: Option<ExtentId>,
        at: WriteAt,
        bytes: Bytes,
        attempt: &Mutex<Option<Attempt>>,
    ) -> Result<(), FsError> {
        let len = bytes.len() as u64;
        let first = FirstSession::default();
        let call = |client: Arc<dyn Client>, [node]: [_; 1]| {
            // In this order: a sync that knows of the attempt waits for it.
            let written = client.write(node, at, bytes.clone(), &first);
            self.begun(inode, id, len, attempt);
            written
        };
        let asked = Instant::now();
        let answer = self.ask_to_change([inode], call).await;
        if let Err(error) = &answer
            && is_too_early(error)
        {
            return answer.map(drop);
        }
        let attempt = *lock(attempt);
        self.written(inode, asked, (attempt, len), answer).map(drop)
    }

    /// Has the host write what it has, and sends the rest.
    async fn send_as_hashes(
        self: &Arc<Self>,
        inode: Inode,
        (offset, growth): (u64, Growth),
        bytes: &Bytes,
        attempt: &Mutex<Option<Attempt>>,
    ) -> Result<(), FsError> {
        let Some(chunks) = self.send_hashes(inode, (offset, growth), bytes).await? else {
            return self
                .send_bytes(inode, None, at_offset(offset, growth, None), bytes.clone(), attempt)
                .await;
        };
        let found = chunks.iter().filter(|chunk| **chunk != KnownChunk::Missing).count();
        lock(&self.sending.offers).taken(inode.0, found);
        let mut rest = JoinSet::new();
        let numbered: Vec<_> = chunks.into_iter().enumerate().collect();
        for run in numbered.chunk_by(|one, next| one.1 == next.1) {
            let (from, what) = run[0];
            let from = from * CHUNK_BYTES as usize;
            let content = bytes.slice(from..from + run.len() * CHUNK_BYTES as usize);
            let offset = offset + from as u64;
            // The first goes where all would have gone; each of the others behind the one before it.
            let growth = if from == 0 { growth } else { Growth { from: offset } };
            if what != KnownChunk::Written {
                let fs = Arc::clone(self);
                rest.spawn(async move { fs.send_run(inode, (offset, growth), content, what).await });
            }
        }
        let mut all = Ok(());
        while let Some(sent) = rest.join_next().await {
            let lost = || CallError::BadAnswer("what was written was lost on its way".to_owned());
            all = all.and(sent.unwrap_or_else(|_| Err(lost().into())));
        }
        all
    }

    /// Sends some chunks of an extent: as hashes once more if the host holds them, else as bytes.
    async fn send_run(
        &self,
        inode: Inode,
        (offset, growth): (u64, Growth),
        content: Bytes,
        what: KnownChunk,
    ) -> Result<(), FsError> {
        if what == KnownChunk::Held {
            let chunks = self.send_hashes(inode, (offset, growth), &content).await?;
            if chunks.is_some_and(|chunks| chunks.iter().all(|chunk| *chunk == KnownChunk::Written)) {
                return Ok(());
            }
        }
        self.send_bytes(inode, None, at_offset(offset, growth, None), content, &Mutex::default()).await
    }

    /// What became of each chunk; `None` if the host does not know such requests.
    async fn send_hashes(
        &self,
        inode: Inode,
        (offset, growth): (u64, Growth),
        bytes: &Bytes,
    ) -> Result<Option<Vec<KnownChunk>>, FsError> {
        let (chunks, first) = (hashes_of(bytes), FirstSession::default());
        let call = |client: Arc<dyn Client>, [node]: [_; 1]| {
            let (chunks, first) = (chunks.clone(), first.clone());
            async move { client.write_known(node, offset, (chunks, growth), &first).await }
        };
        let asked = Instant::now();
        match self.ask_to_change([inode], call).await {
            Ok((written, taken)) => {
                self.sending.deduplicated_bytes.fetch_add(written.len, Ordering::Relaxed);
                self.written(inode, asked, (None, 0), Ok(written))?;
                Ok(Some(taken))
            }
            Err(FsError::Call(error)) if is_unknown(&error) => {
                lock(&self.sending.offers).turn_off();
                Ok(None)
            }
            Err(error) if is_too_early(&error) => Err(error),
            Err(error) => self.written(inode, asked, (None, 0), Err(error)).map(|_| None),
        }
    }

    /// Asks whether the host has content that is being sent: then what follows need not be.
    pub(super) async fn ask_about(self: &Arc<Self>, inode: Inode, offset: u64, bytes: &Bytes) {
        let chunks = hashes_of(bytes);
        let answer = match self.node_of(inode) {
            Ok((node, _)) => self.client.have_chunks(node, offset, chunks).await,
            Err(_) => Ok(Vec::new()),
        };
        {
            let mut offers = lock(&self.sending.offers);
            if answer.as_ref().is_err_and(is_unknown) {
                offers.turn_off();
            }
            let held = answer.map_or(0, |have| have.into_iter().filter(|has| *has).count());
            offers.answered(inode.0, held);
        }
        self.send_next(inode);
    }
}

/// Where content goes that may make its file longer.
pub(super) fn at_offset(offset: u64, growth: Growth, under: Option<SessionRun>) -> WriteAt {
    match under {
        None if growth.from == 0 => WriteAt::Offset(offset),
        run => WriteAt::Behind { offset, growth, run },
    }
}

fn hashes_of(bytes: &Bytes) -> Vec<ChunkHash> {
    bytes.chunks(CHUNK_BYTES as usize).map(ChunkHash::of).collect()
}

/// Whether the host lacks something that was written before.
fn is_too_early(error: &FsError) -> bool {
    matches!(error, FsError::Call(error) if error.code() == Some(ErrorCode::TooEarly))
}

/// Whether a host does not know what it is asked for: an older one.
const fn is_unknown(error: &CallError) -> bool {
    matches!(error.code(), Some(ErrorCode::Malformed | ErrorCode::Unsupported))
}
