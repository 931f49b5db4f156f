//! (P) Progress of a read: checks each part, and computes the remaining request when a connection is lost.

use crate::chunk::{ByteRange, ChunkHash, ChunkIndex, ChunkRange};
use crate::proto::{ContentHeader, READ_CHUNKS_MAX, ReadRequest, Timestamp};

/// A read under way.
#[derive(Debug)]
pub(super) struct Progress {
    request: ReadRequest,
    /// Chunks that must arrive, none for an exact range.
    chunks: ChunkRange,
    /// Bitmap: bit `i` is set when chunk `chunks.first + i` has arrived.
    arrived: u64,
    last_hash: Option<ChunkHash>,
    piece_arrived: bool,
    /// True once a part failed verification.
    is_mismatched: bool,
}

/// A hash that no content has. If the request names it for a chunk, the host hashes that chunk anew.
const ZERO_HASH: ChunkHash = ChunkHash::from_bytes([0; 32]);

// One bit a chunk.
const _: () = assert!(READ_CHUNKS_MAX <= u64::BITS as u64);

/// Content announced by a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A chunk follows.
    Chunk { index: ChunkIndex, hash: ChunkHash, len: usize },
    /// A compressed chunk follows.
    Packed { index: ChunkIndex, hash: ChunkHash, len: usize, packed_len: usize },
    /// The chunk matches the hash in the request.
    Same { index: ChunkIndex },
    /// An exact range follows.
    Piece { offset: u64, hash: ChunkHash, len: usize },
    /// A compressed exact range follows.
    PackedPiece { offset: u64, hash: ChunkHash, len: usize, packed_len: usize },
    /// The end of the answer.
    End { observed: Timestamp },
}

impl Progress {
    /// Returns a read of which nothing has arrived, or `None` if the request exceeds the limits of the
    /// protocol.
    pub(super) fn new(request: ReadRequest) -> Option<Self> {
        let chunks = request.range.clamp_to(request.version.size).chunks();
        let allowed = if request.whole_chunks {
            request.range.chunks().count <= READ_CHUNKS_MAX && request.known.len() as u64 <= READ_CHUNKS_MAX
        } else {
            request.range.len <= crate::chunk::CHUNK_BYTES
        };
        let chunks = if request.whole_chunks { chunks } else { ChunkRange::new(chunks.first, 0) };
        allowed.then_some(Self {
            request,
            chunks,
            arrived: 0,
            last_hash: None,
            piece_arrived: false,
            is_mismatched: false,
        })
    }

    /// Records that a part failed verification. From now on the host must not use its recorded hashes of this
    /// file.
    pub(super) fn note_mismatch(&mut self) {
        self.is_mismatched = true;
    }

    /// Returns true if the request is for whole chunks.
    pub(super) const fn asks_for_chunks(&self) -> bool {
        self.request.whole_chunks
    }

    /// Returns the bytes of content that the answer may still bring.
    pub(super) fn bytes_missing(&self) -> u64 {
        if !self.request.whole_chunks {
            return self.piece().len;
        }
        let size = self.request.version.size;
        self.missing().map(|index| index.bytes_in(size).len).sum()
    }

    /// Returns the remaining request, from the first missing chunk on.
    pub(super) fn remaining(&self) -> ReadRequest {
        let mut request = self.missing_of_request();
        if self.is_mismatched && request.whole_chunks {
            request.known.resize(request.range.chunks().count as usize, None);
            request.known.iter_mut().for_each(|known| *known = known.or(Some(ZERO_HASH)));
        }
        request
    }

    fn missing_of_request(&self) -> ReadRequest {
        if !self.request.whole_chunks || self.chunks.count == 0 || self.arrived == 0 {
            return self.request.clone();
        }
        // If only the end is missing, the last chunk is requested again with the hash it had.
        let last = ChunkIndex(self.chunks.first.0 + self.chunks.count - 1);
        let first = self.missing().next();
        let from = first.unwrap_or(last);
        let skipped = (from.0 - self.request.range.chunks().first.0) as usize;
        let mut known = self.request.known.get(skipped..).unwrap_or_default().to_vec();
        if first.is_none() && self.last_hash.is_some() {
            known = vec![self.last_hash];
        }
        let range = ByteRange::new(from.offset(), self.request.range.end() - from.offset());
        ReadRequest { range, known, ..self.request.clone() }
    }

    /// Returns the largest number of parts in one answer, without its end.
    pub(super) const fn parts_max(&self) -> u64 {
        if self.request.whole_chunks { self.chunks.count } else { 1 }
    }

