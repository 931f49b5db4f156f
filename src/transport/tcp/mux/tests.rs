//! Two ends and random histories: the reader gets the written bytes, for any way in which they were cut.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::io::alloc_aligned;
use crate::transport::StreamError;

const LIMITS: Limits =
    Limits { streams_max: 16, stream_bytes: 64 << 10, connection_bytes: 256 << 10, send_bytes_max: 300_000 };

#[derive(Debug, Clone, Copy)]
enum Op {
    Open { lane: usize },
    Accept,
    Write { pick: usize, len: usize },
    Finish { pick: usize },
    Reset { pick: usize },
    Stop { pick: usize },
    Read { pick: usize, max: usize },
    ReadExact { pick: usize, len: usize },
    SetLane { pick: usize, lane: usize },
    LayTogether { pick: usize, len: usize },
    Drop { pick: usize },
    Carry { batch: usize, cut: usize },
    Admit,
}

fn op() -> impl Strategy<Value = (bool, Op)> {
    let pick = 0usize..32;
    let kinds = prop_oneof![
        2 => (0usize..4).prop_map(|lane| Op::Open { lane }),
        2 => Just(Op::Accept),
        6 => (pick.clone(), 0usize..90_000).prop_map(|(pick, len)| Op::Write { pick, len }),
        2 => pick.clone().prop_map(|pick| Op::Finish { pick }),
        1 => pick.clone().prop_map(|pick| Op::Reset { pick }),
        1 => pick.clone().prop_map(|pick| Op::Stop { pick }),
        4 => (pick.clone(), 1usize..100_000).prop_map(|(pick, max)| Op::Read { pick, max }),
        4 => (pick.clone(), 1usize..100_000).prop_map(|(pick, len)| Op::ReadExact { pick, len }),
        1 => (pick.clone(), 0usize..4).prop_map(|(pick, lane)| Op::SetLane { pick, lane }),
        1 => (pick.clone(), 0usize..300_000).prop_map(|(pick, len)| Op::LayTogether { pick, len }),
        1 => pick.prop_map(|pick| Op::Drop { pick }),
        6 => (0usize..100_000, 1usize..9_000).prop_map(|(batch, cut)| Op::Carry { batch, cut }),
        1 => Just(Op::Admit),
    ];
    (any::<bool>(), kinds)
}

/// Expected content of one direction of a stream.
#[derive(Debug, Default)]
struct Model {
    written: VecDeque<u8>,
    finished: bool,
    /// Abandoned by the writer, or not wanted by the reader.
    broken: bool,
    ended: bool,
}

/// One end, and the streams whose handles it holds.
struct End {
    mux: Mux,
    held: Vec<u32>,
}

struct World {
    ends: [End; 2],
    /// Indexed by stream, then by the side that writes.
    models: BTreeMap<(u32, usize), Model>,
    count: u8,
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Passes the content of one record, whose buffer is larger than the content. Returns true if it was written
/// in place.
fn hand(mux: &mut Mux, content: &[u8]) -> bool {
    let room = content.len() + 1 + content.len() % 3;
    let in_place = mux.receive_in_place(room, Duration::ZERO, |out| {
        assert_eq!(out.len(), room);
        out.fill(255);
        out[..content.len()].copy_from_slice(content);
        Ok::<_, Violation>(content.len())
    });
    let is_in_place = in_place.is_some();
    in_place.unwrap_or_else(|| mux.receive(content, Duration::ZERO)).expect("an honest peer");
    is_in_place
}

impl World {
    fn new() -> Self {
        let ends =
            [Side::Client, Side::Host].map(|side| End { mux: Mux::new(side, LIMITS), held: Vec::new() });
        Self { ends, models: BTreeMap::new(), count: 0 }
    }

    /// Returns two ends that have admitted each other.
    fn admitted() -> Self {
        let mut world = Self::new();
        for side in 0..2 {
            world.apply(side, Op::Admit);
        }
        world
    }

    fn held(&self, side: usize, pick: usize) -> Option<u32> {
        let held = &self.ends[side].held;
        held.get(pick % held.len().max(1)).copied()
    }

    fn model(&mut self, id: u32, side: usize) -> &mut Model {
        self.models.entry((id, side)).or_default()
    }

