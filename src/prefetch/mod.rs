//! Read-ahead policy: a pure function of the reads of a file.
//!
//! A [`Prefetcher`] belongs to one open file. It is told of every read and returns a [`Plan`]: the data for
//! the read itself ([`Demand`]), the data to request ahead ([`Ahead`]), and the runs to cancel. Other
//! modules carry the plan out.
//!
//! # Decisions
//!
//! Reads that follow each other form a *run*. A run has a *cursor* with a *window*: the requested bytes
//! ahead of the reader. One file may have several runs at a time: containers such as MP4 and Matroska keep
//! their index at the end and the media at the front, and programs read a file with several threads.
//!
//! - A small read at a new place costs exactly its bytes, because it proves nothing yet.
//! - A large read at a new place counts as the start of a run, unless the history of the file contradicts.
//! - A window opens small and doubles each time the reader has used half of it, up to [`Limits`].
//! - After a seek the window opens at once to the length of earlier runs of the same kind in this file.
//! - A seek cancels the window of the run before it, unless the runs of this file turn out to be
//!   interleaved.

mod cursor;
mod history;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod tests;
mod window;

use std::time::Instant;

use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkIndex, ChunkRange};
use cursor::{Cursor, Relation};
use history::{PieceTouches, RunKind, RunLengths};
pub use window::{Limits, in_flight_limit, window_limit};

/// Most runs tracked per open file.
///
/// Containers with an index need two. Four let a few threads read one handle.
const CURSORS_MAX: usize = 4;

/// Largest read at a new place that gets exactly its bytes, in bytes.
///
/// 64 KiB is 0.5 ms of a 1 Gbit/s link. Below it the round trip dominates, above it a whole chunk costs
/// little more.
const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// Alignment of pieces in bytes: the page size of the kernel and of most databases.
const PIECE_ALIGN_BYTES: u64 = 4096;

const _: () = assert!(PIECE_BYTES_MAX + 2 * PIECE_ALIGN_BYTES <= CHUNK_BYTES);

/// Number of a run of one [`Prefetcher`], never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorId(pub u64);

/// Data that a read needs before it can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Exactly these bytes, at most the size of a chunk.
    Piece(ByteRange),
    /// These whole chunks.
    Chunks(ChunkRange),
}

/// Chunks that will probably be read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Run that will read them.
    pub cursor: CursorId,
    /// Chunks to request. They lie in the file, and none is planned twice unless the run was given up or
    /// idle.
    pub range: ChunkRange,
}

/// Actions for one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Data for which the read waits. It covers the read as far as the file goes.
    pub demand: Demand,
    /// Data to request ahead.
    pub ahead: Option<Ahead>,
    /// Runs whose chunks are no longer wanted; at most two.
    pub cancel: Vec<CursorId>,
    /// Whole chunks that the run has consumed since the last read.
    pub consumed: Option<ChunkRange>,
}

/// Read-ahead policy of one open file.
#[derive(Debug, Default)]
pub struct Prefetcher {
    /// Least recently used first.
    cursors: Vec<Cursor>,
    cursors_made: u64,
    runs: RunLengths,
    pieces: PieceTouches,
    /// True once a run continued after its window was given up for a seek.
    interleaved: bool,
}

impl Prefetcher {
    /// Creates a policy without history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a read of `range` in a file of `size` bytes and returns the plan. Reads answered from memory
    /// must be recorded, too, because they move the window.
    pub fn on_read(&mut self, now: Instant, range: ByteRange, size: u64, limits: Limits) -> Plan {
        let range = range.clamp_to(size);
        if range.is_empty() {
            return Plan { demand: Demand::Piece(range), ahead: None, cancel: Vec::new(), consumed: None };
        }
        let mut cancel = Vec::new();
        let known = self.find(range);
        let sequential = match known {
            Some((at, relation)) => self.advance(at, range, relation, now),
            None => self.begin(range, now, &mut cancel),
        };
        let demand = self.demand(range, size, sequential);
        let cursor = self.cursors.last_mut().expect("the read has just moved or made a cursor");
        if let Demand::Chunks(chunks) = demand {
            cursor.note_demanded(chunks);
        }
        let ahead = cursor.plan_ahead(size, limits).map(|range| Ahead { cursor: cursor.id(), range });
        Plan { demand, ahead, cancel, consumed: cursor.take_consumed() }
    }

    /// Returns the runs that may have chunks in flight, to cancel when the file is closed.
    pub fn cursors(&self) -> impl Iterator<Item = CursorId> {
        self.cursors.iter().map(Cursor::id)
    }

    /// Returns the cursor of a read: the nearest, and of equal ones the most recently used.
    fn find(&self, range: ByteRange) -> Option<(usize, Relation)> {
        let related = self.cursors.iter().enumerate().rev();
        related
            .filter_map(|(at, cursor)| cursor.relation(range).map(|relation| (at, relation)))
            .min_by_key(|(at, relation)| (*relation, self.cursors[*at].distance(range)))
    }

    /// Advances a cursor and moves it to the end of the list. Returns `true` if whole chunks should be
    /// fetched.
    fn advance(&mut self, at: usize, range: ByteRange, relation: Relation, now: Instant) -> bool {
        let mut cursor = self.cursors.remove(at);
        self.interleaved |= cursor.was_cancelled() && relation.is_forward();
        let sequential = cursor.advance(range, relation, now);
        self.cursors.push(cursor);
        sequential
    }

    /// Begins a run. Returns `true` if its history calls for whole chunks.
    fn begin(&mut self, range: ByteRange, now: Instant, cancel: &mut Vec<CursorId>) -> bool {
        if let Some(last) = self.cursors.last_mut()
            && last.take_unrecorded()
        {
            self.runs.record(last.kind(), last.run_bytes());
        }
        let kind = RunKind::of_first_read(range.len);
        let start = self.runs.start_of(kind, range.len);
        let opens = start.window_bytes > 0;
        if opens
            && !self.interleaved
            && let Some(last) = self.cursors.last_mut().filter(|last| last.is_open())
        {
            last.cancel();
            cancel.push(last.id());
        }
        if self.cursors.len() == CURSORS_MAX {
            let displaced = self.cursors.remove(0);
            if displaced.is_open() && !cancel.contains(&displaced.id()) {
                cancel.push(displaced.id());
            }
        }
        let id = CursorId(self.cursors_made);
        self.cursors_made += 1;
        self.cursors.push(Cursor::begin(id, range, start, now));
        opens
    }

    fn demand(&mut self, range: ByteRange, size: u64, sequential: bool) -> Demand {
        let chunks = range.chunks();
        let small = range.len <= PIECE_BYTES_MAX;
        if !small || sequential || self.pieces.contains_any(chunks) {
            return Demand::Chunks(chunks);
        }
        self.pieces.record(chunks);
        let start = range.offset - range.offset % PIECE_ALIGN_BYTES;
        let end = range.end().next_multiple_of(PIECE_ALIGN_BYTES);
        Demand::Piece(ByteRange::new(start, end - start).clamp_to(size))
    }
}

/// Returns the first chunk that begins at or behind byte `offset`.
const fn chunk_at_or_behind(offset: u64) -> ChunkIndex {
    ChunkIndex(offset.div_ceil(CHUNK_BYTES))
}
