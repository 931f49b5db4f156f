//! `statfs`: answered at once whenever there is an answer of any age, so that `df` and file dialogs never hang on a host
//! that is gone.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::inodes::Inode;
use super::{FileSystem, FsError, lock};
use crate::proto::{Errno, FsStatistics};

/// How long an answer is given again without asking. File managers ask every second or two.
const HOLDS: Duration = Duration::from_secs(5);

/// How long the host may take before the last answer is given instead. A person who waits longer thinks it hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last answer and when it was asked for.
#[derive(Debug, Default)]
pub(super) struct Statistics(Mutex<Option<(FsStatistics, Instant)>>);

impl Statistics {
    fn get(&self, age: Duration, now: Instant) -> Option<FsStatistics> {
        let known = *lock(&self.0);
        known
            .filter(|(_, asked)| now.saturating_duration_since(*asked) < age)
            .map(|(statistics, _)| statistics)
    }

    fn set(&self, statistics: FsStatistics, asked: Instant) {
        *lock(&self.0) = Some((statistics, asked));
    }
}

impl FileSystem {
    /// Room and use of the host's file system.
    pub async fn statfs(self: &Arc<Self>) -> Result<FsStatistics, FsError> {
        if let Some(known) = self.statistics.get(HOLDS, Instant::now()) {
            return Ok(known);
        }
        // A task, so that an answer which comes too late for this call is there for the next.
        let fs = Arc::clone(self);
        let asking = self.runtime.spawn(async move { fs.ask_statistics().await });
        let copy = || self.statistics.get(Duration::MAX, Instant::now());
        let answer = async { asking.await.unwrap_or(Err(FsError::Call(crate::client::CallError::Closed))) };
        match copy().filter(|_| self.config.serves_stale) {
            Some(copy) if !self.is_connected() => {
                self.count_stale();
                Ok(copy)
            }
            Some(copy) => {
                let answer = tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok);
                Ok(answer.unwrap_or_else(|| {
                    self.count_stale();
                    copy
                }))
            }
            None => self.or_copy(answer, copy).await,
        }
    }

    /// Asks ahead of the first `statfs`, which may come when the host is gone.
    pub(super) fn prime_statistics(self: &Arc<Self>) {
        let fs = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(error) = fs.ask_statistics().await {
                tracing::debug!(%error, "room and use of the host's file system are not known yet");
            }
        });
    }

    /// Whether a write of `len` bytes must wait for the host, because its disk may be too full. What is not known is asked
    /// for; nobody waits for that.
    pub(super) fn is_short_of_room(self: &Arc<Self>, inode: Inode, len: usize) -> bool {
        let Some(device) = lock(&self.inodes).get(inode).map(|record| record.node().device) else {
            return false;
        };
        let advice = lock(&self.rooms).write(device, len as u64, Instant::now());
        if advice.asks {
            let (fs, under_way) = (Arc::clone(self), self.unsent_bytes());
            self.runtime.spawn(async move {
                let answer =
                    fs.ask(inode, |client, node| async move { client.fs_statistics(node).await }).await;
                lock(&fs.rooms).answered(device, answer.ok().and_then(room_bytes), under_way);
            });
        }
        advice.waits
    }

    /// Has the room looked up ahead of the first write.
    pub(super) fn prime_room(self: &Arc<Self>, inode: Inode) {
        self.is_short_of_room(inode, 0);
    }

    /// Takes note of a write that found no room.
    pub(super) fn note_full(&self, inode: Inode, error: &FsError) {
        if matches!(error.errno(), Errno::ENOSPC | Errno::EDQUOT)
            && let Some(device) = lock(&self.inodes).get(inode).map(|record| record.node().device)
        {
            lock(&self.rooms).full(device, Instant::now());
        }
    }

    async fn ask_statistics(&self) -> Result<FsStatistics, FsError> {
        let asked = Instant::now();
        let statistics =
            self.ask(Inode::ROOT, |client, node| async move { client.fs_statistics(node).await }).await?;
        self.statistics.set(statistics, asked);
        Ok(statistics)
    }
}

/// Room for people other than root. Some file systems do not say how large they are.
fn room_bytes(statistics: FsStatistics) -> Option<u64> {
    let is_known = statistics.blocks > 0;
    is_known.then(|| statistics.blocks_available.saturating_mul(statistics.block_bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_its_time_and_is_kept_for_bad_days() {
        let statistics = Statistics::default();
        let asked = Instant::now();
        assert_eq!(statistics.get(Duration::MAX, asked), None);
        let answer = FsStatistics {
            block_bytes: 4096,
            blocks: 1,
            blocks_free: 1,
            blocks_available: 1,
            inodes: 1,
            inodes_free: 1,
            name_bytes_max: 255,
        };
        statistics.set(answer, asked);
        assert_eq!(statistics.get(HOLDS, asked + HOLDS / 2), Some(answer));
        assert_eq!(statistics.get(HOLDS, asked + HOLDS), None);
        assert_eq!(statistics.get(Duration::MAX, asked + HOLDS * 1000), Some(answer));
    }
}
