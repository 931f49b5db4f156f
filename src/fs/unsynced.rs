//! What was written to a file, as far as its durability goes: what the host has accepted and may not have on its disk, and what
//! failed without anybody having heard of it.
//!
//! Pure: no I/O, no clock.
//!
//! What the host's kernel has accepted it will bring to the disk, whatever becomes of the daemon; it is lost only if the machine goes
//! down. So each acceptance tells the run of the kernel ([`BootId`]), and so does a sync: where they differ, something is lost.
//! An error counts for the file, and every handle on it hears of it once.

use super::FsError;
use crate::proto::BootId;

/// What was accepted when a sync began.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncBegun {
    accepted: u64,
    bytes: u64,
}

/// The writes of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes {
    /// Which kernel has what may not be on its disk.
    unsynced: Option<BootId>,
    /// Bytes that were accepted so far.
    accepted_bytes: u64,
    /// Of those, brought to the disk by a sync.
    synced_bytes: u64,
    /// Writes that were accepted so far.
    accepted: u64,
    /// Failures so far.
    failures: u64,
    failure: Option<FsError>,
}

impl Writes {
    /// The host has taken content in.
    pub(super) fn accepted(&mut self, boot: BootId, bytes: u64) {
        if self.unsynced.is_some_and(|before| before != boot) {
            self.failed(FsError::LostWrites);
        }
        self.accepted += 1;
        self.accepted_bytes += bytes;
        self.unsynced = Some(boot);
    }

    /// A sync begins; what is returned is to be handed to [`Self::synced`].
    pub(super) const fn sync_begins(&self) -> SyncBegun {
        SyncBegun { accepted: self.accepted, bytes: self.accepted_bytes }
    }

    /// Bytes that may not be on the host's disk.
    pub(super) const fn unsynced_bytes(&self) -> u64 {
        self.accepted_bytes - self.synced_bytes
    }

    /// A sync that began at `begun` has ended well.
    pub(super) fn synced(&mut self, begun: SyncBegun, boot: BootId) {
        if self.unsynced.is_some_and(|before| before != boot) {
            self.failed(FsError::LostWrites);
            self.unsynced = None;
        }
        self.synced_bytes = self.synced_bytes.max(begun.bytes);
        if begun.accepted == self.accepted {
            self.unsynced = None;
        }
    }

    /// Something that a program was told is done has failed.
    pub(super) fn failed(&mut self, error: FsError) {
        self.failures += 1;
        self.failure = Some(error);
    }

    /// How many failures there were: what a new handle has not to hear of.
    pub(super) const fn failures(&self) -> u64 {
        self.failures
    }

    /// What a handle that has heard of `heard` failures is to be told now.
    pub(super) fn unheard(&self, heard: &mut u64) -> Option<FsError> {
        let is_news = std::mem::replace(heard, self.failures) < self.failures;
        self.failure.clone().filter(|_| is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: BootId = BootId([1; 16]);
    const SECOND: BootId = BootId([2; 16]);

    #[test]
    fn a_sync_by_another_kernel_than_the_one_that_accepted_is_a_loss_that_each_handle_hears_of_once() {
        let (mut writes, mut one, mut other) = (Writes::default(), 0, 0);
        writes.accepted(FIRST, 10);
        let begun = writes.sync_begins();
        writes.synced(begun, SECOND);
        assert_eq!(writes.unheard(&mut one), Some(FsError::LostWrites));
        assert_eq!(writes.unheard(&mut one), None);
        assert_eq!(writes.unheard(&mut other), Some(FsError::LostWrites));
        let mut later = writes.failures();
        assert_eq!(writes.unheard(&mut later), None);
        // What comes after is another matter.
        writes.accepted(SECOND, 10);
        writes.synced(writes.sync_begins(), SECOND);
        assert_eq!(writes.unheard(&mut one), None);
    }

    #[test]
    fn a_write_after_a_loss_does_not_hide_it() {
        let (mut writes, mut heard) = (Writes::default(), 0);
        writes.accepted(FIRST, 10);
        writes.accepted(SECOND, 10);
        writes.synced(writes.sync_begins(), SECOND);
        assert_eq!(writes.unheard(&mut heard), Some(FsError::LostWrites));
    }

    #[test]
    fn what_was_synced_is_safe_and_what_came_during_the_sync_is_not() {
        let (mut writes, mut heard) = (Writes::default(), 0);
        writes.accepted(FIRST, 10);
        writes.synced(writes.sync_begins(), FIRST);
        writes.accepted(SECOND, 10);
        assert_eq!(writes.unheard(&mut heard), None, "the first was on the disk");
        let begun = writes.sync_begins();
        writes.accepted(SECOND, 10);
        writes.synced(begun, SECOND);
        assert_eq!(writes.unsynced_bytes(), 10);
        writes.accepted(FIRST, 10);
        assert_eq!(writes.unheard(&mut heard), Some(FsError::LostWrites));
    }
}
