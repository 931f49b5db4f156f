//! (P) Index of the cache in memory: the locations of the records, the segments, and the use counts.
//!
//! A record takes about 100 bytes of memory (400,000 records, 100 GB of full chunks: 45 MB).

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap};

use super::eviction::Form;
use super::record::{Entry, HEADER_BYTES, Key, Kind, SegmentId};

/// Most uses of a record that are counted. Each use saves it from one eviction of its segment. With 3, a
/// hot record outlives three turns of the whole cache, and one that is no longer hot goes.
const HITS_MAX: u8 = 3;

/// Location of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The segment.
    pub(super) segment: SegmentId,
    /// Offset of the record's header in the segment, in bytes.
    pub(super) offset: u32,
    /// Size of the payload in bytes.
    pub(super) len: u32,
}

impl Location {
    /// Returns the offset of its payload in the segment, in bytes.
    pub(super) const fn payload_start(&self) -> u64 {
        self.offset as u64 + HEADER_BYTES as u64
    }

    /// Returns the end of its payload in the segment, in bytes.
    pub(super) const fn payload_end(&self) -> u64 {
        self.payload_start() + self.len as u64
    }
}

/// Used record of a segment that is being evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its segment.
    pub(super) segment: SegmentId,
    /// The record.
    pub(super) entry: Entry,
    /// Number of its uses, up to a small limit.
    pub(super) hits: u8,
}

impl Candidate {
    /// Returns its location.
    pub(super) const fn location(&self) -> Location {
        Location { segment: self.segment, offset: self.entry.offset, len: self.entry.len }
    }
}

/// Position in the eviction queue; lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Goes before this segment, which was once the youngest, and after the segments older than it.
    before: SegmentId,
    /// Order among segments with the same `before`: the first spared goes first.
    turn: u64,
}

/// State of a segment.
#[derive(Debug, Default)]
pub(super) struct SegmentState {
    /// Size of the file in bytes when last seen.
    pub(super) bytes: u64,
    /// End of its known records in bytes.
    pub(super) end: u32,
    /// Form in its file name.
    pub(super) form: Form,
    /// Position in the eviction queue since it was spared. A segment that was not spared is ordered by its
    /// number.
    spared: Option<Rank>,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Slot {
    segment: SegmentId,
    offset: u32,
    len: u32,
    kind: Kind,
    hits: u8,
}

impl Slot {
    fn location(&self) -> Location {
        Location { segment: self.segment, offset: self.offset, len: self.len }
    }
}

/// Index from keys to locations.
#[derive(Debug, Default)]
pub(super) struct Index {
    slots: HashMap<Key, Slot>,
    segments: BTreeMap<SegmentId, SegmentState>,
    spared: u64,
}

impl Index {
    /// Returns the number of records that can be found.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the segments, oldest first.
    pub(super) const fn segments(&self) -> &BTreeMap<SegmentId, SegmentState> {
        &self.segments
    }

    /// Returns the bytes of all segments as last seen.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Reserves memory for `records` more.
    pub(super) fn reserve(&mut self, records: usize) {
        self.slots.reserve(records);
    }

