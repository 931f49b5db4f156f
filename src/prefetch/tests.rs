//! Hand-made read patterns, and random ones against the invariants of every plan.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const LIMITS: Limits = Limits { window_bytes_max: 16 * MIB };

fn read(prefetcher: &mut Prefetcher, offset: u64, len: u64, size: u64) -> Plan {
    prefetcher.on_read(Instant::now(), ByteRange::new(offset, len), size, LIMITS)
}

fn ahead_chunks(plan: &Plan) -> u64 {
    plan.ahead.map_or(0, |ahead| ahead.range.count)
}

#[test]
fn the_first_small_read_costs_its_pages() {
    let mut prefetcher = Prefetcher::new();
    let plan = read(&mut prefetcher, 5000, 100, GIB);
    assert_eq!(plan.demand, Demand::Piece(ByteRange::new(4096, 4096)));
    assert_eq!(plan.ahead, None);
    // The second touch of the chunk fetches all of it.
    let plan = read(&mut prefetcher, 200 * KIB, 100, GIB);
    assert_eq!(plan.demand, Demand::Chunks(ChunkRange::new(ChunkIndex(0), 1)));
}

#[test]
fn a_piece_ends_with_the_file() {
    let plan = read(&mut Prefetcher::new(), 4096, 4096, 5000);
    assert_eq!(plan.demand, Demand::Piece(ByteRange::new(4096, 904)));
    let plan = read(&mut Prefetcher::new(), 5000, 4096, 5000);
    assert_eq!(plan.demand, Demand::Piece(ByteRange::new(5000, 0)));
}

#[test]
fn a_large_first_read_opens_a_window_at_once() {
    let plan = read(&mut Prefetcher::new(), 0, 128 * KIB, GIB);
    assert_eq!(plan.demand, Demand::Chunks(ChunkRange::new(ChunkIndex(0), 1)));
    let ahead = plan.ahead.unwrap();
    assert_eq!(
        (ahead.range.first, ahead.range.as_range().end),
        (ChunkIndex(1), 12),
        "2 MiB, to the end of a step"
    );
}

#[test]
fn consumed_chunks_end_before_late_reads() {
    let mut prefetcher = Prefetcher::new();
    let mut consumed = Vec::new();
    let mut go = |offsets: std::ops::Range<u64>| {
        for offset in offsets.step_by(128 * KIB as usize) {
            let plan = read(&mut prefetcher, offset, 128 * KIB, GIB);
            consumed.extend(plan.consumed.iter().flat_map(|chunks| chunks.iter().map(|index| index.0)));
        }
        consumed.clone()
    };
    assert!(go(0..MIB + 128 * KIB).is_empty());
    assert_eq!(go(MIB + 128 * KIB..MIB + 256 * KIB), [0]);
    // One request is late: its chunk and those behind it are not consumed.
    assert_eq!(go(MIB + 384 * KIB..3 * MIB), [0, 1, 2, 3, 4]);
    assert_eq!(go(MIB + 256 * KIB..MIB + 384 * KIB), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(go(100 * MIB..101 * MIB).len(), 8, "another run, and it is short");
}

#[test]
fn a_small_file_is_planned_to_its_end_and_not_beyond() {
    let mut prefetcher = Prefetcher::new();
    let plan = read(&mut prefetcher, 0, 128 * KIB, MIB + 1);
    assert_eq!(plan.ahead.unwrap().range, ChunkRange::new(ChunkIndex(1), 4));
    for offset in (128 * KIB..=MIB).step_by(128 * KIB as usize) {
        assert_eq!(read(&mut prefetcher, offset, 128 * KIB, MIB + 1).ahead, None);
    }
}

#[test]
fn random_small_reads_never_open_a_window() {
    let mut prefetcher = Prefetcher::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for size in [16 * MIB, 100 * MIB, 10 * GIB] {
        for _ in 0..2000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let plan = read(&mut prefetcher, (random >> 20) % size / 4096 * 4096, 4096, size);
            assert_eq!(plan.ahead, None);
        }
    }
}

#[test]
fn random_large_reads_stop_opening_windows() {
    let mut prefetcher = Prefetcher::new();
    let planned: Vec<u64> = (0..20)
        .map(|i| ahead_chunks(&read(&mut prefetcher, i * 37 % 101 * 64 * MIB, MIB, 10 * GIB)))
        .collect();
    assert!(planned[..2].iter().all(|chunks| *chunks > 0), "{planned:?}");
    assert!(planned[2..].iter().all(|chunks| *chunks == 0), "{planned:?}");
}