    fn apply(&mut self, side: usize, op: Op) {
        match op {
            Op::Open { lane } => {
                if let Poll::Ready(Ok(id)) = self.ends[side].mux.poll_open(LANES[lane], &context()) {
                    self.ends[side].held.push(id);
                }
            }
            Op::Accept => {
                if let Poll::Ready(Ok(id)) = self.ends[side].mux.poll_accept(&context()) {
                    self.ends[side].held.push(id);
                }
            }
            Op::Write { pick, len } => self.write(side, pick, len),
            Op::Finish { pick } => {
                let Some(id) = self.held(side, pick) else { return };
                if self.ends[side].mux.finish(id) {
                    self.model(id, side).finished = true;
                }
            }
            Op::Reset { pick } => {
                let Some(id) = self.held(side, pick) else { return };
                // Nothing arrives on a stream that the peer never learns of.
                let is_known = self.ends[side].mux.streams.get(&id).is_some_and(|stream| stream.announced);
                if self.ends[side].mux.reset(id, 1) {
                    self.model(id, side).broken = true;
                    self.model(id, 1 - side).broken |= !is_known;
                }
            }
            Op::Stop { pick } => {
                let Some(id) = self.held(side, pick) else { return };
                self.ends[side].mux.stop(id, 1);
                self.model(id, 1 - side).broken = true;
            }
            Op::Read { pick, max } => self.read(side, pick, max),
            Op::ReadExact { pick, len } => self.read_exact(side, pick, len),
            Op::LayTogether { pick, len } => {
                let Some(id) = self.held(side, pick) else { return };
                let mut room = alloc_aligned(len);
                // Older bytes in the memory must not show.
                room.resize(len / 2, 0xee);
                self.ends[side].mux.use_memory(id, room);
            }
            Op::SetLane { pick, lane } => {
                let Some(id) = self.held(side, pick) else { return };
                self.ends[side].mux.set_lane(id, LANES[lane]);
            }
            Op::Drop { pick } => {
                let Some(id) = self.held(side, pick) else { return };
                self.drop_stream(side, id);
            }
            Op::Carry { batch, cut } => self.carry(side, batch, cut),
            Op::Admit => {
                self.ends[side].mux.admit();
            }
        }
    }

    fn drop_stream(&mut self, side: usize, id: u32) {
        self.ends[side].held.retain(|held| *held != id);
        self.model(id, side).finished = true;
        self.model(id, 1 - side).broken = true;
        self.ends[side].mux.drop_sending(id);
        self.ends[side].mux.drop_receiving(id);
    }

