//! (P) The two halves of a stream: what is to be sent, and what came and was not read yet.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::reassembly::Reassembly;
use crate::io::{alloc_aligned, split_aligned};
use crate::proto::Lane;

/// Longest piece that is laid down in one place, in bytes; what a read or a write of the protocol asks for at most. A peer
/// that announces pieces and does not send them costs addresses, not memory.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// A reader that waits for much is told of what came after this long, so that it sees a slow link move.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How far our writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// More may be written.
    Open,
    /// All was written that will be.
    Finished,
    /// The end has gone out, or the peer wanted no more.
    Ended,
    /// We gave it up.
    GivenUp,
}

/// What we write.
#[derive(Debug)]
pub(super) struct SendState {
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued_bytes: usize,
    /// Bytes the peer lets us send.
    pub(super) credit: u64,
    pub(super) lane: Lane,
    /// Whether the stream stands in its lane's queue.
    pub(super) scheduled: bool,
    pub(super) phase: Phase,
    /// The peer wants no more.
    pub(super) stopped: Option<u32>,
    pub(super) dropped: bool,
    pub(super) writer: Option<Waker>,
    pub(super) watchers: Vec<Waker>,
}

impl SendState {
    pub(super) fn new(credit: u64, lane: Lane) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            credit,
            lane,
            scheduled: false,
            phase: Phase::Open,
            stopped: None,
            dropped: false,
            writer: None,
            watchers: Vec::new(),
        }
    }

    /// Whether nothing more will go out.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::GivenUp)
    }

    /// Whether something could go out if there were credit.
    pub(super) fn has_work(&self) -> bool {
        match self.phase {
            Phase::Open => !self.queue.is_empty(),
            Phase::Finished => true,
            Phase::Ended | Phase::GivenUp => false,
        }
    }

    /// Whether something could go out now.
    pub(super) fn may_send(&self) -> bool {
        self.has_work() && (self.queue.is_empty() || self.credit > 0)
    }

    /// Ends so and forgets what was not sent; returns how many bytes that were.
    pub(super) fn discard(&mut self, phase: Phase) -> usize {
        self.phase = phase;
        self.queue.clear();
        std::mem::take(&mut self.queued_bytes)
    }

    pub(super) fn wake(&mut self, wakes: &mut Vec<Waker>) {
        wakes.extend(self.writer.take());
        wakes.append(&mut self.watchers);
    }
}

/// Somebody waits for bytes.
#[derive(Debug)]
pub(super) struct Reader {
    waker: Waker,
    wanted: usize,
    /// When bytes first came that were not enough.
    since: Option<Duration>,
}

/// What the peer writes.
#[derive(Debug)]
pub(super) struct RecvState {
    pieces: VecDeque<BytesMut>,
    /// Where the next long pieces are laid side by side.
    room: BytesMut,
    /// The piece on its way.
    filling: Reassembly,
    buffered: usize,
    /// Of those, granted anew already because a reader waits for them.
    granted_ahead: usize,
    /// Bytes the peer may still send.
    pub(super) credit: u64,
    /// Bytes that were read and not granted anew yet.
    pub(super) ungranted: u64,
    /// All came that will.
    pub(super) ended: bool,
    /// The peer gave it up.
    pub(super) reset: Option<u32>,
    /// We want no more.
    pub(super) stopped: Option<u32>,
    pub(super) dropped: bool,
    pub(super) reader: Option<Reader>,
}

impl RecvState {
    pub(super) fn new(credit: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            room: BytesMut::new(),
            filling: Reassembly::default(),
            buffered: 0,
            granted_ahead: 0,
            credit,
            ungranted: 0,
            ended: false,
            reset: None,
            stopped: None,
            dropped: false,
            reader: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }

    pub(super) fn buffered(&self) -> usize {
        self.buffered
    }

    /// The long pieces that come next are to be laid side by side in `room`.
    pub(super) fn use_memory(&mut self, room: BytesMut) {
        self.room = room;
    }