    /// Checks a header against the request. Returns a description of the error.
    pub(super) fn check(&self, header: &ContentHeader) -> Result<Next, &'static str> {
        match *header {
            ContentHeader::Chunk { index, hash, len } => {
                self.expect_chunk_of(index, len)?;
                Ok(Next::Chunk { index, hash, len: len as usize })
            }
            ContentHeader::Packed { index, hash, len, packed_len } => {
                self.expect_chunk_of(index, len)?;
                if packed_len >= len {
                    return Err("a chunk that compression made larger");
                }
                Ok(Next::Packed { index, hash, len: len as usize, packed_len: packed_len as usize })
            }
            ContentHeader::Same { index } => {
                self.expect_chunk(index)?;
                let position = (index.0 - self.request.range.chunks().first.0) as usize;
                let known = self.request.known.get(position).copied().flatten();
                if known.is_none() && !self.has(index) {
                    return Err("a chunk confirmed without a hash in the request");
                }
                Ok(Next::Same { index })
            }
            ContentHeader::Piece { offset, hash, len } => {
                self.expect_piece(offset, len)?;
                Ok(Next::Piece { offset, hash, len: len as usize })
            }
            ContentHeader::PackedPiece { offset, hash, len, packed_len } => {
                self.expect_piece(offset, len)?;
                if packed_len >= len {
                    return Err("a piece that compression made larger");
                }
                Ok(Next::PackedPiece { offset, hash, len: len as usize, packed_len: packed_len as usize })
            }
            ContentHeader::End { observed } => {
                let complete = if self.request.whole_chunks {
                    self.missing().next().is_none()
                } else {
                    self.piece_arrived || self.piece().is_empty()
                };
                if complete { Ok(Next::End { observed }) } else { Err("an end before everything was sent") }
            }
            ContentHeader::Failed(_) => Err("a failure in place of content"),
        }
    }

    /// Records that a part has arrived and was verified. Returns `false` if it had arrived before.
    pub(super) fn note(&mut self, part: Next) -> bool {
        match part {
            Next::Chunk { index, hash, .. } | Next::Packed { index, hash, .. } => {
                if index.0 + 1 == self.chunks.first.0 + self.chunks.count {
                    self.last_hash = Some(hash);
                }
                self.mark(index)
            }
            Next::Same { index } => self.mark(index),
            Next::Piece { .. } | Next::PackedPiece { .. } => {
                !std::mem::replace(&mut self.piece_arrived, true)
            }
            Next::End { .. } => true,
        }
    }

    fn expect_piece(&self, offset: u64, len: u32) -> Result<(), &'static str> {
        if self.request.whole_chunks {
            return Err("a piece in place of whole chunks");
        }
        if offset != self.request.range.offset || u64::from(len) != self.piece().len {
            return Err("the wrong piece");
        }
        Ok(())
    }

    fn mark(&mut self, index: ChunkIndex) -> bool {
        let bit = 1 << (index.0 - self.chunks.first.0);
        let fresh = self.arrived & bit == 0;
        self.arrived |= bit;
        fresh
    }

    /// Returns true if a chunk of the request has arrived.
    pub(super) fn has(&self, index: ChunkIndex) -> bool {
        self.arrived & (1 << (index.0 - self.chunks.first.0)) != 0
    }

    fn missing(&self) -> impl Iterator<Item = ChunkIndex> {
        self.chunks.iter().filter(|index| !self.has(*index))
    }

    fn piece(&self) -> ByteRange {
        self.request.range.clamp_to(self.request.version.size)
    }

    fn expect_chunk_of(&self, index: ChunkIndex, len: u32) -> Result<(), &'static str> {
        self.expect_chunk(index)?;
        let is_right = u64::from(len) == index.bytes_in(self.request.version.size).len;
        if is_right { Ok(()) } else { Err("a chunk of the wrong length") }
    }

    fn expect_chunk(&self, index: ChunkIndex) -> Result<(), &'static str> {
        if !self.request.whole_chunks {
            Err("a chunk in place of a piece")
        } else if self.chunks.contains(index) {
            Ok(())
        } else {
            Err("a chunk outside the request")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::chunk::CHUNK_BYTES;
    use crate::proto::{NodeId, Version};

    fn request(offset: u64, len: u64, size: u64, whole_chunks: bool) -> ReadRequest {
        ReadRequest {
            node: NodeId { device: 1, inode: 1, birth_ns: 1 },
            version: Version { size, mtime: Timestamp(1), ctime: Timestamp(1) },
            range: ByteRange::new(offset, len),
            whole_chunks,
            known: Vec::new(),
        }
    }

    fn chunk(index: u64, size: u64) -> ContentHeader {
        let index = ChunkIndex(index);
        ContentHeader::Chunk { index, hash: ChunkHash::of(b"x"), len: index.bytes_in(size).len as u32 }
    }

    proptest! {
        /// Plays an honest host whose connection breaks again and again, with any order of chunks.
        #[test]
        fn every_chunk_arrives_once_over_any_number_of_connections(
            first in 0u64..100,
            count in 1u64..=READ_CHUNKS_MAX,
            short in 1u64..=CHUNK_BYTES,
            cuts in proptest::collection::vec((any::<u64>(), 0usize..30), 0..20),
        ) {
            let size = (first + count - 1) * CHUNK_BYTES + short;
            let mut progress = Progress::new(request(first * CHUNK_BYTES, count * CHUNK_BYTES, size, true)).unwrap();
            let mut seen = BTreeSet::new();
            let whole = (u64::MAX, usize::MAX);
            for (seed, parts) in cuts.into_iter().chain([whole]) {
                let asked = progress.remaining();
                prop_assert!(asked.range.chunks().as_range().end <= first + count);
                let mut indices: Vec<u64> = asked.range.chunks().as_range().collect();
                indices.sort_by_key(|index| index.wrapping_mul(seed | 1).rotate_left(17));
                for index in indices.into_iter().take(parts) {
                    let next = progress.check(&chunk(index, size)).unwrap();
                    prop_assert_eq!(progress.note(next), seen.insert(index));
                }
                let missing: u64 = (first..first + count)
                    .filter(|index| !seen.contains(index))
                    .map(|index| ChunkIndex(index).bytes_in(size).len)
                    .sum();
                prop_assert_eq!(progress.bytes_missing(), missing);
                let end = progress.check(&ContentHeader::End { observed: Timestamp(1) });
                prop_assert_eq!(end.is_ok(), missing == 0);
            }
        }

        #[test]
        fn no_header_makes_it_panic(index: u64, len: u32, offset: u64, size: u64, at: u64, bytes: u64, whole: bool) {
            let Some(mut progress) = Progress::new(request(at, bytes, size, whole)) else { return Ok(()) };
            let hash = ChunkHash::of(b"");
            for header in [
                ContentHeader::Chunk { index: ChunkIndex(index), hash, len },
                ContentHeader::Same { index: ChunkIndex(index) },
                ContentHeader::Piece { offset, hash, len },
                ContentHeader::Packed { index: ChunkIndex(index), hash, len, packed_len: len / 2 },
                ContentHeader::PackedPiece { offset, hash, len, packed_len: len / 2 },
                ContentHeader::End { observed: Timestamp(0) },
                ContentHeader::Failed(crate::proto::ErrorCode::Busy),
            ] {
                if let Ok(next) = progress.check(&header) {
                    progress.note(next);
                }
                let _ = (progress.remaining(), progress.bytes_missing());
            }
        }
    }

    #[test]
    fn if_only_the_end_is_missing_the_last_chunk_is_requested_with_its_hash() {
        let size = 3 * CHUNK_BYTES;
        let mut progress = Progress::new(request(5, size - 5, size, true)).unwrap();
        for index in 0..3 {
            let next = progress.check(&chunk(index, size)).unwrap();
            assert!(progress.note(next));
        }
        let asked = progress.remaining();
        assert_eq!(asked.range, ByteRange::new(2 * CHUNK_BYTES, CHUNK_BYTES));
        assert_eq!(asked.known, [Some(ChunkHash::of(b"x"))]);
        let same = progress.check(&ContentHeader::Same { index: ChunkIndex(2) }).unwrap();
        assert!(!progress.note(same));
    }

    #[test]
    fn after_a_mismatch_chunks_are_requested_with_the_zero_hash() {
        let size = 3 * CHUNK_BYTES;
        let held = Some(ChunkHash::of(b"held"));
        let known = ReadRequest { known: vec![None, held], ..request(0, size, size, true) };
        let mut progress = Progress::new(known).unwrap();
        progress.note_mismatch();
        assert_eq!(progress.remaining().known, [Some(ZERO_HASH), held, Some(ZERO_HASH)]);
        let next = progress.check(&chunk(0, size)).unwrap();
        progress.note(next);
        assert_eq!(progress.remaining().known, [held, Some(ZERO_HASH)]);
        // A host that confirms this hash lies.
        assert!(progress.check(&ContentHeader::Same { index: ChunkIndex(2) }).is_err());
        let mut piece = Progress::new(request(0, 10, size, false)).unwrap();
        piece.note_mismatch();
        assert_eq!(piece.remaining().known, []);
    }

    #[test]
    fn unrequested_content_is_refused() {
        let progress = Progress::new(request(0, 10, 100, true)).unwrap();
        assert!(progress.check(&chunk(1, 2 * CHUNK_BYTES)).is_err());
        assert!(progress.check(&ContentHeader::Same { index: ChunkIndex(0) }).is_err());
        let hash = ChunkHash::of(b"");
        assert!(progress.check(&ContentHeader::Chunk { index: ChunkIndex(0), hash, len: 10 }).is_err());
        let piece = Progress::new(request(90, 50, 100, false)).unwrap();
        assert!(piece.check(&ContentHeader::Piece { offset: 90, hash, len: 50 }).is_err());
        assert!(piece.check(&ContentHeader::Piece { offset: 90, hash, len: 10 }).is_ok());
        let packed = |offset, packed_len| ContentHeader::PackedPiece { offset, hash, len: 10, packed_len };
        assert!(piece.check(&packed(90, 9)).is_ok());
        assert!(piece.check(&packed(90, 10)).is_err() && piece.check(&packed(91, 9)).is_err());
        assert!(piece.check(&ContentHeader::End { observed: Timestamp(0) }).is_err());
        assert!(Progress::new(request(0, 65 * CHUNK_BYTES, 1, true)).is_none());
    }
}
