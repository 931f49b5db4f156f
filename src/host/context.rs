//! What the requests of one connection share.

use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::counters::Counters;
use super::index::HashIndex;
use super::lending::Lending;
use super::packing::{Packer, Packing};
use super::session::Session;
use crate::io::Engine;
use crate::proto::{BootId, Errno, NodeId, WRITE_BYTES_MAX, WireError};

/// Reads that all requests of a connection may have ahead of what is being sent: 16 MiB, besides one a request.
const READS_AHEAD_MAX: usize = 64;

/// System calls that a connection may have waiting for the disk. One client on a file system that hangs must not take
/// all of the daemon's threads (tokio has 512).
const BLOCKING_MAX: usize = 64;

/// Requests for blocks that a connection may have worked on at a time; each holds 1.2 MiB.
const BLOCKS_MAX: usize = 8;

/// Content of a connection's writes that is taken in or written at a time, in units of the largest ordinary write: 64 MiB.
const RECEIVING_MAX: usize = 64;

/// What the kernel calls its run, where it tells.
fn boot_id() -> Option<BootId> {
    static ANSWER: OnceLock<Option<BootId>> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let text = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let hash = blake3::hash(&text);
        hash.as_bytes().first_chunk().copied().map(BootId)
    })
}

/// One connection of one client, let in.
#[derive(Debug)]
pub(super) struct ClientContext {
    /// What it may see.
    pub(super) session: Arc<Session>,
    /// Whether every change is refused.
    pub(super) read_only: bool,
    /// Whether the client may choose owners.
    pub(super) owners: bool,
    /// Its share of the engine's buffers.
    pub(super) lending: Lending,
    packer: Packer,
    /// What is known of its files' hashes.
    pub(super) index: Arc<HashIndex>,
    engine: Engine,
    counters: Arc<Counters>,
    ahead: Arc<Semaphore>,
    blocking: Arc<Semaphore>,
    blocks: Semaphore,
    receiving: Semaphore,
}

impl ClientContext {
    /// For a new connection; `lending` is its share.
    pub(super) fn new(
        session: Arc<Session>,
        (read_only, owners): (bool, bool),
        lending: Lending,
        packer: Packer,
        index: Arc<HashIndex>,
        engine: Engine,
        counters: Arc<Counters>,
    ) -> Self {
        let (ahead, blocking) = (Semaphore::new(READS_AHEAD_MAX), Semaphore::new(BLOCKING_MAX));
        Self {
            session,
            read_only,
            owners,
            lending,
            packer,
            index,
            engine,
            counters,
            ahead: Arc::new(ahead),
            blocking: Arc::new(blocking),
            blocks: Semaphore::new(BLOCKS_MAX),
            receiving: Semaphore::new(RECEIVING_MAX),
        }
    }

    /// What reads files.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How chunks of a file are compressed for this client; `None`: not at all.
    pub(super) fn packing(&self, node: NodeId) -> Option<Packing> {
        self.packer.for_file(|| self.session.tree.name(node))
    }

    /// What is counted.
    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Which run of the kernel this is.
    pub(super) fn boot(&self) -> BootId {
        boot_id().unwrap_or(BootId(self.session.run.instance.0))
    }

    /// Leave to take in the content of one more write, `len` bytes.
    pub(super) async fn leave_to_receive(&self, len: u32) -> Option<SemaphorePermit<'_>> {
        let places = u64::from(len).div_ceil(WRITE_BYTES_MAX).max(1) as u32;
        // Fails only when the semaphore is closed, which nobody does.
        self.receiving.acquire_many(places).await.ok()
    }

    /// Leave to read one more part before it is needed, where the connection has not too many already.
    pub(super) fn leave_to_read_ahead(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_owned().ok()
    }

    /// A place to read and cut a range in.
    pub(super) async fn place_for_blocks(&self) -> Option<SemaphorePermit<'_>> {
        self.blocks.acquire().await.ok()
    }

    /// Runs system calls where they may wait, with the rights of the one as whom the client acts. What panics answers EIO.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        calls: impl FnOnce(&Session) -> Result<T, WireError> + Send + 'static,
    ) -> Result<T, WireError> {
        let place = Arc::clone(&self.blocking).acquire_owned().await;
        let session = Arc::clone(&self.session);
        let run = move || {
            // Held by the thread: a request that is given up leaves its call behind.
            let _place = place;
            session.with_rights(calls)
        };
        tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(WireError::system(Errno::EIO)))
    }
}
