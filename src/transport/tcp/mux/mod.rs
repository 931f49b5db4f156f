//! (P) Multiplexer: many streams over one ordered connection. Bytes in, frames out.
//!
//! It reads no socket and no clock. [`Mux::receive`] takes bytes of the peer, and [`Mux::transmit`] returns
//! the next bytes to send. In between, the ends of streams read and write. A task that must wait leaves a
//! waker. [`Mux::take_wakes`] returns the wakers that are due, to be woken after the lock is released.
//!
//! Control frames go first, then streams by priority. Streams of one priority are sent whole, in the order in
//! which they were written. These are bounded: received unread bytes, for each stream and in total, by
//! credit; written unsent bytes; streams; control frames. A peer that exceeds a bound breaks the protocol,
//! and the connection ends.

#[cfg(test)]
mod fuzz;
mod reassembly;
mod receive;
mod stream_api;
mod stream_state;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use self::stream_state::{RecvState, SendState};
use super::frame::{
    CLOSE_BYTES_MAX, EARLY_CONNECTION_BYTES, EARLY_STREAM_BYTES, EARLY_STREAMS_MAX, Frame, HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
};
use crate::proto::Lane;
use crate::transport::connection::CloseReason;

/// Bytes that may wait on one stream before its writer waits. Two chunks: one being sent, one behind it.
const STREAM_QUEUE_BYTES_MAX: usize = 512 << 10;
/// Control frames that may wait. A peer that causes more and does not read them is hostile.
const CONTROL_FRAMES_MAX: usize = 4_096;
/// Streams kept beyond the limit of open ones: ended streams whose handles are still held.
const STREAMS_LINGERING_MAX: usize = 4_096;
/// A stream's credit is returned when a quarter of its window was read, the connection's when an eighth was.
const STREAM_GRANT_SHARE: u64 = 4;
const CONNECTION_GRANT_SHARE: u64 = 8;
/// Priorities, the most urgent first.
const LANES: [Lane; 4] = [Lane::Metadata, Lane::Demand, Lane::Ahead, Lane::Background];

/// The end of the connection that this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Host,
}

/// Bounds on memory: for bytes of the peer, and for our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Streams that the peer may have open.
    pub(super) streams_max: u32,
    /// Unread bytes that it may send on one stream.
    pub(super) stream_bytes: u32,
    /// Unread bytes that it may send on all streams.
    pub(super) connection_bytes: u32,
    /// Bytes of our own that may wait to be sent.
    pub(super) send_bytes_max: usize,
}

impl Limits {
    /// Returns the limits that hold before the hello, and so all that an unadmitted peer gets.
    fn early(self) -> Self {
        Self {
            streams_max: EARLY_STREAMS_MAX,
            stream_bytes: EARLY_STREAM_BYTES,
            connection_bytes: EARLY_CONNECTION_BYTES,
            ..self
        }
    }
}

/// Error: the peer breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side breaks the protocol: {0}")]
pub(super) struct Violation(&'static str);

/// Next bytes to send: headers and content in this order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) parts: Vec<Part>,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) enum Part {
    Header([u8; HEADER_BYTES]),
    Content(Bytes),
}

impl Part {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Header(bytes) => bytes,
            Self::Content(bytes) => bytes,
        }
    }
}

impl Batch {
    fn push(&mut self, frame: Frame) {
        self.parts.push(Part::Header(frame.encode()));
        self.bytes += HEADER_BYTES;
    }

    fn push_content(&mut self, content: Bytes) {
        self.bytes += content.len();
        self.parts.push(Part::Content(content));
    }
}

#[derive(Debug)]
struct Stream {
    is_ours: bool,
    /// True once the peer knows the stream.
    announced: bool,
    /// True while it counts as open.
    counted: bool,
    send: SendState,
    receive: RecvState,
}

impl Stream {
    fn is_over(&self) -> bool {
        self.send.has_ended() && self.receive.is_over()
    }
}

/// Next element expected in the bytes of the peer.
#[derive(Debug)]
enum Expect {
    Header { bytes: [u8; HEADER_BYTES], filled: usize },
    Content { stream: u32, left: usize, ends: bool },
    CloseText { code: u32, left: usize, words: Vec<u8> },
}

