//! (P) Blocks of an earlier version of a file, one window at a time, to find moved content.

use std::collections::HashMap;

use crate::chunk::{Block, ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange};

/// Chunks of one window: 16 MiB.
const WINDOW_CHUNKS: u64 = 64;

/// Most bytes by which found content may have moved.
pub(super) const MOVED_BYTES_MAX: u64 = WINDOW_CHUNKS * CHUNK_BYTES;

/// Returns the windows to search for a range: its own and one on either side, which finds content moved by
/// up to 16 MiB.
pub(super) fn windows_near(range: ByteRange) -> impl Iterator<Item = u64> {
    (range.offset / MOVED_BYTES_MAX).saturating_sub(1)..=range.end() / MOVED_BYTES_MAX + 1
}

/// Returns the chunks of a window.
pub(super) const fn chunks_of(window: u64) -> ChunkRange {
    ChunkRange::new(ChunkIndex(window * WINDOW_CHUNKS), WINDOW_CHUNKS)
}

/// Blocks of a part of the earlier version, by hash.
#[derive(Debug, Default)]
pub(super) struct Window {
    places: HashMap<ChunkHash, ByteRange>,
}

impl Window {
    /// Indexes these blocks; of equal ones the first.
    pub(super) fn new(blocks: impl IntoIterator<Item = Block>) -> Self {
        let mut places = HashMap::new();
        for block in blocks {
            places.entry(block.hash).or_insert(block.range);
        }
        Self { places }
    }

    /// Returns the range of a block in the earlier version.
    pub(super) fn find(&self, block: &Block) -> Option<ByteRange> {
        self.places.get(&block.hash).copied().filter(|place| place.len == block.range.len)
    }
}

/// Sources of the parts of a range of the new version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Blocks with their ranges in the earlier version.
    pub(super) found: Vec<(Block, ByteRange)>,
    /// Ranges that must come from the host: ascending, neighbours joined, none longer than a chunk.
    pub(super) missing: Vec<ByteRange>,
}

impl Plan {
    /// Plans the range `wanted`, which `blocks` cover in order.
    pub(super) fn new(
        wanted: ByteRange,
        blocks: &[Block],
        find: impl Fn(&Block) -> Option<ByteRange>,
    ) -> Self {
        let mut plan = Self::default();
        for block in blocks {
            let Some(part) = block.range.intersect(wanted) else { continue };
            match find(block) {
                Some(place) => plan.found.push((*block, place)),
                None => plan.miss(part),
            }
        }
        plan
    }

    /// Adds a missing range. Ranges must come in order.
    fn miss(&mut self, part: ByteRange) {
        match self.missing.last_mut() {
            Some(last) if last.end() == part.offset && last.len + part.len <= CHUNK_BYTES => {
                last.len += part.len;
            }
            _ => self.missing.push(part),
        }
    }
}

/// Decision to search one file for moved content, learnt from the results so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct SearchDecision {
    changed_in_a_row: u32,
    wanted_bytes: u64,
    found_bytes: u64,
}

impl SearchDecision {
    /// Number of changed chunks in a row that starts a search. An edit in place changes fewer.
    const CHANGED_IN_A_ROW: u32 = 4;
    /// Number of searched bytes after which the results are judged.
    const JUDGED_AFTER_BYTES: u64 = 8 << 20;
    /// The search stops if it finds less than one part in this many.
    const FOUND_ONE_IN: u64 = 10;

    /// Records the comparison of a chunk with the earlier one at its place.
    pub(super) fn compared(&mut self, is_same: bool) {
        self.changed_in_a_row = if is_same { 0 } else { self.changed_in_a_row.saturating_add(1) };
    }

    /// Records the result of a search.
    pub(super) fn searched(&mut self, wanted_bytes: u64, found_bytes: u64) {
        self.wanted_bytes += wanted_bytes;
        self.found_bytes += found_bytes;
    }

