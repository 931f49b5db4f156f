//! Ranges of bytes and of chunks in a file, and conversions between them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::CHUNK_BYTES;

/// Index of a chunk in its file, counted from 0 in units of [`CHUNK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkIndex(pub u64);

impl ChunkIndex {
    /// Returns the chunk that contains byte `offset`.
    pub const fn containing(offset: u64) -> Self {
        Self(offset / CHUNK_BYTES)
    }

    /// Returns the offset of the chunk's first byte.
    pub const fn offset(self) -> u64 {
        self.0 * CHUNK_BYTES
    }

    /// Returns the bytes of this chunk in a file of `size` bytes; empty if the chunk is behind the end.
    pub const fn bytes_in(self, size: u64) -> ByteRange {
        ByteRange { offset: self.offset(), len: CHUNK_BYTES }.clamp_to(size)
    }
}

/// Range of bytes of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl ByteRange {
    /// Creates a range of `len` bytes from `offset` on.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// Returns the end of the range, exclusive. It saturates at the end of the number space.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Returns `true` if the range has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns the part before the end of a file of `size` bytes.
    pub const fn clamp_to(self, size: u64) -> Self {
        let end = if self.end() < size { self.end() } else { size };
        Self { offset: self.offset, len: end.saturating_sub(self.offset) }
    }

    /// Returns the overlap of both ranges; `None` if it is empty.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (offset < end).then(|| Self { offset, len: end - offset })
    }

    /// Returns `true` if it contains every byte of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// Returns the chunks that contain these bytes.
    pub const fn chunks(self) -> ChunkRange {
        if self.len == 0 {
            return ChunkRange { first: ChunkIndex::containing(self.offset), count: 0 };
        }
        let first = ChunkIndex::containing(self.offset);
        let last = ChunkIndex::containing(self.end() - 1);
        ChunkRange { first, count: last.0 - first.0 + 1 }
    }
}

/// Run of adjacent chunks of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRange {
    /// First chunk.
    pub first: ChunkIndex,
    /// Number of chunks.
    pub count: u64,
}

impl ChunkRange {
    /// Creates a range of `count` chunks from `first` on.
    pub const fn new(first: ChunkIndex, count: u64) -> Self {
        Self { first, count }
    }

    /// Returns the chunk numbers as `first..end`.
    pub const fn as_range(self) -> Range<u64> {
        self.first.0..self.first.0.saturating_add(self.count)
    }

    /// Iterates over the chunks.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = ChunkIndex> + ExactSizeIterator {
        // A range of u64 has no exact size. The counts here come from file sizes and fit.
        (0..self.count as usize).map(move |i| ChunkIndex(self.first.0 + i as u64))
    }

    /// Returns `true` if `index` is in the range.
    pub const fn contains(self, index: ChunkIndex) -> bool {
        self.first.0 <= index.0 && index.0 - self.first.0 < self.count
    }

    /// Returns the part that lies in a file of `size` bytes, for any chunk numbers.
    pub fn clamp_to(self, size: u64) -> Self {
        let end = self.as_range().end.min(size.div_ceil(CHUNK_BYTES));
        Self { first: self.first, count: end.saturating_sub(self.first.0) }
    }

    /// Returns the bytes of these chunks in a file of `size` bytes.
    pub const fn bytes_in(self, size: u64) -> ByteRange {
        ByteRange { offset: self.first.offset(), len: self.count.saturating_mul(CHUNK_BYTES) }.clamp_to(size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_of_a_range_cover_it_and_nothing_more(offset in 0u64..1 << 40, len in 1u64..1 << 30) {
            let range = ByteRange::new(offset, len);
            let chunks = range.chunks();
            let cover = chunks.bytes_in(u64::MAX);
            prop_assert!(cover.contains(range));
            prop_assert!(offset - cover.offset < CHUNK_BYTES);
            prop_assert!(cover.end() - range.end() < CHUNK_BYTES);
            prop_assert!(chunks.iter().all(|index| chunks.contains(index)));
        }

        #[test]
        fn clamping_never_passes_the_end(offset in any::<u64>(), len in any::<u64>(), size in any::<u64>()) {
            let clamped = ByteRange::new(offset, len).clamp_to(size);
            prop_assert!(clamped.is_empty() || clamped.end() <= size);
            prop_assert!(clamped.len <= len);
        }

        #[test]
        fn intersections_are_in_both(a in 0u64..1000, b in 0u64..1000, c in 0u64..1000, d in 0u64..1000) {
            let (left, right) = (ByteRange::new(a, b), ByteRange::new(c, d));
            let slow = (a..a + b).filter(|byte| (c..c + d).contains(byte)).count() as u64;
            let fast = left.intersect(right);
            prop_assert_eq!(fast.map_or(0, |range| range.len), slow);
            prop_assert!(fast.is_none_or(|range| left.contains(range) && right.contains(range)));
        }
    }

    #[test]
    fn chunks_are_cut_at_the_end_of_the_file_for_any_numbers() {
        let cut =
            |first, count| ChunkRange::new(ChunkIndex(first), count).clamp_to(2 * CHUNK_BYTES + 1).count;
        assert_eq!([cut(0, 9), cut(2, 1), cut(3, 1), cut(u64::MAX, 5), cut(1, u64::MAX)], [3, 1, 0, 0, 2]);
    }

    #[test]
    fn the_empty_range_has_no_chunks() {
        assert_eq!(ByteRange::new(CHUNK_BYTES, 0).chunks().iter().count(), 0);
        assert!(ChunkIndex(4).bytes_in(CHUNK_BYTES).is_empty());
        assert_eq!(ChunkIndex(1).bytes_in(CHUNK_BYTES + 5), ByteRange::new(CHUNK_BYTES, 5));
    }
}