/// State of one connection.
#[derive(Debug)]
pub(super) struct Mux {
    /// Present limits of the peer.
    limits: Limits,
    /// Limits of the peer after its admission.
    admitted_limits: Option<Limits>,
    streams: HashMap<u32, Stream>,
    next_stream: u32,
    open_ours: u32,
    open_theirs: u32,
    peer_streams_max: u32,
    peer_stream_bytes: u64,
    peer_said_hello: bool,
    accepted: VecDeque<u32>,
    lanes: [VecDeque<u32>; LANES.len()],
    control: VecDeque<Frame>,
    pong: Option<u32>,
    pending_close: Option<(u32, String)>,
    expect: Expect,
    /// Bytes that may be sent on all streams.
    send_credit: u64,
    queued_bytes: usize,
    /// Streams whose writers wait because too many bytes are queued in total.
    blocked_writers: Vec<u32>,
    /// Bytes that the peer may send on all streams, and read bytes whose credit was not returned yet.
    receive_credit: u64,
    ungranted: u64,
    closed: Option<CloseReason>,
    accepters: Vec<Waker>,
    openers: Vec<Waker>,
    close_waiters: Vec<Waker>,
    wakes: Vec<Waker>,
    has_work: bool,
}

impl Mux {
    /// Returns a new connection. `limits` hold from [`Self::admit`] on, which a client calls at once.
    pub(super) fn new(side: Side, limits: Limits) -> Self {
        Self {
            limits: limits.early(),
            admitted_limits: Some(limits),
            streams: HashMap::new(),
            next_stream: if side == Side::Client { 1 } else { 2 },
            open_ours: 0,
            open_theirs: 0,
            peer_streams_max: EARLY_STREAMS_MAX,
            peer_stream_bytes: EARLY_STREAM_BYTES.into(),
            peer_said_hello: false,
            accepted: VecDeque::new(),
            lanes: Default::default(),
            control: VecDeque::new(),
            pong: None,
            pending_close: None,
            expect: Expect::Header { bytes: [0; HEADER_BYTES], filled: 0 },
            send_credit: EARLY_CONNECTION_BYTES.into(),
            queued_bytes: 0,
            blocked_writers: Vec::new(),
            receive_credit: EARLY_CONNECTION_BYTES.into(),
            ungranted: 0,
            closed: None,
            accepters: Vec::new(),
            openers: Vec::new(),
            close_waiters: Vec::new(),
            wakes: Vec::new(),
            has_work: false,
        }
    }

    /// Lets the peer use the full limits, and tells it so. Returns `false` if that was done before.
    pub(super) fn admit(&mut self) -> bool {
        let Some(limits) = self.admitted_limits.take() else { return false };
        let early = std::mem::replace(&mut self.limits, limits);
        self.receive_credit += u64::from(limits.connection_bytes.saturating_sub(early.connection_bytes));
        let more = u64::from(limits.stream_bytes.saturating_sub(early.stream_bytes));
        for stream in self.streams.values_mut() {
            stream.receive.credit += more;
        }
        let Limits { streams_max, stream_bytes, connection_bytes, .. } = limits;
        // The hello goes first. A peer must not count credit towards it that was returned before.
        self.control.push_front(Frame::Hello { streams_max, stream_bytes, connection_bytes });
        self.has_work = true;
        true
    }

    /// Returns the reason if the connection is over.
    pub(super) fn close_reason(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// Closes the connection. The peer reads `code` and `text` after the bytes that were sent already.
    pub(super) fn close(&mut self, code: u32, text: &str) {
        if self.closed.is_none() {
            let mut text = text.to_owned();
            while text.len() > CLOSE_BYTES_MAX {
                text.pop();
            }
            self.pending_close = Some((code, text));
            self.has_work = true;
            self.fail(CloseReason::ByUs);
        }
    }

    /// Ends the connection for this reason, unless it is over already.
    pub(super) fn fail(&mut self, reason: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason);
        for stream in self.streams.values_mut() {
            stream.send.queue.clear();
            stream.send.queued_bytes = 0;
            stream.send.wake(&mut self.wakes);
            stream.receive.wake(&mut self.wakes);
        }
        self.queued_bytes = 0;
        for waiting in [&mut self.accepters, &mut self.openers, &mut self.close_waiters] {
            self.wakes.append(waiting);
        }
    }

    /// Asks the peer for a pong.
    pub(super) fn ping(&mut self) {
        self.push_control(Frame::Ping { token: 0 });
    }

