//! Room on the host's disks, as far as writes need to know.
//!
//! Pure: no I/O, no clock.
//!
//! A write is answered before the host has it, so a full disk would be told by a later write, or by the sync behind it.
//! Databases take ENOSPC from a write for a full disk, and any error from a sync for a broken one. So where a disk may be too
//! full for all that is under way, each write waits for the host and tells by itself that there is no room.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Room that must be left: others write, too, and a file system needs some for its own tables.
const MARGIN_BYTES: u64 = 16 * 1024 * 1024;

/// Age at which the host is asked again by a disk that is written to.
const HOLDS: Duration = Duration::from_secs(1);

/// The same where the room may have become too little meanwhile.
const TIGHT_HOLDS: Duration = Duration::from_millis(100);

/// Time for which a disk counts as full after it was. A quota does not show in the room that is left.
const FULL_HOLDS: Duration = Duration::from_secs(60);

/// Most disks that are known at a time.
const DISKS_MAX: usize = 64;

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    /// It waits for the host.
    pub waits: bool,
    /// The host is asked how much room there is; [`Rooms::answered`] is owed.
    pub asks: bool,
}

/// All disks that are written to, by their device numbers.
#[derive(Debug, Default)]
pub(super) struct Rooms(HashMap<u64, Disk>);

#[derive(Debug, Default)]
struct Disk {
    /// Room when the host was asked, without what was under way then; `None` where it is not known.
    left_bytes: Option<u64>,
    /// Bytes written since.
    written_bytes: u64,
    asked: Option<Instant>,
    is_asking: bool,
    was_full: Option<Instant>,
}

impl Disk {
    fn is_tight(&self, len: u64, now: Instant) -> bool {
        let is_full = self.was_full.is_some_and(|at| now.saturating_duration_since(at) < FULL_HOLDS);
        let needed = self.written_bytes.saturating_add(len).saturating_add(MARGIN_BYTES);
        is_full || self.left_bytes.is_some_and(|left| left < needed)
    }
}

impl Rooms {
    /// `len` bytes are to be written to a disk; 0 where it is only opened.
    pub(super) fn write(&mut self, device: u64, len: u64, now: Instant) -> Advice {
        if self.0.len() >= DISKS_MAX && !self.0.contains_key(&device) {
            self.0.retain(|_, disk| disk.is_asking);
        }
        let disk = self.0.entry(device).or_default();
        let waits = disk.is_tight(len, now);
        disk.written_bytes = disk.written_bytes.saturating_add(len);
        let holds = if waits { TIGHT_HOLDS } else { HOLDS };
        let is_old = disk.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= holds);
        let asks = is_old && !disk.is_asking;
        if asks {
            (disk.is_asking, disk.asked, disk.written_bytes) = (true, Some(now), len);
        }
        Advice { waits, asks }
    }

    /// The host has said how much room there is; `under_way` bytes were on their way when it was asked.
    pub(super) fn answered(&mut self, device: u64, room_bytes: Option<u64>, under_way: u64) {
        if let Some(disk) = self.0.get_mut(&device) {
            (disk.left_bytes, disk.is_asking) =
                (room_bytes.map(|room| room.saturating_sub(under_way)), false);
        }
    }

    /// A write found no room.
    pub(super) fn full(&mut self, device: u64, now: Instant) {
        self.0.entry(device).or_default().was_full = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const GO_ON: Advice = Advice { waits: false, asks: false };
    const ASK: Advice = Advice { waits: false, asks: true };

    #[test]
    fn writes_wait_where_what_is_under_way_may_not_find_room() {
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        assert_eq!(rooms.write(1, MIB, now), ASK, "a disk that is not known");
        assert_eq!(rooms.write(1, MIB, now), GO_ON, "asked once");
        rooms.answered(1, Some(30 * MIB), 2 * MIB);
        for _ in 0..10 {
            assert_eq!(rooms.write(1, MIB, now), GO_ON);
        }
        assert!(rooms.write(1, MIB, now).waits);
        let later = now + TIGHT_HOLDS;
        assert_eq!(rooms.write(1, MIB, later), Advice { waits: true, asks: true });
        rooms.answered(1, Some(100 * MIB), 0);
        assert_eq!(rooms.write(1, MIB, later), GO_ON, "somebody has made room");
        assert_eq!(rooms.write(2, MIB, later), ASK, "another disk");
    }

    #[test]
    fn what_is_known_becomes_old() {
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        rooms.write(1, 0, now);
        rooms.answered(1, Some(100 * MIB), 0);
        assert_eq!(rooms.write(1, 0, now + HOLDS / 2), GO_ON);
        assert_eq!(rooms.write(1, 0, now + HOLDS), ASK);
        rooms.answered(1, None, 0);
        assert_eq!(rooms.write(1, 1 << 50, now + HOLDS), GO_ON, "a file system that does not say");
    }

    #[test]
    fn a_disk_that_was_full_counts_as_full_for_a_while() {
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        rooms.full(1, now);
        rooms.answered(1, Some(1 << 40), 0);
        assert!(rooms.write(1, 1, now + FULL_HOLDS / 2).waits);
        assert!(!rooms.write(1, 1, now + FULL_HOLDS).waits);
    }

    #[test]
    fn disks_that_are_known_are_bounded() {
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        for device in 0..10 * DISKS_MAX as u64 {
            rooms.write(device, 1, now);
            rooms.answered(device, Some(0), 0);
        }
        assert!(rooms.0.len() <= DISKS_MAX);
    }
}
