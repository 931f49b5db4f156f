//! (P) Staging of the next write as one piece: the last partial block of the segment, then the new records.
//! The piece consists of whole blocks at aligned addresses, so that direct I/O can write it. Small data is
//! copied into a buffer. A payload that begins a block and is aligned in memory is written from its own
//! memory.

use std::ops::Range;

use bytes::Bytes;

use super::record::{BLOCK_BYTES, HEADER_BYTES, begins_block};
use crate::io::AlignedBuffer;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Size of the buffer: one batch of the queue, one partial block, and the largest number of gaps. Larger
/// writes take less processor time: 0.26 s a GB in pieces of 256 KiB, 0.12 to 0.21 s in pieces of 4 MiB.
const STAGING_BYTES: usize = super::queue::BATCH_BYTES_MAX + 17 * BLOCK;

/// Part of the piece.
#[derive(Debug)]
enum Part {
    /// Copied into the buffer.
    Copied(Range<usize>),
    /// Whole blocks in their own memory.
    InPlace(Bytes),
}

/// Buffer that is reused for every piece, and the current piece.
#[derive(Debug)]
pub(super) struct Staging {
    buffer: AlignedBuffer,
    /// Filled bytes of the buffer. A part in place consists of whole blocks, so block boundaries of the
    /// buffer and of the piece coincide.
    filled: usize,
    parts: Vec<Part>,
    len: usize,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self { buffer: AlignedBuffer::zeroed(STAGING_BYTES), filled: 0, parts: Vec::new(), len: 0 }
    }

    /// Begins a piece with the content of its first block, which is less than a block.
    pub(super) fn begin(&mut self, tail: &[u8]) {
        self.release();
        (self.filled, self.len) = (0, 0);
        self.put(tail);
    }

    /// Adds a record with its prefix and padding. Returns `false` if there is no room. A single record
    /// always fits.
    pub(super) fn push(&mut self, prefix: &[u8], payload: &Bytes) -> bool {
        let padded_bytes = payload.len().next_multiple_of(HEADER_BYTES as usize);
        if self.len + prefix.len() + padded_bytes > self.buffer.len() {
            return false;
        }
        self.put(prefix);
        if begins_block(payload.len() as u32) && payload.as_ptr().align_offset(BLOCK) == 0 {
            debug_assert!(self.len.is_multiple_of(BLOCK), "full chunks begin a block");
            self.parts.push(Part::InPlace(payload.clone()));
            self.len += payload.len();
        } else {
            self.put(payload);
            self.put(&[0; HEADER_BYTES as usize][..padded_bytes - payload.len()]);
        }
        true
    }

    /// Returns the size of the piece in bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the piece.
    pub(super) fn slices(&self) -> Vec<&[u8]> {
        let bytes_of = self.parts.iter().map(|part| match part {
            Part::Copied(range) => &self.buffer[range.clone()],
            Part::InPlace(bytes) => bytes,
        });
        bytes_of.collect()
    }

    /// Returns the piece padded with zeroes to whole blocks. A walk over the records then finds the end
    /// there, and not the records of an earlier piece.
    pub(super) fn blocks(&mut self) -> Vec<&[u8]> {
        let end = self.filled.next_multiple_of(BLOCK);
        self.buffer[self.filled..end].fill(0);
        let mut slices = self.slices();
        if let (Some(last), Some(Part::Copied(range))) = (slices.last_mut(), self.parts.last()) {
            *last = &self.buffer[range.start..end];
        }
        slices
    }

    /// Returns the beginning of the next piece: the last block, as far as it is filled.
    pub(super) fn tail(&self) -> &[u8] {
        &self.buffer[self.filled - self.len % BLOCK..self.filled]
    }

    /// Releases the memory of the payloads.
    pub(super) fn release(&mut self) {
        self.parts.clear();
    }

    fn put(&mut self, bytes: &[u8]) {
        let start = self.filled;
        self.filled += bytes.len();
        self.len += bytes.len();
        self.buffer[start..self.filled].copy_from_slice(bytes);
        match self.parts.last_mut() {
            Some(Part::Copied(range)) => range.end = self.filled,
            _ => self.parts.push(Part::Copied(start..self.filled)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::{Kind, PAYLOAD_BYTES_MAX, Secret, gap_bytes, record_bytes};
    use super::*;
    use crate::io::alloc_aligned;

    fn joined(slices: &[&[u8]]) -> Vec<u8> {
        slices.concat()
    }

    fn payload(len: usize, aligned: bool, filled_with: u8) -> Bytes {
        let mut bytes = alloc_aligned(len + 1);
        bytes.resize(len + 1, filled_with);
        bytes.freeze().slice(usize::from(!aligned)..).slice(..len)
    }

    #[test]
    fn blocks_end_in_zeroes_after_any_piece() {
        let mut staging = Staging::new();
        staging.begin(&[1; 64]);
        assert!((0..100).all(|_| staging.push(&[2; 64], &Bytes::from_static(&[3; 100]))));
        assert_eq!(staging.len(), 64 + 100 * 192);
        let tail = staging.tail().to_vec();
        assert_eq!(tail.len(), (64 + 100 * 192) % BLOCK);
        staging.begin(&tail);
        assert!(staging.push(&[4; 64], &Bytes::from_static(&[5; 64])));
        let end = tail.len() + 128;
        let blocks = joined(&staging.blocks());
        assert_eq!(blocks.len(), end.next_multiple_of(BLOCK));
        assert!(blocks[end..].iter().all(|&byte| byte == 0));
        assert_eq!(staging.len(), end);
    }

    #[test]
    fn a_record_without_room_waits_and_a_whole_batch_fits() {
        let mut staging = Staging::new();
        staging.begin(&[1; BLOCK - 64]);
        let payload = payload(PAYLOAD_BYTES_MAX as usize, false, 2);
        let count = (0..100).take_while(|_| staging.push(&[3; BLOCK], &payload)).count();
        assert_eq!(count, super::super::queue::BATCH_BYTES_MAX / payload.len());
        assert_eq!(staging.len(), BLOCK - 64 + count * (BLOCK + payload.len()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// The memory addresses of payloads do not change the written bytes, and the piece has whole,
        /// aligned blocks.
        #[test]
        fn the_piece_is_the_same_in_place_or_copied(
            first in 1..200u32,
            records in prop::collection::vec((prop_oneof![0..9000u32, Just(PAYLOAD_BYTES_MAX)], any::<bool>()), 1..9),
        ) {
            let (secret, mut end) = (Secret::new([7; 32]), first * HEADER_BYTES);
            let tail = vec![9; end as usize % BLOCK];
            let (mut staging, mut expected) = (Staging::new(), tail.clone());
            staging.begin(&tail);
            for (number, (len, aligned)) in records.into_iter().enumerate() {
                let payload = payload(len as usize, aligned, number as u8);
                let prefix = secret.encode_prefix(end, Kind::Chunk, &[number as u8; 32], len);
                prop_assert!(staging.push(&prefix, &payload));
                expected.extend_from_slice(&prefix);
                expected.extend_from_slice(&payload);
                expected.resize(expected.len().next_multiple_of(HEADER_BYTES as usize), 0);
                let in_place = matches!(staging.parts.last(), Some(Part::InPlace(_)));
                prop_assert_eq!(in_place, aligned && len == PAYLOAD_BYTES_MAX);
                end += gap_bytes(end, len) + record_bytes(len) as u32;
            }
            prop_assert_eq!(&joined(&staging.slices()), &expected);
            prop_assert_eq!(staging.tail(), &expected[expected.len() / BLOCK * BLOCK..]);
            expected.resize(expected.len().next_multiple_of(BLOCK), 0);
            let blocks = staging.blocks();
            for block in &blocks {
                prop_assert_eq!((block.as_ptr().align_offset(BLOCK), block.len() % BLOCK), (0, 0));
            }
            prop_assert_eq!(joined(&blocks), expected);
        }
    }
}
