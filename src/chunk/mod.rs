//! Basic types of content: chunks, their layout in a file, their hashes.
//!
//! Pure: no I/O, no clock, no task. Every other module may use this one; it uses none of them.
//!
//! A file is cut into aligned chunks of [`CHUNK_BYTES`]; the last one may be shorter. The [`ChunkHash`] of
//! its plain bytes names a chunk. Bytes whose hash was computed here travel as a [`VerifiedChunk`], which
//! only this module can create. Code that takes a `VerifiedChunk` need not check its origin.

mod blocks;
mod hash;
mod layout;
mod run_slice;
#[cfg(test)]
pub(crate) mod testing;

pub use blocks::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCK_LEAD_BYTES, Block, cut_blocks};
pub use hash::{ChunkHash, FileHasher, HashMismatch, VerifiedChunk, VerifiedRun};
pub use layout::{ByteRange, ChunkIndex, ChunkRange};
pub use run_slice::RunSlice;

/// Size of every chunk of a file but the last, in bytes.
///
/// 256 KiB: BLAKE3 runs at full speed from 16 KiB up, one chunk covers the largest request of the kernel's
/// own readahead (128 KiB) twice, and a wasted chunk costs 2 ms of a 1 Gbit/s link.
pub const CHUNK_BYTES: u64 = 256 * 1024;
