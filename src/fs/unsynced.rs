//! What was written to a file, as far as its durability goes: what the host has accepted and may not have on its disk, and what
//! failed without anybody having heard of it.
//!
//! Pure: no I/O, no clock.
//!
//! What the host's kernel has accepted it will bring to the disk, whatever becomes of the daemon; it is lost only if the machine goes
//! down. So each acceptance tells the run of the kernel ([`BootId`]), and so does a sync: where they differ, something is lost.
//! An error counts for the file, and every handle on it hears of it: of [`Teller`]s each tells it once. A write is not enough, as of a long one
//! that fails in its middle the kernel says how far it came, and nobody why it ended; nor is a close, which may be that of a child process.

use super::FsError;
use crate::proto::BootId;

/// One attempt to have content written: later ones have larger numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Attempt(u64);

/// What was under way or accepted when a sync began: the host brings all of it to its disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncBegun {
    last: Attempt,
    bytes: u64,
}

/// Who tells a program of failures. Whoever comes later in this order has told it for those before him.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Teller {
    Write,
    Close,
    Sync,
}

/// How many failures each [`Teller`] has told through a handle, or need not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard([u64; 3]);

/// The writes of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes {
    /// Which kernel has what may not be on its disk.
    unsynced: Option<BootId>,
    begun: Attempt,
    begun_bytes: u64,
    /// The last attempt that was accepted.
    accepted: Attempt,
    /// Bytes of attempts that are over.
    over_bytes: u64,
    /// Bytes of the attempts that a sync has covered.
    synced_bytes: u64,
    /// Attempts that had to be made anew.
    repeated: u64,
    /// Failures so far.
    failures: u64,
    failure: Option<FsError>,
    /// How many of them a sync of the whole mount has told.
    told_by_sync: u64,
}

impl Writes {
    /// Those of a file to which nothing was written.
    pub(super) const NONE: Self = Self {
        unsynced: None,
        begun: Attempt(0),
        begun_bytes: 0,
        accepted: Attempt(0),
        over_bytes: 0,
        synced_bytes: 0,
        repeated: 0,
        failures: 0,
        failure: None,
        told_by_sync: 0,
    };

    /// Content is under way, where a sync that begins later will wait for it. `is_repeated`: an earlier attempt had no effect.
    pub(super) const fn begins(&mut self, bytes: u64, is_repeated: bool) -> Attempt {
        if is_repeated {
            // Its bytes count already.
            self.repeated += 1;
        } else {
            self.begun_bytes += bytes;
        }
        self.begun.0 += 1;
        self.begun
    }

    /// The host has taken in what was under way.
    pub(super) fn accepted(&mut self, attempt: Attempt, boot: BootId, bytes: u64) {
        self.heard_of(boot);
        self.accepted = self.accepted.max(attempt);
        self.over_bytes += bytes;
        self.unsynced = Some(boot);
    }

    /// The host has changed content without any that came from here.
    pub(super) fn changed(&mut self, boot: BootId, bytes: u64) {
        let attempt = self.begins(bytes, false);
        self.accepted(attempt, boot, bytes);
    }

    /// What was under way is over without the host's consent. Some of it may have been written, so it counts until the next sync.
    pub(super) const fn not_accepted(&mut self, bytes: u64) {
        self.over_bytes += bytes;
    }

    /// The host is this run of its kernel: what another has not brought to its disk may be lost.
    pub(super) fn heard_of(&mut self, boot: BootId) {
        if self.unsynced.is_some_and(|before| before != boot) {
            self.failed(FsError::LostWrites);
            self.unsynced = None;
        }
    }

    /// A sync begins, which the host does when all is over that has begun; what is returned is to be handed to [`Self::synced`].
    pub(super) const fn sync_begins(&self) -> SyncBegun {
        SyncBegun { last: self.begun, bytes: self.begun_bytes }
    }

    /// How often something had to be sent anew, which a sync that began before may not have waited for.
    pub(super) const fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Bytes that may not be on the host's disk.
    pub(super) const fn unsynced_bytes(&self) -> u64 {
        self.over_bytes.saturating_sub(self.synced_bytes)
    }

    /// A sync that began at `begun` has ended well, and so has everything that was under way then.
    pub(super) fn synced(&mut self, begun: SyncBegun, boot: BootId) {
        self.heard_of(boot);
        self.synced_bytes = self.synced_bytes.max(begun.bytes);
        if self.accepted <= begun.last {
            self.unsynced = None;
        }
    }

    /// Something that a program was told is done has failed.
    pub(super) fn failed(&mut self, error: FsError) {
        self.failures += 1;
        self.failure = Some(error);
    }

    /// Last failure, told or not.
    pub(super) fn last_failure(&self) -> Option<FsError> {
        self.failure.clone()
    }

    /// Whether something failed since the whole mount was synced last.
    pub(super) const fn has_failed_since_sync(&self) -> bool {
        self.failures > self.told_by_sync
    }