#[test]
fn requests_out_of_order_are_one_run() {
    let mut prefetcher = Prefetcher::new();
    let mut planned = 0;
    for group in 0..64 {
        for request in [0, 2, 1, 3, 7, 5, 6, 4] {
            let plan = read(&mut prefetcher, (group * 8 + request) * 128 * KIB, 128 * KIB, GIB);
            assert!(plan.cancel.is_empty());
            planned += ahead_chunks(&plan);
        }
    }
    assert_eq!(prefetcher.cursors().count(), 1);
    assert!(planned >= 64 * 4, "{planned} chunks planned ahead of 64 MiB");
}

#[test]
fn large_requests_far_out_of_order_are_one_run() {
    let mut prefetcher = Prefetcher::new();
    for offset in 0..8 {
        read(&mut prefetcher, offset * MIB, MIB, GIB);
    }
    for request in [12, 9, 8, 11, 10, 13] {
        let plan = read(&mut prefetcher, request * MIB, MIB, GIB);
        assert!(plan.cancel.is_empty());
    }
    assert_eq!(prefetcher.cursors().count(), 1);
}

#[test]
fn overlapping_requests_are_one_run() {
    let mut prefetcher = Prefetcher::new();
    for i in 0..100 {
        read(&mut prefetcher, i * 64 * KIB, 128 * KIB, GIB);
    }
    assert_eq!(prefetcher.cursors().count(), 1);
    assert!(prefetcher.cursors[0].is_open());
}

#[test]
fn index_at_the_end_and_media_at_the_front_keep_their_runs() {
    let size = 4 * GIB;
    let mut prefetcher = Prefetcher::new();
    for i in 0..40 {
        read(&mut prefetcher, i * 128 * KIB, 128 * KIB, size);
        let plan = read(&mut prefetcher, size - 100 * MIB + i * 128 * KIB, 128 * KIB, size);
        // One seek may be mistaken for the end of the other run, but no more.
        assert!(i == 0 || plan.cancel.is_empty());
    }
    assert_eq!(prefetcher.cursors().count(), 2);
    assert!(prefetcher.cursors.iter().all(Cursor::is_open));
}

#[test]
fn interleaved_readers_plan_everything_ahead() {
    let mut prefetcher = Prefetcher::new();
    let mut demanded_first = 0;
    let mut planned = std::collections::BTreeSet::new();
    for i in 0..256 {
        for base in [0, 2 * GIB] {
            let plan = read(&mut prefetcher, base + i * 256 * KIB, 256 * KIB, 4 * GIB);
            let Demand::Chunks(chunks) = plan.demand else { panic!("a large read is not a piece") };
            demanded_first += chunks.iter().filter(|index| !planned.contains(index)).count();
            planned.extend(plan.ahead.iter().flat_map(|ahead| ahead.range.iter()));
        }
    }
    assert!(demanded_first <= 3, "{demanded_first} chunks were not planned ahead");
    assert_eq!(prefetcher.cursors().count(), 2);
}

#[test]
fn a_seek_cancels_the_window_before_it() {
    let mut prefetcher = Prefetcher::new();
    for i in 0..100 {
        read(&mut prefetcher, i * MIB, MIB, 10 * GIB);
    }
    let first = prefetcher.cursors().next().unwrap();
    let plan = read(&mut prefetcher, 5 * GIB, MIB, 10 * GIB);
    assert_eq!(plan.cancel, vec![first]);
    assert!(plan.ahead.is_some());
    // A lookup elsewhere is not a seek.
    let plan = read(&mut prefetcher, 7 * GIB, 4096, 10 * GIB);
    assert!(plan.cancel.is_empty());
}

#[test]
fn a_displaced_run_is_cancelled() {
    let mut prefetcher = Prefetcher::new();
    prefetcher.interleaved = true;
    for i in 0..4 {
        assert!(read(&mut prefetcher, i * GIB, MIB, 10 * GIB).cancel.is_empty());
        read(&mut prefetcher, i * GIB + MIB, MIB, 10 * GIB);
    }
    let plan = read(&mut prefetcher, 5 * GIB, MIB, 10 * GIB);
    assert_eq!(plan.cancel, vec![CursorId(0)]);
    assert_eq!(prefetcher.cursors().count(), CURSORS_MAX);
}

#[test]
fn a_short_skip_keeps_its_window() {
    let mut prefetcher = Prefetcher::new();
    for i in 0..100 {
        read(&mut prefetcher, i * MIB, MIB, 10 * GIB);
    }
    let plan = read(&mut prefetcher, 100 * MIB + 31 * MIB, MIB, 10 * GIB);
    assert_eq!(prefetcher.cursors().count(), 2, "farther than the window and 16 MiB is a seek");
    assert!(!plan.cancel.is_empty());
    let mut prefetcher = Prefetcher::new();
    for i in 0..100 {
        read(&mut prefetcher, i * MIB, MIB, 10 * GIB);
    }
    let plan = read(&mut prefetcher, 115 * MIB, MIB, 10 * GIB);
    assert_eq!(prefetcher.cursors().count(), 1);
    assert!(plan.cancel.is_empty());
}

