//! (P) Eviction policy: whole segments go, oldest first, and their used records are written again.
//!
//! First in, first out with a second chance. A used record is rewritten when its segment goes. Up to half a
//! segment of records is rewritten, so every eviction frees space. A segment with more used records than
//! that is spared as a whole: it queues up again, which costs no write. The cold data of a long scan is
//! never used twice and leaves at the end of the queue, whatever its volume. The hot set stays.

use std::collections::BTreeSet;

use super::index::{Candidate, Index};
use super::record::{SegmentId, stored_bytes};

/// Allocation unit of file systems in bytes. Sizes are rounded up to it before they are compared with the
/// limit, so that `du` agrees with the limit.
const BLOCK_BYTES: u64 = 4096;

/// Most segments in a directory. A start reads the footer of each. A full cache has 32 to some hundreds,
/// unless many short-lived processes each left a small one.
const SEGMENTS_MAX: usize = 4096;

/// Most segments spared in one eviction. It bounds the search if the whole cache is hot.
const SPARED_MAX: usize = 8;

/// Segment file as listed in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its number.
    pub(super) id: SegmentId,
    /// Size of the file in bytes.
    pub(super) bytes: u64,
    /// Form in its file name.
    pub(super) form: Form,
}

/// State of a segment, given by the suffix of its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Form {
    /// A process appends to it, or crashed while it did.
    #[default]
    Open,
    /// Finished. It may be evicted.
    Sealed,
    /// Finished. No process evicts it.
    Pinned,
}

impl Listed {
    /// Returns `true` if a process may still append to it.
    pub(super) fn is_open(&self) -> bool {
        self.form == Form::Open
    }

    /// Returns `true` if it is never evicted.
    pub(super) fn is_pinned(&self) -> bool {
        self.form == Form::Pinned
    }

    /// Returns the bytes to which it may grow if segments are `segment_bytes` at most.
    pub(super) fn reserved(&self, segment_bytes: u64) -> u64 {
        let now = self.bytes.next_multiple_of(BLOCK_BYTES);
        if self.is_open() { now.max(segment_bytes.next_multiple_of(BLOCK_BYTES)) } else { now }
    }
}

/// Limits that must hold after an eviction.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_field_names, reason = "units stand last in names")]
pub(super) struct Limits {
    /// Most bytes of all segments.
    pub(super) size_bytes: u64,
    /// Most bytes of one segment.
    pub(super) segment_bytes: u64,
    /// Bytes that are about to be added.
    pub(super) grow_bytes: u64,
    /// Bytes that the file system lacks to its minimum of free space, see [`missing_space`].
    pub(super) missing_bytes: u64,
}

/// Returns the most bytes of records that are rewritten from evicted segments into a new one.
pub(super) const fn survivors_bytes(segment_bytes: u64) -> u64 {
    segment_bytes / 2
}

/// Segments to unlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The segments in the order of their eviction.
    pub(super) victims: Vec<SegmentId>,
    /// True if the limits hold once they are gone.
    pub(super) enough: bool,
}

/// Chooses the segments to evict: the first of the queue, except the `protected` ones, to which other
/// processes append. A segment with more used records than can be rewritten is put back in the queue, as
/// long as there are others.
pub(super) fn choose(
    index: &mut Index,
    listed: &[Listed],
    protected: &BTreeSet<SegmentId>,
    limits: &Limits,
) -> Plan {
    let mut queue = listed.to_vec();
    let mut kept = protected.clone();
    for _ in 0..SPARED_MAX {
        queue.sort_by_key(|segment| index.rank(segment.id));
        let plan = plan(&queue, &kept, limits);
        let hot = plan.victims.iter().copied().find(|&victim| is_hot(index, victim, limits));
        match hot {
            Some(hot) if plan.enough => {
                index.spare(hot);
                kept.insert(hot);
            }
            _ if plan.enough => return plan,
            _ => break,
        }
    }
    queue.sort_by_key(|segment| index.rank(segment.id));
    plan(&queue, protected, limits)
}

fn is_hot(index: &Index, segment: SegmentId, limits: &Limits) -> bool {
    let used = index.candidates(segment);
    used.iter().map(|one| stored_bytes(one.entry.len)).sum::<u64>() > survivors_bytes(limits.segment_bytes)
}

