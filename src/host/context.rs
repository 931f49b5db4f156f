//! What the requests of one connection share.

use std::sync::{Arc, OnceLock};

use super::budget::KeyBudget;
use super::counters::Counters;
use super::index::HashIndex;
use super::packing::{Packer, Packing};
use super::session::Session;
use crate::io::Engine;
use crate::proto::{BootId, Errno, NodeId, WireError};

/// What the kernel calls its run, where it tells.
pub(super) fn boot_id() -> Option<BootId> {
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
    /// What its key uses and may use.
    pub(super) budget: Arc<KeyBudget>,
    packer: Packer,
    /// What is known of its files' hashes.
    pub(super) index: Arc<HashIndex>,
    engine: Engine,
    counters: Arc<Counters>,
}

impl ClientContext {
    /// For a new connection.
    pub(super) fn new(
        session: Arc<Session>,
        (read_only, owners): (bool, bool),
        budget: Arc<KeyBudget>,
        packer: Packer,
        index: Arc<HashIndex>,
        engine: Engine,
        counters: Arc<Counters>,
    ) -> Self {
        Self { session, read_only, owners, budget, packer, index, engine, counters }
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

    /// Runs system calls where they may wait, with the rights of the one as whom the client acts. What panics answers EIO.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        calls: impl FnOnce(&Session) -> Result<T, WireError> + Send + 'static,
    ) -> Result<T, WireError> {
        let place = self.budget.place_on_thread().await;
        let session = Arc::clone(&self.session);
        let run = move || {
            // Held by the thread: a request that is given up leaves its call behind.
            let _place = place;
            session.with_rights(calls)
        };
        tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(WireError::system(Errno::EIO)))
    }
}
