//! Fuzzers of frames from a peer over TCP: valid frames that are changed and out of order. Nothing panics,
//! and no peer makes this side hold more than its limits.
//!
//! Each runs for a moment. Run each for ten minutes with
//! `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib tcp::mux::fuzz -- --nocapture`.

use std::time::Duration;

use super::*;
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate};

const LIMITS: Limits =
    Limits { streams_max: 8, stream_bytes: 80 << 10, connection_bytes: 160 << 10, send_bytes_max: 100_000 };

/// Returns a number as peers send them: small, or at a limit.
fn number(numbers: &mut Numbers) -> u32 {
    let limits = [0, EARLY_STREAM_BYTES, LIMITS.stream_bytes, LIMITS.connection_bytes, u32::MAX, 1 << 31];
    match numbers.below(3) {
        0 => limits[numbers.below(limits.len())],
        _ => numbers.below(5_000) as u32,
    }
}

fn frame(numbers: &mut Numbers) -> Frame {
    let stream = numbers.below(24) as u32;
    match numbers.below(16) {
        0 => Frame::Hello {
            streams_max: number(numbers),
            stream_bytes: number(numbers),
            connection_bytes: number(numbers),
        },
        1 => Frame::Window { stream, bytes: number(numbers) },
        2 => Frame::Reset { stream, code: number(numbers) },
        3 => Frame::Stop { stream, code: number(numbers) },
        4 => Frame::Ping { token: number(numbers) },
        5 => Frame::Pong { token: number(numbers) },
        6 => Frame::Close { code: number(numbers), len: numbers.below(40) as u32 },
        _ => Frame::Data {
            stream,
            len: numbers.below(3_000) as u32,
            more: number(numbers),
            opens: numbers.below(4) > 0,
            ends: numbers.below(6) == 0,
        },
    }
}

/// Returns bytes of a peer that knows the protocol and breaks it.
fn sent(numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..numbers.below(60) {
        let frame = frame(numbers);
        bytes.extend_from_slice(&frame.encode());
        if let Frame::Data { len, .. } | Frame::Close { len, .. } = frame {
            bytes.resize(bytes.len() + len as usize, 7);
        }
    }
    if numbers.below(3) == 0 {
        mutate(&mut bytes, numbers);
    }
    bytes
}

/// Does a random operation of a user of the streams.
fn serve(mux: &mut Mux, numbers: &mut Numbers) {
    let context = Context::from_waker(Waker::noop());
    let ids: Vec<u32> = mux.streams.keys().copied().collect();
    let id = ids.get(numbers.below(ids.len())).copied().unwrap_or_default();
    match numbers.below(7) {
        0 => {
            let _ = mux.poll_accept(&context);
        }
        1 => {
            let _ = mux.poll_open(Lane::Demand, &context);
        }
        2 => {
            let mut bytes = Bytes::from(vec![1; numbers.below(5_000)]);
            let _ = mux.poll_write(id, &mut bytes, &context);
        }
        3 => drop(mux.finish(id)),
        4 => drop(mux.admit()),
        _ => {
            mux.transmit(&mut Batch::default(), numbers.below(50_000));
        }
    }
}

fn assert_bounded(mux: &Mux) {
    let held: usize = mux.streams.values().map(|stream| stream.receive.buffered()).sum();
    assert!(held <= LIMITS.connection_bytes as usize, "{held} bytes are held");
    assert!(mux.open_theirs <= LIMITS.streams_max && mux.streams.len() <= STREAMS_LINGERING_MAX + 64);
    assert!(mux.control.len() <= CONTROL_FRAMES_MAX + 64, "{} frames wait", mux.control.len());
}

#[test]
fn frames() {
    fuzz("frames", |numbers| {
        let side = if numbers.below(2) == 0 { Side::Client } else { Side::Host };
        let mut mux = Mux::new(side, LIMITS);
        for _ in 0..numbers.below(12) {
            let bytes = sent(numbers);
            let cut = 1 + numbers.below(4_000);
            for portion in bytes.chunks(cut) {
                if mux.receive(portion, Duration::ZERO).is_err() {
                    return;
                }
                assert_bounded(&mux);
                serve(&mut mux, numbers);
            }
        }
    });
}