    /// Waits until the connection is over.
    pub(super) fn poll_closed(&mut self, context: &Context<'_>) -> Poll<CloseReason> {
        match &self.closed {
            Some(reason) => Poll::Ready(reason.clone()),
            None => wait(&mut self.close_waiters, context),
        }
    }

    /// Opens a stream, once the peer allows one more.
    pub(super) fn poll_open(&mut self, lane: Lane, context: &Context<'_>) -> Poll<Result<u32, CloseReason>> {
        if let Some(reason) = &self.closed {
            return Poll::Ready(Err(reason.clone()));
        }
        if self.open_ours >= self.peer_streams_max {
            return wait(&mut self.openers, context);
        }
        let id = self.next_stream;
        // After two thousand million streams the numbers start again. A number that is still in use is
        // skipped.
        self.next_stream = self.next_stream.checked_add(2).unwrap_or(self.next_stream % 2 + 2);
        if self.streams.contains_key(&id) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.open_ours += 1;
        self.add(id, true, lane);
        Poll::Ready(Ok(id))
    }

    /// Returns the next stream that the peer opened.
    pub(super) fn poll_accept(&mut self, context: &Context<'_>) -> Poll<Result<u32, CloseReason>> {
        match (self.accepted.pop_front(), &self.closed) {
            (_, Some(reason)) => Poll::Ready(Err(reason.clone())),
            (Some(id), None) => Poll::Ready(Ok(id)),
            (None, None) => wait(&mut self.accepters, context),
        }
    }

    /// Returns the wakers that are due.
    pub(super) fn take_wakes(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakes)
    }

    /// Returns true if there may be something to send.
    pub(super) fn has_work(&self) -> bool {
        self.has_work
    }

    fn add(&mut self, id: u32, is_ours: bool, lane: Lane) {
        let stream = Stream {
            is_ours,
            announced: !is_ours,
            counted: true,
            send: SendState::new(self.peer_stream_bytes, lane),
            receive: RecvState::new(self.limits.stream_bytes.into()),
        };
        self.streams.insert(id, stream);
    }

    fn push_control(&mut self, frame: Frame) {
        self.control.push_back(frame);
        self.has_work = true;
    }

    /// Puts a stream into the queue of its priority if it has something to send.
    fn schedule(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let send = &mut stream.send;
        if send.may_send() && !std::mem::replace(&mut send.scheduled, true) {
            let index = LANES.iter().position(|lane| *lane == send.lane).unwrap_or(LANES.len() - 1);
            self.lanes[index].push_back(id);
            self.has_work = true;
        }
    }

    /// Returns credit for `bytes` bytes, on the stream and in total. Sends a frame when the amount is worth
    /// it.
    fn grant(&mut self, id: u32, bytes: usize) {
        let bytes = bytes as u64;
        self.ungranted += bytes;
        if self.ungranted >= u64::from(self.limits.connection_bytes) / CONNECTION_GRANT_SHARE {
            let bytes = std::mem::take(&mut self.ungranted);
            self.receive_credit += bytes;
            self.push_control(Frame::Window { stream: 0, bytes: bytes as u32 });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let receive = &mut stream.receive;
        receive.ungranted += bytes;
        let is_wanted = !receive.is_over() && receive.stopped.is_none();
        if is_wanted && receive.ungranted >= u64::from(self.limits.stream_bytes) / STREAM_GRANT_SHARE {
            let bytes = std::mem::take(&mut receive.ungranted);
            receive.credit += bytes;
            self.push_control(Frame::Window { stream: id, bytes: bytes as u32 });
        }
    }

    /// Counts a stream as closed when both halves have ended, and removes it when no handle is left.
    fn reap(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.is_over()) else { return };
        if std::mem::take(&mut stream.counted) {
            if stream.is_ours {
                self.open_ours -= 1;
                self.wakes.append(&mut self.openers);
            } else {
                self.open_theirs -= 1;
            }
        }
        if stream.send.dropped && stream.receive.dropped {
            self.streams.remove(&id);
        }
    }
}

/// Progress of an exact read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadProgress {
    /// Number of bytes that have arrived.
    Part(usize),
    /// All bytes.
    All(BytesMut),
}

fn wait<T>(waiting: &mut Vec<Waker>, context: &Context<'_>) -> Poll<T> {
    if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
        waiting.push(context.waker().clone());
    }
    Poll::Pending
}