    /// A payload begins: of `len` bytes, and `more` of the same piece follow in later ones.
    pub(super) fn begin(&mut self, len: usize, more: usize) {
        if self.filling.left() < len || self.filling.left() > len.saturating_add(more) {
            self.finish_piece();
            let piece = len.saturating_add(more).min(PIECE_BYTES_MAX).max(len);
            self.filling = Reassembly::new(split_aligned(&mut self.room, piece), piece);
        }
    }

    /// Part of the payload that was begun. Returns how many of the bytes may be granted anew at once.
    pub(super) fn put(&mut self, bytes: &[u8], now: Duration, wakes: &mut Vec<Waker>) -> usize {
        self.filling.put(bytes);
        self.has_put(bytes.len(), now, wakes)
    }

    /// Lets `fill` put the next bytes of the payload where they stay, into `len` bytes of room, which must be less than is still to
    /// come of the piece; otherwise it is not called. It says how many it has put there.
    pub(super) fn fill<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        self.filling.fill(len, fill)
    }

    /// So many bytes were put behind the others. Returns how many of them may be granted anew at once.
    pub(super) fn has_put(&mut self, len: usize, now: Duration, wakes: &mut Vec<Waker>) -> usize {
        self.buffered += len;
        if self.filling.left() == 0 {
            self.finish_piece();
        }
        let Some(reader) = &mut self.reader else { return 0 };
        self.granted_ahead += len;
        let since = *reader.since.get_or_insert(now);
        if self.buffered >= reader.wanted || now.saturating_sub(since) >= PROGRESS_INTERVAL {
            self.wake(wakes);
        }
        len
    }

    /// A reader waits until `wanted` bytes are there. Returns how many of those that are may be granted anew.
    pub(super) fn wait(&mut self, wanted: usize, waker: &Waker) -> usize {
        self.reader = Some(Reader { waker: waker.clone(), wanted, since: None });
        let grant = self.buffered - self.granted_ahead;
        self.granted_ahead = self.buffered;
        grant
    }

    pub(super) fn wake(&mut self, wakes: &mut Vec<Waker>) {
        wakes.extend(self.reader.take().map(|reader| reader.waker));
    }

    /// Up to `max` bytes of the first piece, which is not copied; `None` where nothing came. With the bytes comes how many of them
    /// may be granted anew.
    pub(super) fn take(&mut self, max: usize) -> Option<(BytesMut, usize)> {
        if self.pieces.is_empty() && !self.filling.is_empty() {
            // What came of the piece goes on its way; the rest will follow behind.
            self.pieces.push_back(self.filling.take());
        }
        let first = self.pieces.front_mut()?;
        let bytes = if first.len() <= max { self.pieces.pop_front()? } else { first.split_to(max) };
        self.buffered -= bytes.len();
        let ahead = self.granted_ahead.min(bytes.len());
        self.granted_ahead -= ahead;
        let grant = bytes.len() - ahead;
        Some((bytes, grant))
    }

    /// Exactly `len` bytes, which are there: the piece they came in, or several joined.
    pub(super) fn take_exactly(&mut self, len: usize) -> (BytesMut, usize) {
        debug_assert!(self.buffered >= len);
        let Some((first, mut grant)) = self.take(len) else { return (BytesMut::new(), 0) };
        if first.len() == len {
            return (first, grant);
        }
        let mut joined = alloc_aligned(len);
        joined.extend_from_slice(&first);
        while joined.len() < len
            && let Some((next, more)) = self.take(len - joined.len())
        {
            joined.extend_from_slice(&next);
            grant += more;
        }
        (joined, grant)
    }

    /// Forgets what came. Returns how many bytes may be granted anew.
    pub(super) fn discard(&mut self) -> usize {
        self.pieces.clear();
        self.room = BytesMut::new();
        self.filling = Reassembly::default();
        let grant = self.buffered - self.granted_ahead;
        (self.buffered, self.granted_ahead) = (0, 0);
        grant
    }

    fn finish_piece(&mut self) {
        let mut filled = std::mem::take(&mut self.filling);
        if !filled.is_empty() {
            self.pieces.push_back(filled.take());
        }
    }
}