    fn write(&mut self, side: usize, pick: usize, len: usize) {
        let Some(id) = self.held(side, pick) else { return };
        let count = &mut self.count;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            *count = count.wrapping_mul(31).wrapping_add(7);
            *count
        })
        .take(len)
        .collect();
        let mut bytes = Bytes::from(content.clone());
        match self.ends[side].mux.poll_write(id, &mut bytes, &context()) {
            Poll::Ready(Ok(())) => self.model(id, side).written.extend(content),
            Poll::Ready(Err(_)) => {
                let model = self.model(id, side);
                assert!(model.finished || model.broken);
            }
            Poll::Pending => {}
        }
    }

    fn read(&mut self, side: usize, pick: usize, max: usize) {
        let Some(id) = self.held(side, pick) else { return };
        match self.ends[side].mux.poll_read(id, max, &context()) {
            Poll::Ready(Ok(Some(bytes))) => {
                assert!(!bytes.is_empty() && bytes.len() <= max);
                self.compare(id, 1 - side, &bytes);
            }
            Poll::Ready(Ok(None)) => self.ended(id, 1 - side),
            Poll::Ready(Err(_)) => assert!(self.model(id, 1 - side).broken),
            Poll::Pending => {}
        }
    }

    fn read_exact(&mut self, side: usize, pick: usize, len: usize) {
        let Some(id) = self.held(side, pick) else { return };
        match self.ends[side].mux.poll_read_exact(id, len, usize::MAX, &context()) {
            Poll::Ready(Ok(ReadProgress::All(bytes))) => {
                assert_eq!(bytes.len(), len);
                self.compare(id, 1 - side, &bytes);
            }
            Poll::Ready(Err(StreamError::EndedEarly)) => {
                let model = self.model(id, 1 - side);
                assert!(model.finished && model.written.len() < len);
            }
            Poll::Ready(Err(_)) => assert!(self.model(id, 1 - side).broken),
            Poll::Ready(Ok(ReadProgress::Part(_))) => panic!("parts were not asked for"),
            Poll::Pending => {}
        }
    }

    fn compare(&mut self, id: u32, writer: usize, bytes: &[u8]) {
        let model = self.model(id, writer);
        assert!(model.written.len() >= bytes.len(), "more than was written");
        assert!(model.written.drain(..bytes.len()).eq(bytes.iter().copied()), "the bytes differ");
    }

    fn ended(&mut self, id: u32, writer: usize) {
        let model = self.model(id, writer);
        assert!(model.broken || model.finished && model.written.is_empty(), "an end before the end");
        model.ended = true;
    }

    /// Carries the output of `side` to the other end, in portions of `cut` bytes.
    fn carry(&mut self, side: usize, bytes_max: usize, cut: usize) {
        let mut batch = Batch::default();
        self.ends[side].mux.transmit(&mut batch, bytes_max);
        let bytes: Vec<u8> = batch.parts.iter().flat_map(|part| part.bytes().to_vec()).collect();
        assert_eq!(bytes.len(), batch.bytes);
        assert!(bytes.len() <= bytes_max + 64 * HEADER_BYTES + CONTROL_FRAMES_MAX * HEADER_BYTES);
        for portion in bytes.chunks(cut) {
            hand(&mut self.ends[1 - side].mux, portion);
        }
        for end in &self.ends {
            let unread: usize = end.mux.streams.values().map(|stream| stream.receive.buffered()).sum();
            // A reader that waits may let its bytes exceed the bound.
            assert!(unread <= LIMITS.connection_bytes as usize + 16 * 100_000, "{unread} bytes unread");
            assert!(end.mux.open_theirs <= LIMITS.streams_max);
            let queued: usize = end.mux.streams.values().map(|stream| stream.send.queued_bytes).sum();
            assert_eq!(queued, end.mux.queued_bytes);
        }
    }

    /// Finishes, carries and reads everything. Nothing may be left.
    fn finish(&mut self) {
        for side in 0..2 {
            self.apply(side, Op::Admit);
        }
        for _ in 0..400 {
            for side in 0..2 {
                for pick in 0..self.ends[side].held.len() {
                    self.apply(side, Op::Finish { pick });
                    self.read(side, pick, usize::MAX);
                }
                self.apply(side, Op::Accept);
                self.carry(side, 1 << 20, 9_999);
            }
        }
        for (stream, model) in &self.models {
            assert!(
                model.broken || model.written.is_empty(),
                "{stream:?}: {} bytes are lost",
                model.written.len()
            );
        }
        for side in 0..2 {
            for id in self.ends[side].held.clone() {
                assert!(self.models[&(id, 1 - side)].ended || self.models[&(id, 1 - side)].broken);
                self.drop_stream(side, id);
            }
        }
        for _ in 0..4 {
            self.carry(0, 1 << 20, 9_999);
            self.carry(1, 1 << 20, 9_999);
        }
        for end in &self.ends {
            assert_eq!((end.mux.open_ours, end.mux.open_theirs, end.mux.streams.len()), (0, 0, 0));
            assert_eq!(end.mux.queued_bytes, 0);
            assert_eq!(end.mux.receive_credit + end.mux.ungranted, u64::from(LIMITS.connection_bytes));
        }
    }
}

proptest! {
    #[test]
    fn the_reader_gets_the_written_bytes(ops in proptest::collection::vec(op(), 0..300)) {
        let mut world = World::new();
        for (side, op) in ops {
            world.apply(usize::from(side), op);
        }
        world.finish();
    }

    #[test]
    fn no_bytes_make_it_panic(
        is_host: bool,
        admit_at in 0usize..40,
        portions in proptest::collection::vec(proptest::collection::vec(0u8..10, 0..40), 0..40),
    ) {
        let mut mux = Mux::new(if is_host { Side::Host } else { Side::Client }, LIMITS);
        for (number, portion) in portions.iter().enumerate() {
            if number == admit_at {
                mux.admit();
            }
            if mux.receive(portion, Duration::ZERO).is_err() {
                break;
            }
        }
        mux.transmit(&mut Batch::default(), 1 << 20);
    }
}

