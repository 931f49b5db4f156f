//! One inode in the table: what every one has, and in a box of its own what only those have that are in use.
//!
//! Pure: no I/O, no clock.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::packed::{Odd, Packed};
use super::{Inode, MADE_UP, Name, Target};
use crate::fs::attributes::Learned;
use crate::fs::leases::LeaseId;
use crate::fs::unsynced::Writes;
use crate::proto::{Attributes, BootId, FileKind, NodeId, OpenAccess, OpenId, Version};

/// Moment in nanoseconds since the table was made, or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(i64);

impl Moment {
    pub(super) fn new(base: Instant, at: Instant) -> Self {
        let ns = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
        Self(at.checked_duration_since(base).map_or_else(|| -ns(base.duration_since(at)), ns))
    }

    fn at(self, base: Instant) -> Instant {
        let distance = Duration::from_nanos(self.0.unsigned_abs());
        if self.0 < 0 { base.checked_sub(distance).unwrap_or(base) } else { base + distance }
    }
}

/// How the number of an inode follows from its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbering(u16);

impl Numbering {
    /// The root of the mount, whose number is fixed.
    pub(super) const ROOT: Self = Self(u16::MAX);
    /// The inode number on the host.
    pub(super) const HOST: Self = Self(0);
    /// The first that is made up.
    pub(super) const FIRST_MADE_UP: Self = Self(1);

    /// All numbers that are made up of the node, in the order in which they are tried.
    pub(super) fn made_up() -> impl Iterator<Item = Self> {
        (1..u16::MAX).map(Self)
    }

    pub(super) const fn number(self, node: NodeId) -> Inode {
        match self {
            Self::ROOT => Inode::ROOT,
            Self::HOST => Inode(node.inode),
            Self(more) => Inode(super::mix(node).wrapping_add(more as u64 - 1) | MADE_UP),
        }
    }
}

/// What only an inode has that is open, changed, or known under several names.
#[derive(Debug)]
pub(in crate::fs) struct More {
    /// Handles open on it here.
    pub opens: u32,
    /// For what they are open, all together.
    pub access: OpenAccess,
    /// When the last change of this mount's own, of a name in this directory, was answered.
    pub names_changed: Option<Instant>,
    /// Opens that the host knows of this mount.
    pub host_opens: Vec<OpenId>,
    /// To which version the kernel's pages belong, where they can be told by it.
    pub pages: Option<Version>,
    /// Handle of the last open. Where the version proves nothing, what was read before is not used any more.
    pub epoch: u64,
    /// How often it had to be looked up again because the host did not know it.
    pub recoveries: u64,
    pub target: Option<Target>,
    /// What was written to it and may not be on the host's disk.
    writes: Option<Box<Writes>>,
    /// Set while its attributes are being asked for behind a reader's back.
    refreshing: Option<Arc<AtomicBool>>,
    /// Names but the newest, the newest of them last.
    pub(super) older: Vec<OlderName>,
    /// The directory and name that the kernel was told last, where that is not the newest name.
    pub(super) told: Option<(NodeId, Name)>,
    odd: Option<Odd>,
}

/// A name that an inode has besides its newest. Directories by node: a number may by now be another directory's.
#[derive(Debug)]
pub(super) struct OlderName {
    pub parent: NodeId,
    pub name: Name,
    pub lease: Option<LeaseId>,
}

/// Of an inode that has nothing of it.
static NOTHING: More = More::NOTHING;

/// Of a file to which nothing was written.
static NO_WRITES: Writes = Writes::NONE;

impl More {
    const NOTHING: Self = Self {
        opens: 0,
        access: OpenAccess::NONE,
        names_changed: None,
        host_opens: Vec::new(),
        pages: None,
        epoch: 0,
        recoveries: 0,
        target: None,
        writes: None,
        refreshing: None,
        older: Vec::new(),
        told: None,
        odd: None,
    };

    fn is_nothing(&self) -> bool {
        let is_in_use = self.opens > 0 || !self.host_opens.is_empty() || self.writes.is_some();
        let is_remembered = self.pages.is_some() || self.epoch > 0 || self.recoveries > 0;
        let is_named = !self.older.is_empty() || self.told.is_some() || self.names_changed.is_some();
        !is_in_use
            && !is_remembered
            && !is_named
            && self.target.is_none()
            && self.refreshing.is_none()
            && self.odd.is_none()
    }
}

/// All that is known of one inode.
#[derive(Debug)]
pub(in crate::fs) struct Record {
    packed: Packed,
    asked: Moment,
    seen: Moment,
    /// Until when the kernel may take a name for this file without looking it up; `None` as the first moment: it was told to look
    /// each time.
    believed_until: Moment,
    lookups: u64,
    lease: Option<LeaseId>,
    /// The lease that covered the newest name when it was learned.
    pub(super) name_lease: Option<LeaseId>,
    /// The newest name.
    pub(super) name: Option<Name>,
    more: Option<Box<More>>,
    /// The directory of the newest name, by its number among directories.
    pub(super) parent: u32,
    pub(super) numbering: Numbering,
    /// Whether the attributes that the kernel was told last, if it still has them, are those of this record.
    pub kernel_is_current: bool,
    /// Whether the newest name is the one that the kernel was told last, unless this mount took that name away itself.
    pub(super) newest_is_told: bool,
}

