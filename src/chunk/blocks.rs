//! Content-defined blocks: their boundaries depend on the content, not on the offset, so that moved bytes
//! are found again.
//!
//! The boundaries are those of `FastCDC` (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", 2020). A boundary depends on the bytes just before it and on the
//! start of its block. Cutting from somewhere in the middle reaches the same boundaries after a few blocks.

use fastcdc::v2020::FastCDC;

use super::{ByteRange, ChunkHash};

/// Minimum, average and maximum block size in bytes. Smaller blocks find more moved content. 32 bytes of
/// hash for each 8 KiB are 0.4 %. `docs/decisions/0002-content-defined-blocks.md` has the measurements.
const BLOCK_BYTES: (usize, usize, usize) = (2 * 1024, 8 * 1024, 32 * 1024);

/// Bytes after which boundaries do not depend on the start any more, for practical content: eight blocks.
pub const BLOCK_LEAD_BYTES: u64 = 8 * BLOCK_BYTES.1 as u64;

/// Longest block in bytes.
pub const BLOCK_BYTES_MAX: u64 = BLOCK_BYTES.2 as u64;

/// Shortest block in bytes, except the last one.
pub const BLOCK_BYTES_MIN: u64 = BLOCK_BYTES.0 as u64;

/// Block of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its bytes in the file.
    pub range: ByteRange,
    /// BLAKE3 hash of its bytes.
    pub hash: ChunkHash,
}

/// Cuts `bytes`, which start at `offset` of a file, into blocks. The last block ends with them.
pub fn cut_blocks(offset: u64, bytes: &[u8]) -> Vec<Block> {
    let (least, usual, most) = BLOCK_BYTES;
    let block = |cut: fastcdc::v2020::Chunk| Block {
        range: ByteRange::new(offset + cut.offset as u64, cut.length as u64),
        hash: ChunkHash::of(&bytes[cut.offset..cut.offset + cut.length]),
    };
    FastCDC::new(bytes, least, usual, most).map(block).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::testing::noise;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_cover_everything_within_their_bounds(seed: u64, len in 0..400_000usize, offset in 0..1u64 << 40) {
            let bytes = noise(seed, len);
            let blocks = cut_blocks(offset, &bytes);
            let mut at = offset;
            for block in &blocks {
                prop_assert_eq!(block.range.offset, at);
                prop_assert!(block.range.len <= BLOCK_BYTES_MAX && !block.range.is_empty());
                at = block.range.end();
                prop_assert!(block.range.len >= BLOCK_BYTES_MIN || at == offset + len as u64);
                let start = (block.range.offset - offset) as usize;
                prop_assert_eq!(block.hash, ChunkHash::of(&bytes[start..start + block.range.len as usize]));
            }
            prop_assert_eq!(at, offset + len as u64);
        }

        #[test]
        fn cuts_from_the_middle_reach_the_same_boundaries(seed: u64, skipped in 0..300_000usize) {
            let bytes = noise(seed, 1 << 20);
            let (all, later) = (cut_blocks(0, &bytes), cut_blocks(skipped as u64, &bytes[skipped..]));
            let from = skipped as u64 + BLOCK_LEAD_BYTES;
            let behind = |blocks: Vec<Block>| -> Vec<Block> {
                blocks.into_iter().filter(|block| block.range.offset >= from).collect()
            };
            prop_assert_eq!(behind(all), behind(later));
        }
    }
}
