//! How long what was learned about a file holds, and how it is shown to users.
//!
//! Pure: `now` comes in as an argument.
//!
//! Nothing here outlives [`Freshness`]: the kernel is told to keep attributes and names only for what is *left* of their
//! time, counted from when the host can first have looked. So a change on the host is seen within that time, however
//! many copies lie between. [`Learned`] keeps two moments: when an answer was *asked* for, which puts answers that
//! overtook each other in order, and when it was *seen* on the host, from which it ages. They differ for long listings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FsError;
use super::ids::{IdMap, Unmapped};
use super::leases::LeaseId;
use crate::proto::{Attributes, Change, FileKind, SetAttributes, Timestamp, Trust, Version};

/// When something was learned from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// When the question was sent. An answer to a later question is never replaced by one to an earlier.
    pub asked: Instant,
    /// The earliest moment at which the host can have looked.
    pub seen: Instant,
    /// The lease that covers the answer, if one did when it arrived.
    pub lease: Option<LeaseId>,
}

impl Learned {
    /// By a question that was sent at `asked`.
    pub const fn by_asking(asked: Instant) -> Self {
        Self { asked, seen: asked, lease: None }
    }

    /// By nothing: it is only known that what was asked before `asked` says nothing any more.
    pub fn outdated(asked: Instant) -> Self {
        const LONG_AGO: Duration = Duration::from_secs(7 * 24 * 3600);
        Self { asked, seen: asked.checked_sub(LONG_AGO).unwrap_or(asked), lease: None }
    }

    /// By a part of a stream that was asked for at `asked` and of which this part arrived at `arrived`, over a way of
    /// `rtt`.
    pub fn by_stream(asked: Instant, arrived: Instant, rtt: Duration) -> Self {
        let seen = arrived.checked_sub(rtt).map_or(asked, |seen| seen.max(asked));
        Self { asked, seen, lease: None }
    }
}

/// For how long attributes and names hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Attributes.
    pub attributes: Duration,
    /// That a name names what it names.
    pub entries: Duration,
    /// That a name names nothing.
    pub absence: Duration,
}

impl Default for Freshness {
    /// One second each, which is what users are promised; half of it for names that are not there, because a program
    /// that waits for a file to appear is the one that notices.
    fn default() -> Self {
        Self {
            attributes: Duration::from_secs(1),
            entries: Duration::from_secs(1),
            absence: Duration::from_millis(500),
        }
    }
}

impl Freshness {
    /// What is left of the time of attributes; zero when it is over.
    pub fn attributes_left(&self, learned: Learned, now: Instant) -> Duration {
        left(self.attributes, learned, now)
    }

    /// What is left of the time of a name; zero when it is over.
    pub fn entry_left(&self, learned: Learned, now: Instant) -> Duration {
        left(self.entries, learned, now)
    }

    /// What is left of the time of a name's absence; zero when it is over.
    pub fn absence_left(&self, learned: Learned, now: Instant) -> Duration {
        left(self.absence, learned, now)
    }

    /// Tells whether anything is believed without asking, which leases may then extend.
    pub const fn allows_leases(&self) -> bool {
        !self.attributes.is_zero() && !self.entries.is_zero()
    }

    /// Whether attributes are old enough that they should be asked for again before someone has to wait for them.
    pub fn attributes_wane(&self, learned: Learned, now: Instant) -> bool {
        self.attributes_left(learned, now) <= self.attributes / 2
    }
}

fn left(holds: Duration, learned: Learned, now: Instant) -> Duration {
    holds.saturating_sub(now.saturating_duration_since(learned.seen))
}

/// How long after a change of a file its next change bears another stamp, where stamps are finer than a millisecond: the
/// slowest tick of the kernel's clock (100 Hz), twice.
const TICK_NS: u64 = 20_000_000;