/// Picks the first segments of `queue` that are not `protected`, as few as necessary. If the size cannot be
/// kept, it picks none, because their loss would gain nothing. If the minimum of free space cannot be kept,
/// it picks all, because others need the space.
fn plan(queue: &[Listed], protected: &BTreeSet<SegmentId>, limits: &Limits) -> Plan {
    let total: u64 = queue.iter().map(|segment| segment.reserved(limits.segment_bytes)).sum();
    let over_size = (total + limits.grow_bytes).saturating_sub(limits.size_bytes);
    let over_count = (queue.len() + 1).saturating_sub(SEGMENTS_MAX);
    let (mut freed_reserved, mut freed_bytes, mut victims) = (0, 0, Vec::new());
    let enough = |reserved: u64, bytes: u64, count: usize| {
        reserved >= over_size && bytes >= limits.missing_bytes && count >= over_count
    };
    for segment in queue.iter().filter(|segment| !protected.contains(&segment.id)) {
        if enough(freed_reserved, freed_bytes, victims.len()) {
            break;
        }
        freed_reserved += segment.reserved(limits.segment_bytes);
        freed_bytes += segment.bytes;
        victims.push(segment.id);
    }
    let enough = enough(freed_reserved, freed_bytes, victims.len());
    if freed_reserved < over_size {
        victims.clear();
    }
    Plan { victims, enough }
}

/// Returns the bytes that a file system of `total` bytes with `available` free ones lacks to the share
/// `min_free_ratio` once `grow` more are written.
pub(super) fn missing_space(available: u64, total: u64, min_free_ratio: f64, grow: u64) -> u64 {
    let floor = (total as f64 * min_free_ratio) as u64;
    floor.saturating_add(grow).saturating_sub(available)
}

/// Returns the segment that a starting process resumes instead of creating one, so that many short mounts
/// do not leave many small segments. It is the youngest that is not pinned, if it is sealed and a quarter
/// of it is free.
pub(super) fn adoptable(listed: &[Listed], segment_bytes: u64) -> Option<Listed> {
    let last = listed.iter().rev().find(|segment| !segment.is_pinned()).copied();
    last.filter(|last| !last.is_open() && last.bytes <= segment_bytes / 4 * 3)
}

