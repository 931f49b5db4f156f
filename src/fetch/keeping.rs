//! What came from the host on its way to the disk cache: it waits for room there, but not for ever.
//!
//! A disk may be slower than the link. The cache drops what it has no room for, so whoever reads ahead would fill memory at the
//! link's speed and forget most of it. A request therefore ends, and makes room for the next one, only when its chunks have
//! found a place or have waited for [`PATIENCE`]. Those who read were served before.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fetcher, FileContent};
use crate::chunk::{ChunkIndex, VerifiedChunk};

/// How long the chunks of one request wait for the disk. What the cache could not take by then is forgotten: a disk slower
/// than the link shall not make reading slower than the link. A longer wait (200 ms) made one read of 512 MiB over
/// 1 Gbit/s and 50 ms as slow as the disk, 17 MB/s.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often to look whether there is room: what 4 MiB take at 2 GB/s.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// The chunks of one request; when dropped, what still waits is offered to the cache at once.
pub(super) struct Keeping<'a> {
    fetcher: &'a Fetcher,
    content: FileContent,
    waiting: VecDeque<(ChunkIndex, VerifiedChunk)>,
}

impl<'a> Keeping<'a> {
    pub(super) const fn new(fetcher: &'a Fetcher, content: FileContent) -> Self {
        Self { fetcher, content, waiting: VecDeque::new() }
    }

    /// Takes a chunk to be kept, if its version names one content only.
    pub(super) fn keep(&mut self, index: ChunkIndex, chunk: VerifiedChunk) {
        if !self.content.settled {
            return;
        }
        self.waiting.push_back((index, chunk));
        while !self.fetcher.cache.is_behind() && self.put_next() {}
    }

    /// Waits until all have found room, or have waited long enough.
    pub(super) async fn finish(mut self) {
        let patience = Instant::now() + PATIENCE;
        while !self.waiting.is_empty() && Instant::now() < patience {
            if self.fetcher.cache.is_behind() {
                sleep(LOOK_INTERVAL).await;
            } else {
                self.put_next();
            }
        }
    }

    fn put_next(&mut self) -> bool {
        let Some((index, chunk)) = self.waiting.pop_front() else { return false };
        let hash = chunk.hash();
        self.fetcher.cache.insert(chunk);
        self.fetcher.cache.record_hash(&self.content.key, index, hash);
        true
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        while self.put_next() {}
    }
}
