//! Fuzzers of all messages: whatever bytes a peer sends, decoding ends, and what is decoded is a value like any other.
//!
//! Each runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib proto::fuzz -- --nocapture` runs each for ten minutes.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    ContentHeader, DirectoryBatch, FRAME_HEADER_BYTES, HostEvent, Reply, Request, WireError, decode_body,
    encode_frame,
};
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate};

/// Longest body that is made up here.
const BODY_BYTES_MAX: usize = 400;

/// Returns bytes that are often the body of a message: small numbers, of which each is a tag, a flag, a length or a number.
fn body(variants: usize, numbers: &mut Numbers) -> Vec<u8> {
    let len = numbers.below(BODY_BYTES_MAX);
    let mut bytes = vec![numbers.below(variants) as u8];
    bytes.extend((0..len).map(|_| match numbers.below(8) {
        0 => numbers.next() as u8,
        1 | 2 => numbers.below(128) as u8,
        _ => numbers.below(3) as u8,
    }));
    bytes
}

/// The message at the beginning of the bytes.
fn beginning<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().map(|(message, _)| message)
}

/// By how much the words of a refusal may grow, whose control characters are escaped.
const WORDS_GROW_BYTES_MAX: usize = 8 * 1024;

/// What can be decoded is encoded in as many bytes at most, but for words that are made fit to be shown, and comes back.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = decode_body::<T>(bytes) else { return };
    let frame = encode_frame(&message);
    assert!(frame.len() - FRAME_HEADER_BYTES <= bytes.len() + WORDS_GROW_BYTES_MAX, "{message:?} has grown");
    assert_eq!(decode_body::<T>(&frame[FRAME_HEADER_BYTES..]).as_ref(), Ok(&message));
}

fn fuzz_messages<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, variants: usize) {
    fuzz(name, |numbers| {
        let bytes = body(variants, numbers);
        check::<T>(&bytes);
        let Some(message) = beginning::<T>(&bytes) else { return };
        let mut changed = encode_frame(&message).split_off(FRAME_HEADER_BYTES);
        for _ in 0..8 {
            mutate(&mut changed, numbers);
            check::<T>(&changed);
        }
    });
}

/// Every kind of message is among those that are made up, and none is beyond: a new one is fuzzed, too.
fn assert_all_are_made<T: Serialize + DeserializeOwned>(variants: usize) {
    let mut made = BTreeSet::new();
    for seed in 0..200_000 {
        let mut numbers = Numbers::new(seed);
        if let Some(message) = beginning::<T>(&body(variants + 1, &mut numbers)) {
            made.insert(encode_frame(&message)[FRAME_HEADER_BYTES]);
        }
        if made.len() == variants && seed > 20_000 {
            break;
        }
    }
    assert_eq!(made, (0..variants as u8).collect());
}

const REQUESTS: usize = 28;
const REPLIES: usize = 22;
const HEADERS: usize = 7;
const EVENTS: usize = 3;

#[test]
fn all_kinds_of_messages_are_made() {
    assert_all_are_made::<Request>(REQUESTS);
    assert_all_are_made::<Reply>(REPLIES);
    assert_all_are_made::<ContentHeader>(HEADERS);
    assert_all_are_made::<HostEvent>(EVENTS);
}

#[test]
fn requests() {
    fuzz_messages::<Request>("requests", REQUESTS);
}

#[test]
fn replies() {
    fuzz_messages::<Result<Reply, WireError>>("replies and refusals", 2);
    fuzz_messages::<Reply>("replies", REPLIES);
}

#[test]
fn headers_of_content() {
    fuzz_messages::<ContentHeader>("headers of content", HEADERS);
}

#[test]
fn parts_of_listings() {
    fuzz_messages::<DirectoryBatch>("parts of listings", 4);
}

#[test]
fn events() {
    fuzz_messages::<HostEvent>("events", EVENTS);
}