/// Whether the next change of the file will show in its version. Weaker than [`Attributes::is_settled`], which allows for
/// file systems with stamps of two seconds: here a stamp that is no whole millisecond proves that its file system has
/// finer ones.
///
/// Where versions prove nothing, a file that seems to lie still is taken to do so while it is open, as a network file system does.
pub(super) fn tell_changes_apart(attributes: &Attributes) -> bool {
    const MILLISECOND_NS: i64 = 1_000_000;
    let age_ns = |stamp: Timestamp| attributes.observed.0.abs_diff(stamp.0);
    match attributes.trust {
        Trust::Full => {
            let is_fine = attributes.ctime.0 % MILLISECOND_NS != 0;
            attributes.is_settled() || (is_fine && age_ns(attributes.ctime) >= TICK_NS)
        }
        Trust::Weak => {
            age_ns(attributes.mtime).min(age_ns(attributes.ctime)) >= Version::SETTLE_NS.unsigned_abs()
        }
    }
}

/// What is shown as owner and group where nobody here stands for them: `nobody`, as the kernel itself does.
const OVERFLOW_ID: u32 = 65_534;

/// What the mount shows instead of the host's owners and permissions. What is shown for everything counts for more than a map; of
/// ACLs the map alone is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Shown as the owner of everything.
    pub uid: Option<u32>,
    /// Shown as the group of everything.
    pub gid: Option<u32>,
    /// Permission bits taken away from everything but directories.
    pub file_mask: u16,
    /// Permission bits taken away from directories.
    pub directory_mask: u16,
    /// Who here stands for whom on the host.
    pub ids: Arc<IdMap>,
}

impl Ownership {
    /// What the host is to set, where users want to set what they see. Owners that are shown in place of the host's cannot be
    /// changed.
    pub(super) fn unpresent(&self, set: SetAttributes) -> Result<SetAttributes, FsError> {
        let keep = |shown: Option<u32>, wanted: Option<u32>| match (shown, wanted) {
            (Some(shown), Some(wanted)) if shown == wanted => Ok(None),
            (Some(_), Some(_)) => Err(FsError::OwnerIsShown),
            (_, wanted) => Ok(wanted),
        };
        Ok(SetAttributes { uid: keep(self.uid, set.uid)?, gid: keep(self.gid, set.gid)?, ..set })
    }

    /// A change as the host is to understand it.
    pub(super) fn for_host(&self, change: Change) -> Result<Change, Unmapped> {
        self.ids.for_host(change)
    }

