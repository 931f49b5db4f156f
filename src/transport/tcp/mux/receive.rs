//! (P) Receiving side: parses frames of the peer and enforces its limits.

use std::time::Duration;

use super::stream_state::Phase;
use super::{
    CONTROL_FRAMES_MAX, CloseReason, EARLY_CONNECTION_BYTES, EARLY_STREAM_BYTES, EARLY_STREAMS_MAX, Expect,
    Frame, HEADER_BYTES, Mux, STREAMS_LINGERING_MAX, Violation,
};
use crate::proto::{Lane, words};

impl Mux {
    /// Takes bytes of the peer, in portions of any size.
    pub(in crate::transport::tcp) fn receive(
        &mut self,
        mut bytes: &[u8],
        now: Duration,
    ) -> Result<(), Violation> {
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
                Expect::CloseText { code, left, words } => {
                    let len = bytes.len().min(*left);
                    words.extend_from_slice(&bytes[..len]);
                    *left -= len;
                    bytes = &bytes[len..];
                    if *left == 0 {
                        let text = words::of_peer(&String::from_utf8_lossy(words)).into_owned();
                        let code = (*code).into();
                        self.fail(CloseReason::ByPeer { code, text });
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets `fill` write `len` bytes in place. `fill` returns the number of bytes written. Returns `None`,
    /// and does not call `fill`, if the bytes may be more than content of one piece.
    pub(in crate::transport::tcp) fn receive_in_place<E>(
        &mut self,
        len: usize,
        now: Duration,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<(), E>> {
        let Expect::Content { stream: id, left, .. } = &mut self.expect else { return None };
        let receive = &mut self.streams.get_mut(id)?.receive;
        if *left <= len || receive.stopped.is_some() || self.closed.is_some() {
            return None;
        }
        let filled = match receive.fill(len, fill)? {
            Ok(filled) => filled,
            Err(error) => return Some(Err(error)),
        };
        *left -= filled;
        let (id, grant) = (*id, receive.has_put(filled, now, &mut self.wakes));
        self.grant(id, grant);
        Some(Ok(()))
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
                self.expect = Expect::CloseText { code, left: len as usize, words: Vec::new() };
            }
        }
        if self.control.len() > CONTROL_FRAMES_MAX {
            return Err(Violation("more control frames than it reads"));
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
        for id in ids {
            self.schedule(id);
        }
        self.wakes.append(&mut self.openers);
        self.has_work = true;
        Ok(())
    }

    fn data(&mut self, id: u32, len: u32, more: u32, opens: bool, ends: bool) -> Result<(), Violation> {
        let bytes = u64::from(len);
        self.receive_credit =
            self.receive_credit.checked_sub(bytes).ok_or(Violation("more content than was allowed"))?;
        if !opens && id % 2 == self.next_stream % 2 && id >= self.next_stream {
            return Err(Violation("content on a stream that is not open yet"));
        }
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
                receive.begin(len as usize, more.min(self.limits.stream_bytes) as usize);
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

    /// Takes content of a stream. Content of a forgotten stream counts as read.
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
            self.reap(id);
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
        self.reap(id);
    }

    fn stopped_by_peer(&mut self, id: u32, code: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.send.has_ended()) else {
            return;
        };
        stream.send.stopped = Some(code);
        self.queued_bytes -= stream.send.discard(Phase::Ended);
        stream.send.wake(&mut self.wakes);
        self.push_control(Frame::Reset { stream: id, code });
        self.reap(id);
    }
}