const NEVER: Moment = Moment(i64::MIN);

impl Record {
    pub(super) fn new(
        numbering: Numbering,
        attributes: &Attributes,
        learned: Learned,
        base: Instant,
    ) -> Self {
        let (packed, _) = Packed::new(attributes);
        let mut record = Self {
            packed,
            asked: NEVER,
            seen: NEVER,
            believed_until: NEVER,
            lookups: 0,
            lease: None,
            name_lease: None,
            name: None,
            more: None,
            parent: 0,
            numbering,
            kernel_is_current: true,
            newest_is_told: false,
        };
        record.set(attributes, learned, base);
        record
    }

    pub(in crate::fs) const fn node(&self) -> NodeId {
        self.packed.node()
    }

    pub(super) const fn kind(&self) -> FileKind {
        self.packed.kind()
    }

    pub(super) const fn number(&self) -> Inode {
        self.numbering.number(self.node())
    }

    pub(in crate::fs) fn attributes(&self) -> Attributes {
        self.packed.unpack(|| self.more().odd)
    }

    pub(super) fn learned(&self, base: Instant) -> Learned {
        Learned { asked: self.asked.at(base), seen: self.seen.at(base), lease: self.lease }
    }

    /// What few inodes have.
    pub(in crate::fs) fn more(&self) -> &More {
        self.more.as_deref().unwrap_or(&NOTHING)
    }

    pub(in crate::fs) fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_with(|| Box::new(More::NOTHING))
    }

    /// Gives the room for what few inodes have back, if this has nothing of it any more.
    pub(super) fn tidy_up(&mut self) {
        if self.more().is_nothing() {
            self.more = None;
        }
    }

    pub(in crate::fs) fn writes(&self) -> &Writes {
        self.more().writes.as_deref().unwrap_or(&NO_WRITES)
    }

    pub(in crate::fs) fn writes_mut(&mut self) -> &mut Writes {
        self.more_mut().writes.get_or_insert_default()
    }

    /// Hears which run of its kernel the host is.
    pub(in crate::fs) fn heard_of(&mut self, boot: BootId) {
        if let Some(writes) = self.more.as_mut().and_then(|more| more.writes.as_mut()) {
            writes.heard_of(boot);
        }
    }

    /// Flag that is set while attributes are being asked for behind a reader's back.
    pub(in crate::fs) fn refreshing(&mut self) -> Arc<AtomicBool> {
        Arc::clone(self.more_mut().refreshing.get_or_insert_default())
    }

    /// Takes newer attributes.
    pub(super) fn set(&mut self, attributes: &Attributes, learned: Learned, base: Instant) {
        let (packed, odd) = Packed::new(attributes);
        if odd.is_some() || self.more.is_some() {
            self.more_mut().odd = odd;
        }
        self.packed = packed;
        self.set_learned(learned, base);
    }

    pub(super) fn set_learned(&mut self, learned: Learned, base: Instant) {
        self.asked = Moment::new(base, learned.asked);
        self.seen = Moment::new(base, learned.seen);
        self.lease = learned.lease;
    }

    pub(super) const fn drop_lease(&mut self) {
        self.lease = None;
    }

    pub(super) fn is_asked_after(&self, asked: Instant, base: Instant) -> bool {
        self.asked > Moment::new(base, asked)
    }

    pub(super) fn believe(&mut self, until: Option<Instant>, base: Instant) {
        self.believed_until = until.map_or(NEVER, |until| Moment::new(base, until));
    }

    pub(super) fn believed_until(&self, base: Instant) -> Option<Instant> {
        (self.believed_until != NEVER).then(|| self.believed_until.at(base))
    }

    pub(super) const fn looked_up(&mut self) {
        self.lookups += 1;
    }

    pub(super) const fn given_back(&mut self, count: u64) {
        self.lookups = self.lookups.saturating_sub(count);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.lookups == 0 && self.more().opens == 0
    }

    /// Memory behind it, in bytes, but for names that others share.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let name = self.name.as_ref().map_or(0, |name| name.len() + 2 * size_of::<usize>());
        let more = self.more.as_ref().map_or(0, |more| {
            let names: usize = more.older.iter().map(|older| older.name.len()).sum();
            let writes = more.writes.as_ref().map_or(0, |_| size_of::<Writes>());
            size_of::<More>() + more.older.capacity() * size_of::<OlderName>() + names + writes
        });
        name + more
    }
}

/// A record to look at.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Known<'a> {
    pub(super) record: &'a Record,
    pub(super) base: Instant,
}

impl Known<'_> {
    /// How its attributes were learned.
    pub(in crate::fs) fn learned(&self) -> Learned {
        self.record.learned(self.base)
    }
}

impl Deref for Known<'_> {
    type Target = Record;

    fn deref(&self) -> &Record {
        self.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_come_back() {
        let base = Instant::now();
        let week = Duration::from_secs(7 * 24 * 3600);
        let times = [Some(base), base.checked_add(week), base.checked_sub(Duration::from_nanos(1))];
        for at in times.into_iter().flatten() {
            assert_eq!(Moment::new(base, at).at(base), at);
        }
        assert!(Moment::new(base, base) > NEVER);
    }

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Option<Record>>() <= 176, "{}", size_of::<Option<Record>>());
    }
}