/// Chooses the used records to rewrite: the most used first, at most `budget_bytes` with headers and footer
/// entries. Returns them in disk order, so that neighbours stay neighbours.
pub(super) fn survivors(mut used: Vec<Candidate>, budget_bytes: u64) -> Vec<Candidate> {
    // The sort is stable: among equals the order of arrival decides, so a run of a file stays together.
    used.sort_by_key(|candidate| std::cmp::Reverse(candidate.hits));
    let mut left = budget_bytes;
    used.retain(|candidate| {
        let bytes = stored_bytes(candidate.entry.len);
        let fits = bytes <= left;
        left -= if fits { bytes } else { 0 };
        fits
    });
    used.sort_by_key(|candidate| (candidate.segment, candidate.entry.offset));
    used
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::index::Index;
    use super::super::record::{Entry, Key, Kind};
    use super::*;

    fn limits(size_blocks: u64, segment_blocks: u64) -> Limits {
        let segment_bytes = segment_blocks * BLOCK_BYTES;
        let size_bytes = size_blocks * BLOCK_BYTES;
        Limits { size_bytes, segment_bytes, grow_bytes: segment_bytes, missing_bytes: 0 }
    }

    fn form() -> impl Strategy<Value = Form> {
        prop_oneof![Just(Form::Open), Just(Form::Sealed), Just(Form::Pinned)]
    }

    fn listed() -> impl Strategy<Value = Vec<Listed>> {
        prop::collection::vec((0u64..40_000, form()), 0..12).prop_map(|segments| {
            let numbered = segments.into_iter().enumerate();
            numbered.map(|(id, (bytes, form))| Listed { id: id as u64, bytes, form }).collect()
        })
    }

    proptest! {
        #[test]
        fn a_plan_keeps_the_limits_or_says_so(
            listed in listed(), protected in prop::collection::btree_set(0u64..12, 0..4), size in 0u64..60,
            missing_bytes in 0u64..100_000,
        ) {
            let limits = Limits { missing_bytes, ..limits(size, 8) };
            let plan = plan(&listed, &protected, &limits);
            let keeps = |victims: &[u64]| {
                let left = listed.iter().filter(|segment| !victims.contains(&segment.id));
                let size: u64 = left.map(|segment| segment.reserved(limits.segment_bytes)).sum();
                let gone = listed.iter().filter(|segment| victims.contains(&segment.id));
                size + limits.grow_bytes <= limits.size_bytes
                    && gone.map(|segment| segment.bytes).sum::<u64>() >= missing_bytes
            };
            prop_assert!(plan.victims.iter().all(|id| !protected.contains(id)));
            prop_assert_eq!(plan.enough, keeps(&plan.victims));
            let evictable: Vec<u64> = (0..12).filter(|id| !protected.contains(id)).collect();
            let fewest = (0..=evictable.len()).find(|&n| keeps(&evictable[..n]));
            match fewest {
                Some(n) => prop_assert!(plan.enough && plan.victims.len() <= n),
                None => prop_assert!(!plan.enough),
            }
        }

        #[test]
        fn survivors_are_the_most_used_within_the_budget(
            used in prop::collection::vec((1u8..4, 0u32..5000), 0..30), budget in 0u64..40_000,
        ) {
            let mut offset = 64;
            let all: Vec<Candidate> = used.iter().map(|&(hits, len)| {
                let entry = Entry { key: [0; 32], kind: Kind::Chunk, offset, len };
                offset = entry.end() as u32;
                Candidate { segment: 1, entry, hits }
            }).collect();
            let kept = survivors(all.clone(), budget);
            prop_assert!(kept.is_sorted_by_key(|one| one.entry.offset));
            let bytes: u64 = kept.iter().map(|one| stored_bytes(one.entry.len)).sum();
            prop_assert!(bytes <= budget);
            // No rejected record would have fitted beside those used at least as often.
            for out in all.iter().filter(|one| !kept.contains(one)) {
                let better = kept.iter().filter(|one| one.hits >= out.hits);
                let better: u64 = better.map(|one| stored_bytes(one.entry.len)).sum();
                prop_assert!(better + stored_bytes(out.entry.len) > budget);
            }
        }
    }

    #[test]
    fn the_minimum_of_free_space_counts_the_next_write() {
        assert_eq!(missing_space(100, 1000, 0.05, 10), 0);
        assert_eq!(missing_space(100, 1000, 0.05, 60), 10);
        assert_eq!(missing_space(0, 1000, 0.0, 0), 0);
    }

    #[test]
    fn a_hopeless_size_evicts_nothing_and_a_hopeless_floor_everything() {
        let listed: Vec<Listed> = (0..3).map(|id| Listed { id, bytes: 4096, form: Form::Sealed }).collect();
        let none = BTreeSet::new();
        assert_eq!(plan(&listed, &none, &limits(1, 2)), Plan { victims: vec![], enough: false });
        let limits = Limits { missing_bytes: 1 << 30, ..limits(100, 2) };
        assert_eq!(plan(&listed, &none, &limits), Plan { victims: vec![0, 1, 2], enough: false });
    }

    #[test]
    fn only_the_youngest_segment_with_room_is_adopted() {
        let segment = |id, bytes, form| Listed { id, bytes, form };
        let adopted = |listed: &[Listed]| adoptable(listed, 100).map(|one| one.id);
        assert_eq!(adopted(&[segment(1, 10, Form::Sealed), segment(2, 100, Form::Sealed)]), None);
        assert_eq!(adopted(&[segment(1, 10, Form::Sealed), segment(2, 10, Form::Open)]), None);
        assert_eq!(adopted(&[segment(1, 99, Form::Sealed), segment(2, 70, Form::Sealed)]), Some(2));
        assert_eq!(adopted(&[segment(1, 70, Form::Sealed), segment(2, 10, Form::Pinned)]), Some(1));
    }

    /// The policy as the store runs it, without a disk: segments of `RECORDS` records of equal size, `CAP`
    /// of them.
    struct Policy {
        index: Index,
        current: SegmentId,
        records: u32,
    }

    const RECORDS: u32 = 8;
    const CAP: usize = 12;
    /// Number of cold inserts between two uses that keeps a record. Of `CAP` segments two may be spared for
    /// the hot set, one is being written, one is being evicted. At least half of the others is new.
    const TURN: u32 = (CAP as u32 - 4) * RECORDS / 2;

    impl Policy {
        fn new() -> Self {
            let mut index = Index::default();
            index.extend(0, &[], BLOCK_BYTES, 0, Form::Sealed);
            Self { index, current: 0, records: 0 }
        }

        fn insert(&mut self, key: Key) {
            if self.index.contains(&key, Kind::Chunk) {
                return;
            }
            if self.records == RECORDS {
                self.roll();
            }
            self.append(key);
        }

        fn append(&mut self, key: Key) {
            let entry = Entry { key, kind: Kind::Chunk, offset: 64 + self.records * 512, len: 384 };
            self.index.extend(self.current, &[entry], BLOCK_BYTES, entry.end() as u32, Form::Sealed);
            self.records += 1;
        }

        fn roll(&mut self) {
            let ids = self.index.segments().keys();
            let listed: Vec<_> =
                ids.map(|&id| Listed { id, bytes: BLOCK_BYTES, form: Form::Sealed }).collect();
            let limits = limits(CAP as u64, 1);
            let plan = choose(&mut self.index, &listed, &BTreeSet::new(), &limits);
            assert!(plan.enough && plan.victims.len() <= 1);
            let used = plan.victims.iter().flat_map(|&victim| self.index.candidates(victim)).collect();
            (self.current, self.records) = (self.current + 1, 0);
            self.index.extend(self.current, &[], BLOCK_BYTES, 0, Form::Sealed);
            for survivor in survivors(used, survivors_bytes(limits.segment_bytes)) {
                self.append(survivor.entry.key);
                self.index.spend_hit(&survivor.entry.key);
            }
            for victim in plan.victims {
                self.index.remove_segment(victim);
            }
        }
    }

    /// Naive model of the policy: segments in queue order, each a list of (key, uses).
    #[derive(Default)]
    struct ModelPolicy {
        queue: Vec<Vec<(Key, u8)>>,
        current: Vec<(Key, u8)>,
    }

    impl ModelPolicy {
        fn all(&mut self) -> impl Iterator<Item = &mut (Key, u8)> {
            self.queue.iter_mut().flatten().chain(&mut self.current)
        }

        fn insert(&mut self, key: Key) {
            if self.all().any(|one| one.0 == key) {
                return;
            }
            if self.current.len() == RECORDS as usize {
                let full = std::mem::take(&mut self.current);
                self.queue.push(full);
                if self.queue.len() == CAP {
                    self.current = self.evict();
                }
            }
            self.current.push((key, 0));
        }

        /// Removes a segment and returns its surviving records.
        fn evict(&mut self) -> Vec<(Key, u8)> {
            let used = |segment: &[(Key, u8)]| segment.iter().filter(|one| one.1 > 0).count();
            for _ in 0..SPARED_MAX {
                if used(&self.queue[0]) as u32 <= RECORDS / 2 {
                    break;
                }
                let mut spared = self.queue.remove(0);
                for one in &mut spared {
                    one.1 = one.1.saturating_sub(1);
                }
                self.queue.insert(self.queue.len() - 1, spared);
            }
            let evicted = self.queue.remove(0);
            let mut chosen = Vec::new();
            for hits in [3, 2, 1] {
                chosen.extend((0..evicted.len()).filter(|&at| evicted[at].1 == hits));
            }
            chosen.truncate(RECORDS as usize / 2);
            chosen.sort_unstable();
            chosen.into_iter().map(|at| (evicted[at].0, evicted[at].1 - 1)).collect()
        }

        fn find(&mut self, key: &Key) -> bool {
            let found = self.all().find(|one| one.0 == *key);
            found.map(|one| one.1 = (one.1 + 1).min(3)).is_some()
        }
    }

    fn cold(number: u32) -> Key {
        let mut key = [255; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        key
    }

    proptest! {
        #[test]
        fn the_policy_agrees_with_the_model(
            steps in prop::collection::vec((0u8..3, 0u8..200), 1..700),
        ) {
            let (mut policy, mut twin) = (Policy::new(), ModelPolicy::default());
            for (what, key) in steps {
                let key = [key; 32];
                if what == 0 {
                    prop_assert_eq!(policy.index.find(&key, Kind::Chunk).is_some(), twin.find(&key));
                } else {
                    policy.insert(key);
                    twin.insert(key);
                }
                prop_assert_eq!(policy.index.len(), twin.all().count());
            }
        }

        #[test]
        fn a_scan_does_not_flush_the_hot_set(hot in 1u32..12, scan in 1u32..1200, every in 1u32..20) {
            prop_assume!(hot * every <= TURN);
            let mut policy = Policy::new();
            (0..hot).for_each(|key| policy.insert([key as u8; 32]));
            for number in 0..scan {
                policy.insert(cold(number));
                if number % every == 0 {
                    let key = [(number / every % hot) as u8; 32];
                    prop_assert!(policy.index.find(&key, Kind::Chunk).is_some());
                }
            }
        }
    }

    #[test]
    fn a_record_used_three_times_outlives_a_scan_of_three_caches() {
        let mut policy = Policy::new();
        let hot: Vec<Key> = (0..16).map(|key| [key; 32]).collect();
        for key in &hot {
            policy.insert(*key);
        }
        for key in hot.iter().cycle().take(3 * hot.len()) {
            assert!(policy.index.find(key, Kind::Chunk).is_some());
        }
        (0..3 * CAP as u32 * RECORDS).for_each(|number| policy.insert(cold(number)));
        assert!(hot.iter().all(|key| policy.index.contains(key, Kind::Chunk)));
    }
}
