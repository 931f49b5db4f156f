//! Fuzzers of TLS records: changed on their way, they are refused, and whatever bytes come, nothing panics.
//!
//! Each runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib tcp::fuzz -- --nocapture` runs each for ten minutes.

use super::record::{RecordError, Records};
use super::record_buffer::RecordBuffer;
use super::tests::{batch, client_records, ends, host_records, open_all, pattern};
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate};

/// Some content, sealed; a new pair of ends costs a handshake.
fn sealed(numbers: &mut Numbers) -> (Records, Vec<u8>, Vec<u8>) {
    let (client, server) = ends();
    let (mut ours, theirs) = (client_records(client), host_records(server));
    ours.per_key_max = 1 + numbers.below(3) as u64;
    let content = pattern(numbers.below(60_000));
    let mut sealed = RecordBuffer::default();
    let (first, rest) = content.split_at(numbers.below(content.len()));
    ours.seal(&batch(&[first, rest]), &mut sealed).unwrap();
    if numbers.below(3) == 0 {
        ours.seal_end(&mut sealed).unwrap();
    }
    let sealed = sealed.to_vec();
    (theirs, sealed, content)
}

/// What was opened before the first record that was changed is the beginning of what was sealed, and nothing comes after it.
#[test]
fn records() {
    fuzz("records", |numbers| {
        let (mut theirs, mut sealed, content) = sealed(numbers);
        let before = sealed.clone();
        mutate(&mut sealed, numbers);
        match open_whole(&mut theirs, &sealed) {
            (opened, None) => assert!(content.starts_with(&opened)),
            (opened, Some(_)) => assert!(content.starts_with(&opened) && sealed != before),
        }
    });
}

/// Opens records for as long as they are whole and right.
fn open_whole(records: &mut Records, mut sealed: &[u8]) -> (Vec<u8>, Option<RecordError>) {
    let mut opened = Vec::new();
    loop {
        let len = match Records::complete_len(sealed) {
            Ok(Some(len)) => len,
            Ok(None) => return (opened, None),
            Err(error) => return (opened, Some(error)),
        };
        match open_all(records, &sealed[..len]) {
            Ok(content) => opened.extend(content),
            Err(error) => return (opened, Some(error)),
        }
        sealed = &sealed[len..];
    }
}

/// Any bytes, most of which begin as a record does.
#[test]
fn what_is_no_record() {
    fuzz("what is no record", |numbers| {
        let (_, server) = ends();
        let mut records = host_records(server);
        for _ in 0..50 {
            let len = numbers.below(300);
            let mut bytes: Vec<u8> = [23, 3, 3, 0].to_vec();
            bytes.extend((0..len).map(|_| numbers.next() as u8));
            mutate(&mut bytes, numbers);
            assert!(open_whole(&mut records, &bytes).0.is_empty());
        }
    });
}
