//! History of an open file, which predicts its next reads.

use std::collections::VecDeque;

use super::window::LARGE_WINDOW_BYTES;
use crate::chunk::{CHUNK_BYTES, ChunkRange};

/// Length from which a first read suggests a run, in bytes.
///
/// 128 KiB is the largest request of the kernel's readahead and the buffer of `cat`. A lookup reads less.
const LARGE_READ_BYTES: u64 = 128 * 1024;

/// Length from which runs that began with a small read let the next such read open a window, in bytes.
///
/// 1 MiB: record lookups never read that far, a player that fills its buffer does.
const SMALL_FIRST_RUN_BYTES_MIN: u64 = 1024 * 1024;

/// Number of remembered chunks that were touched by a piece.
///
/// 512 of them span 128 MiB, and a search takes a tenth of a microsecond.
const PIECES_REMEMBERED: usize = 512;

/// Kind of a run by its first read. Only runs of the same kind predict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    SmallFirst,
    LargeFirst,
}

impl RunKind {
    pub(super) const fn of_first_read(len: u64) -> Self {
        if len < LARGE_READ_BYTES { Self::SmallFirst } else { Self::LargeFirst }
    }
}

/// Start of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunStart {
    /// First window behind the first read in bytes; 0 for none.
    pub(super) window_bytes: u64,
    /// Expected length of the run, if the earlier ones were all alike.
    pub(super) expected_run_bytes: Option<u64>,
}

impl RunStart {
    const CLOSED: Self = Self { window_bytes: 0, expected_run_bytes: None };
}

/// Lengths of the last two runs of each kind in bytes.
#[derive(Debug, Default)]
pub(super) struct RunLengths {
    small_first: [Option<u64>; 2],
    large_first: [Option<u64>; 2],
}

impl RunLengths {
    /// Records the length of a run that is probably over.
    pub(super) const fn record(&mut self, kind: RunKind, run_bytes: u64) {
        let lengths = match kind {
            RunKind::SmallFirst => &mut self.small_first,
            RunKind::LargeFirst => &mut self.large_first,
        };
        *lengths = [lengths[1], Some(run_bytes)];
    }

    /// Returns the start of a run whose first read has `first_bytes` bytes.
    ///
    /// The shorter one of two runs counts: one long run among short ones is not a habit.
    pub(super) fn start_of(&self, kind: RunKind, first_bytes: u64) -> RunStart {
        let lengths = match kind {
            RunKind::SmallFirst => self.small_first,
            RunKind::LargeFirst => self.large_first,
        };
        let [Some(a), Some(b)] = lengths else {
            let window_bytes = if kind == RunKind::LargeFirst { LARGE_WINDOW_BYTES } else { 0 };
            return RunStart { window_bytes, expected_run_bytes: None };
        };
        let (shorter, longer) = (a.min(b), a.max(b));
        if kind == RunKind::SmallFirst && shorter < SMALL_FIRST_RUN_BYTES_MIN {
            return RunStart::CLOSED;
        }
        let alike = longer - shorter <= CHUNK_BYTES;
        RunStart {
            window_bytes: shorter.saturating_sub(first_bytes),
            expected_run_bytes: alike.then_some(longer),
        }
    }
}

/// Chunks recently touched by pieces.
#[derive(Debug, Default)]
pub(super) struct PieceTouches(VecDeque<u64>);

impl PieceTouches {
    pub(super) fn contains_any(&self, chunks: ChunkRange) -> bool {
        chunks.iter().any(|index| self.0.contains(&index.0))
    }

    pub(super) fn record(&mut self, chunks: ChunkRange) {
        for index in chunks.iter() {
            if self.0.len() == PIECES_REMEMBERED {
                self.0.pop_front();
            }
            self.0.push_back(index.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkIndex;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_shorter_of_two_runs_predicts_the_next() {
        let mut runs = RunLengths::default();
        let kind = RunKind::LargeFirst;
        assert_eq!(runs.start_of(kind, MIB).window_bytes, LARGE_WINDOW_BYTES);
        runs.record(kind, 8 * MIB);
        assert_eq!(runs.start_of(kind, MIB).window_bytes, LARGE_WINDOW_BYTES);
        runs.record(kind, 3 * MIB);
        let start = runs.start_of(kind, MIB);
        assert_eq!(start, RunStart { window_bytes: 2 * MIB, expected_run_bytes: None });
        runs.record(kind, 3 * MIB);
        assert_eq!(runs.start_of(kind, MIB).expected_run_bytes, Some(3 * MIB));
    }

    #[test]
    fn lookups_never_open_a_window() {
        let mut runs = RunLengths::default();
        let kind = RunKind::SmallFirst;
        assert_eq!(runs.start_of(kind, 4096), RunStart::CLOSED);
        runs.record(kind, 100 * MIB);
        runs.record(kind, 4096);
        assert_eq!(runs.start_of(kind, 4096), RunStart::CLOSED);
        // Long runs predict only their own kind.
        runs.record(RunKind::LargeFirst, 100 * MIB);
        runs.record(RunKind::LargeFirst, 100 * MIB);
        assert_eq!(runs.start_of(kind, 4096), RunStart::CLOSED);
    }

    #[test]
    fn old_touches_are_forgotten() {
        let mut touches = PieceTouches::default();
        for index in 0..=PIECES_REMEMBERED as u64 {
            touches.record(ChunkRange::new(ChunkIndex(index), 1));
        }
        assert!(!touches.contains_any(ChunkRange::new(ChunkIndex(0), 1)));
        assert!(touches.contains_any(ChunkRange::new(ChunkIndex(1), 1)));
        assert_eq!(touches.0.len(), PIECES_REMEMBERED);
    }
}
