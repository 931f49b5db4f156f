//! Asks the host for hashes ahead of the reader, and notes which of the chunks the disk cache holds.
//!
//! Nothing else follows from an answer: a chunk that is known and held is then loaded, and verified, as one that was read
//! before; of a version that is not settled it is asked about once more. A host that lies about hashes gives wrong bytes of its own file, as it could anyway.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::ledger::Start;
use super::manifests::{Answer, Moment};
use super::{FetchError, Fetcher, FileContent};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange};
use crate::client::CallError;
use crate::proto::{ErrorCode, ManifestRequest};

/// How long a warm-up waits for the hashes of a run: what a hard disk needs to read 32 MiB while others use it.
const WARM_PATIENCE: Duration = Duration::from_secs(5);

impl Fetcher {
    /// A file is being opened: where the cache may hold what is in it, its first hashes are asked for. Returns at once.
    pub fn opening(&self, content: &FileContent) {
        self.ask_hashes(content, |state, at| state.manifests.opened(content, at));
    }

    /// A reader of the file has its window up to the end of `window`.
    pub(super) fn ask_hashes_beyond(&self, content: &FileContent, window: ChunkRange) {
        self.ask_hashes(content, |state, at| {
            state.manifests.reached(content, window);
            state.manifests.next(content, at).into_iter().collect()
        });
    }

    /// Chunks are about to be brought for later: asks for hashes as for a reader who has come so far, and waits for theirs, as nobody
    /// waits for the chunks.
    pub(super) async fn learn_hashes(&self, content: &FileContent, run: ChunkRange) {
        if run.first == ChunkIndex(0) {
            self.opening(content);
        }
        self.ask_hashes_beyond(content, run);
        let deadline = Instant::now() + WARM_PATIENCE;
        loop {
            let answered = self.hashes_came.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let is_asked = self.with_state(|state| state.manifests.is_asked(&content.key, run));
            if !is_asked || timeout_at(deadline, answered).await.is_err() {
                return;
            }
        }
    }

    fn ask_hashes(
        &self,
        content: &FileContent,
        first: impl FnOnce(&mut super::State, Moment) -> Vec<ChunkRange>,
    ) {
        // An empty cache holds nothing under another name, either.
        if self.cache.stats().entries == 0 {
            return;
        }
        let link = self.client.link();
        let at = Moment { now: Instant::now().into_std(), rtt: link.rtt };
        let questions: Vec<ChunkRange> = self.with_state(|state| {
            let mut questions = first(state, at);
            questions.extend(std::iter::from_fn(|| state.manifests.next(content, at)));
            questions
        });
        let Some(this) = self.this.upgrade().filter(|_| !questions.is_empty()) else { return };
        for range in questions {
            let asked = Asked { fetcher: Arc::clone(&this), content: *content, range, answer: Answer::None };
            self.runtime.spawn(asked.bring());
        }
    }

    /// Waits for the hashes of chunks that are to be read, as long as that is worth while.
    pub(super) async fn wait_for_hashes(&self, start: &Start) {
        loop {
            let answered = self.hashes_came.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let now = Instant::now().into_std();
            let patience = self.with_state(|state| {
                state.manifests.patience(&start.content.key, start.chunks, start.is_ahead, now)
            });
            let Some(until) = patience else { return };
            // Whichever it was, the loop looks again.
            let _ = timeout_at(until.into(), answered).await;
        }
    }
}

/// A question under way; whatever becomes of it, those who wait are told.
struct Asked {
    fetcher: Arc<Fetcher>,
    content: FileContent,
    range: ChunkRange,
    answer: Answer,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let now = Instant::now().into_std();
        self.fetcher.with_state(|state| {
            state.manifests.answered(&self.content.key, self.range, self.answer, now);
        });
        self.fetcher.hashes_came.notify_waiters();
    }
}

impl Asked {
    async fn bring(mut self) {
        match self.ask().await {
            Ok(answer) => self.answer = answer,
            Err(FetchError::Call(CallError::Host(error)))
                if matches!(error.code, ErrorCode::Malformed | ErrorCode::Unsupported) =>
            {
                tracing::info!("the host does not tell hashes ahead: {error}");
                self.fetcher.with_state(|state| state.manifests.turn_off());
            }
            Err(error) => tracing::debug!(%error, "hashes that were asked for ahead did not come"),
        }
        let (fetcher, content) = (Arc::clone(&self.fetcher), self.content);
        drop(self);
        // An answer is what the next questions depend on.
        fetcher.ask_hashes(&content, |_, _| Vec::new());
    }

    async fn ask(&self) -> Result<Answer, FetchError> {
        let (unknown, held) = self.look_up().await;
        let (Some(first), Some(last)) = (unknown.first(), unknown.last()) else {
            return Ok(Answer::Hashes { held, computed: 0 });
        };
        let chunks = ChunkRange::new(*first, last.0 - first.0 + 1);
        let FileContent { node, version, .. } = self.content;
        let request = ManifestRequest { node, version, chunks };
        let (hashes, computed) = self.fetcher.client.manifest(request).await?;
        let asked = hashes.len() as u64;
        let found = self.take_note(chunks, &hashes, &unknown);
        self.fetcher.with_state(|state| {
            state.counters.manifest_chunks += asked;
            state.counters.manifest_chunks_held += found;
        });
        Ok(Answer::Hashes { held: held + found, computed: u64::from(computed) })
    }

    /// The chunks whose hashes are not known, and how many of the others the cache holds.
    async fn look_up(&self) -> (Vec<ChunkIndex>, u64) {
        let (cache, key, range) = (Arc::clone(&self.fetcher.cache), self.content.disk_key(), self.range);
        let look_up = move || {
            let (mut unknown, mut held) = (Vec::new(), 0);
            for index in range.iter() {
                match cache.known_hash(&key, index) {
                    Some(hash) => held += u64::from(cache.contains(hash)),
                    None => unknown.push(index),
                }
            }
            (unknown, held)
        };
        // A task that cannot be joined means that the runtime is shutting down.
        self.fetcher.runtime.spawn_blocking(look_up).await.unwrap_or_default()
    }

    /// Notes the hashes of chunks that are held; of the others there is nothing to gain. Returns how many these are.
    fn take_note(&self, chunks: ChunkRange, hashes: &[ChunkHash], unknown: &[ChunkIndex]) -> u64 {
        let mut found = 0;
        for (index, hash) in chunks.iter().zip(hashes) {
            if unknown.binary_search(&index).is_ok() && self.fetcher.cache.contains(*hash) {
                self.fetcher.record(&self.content, index, *hash);
                found += 1;
            }
        }
        found
    }
}
