//! Fuzzers of TLS records. Records that were changed in transit are refused, and no bytes cause a panic.
//!
//! Each runs for a moment. Run each for ten minutes with
//! `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib tcp::fuzz -- --nocapture`.

use super::record::{RecordError, Records};
use super::record_buffer::RecordBuffer;
use super::tests::{batch, client_records, ends, host_records, open_all, pattern};
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate};

/// Returns encrypted content and the content. Each call makes a new pair of ends with a handshake.
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

/// The content of the records before the first changed one is a prefix of the encrypted content.
#[test]
fn records() {
    fuzz("records", |numbers| {
        let (mut theirs, mut sealed, content) = sealed(numbers);
        let before = sealed.clone();
        mutate(&mut sealed, numbers);
        match open_valid(&mut theirs, &sealed) {
            (opened, None) => assert!(content.starts_with(&opened)),
            (opened, Some(_)) => assert!(content.starts_with(&opened) && sealed != before),
        }
    });
}

/// Decrypts records as long as they are complete and valid.
fn open_valid(records: &mut Records, mut sealed: &[u8]) -> (Vec<u8>, Option<RecordError>) {
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

/// Random bytes, most of which begin like a record.
#[test]
fn malformed_records() {
    fuzz("malformed records", |numbers| {
        let (_, server) = ends();
        let mut records = host_records(server);
        for _ in 0..50 {
            let len = numbers.below(300);
            let mut bytes: Vec<u8> = [23, 3, 3, 0].to_vec();
            bytes.extend((0..len).map(|_| numbers.next() as u8));
            mutate(&mut bytes, numbers);
            assert!(open_valid(&mut records, &bytes).0.is_empty());
        }
    });
}