#[test]
fn content_of_a_stream_that_is_not_open_yet_is_refused() {
    let data = |stream| Frame::Data { stream, len: 4, more: 0, opens: false, ends: false }.encode();
    for (side, ours) in [(Side::Client, 1), (Side::Host, 2)] {
        let mut mux = Mux::new(side, LIMITS);
        mux.admit();
        assert!(mux.receive(&data(ours), Duration::ZERO).is_err(), "{side:?}");
        let mut mux = Mux::new(side, LIMITS);
        mux.admit();
        assert_eq!(mux.poll_open(Lane::Demand, &context()), Poll::Ready(Ok(ours)));
        mux.receive(&[&data(ours)[..], b"more"].concat(), Duration::ZERO).unwrap();
        assert!(mux.receive(&data(ours + 2), Duration::ZERO).is_err(), "{side:?}");
    }
}

#[test]
fn an_unadmitted_client_makes_a_host_hold_at_most_64_kib() {
    let mut host = Mux::new(Side::Host, LIMITS);
    assert!(frames(&mut host, 1 << 20).is_empty(), "no hello is sent before admission");
    let data = |stream, len| Frame::Data { stream, len, more: u32::MAX, opens: true, ends: false }.encode();
    let send = |host: &mut Mux, stream, len: u32| {
        let bytes = [&data(stream, len)[..], &vec![0; len as usize]].concat();
        host.receive(&bytes, Duration::ZERO)
    };
    for stream in [1, 3, 5, 7] {
        send(&mut host, stream, EARLY_CONNECTION_BYTES / 4).unwrap();
    }
    assert!(send(&mut host, 7, 1).is_err(), "more than the window");
    let mut host = Mux::new(Side::Host, LIMITS);
    (0..EARLY_STREAMS_MAX).for_each(|number| send(&mut host, 1 + 2 * number, 1).unwrap());
    assert!(send(&mut host, 1 + 2 * EARLY_STREAMS_MAX, 1).is_err(), "more than the streams");
}

#[test]
fn an_admitted_peer_gets_a_hello_and_the_full_limits() {
    let mut host = Mux::new(Side::Host, LIMITS);
    assert!(host.admit() && !host.admit());
    let told = frames(&mut host, 1 << 20);
    let Limits { streams_max, stream_bytes, connection_bytes, .. } = LIMITS;
    assert_eq!(told, [Frame::Hello { streams_max, stream_bytes, connection_bytes }]);
    let data = Frame::Data { stream: 1, len: stream_bytes, more: 0, opens: true, ends: false }.encode();
    assert_eq!(host.receive(&data, Duration::ZERO), Ok(()));
}

/// Returns the headers of the next frames to send.
fn frames(mux: &mut Mux, bytes_max: usize) -> Vec<Frame> {
    let mut batch = Batch::default();
    mux.transmit(&mut batch, bytes_max);
    let headers = batch.parts.iter().filter_map(|part| match part {
        Part::Header(header) => Frame::decode(*header),
        Part::Content(_) => None,
    });
    headers.collect()
}

fn open(mux: &mut Mux, lane: Lane, len: usize) -> u32 {
    let Poll::Ready(Ok(id)) = mux.poll_open(lane, &context()) else { panic!("no stream") };
    assert!(mux.poll_write(id, &mut Bytes::from(vec![0; len]), &context()).is_ready());
    id
}

#[test]
fn urgent_lanes_go_first_also_into_the_middle_of_a_piece() {
    let mut mux = Mux::new(Side::Client, LIMITS);
    mux.admit();
    let ahead = open(&mut mux, Lane::Ahead, 50_000);
    let demand = open(&mut mux, Lane::Demand, 100);
    let first = frames(&mut mux, 10_000);
    let more = 50_000 - (10_000 - 100 - 3 * HEADER_BYTES as u32 + HEADER_BYTES as u32);
    assert!(matches!(first[1], Frame::Data { stream, len: 100, more: 0, .. } if stream == demand));
    assert!(matches!(first[2], Frame::Data { stream, opens: true, .. } if stream == ahead), "{more}");
    let metadata = open(&mut mux, Lane::Metadata, 20);
    let second = frames(&mut mux, 10_000);
    assert!(matches!(second[0], Frame::Data { stream, len: 20, .. } if stream == metadata));
    assert!(matches!(second[1], Frame::Data { stream, opens: false, .. } if stream == ahead));
    mux.set_lane(ahead, Lane::Metadata);
    open(&mut mux, Lane::Metadata, 20);
    assert!(matches!(frames(&mut mux, 10_000)[0], Frame::Data { stream, .. } if stream == ahead));
}

