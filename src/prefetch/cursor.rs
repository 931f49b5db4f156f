//! One run of reads through a file: the reader's position, its gaps, and the chunks planned ahead.

use std::time::{Duration, Instant};

use super::history::{RunKind, RunStart};
use super::window::{Limits, PROVED_WINDOW_BYTES, STEP_CHUNKS, Window};
use super::{CursorId, PIECE_BYTES_MAX, chunk_at_or_behind};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkIndex, ChunkRange};

const MIB: u64 = 1024 * 1024;

/// Farthest read behind the reader that still belongs to its run, in bytes. mountpoint-s3 and hf-mount use
/// 1 MiB, too.
const BACK_SEEK_BYTES: u64 = MIB;

/// Farthest forward skip that stays in its run, in bytes. mountpoint-s3 and hf-mount use 16 MiB, too.
const FORWARD_SKIP_BYTES: u64 = 16 * MIB;

/// Gap before a read that counts as a request that has not arrived yet, in bytes.
///
/// Half the kernel's readahead of 128 KiB. It is small, so that a lookup is not taken for a run by chance.
const ADJACENT_GAP_BYTES: u64 = 64 * 1024;

/// Bytes read without a gap that open the window of a run.
///
/// The kernel's readahead passes 32 KiB with its second request, a reader of 4 KiB pages with its eighth.
/// The chunk fetched for its second read also serves the later ones.
const PROOF_BYTES: u64 = 32 * 1024;

/// Most gaps that are remembered: as many requests as FUSE threads can reorder.
const GAPS_MAX: usize = 8;

/// Pause after which read-ahead may have been evicted and is planned again.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Position of a read relative to its run, the closest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    /// Continues the run, within the kernel's reordering.
    Adjacent,
    /// Fills a gap of earlier reads.
    Late,
    /// Lies in the planned window.
    InWindow,
    /// Lies shortly behind the reader.
    Behind,
    /// Skips a part of the file.
    Skip,
}

impl Relation {
    /// Returns `true` if the run continues.
    pub(super) const fn is_forward(self) -> bool {
        matches!(self, Self::Adjacent | Self::InWindow)
    }
}

/// One run of reads through a file.
#[derive(Debug)]
pub(super) struct Cursor {
    id: CursorId,
    kind: RunKind,
    start: u64,
    /// End of the farthest byte read.
    position: u64,
    /// Bytes read in sequence. Skipped bytes do not count.
    progress_bytes: u64,
    /// Gaps before `position`, from reads that came out of order.
    gaps: Vec<ByteRange>,
    /// End of the chunks that the run has consumed.
    consumed_end: ChunkIndex,
    /// End of the chunks that were planned.
    planned_end: ChunkIndex,
    window: Window,
    /// Expected end of the run, if it is like those before it.
    expected_end: Option<u64>,
    last_read: Instant,
    /// True if a second read followed the first.
    followed: bool,
    recorded: bool,
    cancelled: bool,
}

impl Cursor {
    pub(super) fn begin(id: CursorId, first: ByteRange, start: RunStart, now: Instant) -> Self {
        Self {
            id,
            kind: RunKind::of_first_read(first.len),
            start: first.offset,
            position: first.end(),
            progress_bytes: first.len,
            gaps: Vec::new(),
            consumed_end: ChunkIndex::containing(first.offset),
            planned_end: ChunkIndex::containing(first.offset),
            window: Window::opened(start.window_bytes, first.len),
            expected_end: start.expected_run_bytes.map(|bytes| first.offset.saturating_add(bytes)),
            last_read: now,
            followed: false,
            recorded: false,
            cancelled: false,
        }
    }

    pub(super) const fn id(&self) -> CursorId {
        self.id
    }

    pub(super) const fn kind(&self) -> RunKind {
        self.kind
    }

    pub(super) const fn is_open(&self) -> bool {
        self.window.is_open()
    }

    #[cfg(test)]
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Returns the length of the run so far in bytes.
    pub(super) const fn run_bytes(&self) -> u64 {
        self.position - self.start
    }

    /// Returns `true` once after each advance: the length of the run is not recorded yet.
    pub(super) const fn take_unrecorded(&mut self) -> bool {
        !std::mem::replace(&mut self.recorded, true)
    }

    /// Gives up the planned chunks. If the run continues, they are planned again.
    pub(super) const fn cancel(&mut self) {
        self.cancelled = true;
        self.planned_end = chunk_at_or_behind(self.position);
    }

    pub(super) const fn was_cancelled(&self) -> bool {
        self.cancelled
    }

    pub(super) const fn distance(&self, range: ByteRange) -> u64 {
        self.position.abs_diff(range.offset)
    }

    /// Returns the position of a read relative to this run; `None` if it belongs to another.
    pub(super) fn relation(&self, range: ByteRange) -> Option<Relation> {
        if range.offset <= self.position {
            return self.relation_behind(range);
        }
        let gap = range.offset - self.position;
        let in_window = self.is_open() && range.offset < self.planned_end.offset();
        if gap <= ADJACENT_GAP_BYTES.max(2 * range.len) {
            Some(Relation::Adjacent)
        } else if in_window {
            Some(Relation::InWindow)
        } else if gap <= FORWARD_SKIP_BYTES && self.is_open() && range.len > PIECE_BYTES_MAX {
            Some(Relation::Skip)
        } else {
            None
        }
    }