    /// The last failure since the whole mount was synced last: told once.
    pub(super) fn failure_since_sync(&mut self) -> Option<FsError> {
        let is_news = self.has_failed_since_sync();
        self.told_by_sync = self.failures;
        self.failure.clone().filter(|_| is_news)
    }

    /// What a new handle has not to hear of.
    pub(super) const fn failures(&self) -> Heard {
        Heard([self.failures; 3])
    }

    /// What is to be told now through a handle of which `heard` is known.
    pub(super) fn unheard(&self, heard: &mut Heard, teller: Teller) -> Option<FsError> {
        let is_news = heard.0[teller as usize] < self.failures;
        heard.0[..=teller as usize].fill(self.failures);
        self.failure.clone().filter(|_| is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: BootId = BootId([1; 16]);
    const SECOND: BootId = BootId([2; 16]);

    const NOTHING: Heard = Heard([0; 3]);

    fn unheard(writes: &Writes, heard: &mut Heard) -> Option<FsError> {
        writes.unheard(heard, Teller::Sync)
    }

    fn write(writes: &mut Writes, boot: BootId) {
        let attempt = writes.begins(10, false);
        writes.accepted(attempt, boot, 10);
    }

    #[test]
    fn a_sync_by_another_kernel_than_the_one_that_accepted_is_a_loss_that_each_handle_hears_of_once() {
        let (mut writes, mut one, mut other) = (Writes::default(), NOTHING, NOTHING);
        write(&mut writes, FIRST);
        let begun = writes.sync_begins();
        writes.synced(begun, SECOND);
        assert_eq!(unheard(&writes, &mut one), Some(FsError::LostWrites));
        assert_eq!(unheard(&writes, &mut one), None);
        assert_eq!(unheard(&writes, &mut other), Some(FsError::LostWrites));
        let mut later = writes.failures();
        assert_eq!(unheard(&writes, &mut later), None);
        // What comes after is another matter.
        write(&mut writes, SECOND);
        writes.synced(writes.sync_begins(), SECOND);
        assert_eq!(unheard(&writes, &mut one), None);
    }

    #[test]
    fn what_a_write_or_a_close_was_told_a_sync_is_told_too() {
        let (mut writes, mut heard) = (Writes::default(), NOTHING);
        let tellers = [Teller::Write, Teller::Close, Teller::Sync];
        writes.failed(FsError::LostWrites);
        for teller in tellers {
            assert_eq!(writes.unheard(&mut heard, teller), Some(FsError::LostWrites), "{teller:?}");
            assert_eq!(writes.unheard(&mut heard, teller), None, "{teller:?}");
        }
        writes.failed(FsError::LostWrites);
        assert!(writes.unheard(&mut heard, Teller::Sync).is_some());
        assert!(
            tellers.iter().all(|teller| writes.unheard(&mut heard, *teller).is_none()),
            "it was the last"
        );
    }

    #[test]
    fn a_write_after_a_loss_does_not_hide_it() {
        let (mut writes, mut heard) = (Writes::default(), NOTHING);
        write(&mut writes, FIRST);
        write(&mut writes, SECOND);
        writes.synced(writes.sync_begins(), SECOND);
        assert_eq!(unheard(&writes, &mut heard), Some(FsError::LostWrites));
        assert_eq!(unheard(&writes, &mut heard), None);
    }

    #[test]
    fn what_was_synced_is_safe_and_what_came_during_the_sync_is_not() {
        let (mut writes, mut heard) = (Writes::default(), NOTHING);
        write(&mut writes, FIRST);
        writes.synced(writes.sync_begins(), FIRST);
        write(&mut writes, SECOND);
        assert_eq!(unheard(&writes, &mut heard), None, "the first was on the disk");
        let begun = writes.sync_begins();
        write(&mut writes, SECOND);
        writes.synced(begun, SECOND);
        assert_eq!(writes.unsynced_bytes(), 10);
        write(&mut writes, FIRST);
        assert_eq!(unheard(&writes, &mut heard), Some(FsError::LostWrites));
    }

    #[test]
    fn a_sync_covers_what_was_under_way_as_it_began_and_not_what_was_sent_anew() {
        let (mut writes, mut heard) = (Writes::default(), NOTHING);
        let (under_way, refused) = (writes.begins(10, false), writes.begins(5, false));
        let begun = writes.sync_begins();
        writes.accepted(under_way, FIRST, 10);
        writes.synced(begun, FIRST);
        assert_eq!((writes.unsynced_bytes(), writes.repeated()), (0, 0));
        writes.heard_of(SECOND);
        assert_eq!(unheard(&writes, &mut heard), None, "all that was accepted is on the disk");
        let again = writes.begins(5, true);
        assert!(again > refused);
        writes.accepted(again, FIRST, 5);
        writes.synced(begun, FIRST);
        assert_eq!(writes.repeated(), 1, "the sync has to be done once more");
        writes.heard_of(SECOND);
        assert_eq!(unheard(&writes, &mut heard), Some(FsError::LostWrites));
    }
}
