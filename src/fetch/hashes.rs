//! Requests hashes from the host ahead of the reader, and records the hashes of chunks that the disk cache
//! holds.
//!
//! An answer has no other effect. A cached chunk with a known hash is later loaded and verified like a
//! chunk that was read before. If the version is not settled, the host is asked to confirm it again. A host
//! that lies about hashes serves wrong bytes of its own file, as it could anyway.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::hash_probe::{Answer, Now};
use super::scheduler::Start;
use super::{FetchError, Fetcher, FileContent};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange};
use crate::client::CallError;
use crate::proto::{ErrorCode, ManifestRequest};

/// Time that a warm-up waits for the hashes of a run. A busy hard disk needs it to read 32 MiB.
const WARM_WAIT_MAX: Duration = Duration::from_secs(5);

impl Fetcher {
    /// Requests the first hashes of a file that is being opened, if the cache may hold its content. Returns
    /// at once.
    pub fn probe_open(&self, content: &FileContent) {
        self.request_hashes(content, |state, at| state.hash_probe.opened(content, at));
    }

    /// Notes that the window of a reader now ends at the end of `window`.
    pub(super) fn request_hashes_beyond(&self, content: &FileContent, window: ChunkRange) {
        self.request_hashes(content, |state, at| {
            state.hash_probe.reached(content, window);
            state.hash_probe.next(content, at).into_iter().collect()
        });
    }

    /// Requests hashes for a warm-up run as for a reader at this place, and waits for those in flight. A
    /// warm-up has no waiting reader, so it can wait.
    pub(super) async fn learn_hashes(&self, content: &FileContent, run: ChunkRange) {
        if run.first == ChunkIndex(0) {
            self.probe_open(content);
        }
        self.request_hashes_beyond(content, run);
        let deadline = Instant::now() + WARM_WAIT_MAX;
        loop {
            let answered = self.hash_request_ended.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let is_requested = self.with_state(|state| state.hash_probe.is_requested(&content.key, run));
            if !is_requested || timeout_at(deadline, answered).await.is_err() {
                return;
            }
        }
    }

    fn request_hashes(
        &self,
        content: &FileContent,
        first: impl FnOnce(&mut super::State, Now) -> Vec<ChunkRange>,
    ) {
        // An empty cache holds nothing under another name either.
        if self.cache.stats().entries == 0 {
            return;
        }
        let link = self.client.link();
        let at = Now { now: Instant::now().into_std(), rtt: link.rtt };
        let requests: Vec<ChunkRange> = self.with_state(|state| {
            let mut requests = first(state, at);
            requests.extend(std::iter::from_fn(|| state.hash_probe.next(content, at)));
            requests
        });
        let Some(this) = self.this.upgrade().filter(|_| !requests.is_empty()) else { return };
        for range in requests {
            let asked =
                HashRequest { fetcher: Arc::clone(&this), content: *content, range, answer: Answer::None };
            self.runtime.spawn(asked.fetch());
        }
    }

    /// Waits for the hashes of chunks that are to be read, as long as that pays.
    pub(super) async fn wait_for_hashes(&self, start: &Start) {
        loop {
            let answered = self.hash_request_ended.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let now = Instant::now().into_std();
            let deadline = self.with_state(|state| {
                state.hash_probe.wait_until(&start.content.key, start.chunks, start.is_ahead, now)
            });
            let Some(until) = deadline else { return };
            // The loop checks the state again in either case.
            let _ = timeout_at(until.into(), answered).await;
        }
    }
}

/// Hash request in flight. Its waiters are notified in any case.
struct HashRequest {
    fetcher: Arc<Fetcher>,
    content: FileContent,
    range: ChunkRange,
    answer: Answer,
}

impl Drop for HashRequest {
    fn drop(&mut self) {
        let now = Instant::now().into_std();
        self.fetcher.with_state(|state| {
            state.hash_probe.answered(&self.content.key, self.range, self.answer, now);
        });
        self.fetcher.hash_request_ended.notify_waiters();
    }
}

impl HashRequest {
    async fn fetch(mut self) {
        match self.ask().await {
            Ok(answer) => self.answer = answer,
            Err(FetchError::Call(CallError::Host(error)))
                if matches!(error.code, ErrorCode::Malformed | ErrorCode::Unsupported) =>
            {
                tracing::info!("the host does not support hash requests: {error}");
                self.fetcher.with_state(|state| state.hash_probe.disable());
            }
            Err(error) => tracing::debug!(%error, "a hash request failed"),
        }
        let (fetcher, content) = (Arc::clone(&self.fetcher), self.content);
        drop(self);
        // The next requests depend on this answer.
        fetcher.request_hashes(&content, |_, _| Vec::new());
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
        let found = self.record_held(chunks, &hashes, &unknown);
        self.fetcher.with_state(|state| {
            state.counters.manifest_chunks += asked;
            state.counters.manifest_chunks_held += found;
        });
        Ok(Answer::Hashes { held: held + found, computed: u64::from(computed) })
    }

    /// Returns the chunks with unknown hashes, and the number of the others that the cache holds.
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
        // A join error means that the runtime is shutting down.
        self.fetcher.runtime.spawn_blocking(look_up).await.unwrap_or_default()
    }

    /// Records the hashes of chunks that the cache holds; the others gain nothing. Returns their number.
    fn record_held(&self, chunks: ChunkRange, hashes: &[ChunkHash], unknown: &[ChunkIndex]) -> u64 {
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
