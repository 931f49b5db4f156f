//! (P) Many streams over one connection that keeps order: bytes in, frames out.
//!
//! Nothing here reads a socket or a clock. [`Mux::receive`] takes what the peer sent, [`Mux::transmit`] says what to send
//! next, and in between the ends of streams read and write. Whoever must wait leaves a waker; [`Mux::take_wakes`] hands out
//! those whose time has come, to be woken when no lock is held any more.
//!
//! What goes first: control frames, then the lanes in their order; in a lane what was written first is sent whole first.
//! What is bounded: bytes received and not read, by stream and over all, by credit; bytes written and not sent; streams; frames
//! of control. A peer that passes a bound has broken the protocol, and the connection ends.

mod half;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use self::half::{Receiving, Sending};
use super::frame::{
    CLOSE_BYTES_MAX, EARLY_CONNECTION_BYTES, EARLY_STREAM_BYTES, EARLY_STREAMS_MAX, Frame, HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
};
use crate::proto::Lane;
use crate::transport::connection::CloseReason;
use crate::transport::stream::StreamError;

/// Bytes that may wait on one stream; a writer waits from there on. Two chunks: one on its way, one behind it.
const STREAM_QUEUE_BYTES_MAX: usize = 512 << 10;
/// Frames of control that may wait. A peer that makes us say so much and does not listen is hostile.
const CONTROL_FRAMES_MAX: usize = 4_096;
/// Streams kept beyond those a peer may have open: of ended ones, until whoever served them has noticed.
const STREAMS_LINGERING_MAX: usize = 4_096;
/// A stream's window is granted anew when a quarter of it was read, the connection's when an eighth was.
const STREAM_GRANT_SHARE: u64 = 4;
const CONNECTION_GRANT_SHARE: u64 = 8;
/// Lanes, the most urgent first.
const LANES: [Lane; 4] = [Lane::Metadata, Lane::Demand, Lane::Ahead, Lane::Background];

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Host,
}

/// What a peer may make us hold, and what we may hold ourselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Streams the peer may have open.
    pub(super) streams_max: u32,
    /// Bytes it may send on one before it is read.
    pub(super) stream_bytes: u32,
    /// Bytes it may send on all.
    pub(super) connection_bytes: u32,
    /// Bytes of our own that may wait to be sent.
    pub(super) send_bytes_max: usize,
}

/// The peer does what the protocol forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side breaks the protocol: {0}")]
pub(super) struct Violation(&'static str);

/// What is to be sent next: headers and content in this order.
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
    /// Whether the peer knows it.
    announced: bool,
    /// Whether it counts as open.
    counted: bool,
    send: Sending,
    receive: Receiving,
}

impl Stream {
    fn is_over(&self) -> bool {
        self.send.ended && self.receive.is_over()
    }
}

/// What comes next in the bytes of the peer.
#[derive(Debug)]
enum Expect {
    Header { bytes: [u8; HEADER_BYTES], filled: usize },
    Content { stream: u32, left: usize, ends: bool },
    Words { code: u32, left: usize, words: Vec<u8> },
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Mux {
    limits: Limits,
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
    goodbye: Option<(u32, String)>,
    expect: Expect,
    /// Bytes we may send on all streams.
    send_credit: u64,
    queued_bytes: usize,
    /// Streams whose writers wait because too much waits on all of them.
    held_up: Vec<u32>,
    /// Bytes the peer may send on all streams, and those read that were not granted anew.
    receive_credit: u64,
    ungranted: u64,
    closed: Option<CloseReason>,
    accepters: Vec<Waker>,
    openers: Vec<Waker>,
    mourners: Vec<Waker>,
    wakes: Vec<Waker>,
    has_work: bool,
}

impl Mux {
    /// A connection that begins; what it has to say first is ready to be sent.
    pub(super) fn new(side: Side, limits: Limits) -> Self {
        let hello = Frame::Hello {
            streams_max: limits.streams_max,
            stream_bytes: limits.stream_bytes,
            connection_bytes: limits.connection_bytes,
        };
        Self {
            limits,
            streams: HashMap::new(),
            next_stream: if side == Side::Client { 1 } else { 2 },
            open_ours: 0,
            open_theirs: 0,
            peer_streams_max: EARLY_STREAMS_MAX,
            peer_stream_bytes: EARLY_STREAM_BYTES.into(),
            peer_said_hello: false,
            accepted: VecDeque::new(),
            lanes: Default::default(),
            control: VecDeque::from([hello]),
            pong: None,
            goodbye: None,
            expect: Expect::Header { bytes: [0; HEADER_BYTES], filled: 0 },
            send_credit: EARLY_CONNECTION_BYTES.into(),
            queued_bytes: 0,
            held_up: Vec::new(),
            receive_credit: limits.connection_bytes.into(),
            ungranted: 0,
            closed: None,
            accepters: Vec::new(),
            openers: Vec::new(),
            mourners: Vec::new(),
            wakes: Vec::new(),
            has_work: true,
        }
    }