    /// Returns `true` if a record of this kind is known under `key`.
    pub(super) fn contains(&self, key: &Key, kind: Kind) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.kind == kind)
    }

    /// Returns the location of the record and counts a use.
    pub(super) fn find(&mut self, key: &Key, kind: Kind) -> Option<Location> {
        let slot = self.slots.get_mut(key).filter(|slot| slot.kind == kind)?;
        slot.hits = (slot.hits + 1).min(HITS_MAX);
        Some(slot.location())
    }

    /// Returns `true` if the record under `key` was used since it was written or the cache was opened.
    pub(super) fn was_used(&self, key: &Key) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.hits > 0)
    }

    /// Returns the location of the record without counting a use.
    pub(super) fn peek(&self, key: &Key, kind: Kind) -> Option<Location> {
        self.slots.get(key).filter(|slot| slot.kind == kind).map(Slot::location)
    }

    /// Adds records of `segment` and the state of its file. If a key is known already, the location that is
    /// evicted later wins: the pinned segment, or the younger one. The use count of the key stays.
    pub(super) fn extend(&mut self, segment: SegmentId, entries: &[Entry], bytes: u64, end: u32, form: Form) {
        let state = self.segments.entry(segment).or_default();
        (state.bytes, state.end, state.form) = (bytes, end, form);
        let mut keys = std::mem::take(&mut state.keys);
        keys.reserve(entries.len());
        let rank =
            |id: SegmentId| (self.segments.get(&id).is_some_and(|state| state.form == Form::Pinned), id);
        for entry in entries {
            let Entry { key, kind, offset, len } = *entry;
            let mut slot = Slot { segment, offset, len, kind, hits: 0 };
            match self.slots.entry(key) {
                MapEntry::Occupied(old) if rank(old.get().segment) > rank(segment) => continue,
                MapEntry::Occupied(mut old) => {
                    slot.hits = old.get().hits;
                    old.insert(slot);
                }
                MapEntry::Vacant(free) => {
                    free.insert(slot);
                }
            }
            keys.push(key);
        }
        if let Some(state) = self.segments.get_mut(&segment) {
            state.keys = keys;
        }
    }

    /// Removes one use of `key`, the price of being spared.
    pub(super) fn spend_hit(&mut self, key: &Key) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.hits = slot.hits.saturating_sub(1);
        }
    }

    /// Forgets the record if it is still at `location`.
    pub(super) fn remove_at(&mut self, key: &Key, location: Location) -> bool {
        let there = self.slots.get(key).is_some_and(|slot| slot.location() == location);
        if there {
            self.slots.remove(key);
        }
        there
    }

    /// Forgets a segment and all its records. Returns its size in bytes when last seen.
    pub(super) fn remove_segment(&mut self, segment: SegmentId) -> Option<u64> {
        let state = self.segments.remove(&segment)?;
        for key in &state.keys {
            if self.slots.get(key).is_some_and(|slot| slot.segment == segment) {
                self.slots.remove(key);
            }
        }
        Some(state.bytes)
    }

    /// Returns the position of `segment` in the eviction queue.
    pub(super) fn rank(&self, segment: SegmentId) -> Rank {
        let spared = self.segments.get(&segment).and_then(|state| state.spared);
        spared.unwrap_or(Rank { before: segment, turn: u64::MAX })
    }

    /// Moves `segment` to the end of the eviction queue, as if it were written anew. Each of its records
    /// pays a use.
    pub(super) fn spare(&mut self, segment: SegmentId) {
        for candidate in self.candidates(segment) {
            self.spend_hit(&candidate.entry.key);
        }
        self.spared += 1;
        let before = self.segments.keys().next_back().copied().unwrap_or(segment);
        if let Some(state) = self.segments.get_mut(&segment) {
            state.spared = Some(Rank { before, turn: self.spared });
        }
    }

    /// Returns the used records of `segment` in the order of their offsets.
    pub(super) fn candidates(&self, segment: SegmentId) -> Vec<Candidate> {
        let keys = self.segments.get(&segment).map_or(&[][..], |state| &state.keys);
        let used = keys.iter().filter_map(|key| {
            let slot = self.slots.get(key).filter(|slot| slot.segment == segment && slot.hits > 0)?;
            let entry = Entry { key: *key, kind: slot.kind, offset: slot.offset, len: slot.len };
            Some(Candidate { segment, entry, hits: slot.hits })
        });
        let mut used: Vec<Candidate> = used.collect();
        // A key written twice into one segment is listed twice, but has one location.
        used.sort_unstable_by_key(|candidate| candidate.entry.offset);
        used.dedup_by_key(|candidate| candidate.entry.offset);
        used
    }

    /// Returns every record with its location, in disk order.
    pub(super) fn all(&self) -> Vec<(Key, Kind, Location)> {
        let mut all: Vec<_> =
            self.slots.iter().map(|(key, slot)| (*key, slot.kind, slot.location())).collect();
        all.sort_unstable_by_key(|(_, _, at)| (at.segment, at.offset));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Extend { segment: u64, key: u8, manifest: bool },
        Find { key: u8, manifest: bool },
        RemoveAt { key: u8 },
        RemoveSegment { segment: u64 },
        Spend { key: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5u64, 0..12u8, any::<bool>())
                .prop_map(|(segment, key, manifest)| Step::Extend { segment, key, manifest }),
            3 => (0..12u8, any::<bool>()).prop_map(|(key, manifest)| Step::Find { key, manifest }),
            1 => (0..12u8).prop_map(|key| Step::RemoveAt { key }),
            1 => (0..5u64).prop_map(|segment| Step::RemoveSegment { segment }),
            1 => (0..12u8).prop_map(|key| Step::Spend { key }),
        ]
    }

    fn kind(manifest: bool) -> Kind {
        if manifest { Kind::Manifest } else { Kind::Chunk }
    }

    /// Segment 2 is pinned in every history.
    fn form(segment: u64) -> Form {
        if segment == 2 { Form::Pinned } else { Form::Sealed }
    }

    /// Order of eviction: the pinned segment goes last, otherwise the youngest.
    fn rank(segment: u64) -> (bool, u64) {
        (segment == 2, segment)
    }

    /// Naive model of the index: (entry, segment, hits), searched as a whole.
    type Model = Vec<(Entry, u64, u8)>;

    fn apply_to_model(twin: &mut Model, step: &Step, offset: u32) {
        match *step {
            Step::Extend { segment, key, manifest } => {
                let entry = Entry { key: [key; 32], kind: kind(manifest), offset, len: 9 };
                let old = twin.iter().position(|(known, ..)| known.key == entry.key);
                let old = old.map(|at| twin.remove(at));
                twin.push(match old {
                    Some(old) if rank(old.1) > rank(segment) => old,
                    Some(old) => (entry, segment, old.2),
                    None => (entry, segment, 0),
                });
            }
            Step::Find { key, manifest } => {
                let wanted = |known: &Entry| known.key == [key; 32] && known.kind == kind(manifest);
                let found = twin.iter_mut().filter(|(known, ..)| wanted(known));
                found.for_each(|(.., hits)| *hits = (*hits + 1).min(HITS_MAX));
            }
            Step::RemoveAt { key } => twin.retain(|(known, ..)| known.key != [key; 32]),
            Step::RemoveSegment { segment } => twin.retain(|(_, at, _)| *at != segment),
            Step::Spend { key } => {
                let found = twin.iter_mut().filter(|(known, ..)| known.key == [key; 32]);
                found.for_each(|(.., hits)| *hits = hits.saturating_sub(1));
            }
        }
    }

    fn apply(index: &mut Index, step: &Step, offset: u32) {
        match *step {
            Step::Extend { segment, key, manifest } => {
                let entry = Entry { key: [key; 32], kind: kind(manifest), offset, len: 9 };
                index.extend(segment, &[entry], u64::from(offset), offset, form(segment));
            }
            Step::Find { key, manifest } => drop(index.find(&[key; 32], kind(manifest))),
            Step::RemoveAt { key } => {
                if let Some((key, _, at)) = index.all().into_iter().find(|(known, ..)| *known == [key; 32]) {
                    assert!(!index.remove_at(&key, Location { len: at.len + 1, ..at }));
                    assert!(index.remove_at(&key, at));
                }
            }
            Step::RemoveSegment { segment } => drop(index.remove_segment(segment)),
            Step::Spend { key } => index.spend_hit(&[key; 32]),
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec(step(), 1..80)) {
            let (mut index, mut twin) = (Index::default(), Model::new());
            for (i, step) in steps.iter().enumerate() {
                let offset = (i as u32 + 1) * 64;
                apply(&mut index, step, offset);
                apply_to_model(&mut twin, step, offset);
                prop_assert_eq!(index.len(), twin.len());
                for (entry, segment, _) in &twin {
                    let at = Location { segment: *segment, offset: entry.offset, len: entry.len };
                    prop_assert_eq!(index.peek(&entry.key, entry.kind), Some(at));
                }
                for segment in 0..5 {
                    let mut used: Vec<Candidate> = twin
                        .iter()
                        .filter(|(_, at, hits)| *at == segment && *hits > 0)
                        .map(|&(entry, _, hits)| Candidate { segment, entry, hits })
                        .collect();
                    used.sort_by_key(|candidate| candidate.entry.offset);
                    prop_assert_eq!(index.candidates(segment), used);
                }
            }
        }
    }

    #[test]
    fn a_key_of_the_other_kind_is_not_found() {
        let mut index = Index::default();
        let entry = Entry { key: [1; 32], kind: Kind::Manifest, offset: 64, len: 5 };
        index.extend(1, &[entry], 200, 200, Form::Sealed);
        assert_eq!(index.find(&[1; 32], Kind::Chunk), None);
        assert!(index.contains(&[1; 32], Kind::Manifest));
        assert_eq!(index.bytes(), 200);
        assert_eq!(index.remove_segment(1), Some(200));
        assert_eq!((index.len(), index.bytes()), (0, 0));
    }
}
