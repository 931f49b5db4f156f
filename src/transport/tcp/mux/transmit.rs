//! (P) Sending side: control frames, then streams by priority.

use bytes::Bytes;

use super::stream_state::Phase;
use super::{Batch, Frame, LANES, Mux, PAYLOAD_BYTES_MAX, STREAM_QUEUE_BYTES_MAX};
use crate::proto::Lane;

impl Mux {
    /// Adds the next frames to `batch`, until it holds `bytes_max` or a little more.
    pub(in crate::transport::tcp) fn transmit(&mut self, batch: &mut Batch, bytes_max: usize) {
        self.has_work = false;
        if let Some((code, text)) = self.pending_close.take() {
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
            for id in self.blocked_writers.drain(..) {
                if let Some(stream) = self.streams.get_mut(&id) {
                    self.wakes.extend(stream.send.writer.take());
                }
            }
        }
    }

    fn waits_for_credit(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.send.scheduled && !stream.send.queue.is_empty())
    }

    /// Adds frames of one stream. Returns true if it stays first in its queue.
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
        let ends = send.phase == Phase::Finished && send.queue.is_empty();
        batch.push(Frame::Data { stream: id, len: len as u32, more: more as u32, opens, ends });
        if let Some(content) = content {
            batch.push_content(content);
        }
        if send.queued_bytes <= STREAM_QUEUE_BYTES_MAX / 2 {
            self.wakes.extend(send.writer.take());
        }
        if ends {
            send.phase = Phase::Ended;
            send.wake(&mut self.wakes);
        }
        send.scheduled = send.may_send();
        let stays = send.scheduled;
        if opens && let Some(code) = stream.receive.stopped {
            batch.push(Frame::Stop { stream: id, code });
        }
        if ends {
            self.reap(id);
        }
        stays
    }
}
