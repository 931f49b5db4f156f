//! What to read ahead: a pure policy that turns reads into plans.
//!
//! A [`Prefetcher`] belongs to one open file. It is told of every read and answers with a [`Plan`]: what the read itself
//! needs ([`Demand`]), what should be on its way before it is asked for ([`Ahead`]), and what is no longer wanted.
//! Carrying the plan out is another module's business.
//!
//! # How it decides
//!
//! Reads that follow each other form a *run*, and a run has a *cursor* with a *window*: the bytes in front of the reader
//! that have been asked for. One file may have several runs at a time; containers such as MP4 and Matroska keep their
//! index at the end and the media at the front, and programs read a file with several threads.
//!
//! - A small read at a new place costs exactly its bytes: it proves nothing yet.
//! - A large read at a new place is the start of a run until the file's own history says otherwise.
//! - A window opens small and doubles each time the reader has used half of it, up to [`Limits`].
//! - After a seek the window opens at once to what earlier runs of the same kind on this file came to.
//! - A seek gives up the window of the run before it, unless runs of this file turn out to be interleaved.

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
use history::{PieceTouches, RunKind, Runs};
pub use window::{Limits, in_flight_limit, window_limit};

/// Most runs that one open file keeps apart.
///
/// Two are needed for containers with an index; four let a few threads read one handle.
const CURSORS_MAX: usize = 4;

/// A read of at most this many bytes at a new place is answered by exactly its bytes, in bytes.
///
/// 64 KiB is 0.5 ms of a 1 Gbit/s link: below it the round trip is the price, above it a whole chunk costs little more.
const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// Pieces are widened to multiples of this, in bytes: the page of the kernel and of most databases.
const PIECE_ALIGN_BYTES: u64 = 4096;

const _: () = assert!(PIECE_BYTES_MAX + 2 * PIECE_ALIGN_BYTES <= CHUNK_BYTES);

/// Names a run of one [`Prefetcher`]; never used again for another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorId(pub u64);

/// What a read needs before it can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Exactly these bytes; at most one chunk's size.
    Piece(ByteRange),
    /// These chunks, whole.
    Chunks(ChunkRange),
}

/// Chunks that will probably be read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// For which run.
    pub cursor: CursorId,
    /// Which chunks; all of them lie in the file, and none is planned twice unless the run was given up or idle.
    pub range: ChunkRange,
}

/// What to do about one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the read waits for. Covers the read as far as the file goes.
    pub demand: Demand,
    /// What to ask for besides.
    pub ahead: Option<Ahead>,
    /// Runs whose chunks nobody will come for; at most two.
    pub cancel: Vec<CursorId>,
    /// What the run has left behind since the last read, whole chunks.
    pub passed: Option<ChunkRange>,
}

/// The read-ahead policy of one open file.
#[derive(Debug, Default)]
pub struct Prefetcher {
    /// Least recently used first.
    cursors: Vec<Cursor>,
    cursors_made: u64,
    runs: Runs,
    pieces: PieceTouches,
    /// Set once a run went on whose window had been given up for a seek.
    interleaved: bool,
}

impl Prefetcher {
    /// A policy without history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a read of `range` in a file of `size` bytes and says what to do. Also to be told of reads that
    /// are answered from memory: they are what moves a window on.
    pub fn on_read(&mut self, now: Instant, range: ByteRange, size: u64, limits: Limits) -> Plan {
        let range = range.clamp_to(size);
        if range.is_empty() {
            return Plan { demand: Demand::Piece(range), ahead: None, cancel: Vec::new(), passed: None };
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
            cursor.note_asked(chunks);
        }
        let ahead = cursor.top_up(size, limits).map(|range| Ahead { cursor: cursor.id(), range });
        Plan { demand, ahead, cancel, passed: cursor.leave_behind() }
    }

    /// The runs that may have chunks under way; what to cancel when the file is closed.
    pub fn cursors(&self) -> impl Iterator<Item = CursorId> {
        self.cursors.iter().map(Cursor::id)
    }

    /// The cursor that a read belongs to: the nearest, the most recently used of equals.
    fn find(&self, range: ByteRange) -> Option<(usize, Relation)> {
        let related = self.cursors.iter().enumerate().rev();
        related
            .filter_map(|(at, cursor)| cursor.relation(range).map(|relation| (at, relation)))
            .min_by_key(|(at, relation)| (*relation, self.cursors[*at].distance(range)))
    }

    /// Moves a cursor on, and to the end of the list. Says whether chunks should be fetched whole.
    fn advance(&mut self, at: usize, range: ByteRange, relation: Relation, now: Instant) -> bool {
        let mut cursor = self.cursors.remove(at);
        self.interleaved |= cursor.was_given_up() && relation.is_forward();
        let sequential = cursor.advance(range, relation, now);
        self.cursors.push(cursor);
        sequential
    }

    /// Begins a run. Says whether its history calls for whole chunks.
    fn begin(&mut self, range: ByteRange, now: Instant, cancel: &mut Vec<CursorId>) -> bool {
        if let Some(last) = self.cursors.last_mut()
            && last.take_unrecorded()
        {
            self.runs.record(last.kind(), last.run_bytes());
        }
        let kind = RunKind::of_first_read(range.len);
        let opening = self.runs.opening(kind, range.len);
        let opens = opening.window_bytes > 0;
        if opens
            && !self.interleaved
            && let Some(last) = self.cursors.last_mut().filter(|last| last.is_open())
        {
            last.give_up();
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
        self.cursors.push(Cursor::begin(id, range, opening, now));
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

/// The chunk that begins at or behind byte `offset`.
const fn chunk_at_or_behind(offset: u64) -> ChunkIndex {
    ChunkIndex(offset.div_ceil(CHUNK_BYTES))
}