#[test]
fn a_piece_comes_out_as_it_was_written() {
    let mut world = World::new();
    let id = open(&mut world.ends[0].mux, Lane::Demand, 30_000);
    for _ in 0..9 {
        world.carry(0, 4_000, 777);
    }
    let read = world.ends[1].mux.poll_read(id, usize::MAX, &context());
    assert!(matches!(read, Poll::Ready(Ok(Some(bytes))) if bytes.len() == 30_000));
}

#[test]
fn content_is_received_in_place_unless_more_may_follow_and_a_failure_leaves_nothing() {
    let mut world = World::new();
    let id = open(&mut world.ends[0].mux, Lane::Demand, 30_000);
    let mut batch = Batch::default();
    world.ends[0].mux.transmit(&mut batch, 1 << 20);
    let bytes: Vec<u8> = batch.parts.iter().flat_map(|part| part.bytes().to_vec()).collect();
    let mux = &mut world.ends[1].mux;
    let before_content = bytes.len() - 30_000;
    assert!(!hand(mux, &bytes[..before_content + 1_000]));
    let failed = mux.receive_in_place(5_000, Duration::ZERO, |_| Err::<usize, _>("forged"));
    assert_eq!(failed, Some(Err("forged")));
    assert!(hand(mux, &bytes[before_content + 1_000..before_content + 20_000]));
    assert!(!hand(mux, &bytes[before_content + 20_000..]), "its room may be too short");
    let read = mux.poll_read(id, usize::MAX, &context());
    assert!(matches!(read, Poll::Ready(Ok(Some(read))) if read == bytes[before_content..]));
}

#[test]
fn readers_of_more_than_the_window_do_not_wait_forever() {
    let mut world = World::new();
    let len = LIMITS.connection_bytes as usize * 2;
    let id = open(&mut world.ends[0].mux, Lane::Demand, len);
    for _ in 0..99 {
        let read = world.ends[1].mux.poll_read_exact(id, len, usize::MAX, &context());
        if let Poll::Ready(Ok(ReadProgress::All(bytes))) = read {
            assert_eq!(bytes.len(), len);
            return;
        }
        world.carry(0, 1 << 20, 9_999);
        world.carry(1, 1 << 20, 9_999);
    }
    panic!("the reader waits forever");
}

#[test]
fn a_client_may_not_open_more_than_it_is_allowed() {
    let mut world = World::admitted();
    world.carry(1, 1 << 20, 99);
    let opened = (0..40).filter(|_| world.ends[0].mux.poll_open(Lane::Demand, &context()).is_ready());
    assert_eq!(opened.count(), 16);
}

#[test]
fn a_peer_that_causes_control_frames_and_does_not_read_is_hostile() {
    let mut mux = Mux::new(Side::Host, LIMITS);
    let mut refused = None;
    for number in 0..2 * CONTROL_FRAMES_MAX as u32 {
        let id = 1 + 2 * number;
        let opens = Frame::Data { stream: id, len: 0, more: 0, opens: true, ends: true };
        let stops = Frame::Stop { stream: id, code: 1 };
        let bytes = [opens.encode(), stops.encode()].concat();
        if let Err(violation) = mux.receive(&bytes, Duration::ZERO) {
            refused = Some(violation);
            break;
        }
    }
    assert!(refused.is_some());
    assert!(mux.control.len() <= CONTROL_FRAMES_MAX + 1 && mux.streams.len() <= STREAMS_LINGERING_MAX);
}

#[test]
fn finishing_a_stopped_stream_is_no_error() {
    let mut world = World::new();
    let id = open(&mut world.ends[0].mux, Lane::Demand, 100);
    world.carry(0, 1 << 20, 9_999);
    assert!(world.ends[1].mux.stop(id, 1));
    world.carry(1, 1 << 20, 9_999);
    assert!(world.ends[0].mux.finish(id), "as with QUIC, the end is just not needed any more");
    let written = world.ends[0].mux.poll_write(id, &mut Bytes::from_static(b"more"), &context());
    assert_eq!(written, Poll::Ready(Err(StreamError::Stopped(1))));
}

#[test]
fn a_stream_can_be_given_up_after_the_connection_is_over() {
    let mut mux = Mux::new(Side::Client, LIMITS);
    let id = open(&mut mux, Lane::Demand, 50_000);
    mux.fail(CloseReason::TimedOut);
    mux.reset(id, 0);
    assert_eq!(mux.queued_bytes, 0);
}
