//! (P) Operations of the two ends of a stream.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::stream_state::Phase;
use super::{Frame, Mux, ReadProgress, STREAM_QUEUE_BYTES_MAX, Stream, wait};
use crate::proto::Lane;
use crate::transport::stream::StreamError;

impl Mux {
    /// Queues `bytes` without a copy, as one piece. Waits while much is queued already.
    pub(in crate::transport::tcp) fn poll_write(
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
        if send.phase != Phase::Open {
            return Poll::Ready(Err(StreamError::Closed));
        }
        // Small answers must not wait for the content of other streams.
        let is_held_up = send.lane != Lane::Metadata && self.queued_bytes >= self.limits.send_bytes_max;
        if send.queued_bytes >= STREAM_QUEUE_BYTES_MAX || is_held_up {
            send.writer = Some(context.waker().clone());
            if is_held_up && !self.blocked_writers.contains(&id) {
                self.blocked_writers.push(id);
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

    /// Marks the end of the stream. Returns true if the stream was open.
    pub(in crate::transport::tcp) fn finish(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if stream.send.phase != Phase::Open {
            // If the peer wants no more data, a finish is no error.
            return stream.send.stopped.is_some();
        }
        stream.send.phase = Phase::Finished;
        self.schedule(id);
        true
    }

    /// Abandons the stream. Returns true if it was still open.
    pub(in crate::transport::tcp) fn reset(&mut self, id: u32, code: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.send.has_ended()) else {
            return false;
        };
        self.queued_bytes -= stream.send.discard(Phase::GivenUp);
        stream.send.wake(&mut self.wakes);
        if stream.announced {
            self.push_control(Frame::Reset { stream: id, code });
        } else {
            // The peer does not know the stream, and never will.
            stream.receive.reset = Some(code);
            stream.receive.wake(&mut self.wakes);
        }
        self.reap(id);
        true
    }

    /// Asks the peer for no more data. Returns true if more was to come.
    pub(in crate::transport::tcp) fn stop(&mut self, id: u32, code: u32) -> bool {
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
            self.push_control(Frame::Stop { stream: id, code });
        }
        !is_over
    }

    /// Sets the priority of the stream from now on.
    pub(in crate::transport::tcp) fn set_lane(&mut self, id: u32, lane: Lane) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.send.lane != lane) else {
            return;
        };
        stream.send.lane = lane;
        stream.send.scheduled = false;
        self.schedule(id);
    }

    /// Waits until the peer wants no more data (returns its code), or until all written bytes and the end are
    /// sent (`None`).
    pub(in crate::transport::tcp) fn poll_stopped(
        &mut self,
        id: u32,
        context: &Context<'_>,
    ) -> Poll<Result<Option<u32>, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(None)) };
        if let Some(code) = stream.send.stopped {
            return Poll::Ready(Ok(Some(code)));
        }
        match stream.send.phase {
            Phase::Ended => return Poll::Ready(Ok(None)),
            Phase::GivenUp => return Poll::Ready(Err(StreamError::Closed)),
            Phase::Open | Phase::Finished => {}
        }
        if self.closed.is_some() {
            return Poll::Ready(Err(StreamError::Lost));
        }
        wait(&mut stream.send.watchers, context)
    }

    /// Returns up to `max` received bytes without a copy, and `None` at the end.
    pub(in crate::transport::tcp) fn poll_read(
        &mut self,
        id: u32,
        max: usize,
        context: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(None)) };
        if let Some((bytes, grant)) = stream.receive.take(max) {
            self.grant(id, grant);
            return Poll::Ready(Ok(Some(bytes.freeze())));
        }
        if let Some(end) = Self::end_of(stream, self.closed.is_some()) {
            return Poll::Ready(end.map(|()| None));
        }
        let grant = stream.receive.wait(1, context.waker());
        self.grant(id, grant);
        Poll::Pending
    }

    /// Places the next long pieces in `room`, next to each other.
    pub(in crate::transport::tcp) fn use_memory(&mut self, id: u32, room: BytesMut) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receive.use_memory(room);
        }
    }

    /// Returns exactly `len` bytes, without a copy if the peer wrote them in one piece. If more than `told`
    /// bytes have arrived and the rest is slow, it returns their number instead.
    pub(in crate::transport::tcp) fn poll_read_exact(
        &mut self,
        id: u32,
        len: usize,
        told: usize,
        context: &Context<'_>,
    ) -> Poll<Result<ReadProgress, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::EndedEarly));
        };
        let there = stream.receive.buffered();
        if there >= len {
            let (bytes, grant) = stream.receive.take_exactly(len);
            self.grant(id, grant);
            return Poll::Ready(Ok(ReadProgress::All(bytes)));
        }
        if let Some(end) = Self::end_of(stream, self.closed.is_some()) {
            return Poll::Ready(Err(end.err().unwrap_or(StreamError::EndedEarly)));
        }
        // This also applies when a part is reported. A peer that waits for credit must get it before the
        // reader comes back.
        let grant = stream.receive.wait(len, context.waker());
        self.grant(id, grant);
        if there > told { Poll::Ready(Ok(ReadProgress::Part(there))) } else { Poll::Pending }
    }

    fn end_of(stream: &Stream, closed: bool) -> Option<Result<(), StreamError>> {
        match (stream.receive.reset, stream.receive.stopped) {
            (_, Some(_)) => Some(Err(StreamError::Closed)),
            (Some(code), None) => Some(Err(StreamError::Reset(code))),
            (None, None) if stream.receive.ended => Some(Ok(())),
            (None, None) => closed.then_some(Err(StreamError::Lost)),
        }
    }

    /// Handles the drop of the sending end: the written bytes are finished.
    pub(in crate::transport::tcp) fn drop_sending(&mut self, id: u32) {
        self.finish(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.dropped = true;
            self.reap(id);
        }
    }

    /// Handles the drop of the receiving end.
    pub(in crate::transport::tcp) fn drop_receiving(&mut self, id: u32) {
        self.stop(id, 0);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receive.dropped = true;
            self.reap(id);
        }
    }
}