    /// The value of an extended attribute as users see it.
    pub(super) fn present_xattr(&self, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>, FsError> {
        Ok(self.ids.shown_xattr(name, value)?)
    }

    /// The attributes as users see them.
    pub fn present(&self, attributes: Attributes) -> Result<Attributes, FsError> {
        let (uid, gid) = self.ids.shown_owner(&attributes);
        let uid = self.uid.map_or(uid, Ok)?;
        let gid = self.gid.map_or(gid, Ok)?;
        Ok(Attributes { uid, gid, permissions: self.shown_permissions(&attributes), ..attributes })
    }

    /// The same for a listing, which shows names also of those whose owner cannot be shown; `false` for such ones.
    pub(super) fn present_listed(&self, attributes: Attributes) -> (Attributes, bool) {
        match self.present(attributes) {
            Ok(shown) => (shown, true),
            Err(_) => {
                (Attributes { uid: OVERFLOW_ID, gid: OVERFLOW_ID, permissions: 0, ..attributes }, false)
            }
        }
    }

    fn shown_permissions(&self, attributes: &Attributes) -> u16 {
        let mask = match attributes.kind {
            FileKind::Directory => self.directory_mask,
            // The permissions of a link mean nothing and are 0777 everywhere.
            FileKind::Symlink => 0,
            _ => self.file_mask,
        };
        attributes.permissions & !mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ids::NumberMap;
    use crate::fs::tests::attributes;

    #[test]
    fn time_that_went_by_before_the_answer_counts() {
        let asked = Instant::now();
        let freshness = Freshness::default();
        let learned = Learned::by_asking(asked);
        let left = |ms| freshness.attributes_left(learned, asked + Duration::from_millis(ms));
        assert_eq!(left(0), Duration::from_secs(1));
        assert_eq!(left(999), Duration::from_millis(1));
        assert_eq!(left(1000), Duration::ZERO);
        assert_eq!(left(5000), Duration::ZERO);
        assert_eq!(
            freshness.absence_left(learned, asked + Duration::from_millis(499)),
            Duration::from_millis(1)
        );
    }

    #[test]
    fn attributes_wane_at_half_their_time() {
        let asked = Instant::now();
        let wane = |ms| {
            Freshness::default().attributes_wane(Learned::by_asking(asked), asked + Duration::from_millis(ms))
        };
        assert!(!wane(499));
        assert!(wane(500));
    }

    #[test]
    fn a_part_of_a_stream_is_as_old_as_the_way_but_never_older_than_the_question() {
        let asked = Instant::now();
        let at = |ms| asked + Duration::from_millis(ms);
        let rtt = Duration::from_millis(50);
        assert_eq!(Learned::by_stream(asked, at(3000), rtt).seen, at(2950));
        assert_eq!(Learned::by_stream(asked, at(20), rtt).seen, asked);
        assert_eq!(Learned::by_stream(asked, at(3000), rtt).asked, asked);
    }

    #[test]
    fn a_young_file_with_fine_stamps_shows_its_next_change_after_a_tick() {
        let file = |ctime, observed| Attributes {
            ctime: Timestamp(ctime),
            observed: Timestamp(observed),
            ..attributes(7, FileKind::Regular)
        };
        let tick = TICK_NS.cast_signed();
        assert!(tell_changes_apart(&file(123_456, 123_456 + tick)));
        assert!(!tell_changes_apart(&file(123_456, 123_455 + tick)));
        assert!(!tell_changes_apart(&file(3_000_000, 3_000_000 + tick)));
        assert!(tell_changes_apart(&file(3_000_000, 3_000_000 + 2_000_000_000)));
        let weak = |ctime, observed| Attributes { trust: Trust::Weak, ..file(ctime, observed) };
        assert!(!tell_changes_apart(&weak(123_456, 123_456 + tick)));
        assert!(tell_changes_apart(&weak(123_456, 123_456 + 2_000_000_000)));
    }

    #[test]
    fn owners_and_masks_are_shown_instead() {
        let ownership =
            Ownership { uid: Some(7), file_mask: 0o177, directory_mask: 0o022, ..Ownership::default() };
        let shown = |kind| {
            let shown = ownership.present(attributes(5, kind)).unwrap();
            (shown.uid, shown.gid, shown.permissions)
        };
        assert_eq!(shown(FileKind::Regular), (7, 1000, 0o600));
        assert_eq!(shown(FileKind::Directory), (7, 1000, 0o755));
        assert_eq!(shown(FileKind::Symlink), (7, 1000, 0o755));
        assert_eq!(
            Ownership::default().present(attributes(5, FileKind::Fifo)),
            Ok(attributes(5, FileKind::Fifo))
        );
    }

    #[test]
    fn one_owner_for_everything_counts_for_more_than_a_map() {
        let ids = Arc::new(IdMap::of_user((1000, 1000), (3, 4)).unwrap());
        let mapped = Ownership { ids: Arc::clone(&ids), ..Ownership::default() };
        let shown = mapped.present(attributes(5, FileKind::Regular)).unwrap();
        assert_eq!((shown.uid, shown.gid), (3, 4));
        let fixed = Ownership { uid: Some(7), ids, ..Ownership::default() };
        let shown = fixed.present(attributes(5, FileKind::Regular)).unwrap();
        assert_eq!((shown.uid, shown.gid), (7, 4));
        let strict = IdMap { users: NumberMap::default().refusing_others(), ..IdMap::default() };
        let fixed = |uid| Ownership { uid, ids: Arc::new(strict.clone()), ..Ownership::default() };
        assert_eq!(fixed(Some(7)).present(attributes(5, FileKind::Regular)).unwrap().uid, 7);
        assert_eq!(
            fixed(None).present(attributes(5, FileKind::Regular)),
            Err(FsError::Unmapped(Unmapped(1000)))
        );
        let (listed, is_shown) = fixed(None).present_listed(attributes(5, FileKind::Regular));
        assert_eq!((listed.uid, listed.permissions, is_shown), (OVERFLOW_ID, 0, false));
    }
}