#[test]
fn reading_backwards_opens_no_windows_for_long() {
    let mut prefetcher = Prefetcher::new();
    let plans: Vec<Plan> =
        (0..200).rev().map(|i| read(&mut prefetcher, i * 128 * KIB, 128 * KIB, GIB)).collect();
    let planned: u64 = plans[40..].iter().map(ahead_chunks).sum();
    assert_eq!(planned, 0);
}

#[test]
fn after_a_pause_the_window_is_planned_again() {
    let mut prefetcher = Prefetcher::new();
    let mut now = Instant::now();
    let mut extend = |i: u64, now: Instant| {
        prefetcher.on_read(now, ByteRange::new(i * 64 * KIB, 64 * KIB), GIB, LIMITS).ahead
    };
    let mut planned_end = 0;
    for i in 0..100 {
        let ahead = extend(i, now);
        assert!(ahead.is_none_or(|ahead| ahead.range.first.0 >= planned_end), "planned twice");
        planned_end = ahead.map_or(planned_end, |ahead| ahead.range.as_range().end);
    }
    now += Duration::from_secs(60);
    assert!(extend(100, now).unwrap().range.first.0 < planned_end);
}

#[test]
fn earlier_runs_open_the_window_after_a_small_read() {
    let mut prefetcher = Prefetcher::new();
    for run in 0..3 {
        let start = run * GIB;
        let first = read(&mut prefetcher, start, 32 * KIB, 10 * GIB);
        assert_eq!(first.ahead.is_some(), run == 2, "run {run}");
        for i in 1..200 {
            read(&mut prefetcher, start + i * 32 * KIB, 32 * KIB, 10 * GIB);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Continues from the last read, this far off.
    Near {
        jump: i64,
        len: u64,
    },
    Far {
        offset: u64,
        len: u64,
    },
    Pause,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1..8 * KIB, Just(32 * KIB), Just(128 * KIB), Just(MIB)];
    let far = (0..300 * MIB, len.clone()).prop_map(|(offset, len)| Step::Far { offset, len });
    let jump = prop_oneof![
        4 => Just(0i64),
        2 => -(256 * KIB as i64)..256 * KIB as i64,
        1 => -(20 * MIB as i64)..20 * MIB as i64
    ];
    let near = (jump, len).prop_map(|(jump, len)| Step::Near { jump, len });
    prop::collection::vec(prop_oneof![8 => near, 2 => far, 1 => Just(Step::Pause)], 1..200)
}

proptest! {
    #[test]
    fn every_plan_keeps_the_invariants(steps in steps(), size in 1..300 * MIB, limit in 0..20 * MIB) {
        let limits = Limits { window_bytes_max: limit };
        let mut prefetcher = Prefetcher::new();
        let (mut now, mut last_end) = (Instant::now(), 0u64);
        // Planned chunks of each run: the model of `planned_end`.
        let mut planned: BTreeMap<CursorId, Vec<u64>> = BTreeMap::new();
        for step in steps {
            let (offset, len) = match step {
                Step::Near { jump, len } => (last_end.saturating_add_signed(jump), len),
                Step::Far { offset, len } => (offset, len),
                Step::Pause => {
                    now += Duration::from_secs(31);
                    planned.clear();
                    continue;
                }
            };
            last_end = offset + len;
            let range = ByteRange::new(offset, len).clamp_to(size);
            let plan = prefetcher.on_read(now, ByteRange::new(offset, len), size, limits);

            match plan.demand {
                Demand::Piece(piece) => {
                    prop_assert!(piece.contains(range) || range.is_empty());
                    prop_assert!(piece.len <= CHUNK_BYTES && (piece.is_empty() || piece.end() <= size));
                }
                Demand::Chunks(chunks) => {
                    prop_assert!(chunks.bytes_in(size).contains(range));
                    prop_assert_eq!(chunks, range.chunks());
                }
            }
            prop_assert!(prefetcher.cursors().count() <= CURSORS_MAX);
            for cursor in &plan.cancel {
                planned.remove(cursor);
            }
            let Some(ahead) = plan.ahead else { continue };
            prop_assert!(ahead.range.count > 0);
            prop_assert!(prefetcher.cursors().any(|cursor| cursor == ahead.cursor));
            let bytes = ahead.range.bytes_in(size);
            prop_assert_eq!(bytes.len.div_ceil(CHUNK_BYTES), ahead.range.count, "beyond the end");
            let position = prefetcher.cursors.last().unwrap().position();
            prop_assert!(bytes.end() - position <= limit, "{} over {}", bytes.end() - position, limit);
            let before = planned.entry(ahead.cursor).or_default();
            for index in ahead.range.as_range() {
                prop_assert!(!before.contains(&index), "chunk {index} planned twice");
                before.push(index);
            }
        }
    }
}
