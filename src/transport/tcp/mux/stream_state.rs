//! (P) State of the two halves of a stream: bytes to send, and received bytes that are unread.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::reassembly::Reassembly;
use crate::io::{alloc_aligned, split_aligned};
use crate::proto::Lane;

/// Longest piece that is placed in one buffer, in bytes: the largest read or write of the protocol. A peer
/// that announces pieces and does not send them costs addresses, not memory.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Time after which a reader that waits for many bytes learns of those that have arrived, so that it sees a
/// slow link move.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// State of the sending half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// More may be written.
    Open,
    /// The end is written but not sent.
    Finished,
    /// The end was sent, or the peer wants no more data.
    Ended,
    /// This side abandoned it.
    GivenUp,
}

/// The sending half.
#[derive(Debug)]
pub(super) struct SendState {
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued_bytes: usize,
    /// Bytes that the peer allows to be sent.
    pub(super) credit: u64,
    pub(super) lane: Lane,
    /// True while the stream is in the queue of its priority.
    pub(super) scheduled: bool,
    pub(super) phase: Phase,
    /// Code of the peer, once it wants no more data.
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

    /// Returns true if nothing more will be sent.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::GivenUp)
    }

    /// Returns true if there is something to send, given credit.
    pub(super) fn has_work(&self) -> bool {
        match self.phase {
            Phase::Open => !self.queue.is_empty(),
            Phase::Finished => true,
            Phase::Ended | Phase::GivenUp => false,
        }
    }

    /// Returns true if something can be sent now.
    pub(super) fn may_send(&self) -> bool {
        self.has_work() && (self.queue.is_empty() || self.credit > 0)
    }

    /// Ends in `phase` and drops the unsent bytes. Returns their number.
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

/// A task that waits for bytes.
#[derive(Debug)]
pub(super) struct Reader {
    waker: Waker,
    wanted: usize,
    /// Time at which bytes first arrived that were not enough.
    since: Option<Duration>,
}

/// The receiving half.
#[derive(Debug)]
pub(super) struct RecvState {
    pieces: VecDeque<BytesMut>,
    /// Memory in which the next long pieces are placed next to each other.
    room: BytesMut,
    /// The piece that is arriving.
    filling: Reassembly,
    buffered: usize,
    /// Part of `buffered` whose credit was already returned, because a reader waits for it.
    granted_ahead: usize,
    /// Bytes that the peer may still send.
    pub(super) credit: u64,
    /// Bytes that were read and whose credit was not returned yet.
    pub(super) ungranted: u64,
    /// True once all bytes have arrived.
    pub(super) ended: bool,
    /// Code of the peer, once it abandoned the stream.
    pub(super) reset: Option<u32>,
    /// Code of this side, once it wants no more data.
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

    /// Places the next long pieces in `room`, next to each other.
    pub(super) fn use_memory(&mut self, room: BytesMut) {
        self.room = room;
    }

    /// Begins a payload of `len` bytes. `more` bytes of the same piece follow in later payloads.
    pub(super) fn begin(&mut self, len: usize, more: usize) {
        if self.filling.left() < len || self.filling.left() > len.saturating_add(more) {
            self.finish_piece();
            let piece = len.saturating_add(more).min(PIECE_BYTES_MAX).max(len);
            self.filling = Reassembly::new(split_aligned(&mut self.room, piece), piece);
        }
    }

    /// Adds part of the payload. Returns the number of bytes whose credit can be returned at once.
    pub(super) fn put(&mut self, bytes: &[u8], now: Duration, wakes: &mut Vec<Waker>) -> usize {
        self.filling.put(bytes);
        self.has_put(bytes.len(), now, wakes)
    }

    /// Lets `fill` write the next bytes of the payload in place, into `len` bytes of memory. `len` must be
    /// less than the rest of the piece, otherwise `fill` is not called. `fill` returns the number of bytes
    /// written.
    pub(super) fn fill<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        self.filling.fill(len, fill)
    }

    /// Counts `len` bytes that were added. Returns the number of bytes whose credit can be returned at once.
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

    /// Lets a reader wait until `wanted` bytes have arrived. Returns the number of buffered bytes whose
    /// credit can be returned.
    pub(super) fn wait(&mut self, wanted: usize, waker: &Waker) -> usize {
        self.reader = Some(Reader { waker: waker.clone(), wanted, since: None });
        let grant = self.buffered - self.granted_ahead;
        self.granted_ahead = self.buffered;
        grant
    }

    pub(super) fn wake(&mut self, wakes: &mut Vec<Waker>) {
        wakes.extend(self.reader.take().map(|reader| reader.waker));
    }

    /// Returns up to `max` bytes of the first piece without a copy, or `None` if nothing has arrived. Also
    /// returns the number of bytes whose credit can be returned.
    pub(super) fn take(&mut self, max: usize) -> Option<(BytesMut, usize)> {
        if self.pieces.is_empty() && !self.filling.is_empty() {
            // Takes the part of the piece that has arrived. The rest follows in the same memory.
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

    /// Returns exactly `len` bytes, which must have arrived: the piece they came in, or several pieces
    /// joined.
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

    /// Drops the received bytes. Returns the number of bytes whose credit can be returned.
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