    fn relation_behind(&self, range: ByteRange) -> Option<Relation> {
        if range.end() > self.position {
            return (self.position - range.offset <= BACK_SEEK_BYTES).then_some(Relation::Adjacent);
        }
        if self.gaps.iter().any(|gap| gap.intersect(range).is_some()) {
            return Some(Relation::Late);
        }
        (self.position - range.offset <= BACK_SEEK_BYTES).then_some(Relation::Behind)
    }

    /// Records a read. Returns `true` if it belongs to a sequence, so that whole chunks pay.
    pub(super) fn advance(&mut self, range: ByteRange, relation: Relation, now: Instant) -> bool {
        if now.saturating_duration_since(self.last_read) > IDLE_MAX {
            self.planned_end = self.planned_end.min(chunk_at_or_behind(self.position));
        }
        self.last_read = now;
        match relation {
            Relation::Adjacent | Relation::InWindow => self.extend(range),
            Relation::Late => self.fill(range),
            Relation::Behind => {}
            Relation::Skip => {
                self.gaps.clear();
                self.position = range.end();
                self.planned_end = self.planned_end.max(ChunkIndex::containing(range.offset));
                self.expected_end = None;
            }
        }
        relation != Relation::Behind || self.is_open()
    }

    fn extend(&mut self, range: ByteRange) {
        self.followed = true;
        self.recorded = false;
        self.cancelled = false;
        self.progress_bytes += range.len.min(range.end() - self.position);
        if range.offset > self.position {
            if self.gaps.len() == GAPS_MAX {
                self.gaps.remove(0);
            }
            self.gaps.push(ByteRange::new(self.position, range.offset - self.position));
        }
        self.position = range.end();
        self.planned_end = self.planned_end.max(ChunkIndex::containing(range.offset));
        if self.expected_end.is_some_and(|end| self.position > end) {
            self.expected_end = None;
        }
    }

    fn fill(&mut self, range: ByteRange) {
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for gap in self.gaps.drain(..) {
            let Some(filled) = gap.intersect(range) else {
                left.push(gap);
                continue;
            };
            self.progress_bytes += filled.len;
            left.push(ByteRange::new(gap.offset, filled.offset - gap.offset));
            left.push(ByteRange::new(filled.end(), gap.end() - filled.end()));
        }
        left.retain(|gap| !gap.is_empty());
        let surplus = left.len().saturating_sub(GAPS_MAX);
        self.gaps.extend(left.drain(surplus..));
    }

    /// Marks chunks that the current read requests itself.
    pub(super) fn note_demanded(&mut self, chunks: ChunkRange) {
        self.planned_end = self.planned_end.max(ChunkIndex(chunks.as_range().end));
    }

    /// Returns the chunks consumed since the last call. Late reads and short back seeks still find the
    /// others.
    pub(super) fn take_consumed(&mut self) -> Option<ChunkRange> {
        let late = self.gaps.iter().map(|gap| gap.offset).min().unwrap_or(self.position);
        let end = ChunkIndex::containing(late.min(self.position.saturating_sub(BACK_SEEK_BYTES)));
        let first = self.consumed_end;
        self.consumed_end = end.max(first);
        (first < end).then(|| ChunkRange::new(first, end.0 - first.0))
    }

    /// Returns the chunks to request ahead of the reader now, in a file of `size` bytes.
    pub(super) fn plan_ahead(&mut self, size: u64, limits: Limits) -> Option<ChunkRange> {
        if !self.is_open() {
            if !self.followed || self.progress_bytes < PROOF_BYTES {
                return None;
            }
            self.window = Window::opened(PROVED_WINDOW_BYTES, self.progress_bytes);
        }
        let left_bytes = self.planned_end.offset().saturating_sub(self.position);
        if !self.window.is_due(left_bytes, limits) {
            return None;
        }
        self.window.grow(self.progress_bytes, limits);
        let end = self.target(size, limits);
        let first = self.planned_end.max(ChunkIndex::containing(self.position));
        if end <= first {
            return None;
        }
        self.planned_end = end;
        Some(ChunkRange::new(first, end.0 - first.0))
    }

    /// Returns the end of the next request: a window ahead of the reader, but within the file and the
    /// expected run. A wide window ends at a step boundary.
    fn target(&self, size: u64, limits: Limits) -> ChunkIndex {
        let window_bytes = self.window.bytes(limits);
        let most = self.position.saturating_add(limits.window_bytes_max);
        let fits = |end: ChunkIndex| end.offset().min(size) <= most;
        let wanted = self.position.saturating_add(window_bytes).min(size);
        if let Some(expected) = self.expected_end.map(chunk_at_or_behind)
            && expected <= chunk_at_or_behind(wanted)
            && fits(expected)
        {
            return expected;
        }
        let mut end = chunk_at_or_behind(wanted);
        if window_bytes >= STEP_CHUNKS * CHUNK_BYTES {
            let on_step = ChunkIndex(end.0.next_multiple_of(STEP_CHUNKS)).min(chunk_at_or_behind(size));
            end = if fits(on_step) { on_step } else { ChunkIndex(end.0 - end.0 % STEP_CHUNKS) };
        }
        if fits(end) { end } else { ChunkIndex::containing(most) }
    }
}