    /// Returns `true` if the file should be searched.
    pub(super) fn should_search(&self) -> bool {
        let pays = self.wanted_bytes < Self::JUDGED_AFTER_BYTES
            || self.found_bytes >= self.wanted_bytes / Self::FOUND_ONE_IN;
        self.changed_in_a_row >= Self::CHANGED_IN_A_ROW && pays
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::cut_blocks;
    use crate::chunk::testing::noise;

    fn found_bytes(plan: &Plan, wanted: ByteRange) -> u64 {
        plan.found.iter().filter_map(|(block, _)| block.range.intersect(wanted)).map(|part| part.len).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// An earlier version with inserted and removed bytes: the plan rebuilds the new version exactly.
        #[test]
        fn a_plan_followed_gives_the_new_version(
            seed: u64,
            cut in 0..500_000usize,
            removed in 0..5_000usize,
            added in 0..5_000usize,
            offset in 0..600_000u64,
            len in 0..400_000u64,
        ) {
            let old = noise(seed, 600_000);
            let new = [&old[..cut], &noise(seed ^ 1, added), &old[cut + removed..]].concat();
            let window = Window::new(cut_blocks(0, &old));
            let blocks = cut_blocks(0, &new);
            let wanted = ByteRange::new(offset, len).clamp_to(new.len() as u64);
            let plan = Plan::new(wanted, &blocks, |block| window.find(block));
            let mut made = vec![None; new.len()];
            for (block, place) in &plan.found {
                for at in 0..block.range.len {
                    made[(block.range.offset + at) as usize] = Some(old[(place.offset + at) as usize]);
                }
            }
            for part in &plan.missing {
                prop_assert!(wanted.contains(*part) && part.len <= CHUNK_BYTES);
                for at in part.offset..part.end() {
                    prop_assert_eq!(made[at as usize].replace(new[at as usize]), None, "taken from two sources");
                }
            }
            for at in wanted.offset..wanted.end() {
                prop_assert_eq!(made[at as usize], Some(new[at as usize]));
            }
            let missing: u64 = plan.missing.iter().map(|part| part.len).sum();
            prop_assert_eq!(found_bytes(&plan, wanted) + missing, wanted.len);
            prop_assert!(missing <= 400_000, "{}", missing);
        }
    }

    #[test]
    fn one_byte_in_front_costs_a_block() {
        let old = noise(7, 1 << 20);
        let new = [&[1], &old[..]].concat();
        let window = Window::new(cut_blocks(0, &old));
        let wanted = ByteRange::new(0, new.len() as u64);
        let plan = Plan::new(wanted, &cut_blocks(0, &new), |block| window.find(block));
        assert!(found_bytes(&plan, wanted) > wanted.len * 9 / 10, "{}", found_bytes(&plan, wanted));
    }

    #[test]
    fn the_search_covers_the_neighbouring_windows() {
        let near = |offset| windows_near(ByteRange::new(offset, 1 << 20)).collect::<Vec<_>>();
        assert_eq!(near(0), [0, 1]);
        assert_eq!(near(16 << 20), [0, 1, 2]);
        assert_eq!(near((32 << 20) - 1), [0, 1, 2, 3]);
        assert_eq!(chunks_of(2), ChunkRange::new(ChunkIndex(128), 64));
    }

    #[test]
    fn the_search_starts_after_changes_and_stops_without_finds() {
        let mut decision = SearchDecision::default();
        for is_same in [false, false, false, true, false, false, false] {
            decision.compared(is_same);
            assert!(!decision.should_search());
        }
        decision.compared(false);
        assert!(decision.should_search());
        decision.searched(SearchDecision::JUDGED_AFTER_BYTES - 1, 0);
        assert!(decision.should_search());
        decision.searched(1, 0);
        assert!(!decision.should_search());
        decision.searched(0, SearchDecision::JUDGED_AFTER_BYTES / 10);
        assert!(decision.should_search());
    }
}