    // ---- what the connection's owner asks

    /// Why it is over, if it is.
    pub(super) fn close_reason(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// Ends it. The peer reads `code` and `text` behind what was sent already.
    pub(super) fn close(&mut self, code: u32, text: &str) {
        if self.closed.is_none() {
            let mut text = text.to_owned();
            while text.len() > CLOSE_BYTES_MAX {
                text.pop();
            }
            self.goodbye = Some((code, text));
            self.has_work = true;
            self.fail(CloseReason::ByUs);
        }
    }

    /// It is over, for this reason unless there was one before.
    pub(super) fn fail(&mut self, reason: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(reason);
        for stream in self.streams.values_mut() {
            stream.send.queue.clear();
            stream.send.wake(&mut self.wakes);
            stream.receive.wake(&mut self.wakes);
        }
        self.queued_bytes = 0;
        for waiting in [&mut self.accepters, &mut self.openers, &mut self.mourners] {
            self.wakes.append(waiting);
        }
    }

    /// Asks the peer for a sign of life.
    pub(super) fn ping(&mut self) {
        self.say(Frame::Ping { token: 0 });
    }

    /// Waits until it is over.
    pub(super) fn poll_closed(&mut self, context: &Context<'_>) -> Poll<CloseReason> {
        match &self.closed {
            Some(reason) => Poll::Ready(reason.clone()),
            None => wait(&mut self.mourners, context),
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
        // After two thousand million streams the numbers begin anew; who still has one of the first ones keeps it.
        self.next_stream = self.next_stream.checked_add(2).unwrap_or(self.next_stream % 2 + 2);
        if self.streams.contains_key(&id) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.open_ours += 1;
        self.add(id, true, lane);
        Poll::Ready(Ok(id))
    }

    /// The next stream that the peer opened.
    pub(super) fn poll_accept(&mut self, context: &Context<'_>) -> Poll<Result<u32, CloseReason>> {
        match (self.accepted.pop_front(), &self.closed) {
            (_, Some(reason)) => Poll::Ready(Err(reason.clone())),
            (Some(id), None) => Poll::Ready(Ok(id)),
            (None, None) => wait(&mut self.accepters, context),
        }
    }

    // ---- what the ends of streams ask

    /// Queues `bytes`, which are not copied, as one piece; waits while much is queued already.
    pub(super) fn poll_write(
        &mut self,
        id: u32,
        bytes: &mut Bytes,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        if self.closed.is_some() {
            return Poll::Ready(Err(StreamError::Lost));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(StreamError::Closed)) };
        let send = &mut stream.send;
        if let Some(code) = send.stopped {
            return Poll::Ready(Err(StreamError::Stopped(code)));
        }
        if send.finished || send.ended {
            return Poll::Ready(Err(StreamError::Closed));
        }
        // What many small answers wait for must not wait for the content of others.
        let is_held_up = send.lane != Lane::Metadata && self.queued_bytes >= self.limits.send_bytes_max;
        if send.queued_bytes >= STREAM_QUEUE_BYTES_MAX || is_held_up {
            send.writer = Some(context.waker().clone());
            if is_held_up && !self.held_up.contains(&id) {
                self.held_up.push(id);
            }
            return Poll::Pending;
        }
        if !bytes.is_empty() {
            send.queued_bytes += bytes.len();
            self.queued_bytes += bytes.len();
            send.queue.push_back(std::mem::take(bytes));
            self.schedule(id);
        }
        Poll::Ready(Ok(()))
    }

    /// All was written. Returns whether there was something to finish.
    pub(super) fn finish(&mut self, id: u32) -> bool {
        let open = |stream: &&mut Stream| !stream.send.finished && !stream.send.ended;
        let Some(stream) = self.streams.get_mut(&id).filter(open) else { return false };
        stream.send.finished = true;
        self.schedule(id);
        true
    }

    /// Gives up what is being written. Returns whether there was something to give up.
    pub(super) fn reset(&mut self, id: u32, code: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.send.ended) else {
            return false;
        };
        self.queued_bytes -= stream.send.discard();
        stream.send.was_reset = true;
        stream.send.wake(&mut self.wakes);
        if stream.announced {
            self.say(Frame::Reset { stream: id, code });
        } else {
            // The peer has not heard of it, and never will.
            stream.receive.reset = Some(code);
            stream.receive.wake(&mut self.wakes);
        }
        self.settle(id);
        true
    }

    /// Wants no more of what the peer writes. Returns whether there was more to come.
    pub(super) fn stop(&mut self, id: u32, code: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let is_over = stream.receive.is_over();
        if stream.receive.stopped.is_some() {
            return false;
        }
        stream.receive.stopped = Some(code);
        stream.receive.wake(&mut self.wakes);
        let grant = stream.receive.discard();
        let announced = stream.announced;
        self.grant(id, grant);
        if !is_over && announced {
            self.say(Frame::Stop { stream: id, code });
        }
        !is_over
    }

    /// What the stream gives way to from now on.
    pub(super) fn set_lane(&mut self, id: u32, lane: Lane) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.send.lane != lane) else {
            return;
        };
        stream.send.lane = lane;
        stream.send.scheduled = false;
        self.schedule(id);
    }

    /// Waits until the peer wants no more (its code), or all that was written, and the end, has been sent (`None`).
    pub(super) fn poll_stopped(
        &mut self,
        id: u32,
        context: &Context<'_>,
    ) -> Poll<Result<Option<u32>, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(None)) };
        if let Some(code) = stream.send.stopped {
            return Poll::Ready(Ok(Some(code)));
        }
        if stream.send.ended {
            let ended = if stream.send.was_reset { Err(StreamError::Closed) } else { Ok(None) };
            return Poll::Ready(ended);
        }
        if self.closed.is_some() {
            return Poll::Ready(Err(StreamError::Lost));
        }
        wait(&mut stream.send.watchers, context)
    }

    /// Up to `max` bytes of what came, not copied; `None` at the end.
    pub(super) fn poll_read(
        &mut self,
        id: u32,
        max: usize,
        context: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(None)) };
        if let Some((bytes, grant)) = stream.receive.take(max) {
            self.grant(id, grant);
            return Poll::Ready(Ok(Some(bytes)));
        }
        if let Some(end) = Self::end_of(stream, self.closed.is_some()) {
            return Poll::Ready(end.map(|()| None));
        }
        let grant = stream.receive.wait(1, context.waker());
        self.grant(id, grant);
        Poll::Pending
    }

    /// Exactly `len` bytes, not copied where the peer wrote them in one piece. Comes back with the number of bytes that are
    /// there when those are more than `told` and the rest takes its time.
    pub(super) fn poll_read_exact(
        &mut self,
        id: u32,
        len: usize,
        told: usize,
        context: &Context<'_>,
    ) -> Poll<Result<Arrived, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::EndedEarly));
        };
        let there = stream.receive.buffered();
        if there >= len {
            let (bytes, grant) = stream.receive.take_exactly(len);
            self.grant(id, grant);
            return Poll::Ready(Ok(Arrived::All(bytes)));
        }
        if let Some(end) = Self::end_of(stream, self.closed.is_some()) {
            return Poll::Ready(Err(end.err().unwrap_or(StreamError::EndedEarly)));
        }
        // Also where a part is told: a peer that waits for credit must get it before the reader comes back.
        let grant = stream.receive.wait(len, context.waker());
        self.grant(id, grant);
        if there > told { Poll::Ready(Ok(Arrived::Part(there))) } else { Poll::Pending }
    }

    fn end_of(stream: &Stream, closed: bool) -> Option<Result<(), StreamError>> {
        match (stream.receive.reset, stream.receive.stopped) {
            (_, Some(_)) => Some(Err(StreamError::Closed)),
            (Some(code), None) => Some(Err(StreamError::Reset(code))),
            (None, None) if stream.receive.ended => Some(Ok(())),
            (None, None) => closed.then_some(Err(StreamError::Lost)),
        }
    }

    /// Nobody will write on it any more: what was written is finished.
    pub(super) fn drop_sending(&mut self, id: u32) {
        self.finish(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.dropped = true;
            self.settle(id);
        }
    }

    /// Nobody will read from it any more.
    pub(super) fn drop_receiving(&mut self, id: u32) {
        self.stop(id, 0);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receive.dropped = true;
            self.settle(id);
        }
    }

    // ---- what the socket's task asks

    /// Those to be woken now.
    pub(super) fn take_wakes(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakes)
    }

    /// Whether there may be something to send.
    pub(super) fn has_work(&self) -> bool {
        self.has_work
    }

    /// Adds what is to be sent next to `batch`, until it holds `bytes_max` or a little more.
    pub(super) fn transmit(&mut self, batch: &mut Batch, bytes_max: usize) {
        self.has_work = false;
        if let Some((code, text)) = self.goodbye.take() {
            batch.push(Frame::Close { code, len: text.len() as u32 });
            batch.push_content(text.into());
        }
        if self.closed.is_some() {
            return;
        }
        for frame in self.control.drain(..).chain(self.pong.take().map(|token| Frame::Pong { token })) {
            batch.push(frame);
        }
        for (index, lane) in LANES.into_iter().enumerate() {
            while let Some(&id) = self.lanes[index].front() {
                if batch.bytes >= bytes_max || self.send_credit == 0 && self.waits_for_credit(id) {
                    self.has_work |= self.send_credit > 0;
                    break;
                }
                if !self.transmit_stream(id, lane, batch, bytes_max) {
                    self.lanes[index].pop_front();
                }
            }
        }
        if self.queued_bytes < self.limits.send_bytes_max {
            for id in self.held_up.drain(..) {
                if let Some(stream) = self.streams.get_mut(&id) {
                    self.wakes.extend(stream.send.writer.take());
                }
            }
        }
    }

    fn waits_for_credit(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.send.scheduled && !stream.send.queue.is_empty())
    }

    /// Adds frames of one stream. Returns whether it stays first in its lane.
    fn transmit_stream(&mut self, id: u32, lane: Lane, batch: &mut Batch, bytes_max: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let send = &mut stream.send;
        if !send.scheduled || send.lane != lane {
            return false;
        }
        if !send.may_send() {
            send.scheduled = false;
            return false;
        }
        let opens = !std::mem::replace(&mut stream.announced, true);
        let len = match send.queue.front() {
            Some(piece) => {
                let room = bytes_max.saturating_sub(batch.bytes).clamp(1, PAYLOAD_BYTES_MAX);
                let credit = send.credit.min(self.send_credit);
                usize::try_from(credit).unwrap_or(usize::MAX).min(piece.len()).min(room)
            }
            None => 0,
        };
        let content = send.queue.front_mut().map(|piece| piece.split_to(len));
        let more = send.queue.front().map_or(0, Bytes::len);
        if content.is_some() && more == 0 {
            send.queue.pop_front();
        }
        send.credit -= len as u64;
        self.send_credit -= len as u64;
        send.queued_bytes -= len;
        self.queued_bytes -= len;
        let ends = send.finished && send.queue.is_empty();
        batch.push(Frame::Data { stream: id, len: len as u32, more: more as u32, opens, ends });
        if let Some(content) = content {
            batch.push_content(content);
        }
        if send.queued_bytes <= STREAM_QUEUE_BYTES_MAX / 2 {
            self.wakes.extend(send.writer.take());
        }
        if ends {
            send.ended = true;
            send.wake(&mut self.wakes);
        }
        send.scheduled = send.may_send();
        let stays = send.scheduled;
        if opens && let Some(code) = stream.receive.stopped {
            batch.push(Frame::Stop { stream: id, code });
        }
        if ends {
            self.settle(id);
        }
        stays
    }

    /// Takes what the peer sent, in portions of any size.
    pub(super) fn receive(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Violation> {
        while !bytes.is_empty() && self.closed.is_none() {
            match &mut self.expect {
                Expect::Header { bytes: header, filled } => {
                    let len = bytes.len().min(HEADER_BYTES - *filled);
                    header[*filled..*filled + len].copy_from_slice(&bytes[..len]);
                    *filled += len;
                    bytes = &bytes[len..];
                    if *filled == HEADER_BYTES {
                        let header = *header;
                        self.expect_header();
                        self.frame(Frame::decode(header).ok_or(Violation("an unknown frame"))?)?;
                    }
                }
                Expect::Content { stream, left, ends } => {
                    let (id, ends, len) = (*stream, *ends, bytes.len().min(*left));
                    *left -= len;
                    let is_last = *left == 0;
                    self.content(id, &bytes[..len], now);
                    bytes = &bytes[len..];
                    if is_last {
                        self.expect_header();
                        self.content_ends(id, ends);
                    }
                }
                Expect::Words { code, left, words } => {
                    let len = bytes.len().min(*left);
                    words.extend_from_slice(&bytes[..len]);
                    *left -= len;
                    bytes = &bytes[len..];
                    if *left == 0 {
                        let text = String::from_utf8_lossy(words).into_owned();
                        let code = (*code).into();
                        self.fail(CloseReason::ByPeer { code, text });
                    }
                }
            }
        }
        Ok(())
    }

    fn expect_header(&mut self) {
        self.expect = Expect::Header { bytes: [0; HEADER_BYTES], filled: 0 };
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Violation> {
        match frame {
            Frame::Hello { streams_max, stream_bytes, connection_bytes } => {
                self.hello(streams_max, stream_bytes, connection_bytes)?;
            }
            Frame::Data { stream, len, more, opens, ends } => self.data(stream, len, more, opens, ends)?,
            Frame::Window { stream, bytes } => self.window(stream, bytes),
            Frame::Reset { stream, code } => self.reset_by_peer(stream, code),
            Frame::Stop { stream, code } => self.stopped_by_peer(stream, code),
            Frame::Ping { token } => {
                self.pong = Some(token);
                self.has_work = true;
            }
            Frame::Pong { .. } => {}
            Frame::Close { code, len: 0 } => {
                self.fail(CloseReason::ByPeer { code: code.into(), text: String::new() });
            }
            Frame::Close { code, len } => {
                self.expect = Expect::Words { code, left: len as usize, words: Vec::new() };
            }
        }
        if self.control.len() > CONTROL_FRAMES_MAX {
            return Err(Violation("it does not listen to what it makes us say"));
        }
        Ok(())
    }

    fn hello(&mut self, streams: u32, stream_bytes: u32, connection_bytes: u32) -> Result<(), Violation> {
        let is_too_little = streams < EARLY_STREAMS_MAX
            || stream_bytes < EARLY_STREAM_BYTES
            || connection_bytes < EARLY_CONNECTION_BYTES;
        if is_too_little || std::mem::replace(&mut self.peer_said_hello, true) {
            return Err(Violation("a second hello, or one that allows too little"));
        }
        self.peer_streams_max = streams;
        self.send_credit += u64::from(connection_bytes - EARLY_CONNECTION_BYTES);
        self.peer_stream_bytes = stream_bytes.into();
        for stream in self.streams.values_mut() {
            stream.send.credit += u64::from(stream_bytes - EARLY_STREAM_BYTES);
        }
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| self.schedule(id));
        self.wakes.append(&mut self.openers);
        self.has_work = true;
        Ok(())
    }

    fn data(&mut self, id: u32, len: u32, more: u32, opens: bool, ends: bool) -> Result<(), Violation> {
        let bytes = u64::from(len);
        self.receive_credit =
            self.receive_credit.checked_sub(bytes).ok_or(Violation("more content than was allowed"))?;
        if opens && !self.streams.contains_key(&id) {
            self.opened_by_peer(id)?;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            let receive = &mut stream.receive;
            if receive.is_over() {
                return Err(Violation("content behind the end of a stream"));
            }
            receive.credit = receive
                .credit
                .checked_sub(bytes)
                .ok_or(Violation("more content on a stream than was allowed"))?;
            if receive.stopped.is_none() {
                receive.begin(len as usize, more as usize);
            }
        }
        if len == 0 {
            self.content_ends(id, ends);
        } else {
            self.expect = Expect::Content { stream: id, left: len as usize, ends };
        }
        Ok(())
    }

    fn opened_by_peer(&mut self, id: u32) -> Result<(), Violation> {
        if id == 0 || id % 2 == self.next_stream % 2 {
            return Err(Violation("a stream with a number that is not its own"));
        }
        if self.open_theirs >= self.limits.streams_max || self.streams.len() >= STREAMS_LINGERING_MAX {
            return Err(Violation("more streams than were allowed"));
        }
        self.open_theirs += 1;
        self.add(id, false, Lane::Demand);
        self.accepted.push_back(id);
        self.wakes.append(&mut self.accepters);
        Ok(())
    }

    /// Content of a stream; of one that is not known any more it counts as read.
    fn content(&mut self, id: u32, bytes: &[u8], now: Duration) {
        let receive = self.streams.get_mut(&id).map(|stream| &mut stream.receive);
        let grant = match receive.filter(|receive| receive.stopped.is_none()) {
            Some(receive) => receive.put(bytes, now, &mut self.wakes),
            None => bytes.len(),
        };
        self.grant(id, grant);
    }

    fn content_ends(&mut self, id: u32, ends: bool) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|_| ends) {
            stream.receive.ended = true;
            stream.receive.wake(&mut self.wakes);
            self.settle(id);
        }
    }

    fn window(&mut self, id: u32, bytes: u32) {
        if id == 0 {
            self.send_credit = self.send_credit.saturating_add(bytes.into());
            self.has_work = true;
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.credit = stream.send.credit.saturating_add(bytes.into());
            self.schedule(id);
        }
    }

    fn reset_by_peer(&mut self, id: u32, code: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.receive.is_over()) else {
            return;
        };
        stream.receive.reset = Some(code);
        stream.receive.wake(&mut self.wakes);
        let grant = stream.receive.discard();
        self.grant(id, grant);
        self.settle(id);
    }

    fn stopped_by_peer(&mut self, id: u32, code: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.send.ended) else { return };
        stream.send.stopped = Some(code);
        self.queued_bytes -= stream.send.discard();
        stream.send.wake(&mut self.wakes);
        self.say(Frame::Reset { stream: id, code });
        self.settle(id);
    }

    // ---- common

    fn add(&mut self, id: u32, is_ours: bool, lane: Lane) {
        let stream = Stream {
            is_ours,
            announced: !is_ours,
            counted: true,
            send: Sending::new(self.peer_stream_bytes, lane),
            receive: Receiving::new(self.limits.stream_bytes.into()),
        };
        self.streams.insert(id, stream);
    }

    fn say(&mut self, frame: Frame) {
        self.control.push_back(frame);
        self.has_work = true;
    }

    /// Puts a stream into its lane if it has something to send.
    fn schedule(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let send = &mut stream.send;
        if send.may_send() && !std::mem::replace(&mut send.scheduled, true) {
            let index = LANES.iter().position(|lane| *lane == send.lane).unwrap_or(LANES.len() - 1);
            self.lanes[index].push_back(id);
            self.has_work = true;
        }
    }

    /// Lets the peer send so many bytes more, on the stream and on all; tells it when that is worth a frame.
    fn grant(&mut self, id: u32, bytes: usize) {
        let bytes = bytes as u64;
        self.ungranted += bytes;
        if self.ungranted >= u64::from(self.limits.connection_bytes) / CONNECTION_GRANT_SHARE {
            let bytes = std::mem::take(&mut self.ungranted);
            self.receive_credit += bytes;
            self.say(Frame::Window { stream: 0, bytes: bytes as u32 });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let receive = &mut stream.receive;
        receive.ungranted += bytes;
        let is_wanted = !receive.is_over() && receive.stopped.is_none();
        if is_wanted && receive.ungranted >= u64::from(self.limits.stream_bytes) / STREAM_GRANT_SHARE {
            let bytes = std::mem::take(&mut receive.ungranted);
            receive.credit += bytes;
            self.say(Frame::Window { stream: id, bytes: bytes as u32 });
        }
    }

    /// Counts a stream as ended when both halves are, and forgets it when nobody holds it any more.
    fn settle(&mut self, id: u32) {
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

/// How far an exact read is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// So many of the bytes.
    Part(usize),
    /// All of them.
    All(Bytes),
}

fn wait<T>(waiting: &mut Vec<Waker>, context: &Context<'_>) -> Poll<T> {
    if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
        waiting.push(context.waker().clone());
    }
    Poll::Pending
}
