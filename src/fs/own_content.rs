//! Whole chunks out of what programs write front to back, so that the cache can keep them: how writes are cut on their way to the host
//! has nothing to do with chunks.
//!
//! Pure: no I/O, no clock. What comes out may be in the file or not, as others may write, too; whoever uses it asks the host.

use std::num::NonZeroUsize;

use bytes::Bytes;
use lru::LruCache;

use crate::chunk::{CHUNK_BYTES, ChunkIndex};

/// Files of which the beginning of a chunk is held, by the 256 KiB and what lies beside it in the same write.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");

/// The content of a chunk, in its order.
pub(super) type Parts = Vec<Bytes>;

/// The chunks that are being written.
#[derive(Debug)]
pub(super) struct OwnContent {
    begun: LruCache<u64, Begun>,
}

/// A chunk of which the beginning was written.
#[derive(Debug)]
struct Begun {
    index: ChunkIndex,
    parts: Parts,
    len: u64,
}

impl Default for OwnContent {
    fn default() -> Self {
        Self { begun: LruCache::new(FILES_MAX) }
    }
}

impl OwnContent {
    /// A program has written `bytes` at `offset` of a file. Gives the chunks that are whole by that.
    pub(super) fn take(&mut self, file: u64, offset: u64, bytes: &Bytes) -> Vec<(ChunkIndex, Parts)> {
        let (mut whole, mut offset, mut bytes) = (Vec::new(), offset, bytes.clone());
        while !bytes.is_empty() {
            let index = ChunkIndex::containing(offset);
            let part = bytes.split_to(bytes.len().min((index.offset() + CHUNK_BYTES - offset) as usize));
            let len = part.len() as u64;
            match self.begun.get_mut(&file) {
                Some(begun) if begun.index.offset() + begun.len == offset => {
                    begun.parts.push(part);
                    begun.len += len;
                }
                _ if offset == index.offset() => {
                    self.begun.put(file, Begun { index, parts: vec![part], len });
                }
                _ => {
                    self.begun.pop(&file);
                }
            }
            let is_whole = |begun: &Begun| begun.len == CHUNK_BYTES;
            if self.begun.peek(&file).is_some_and(is_whole) {
                whole.extend(self.end(file));
            }
            offset += len;
        }
        whole
    }

    /// The file ends here for now: gives its last chunk, if that was written from its beginning.
    pub(super) fn end(&mut self, file: u64) -> Option<(ChunkIndex, Parts)> {
        self.begun.pop(&file).map(|begun| (begun.index, begun.parts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: u64 = 7;

    fn noise(len: usize) -> Bytes {
        (0..len).map(|at| (at * 31 + at / 255) as u8).collect()
    }

    #[test]
    fn who_does_not_begin_with_a_chunk_completes_none() {
        let mut own = OwnContent::default();
        let content = noise(2 * CHUNK_BYTES as usize);
        assert!(own.take(FILE, 1, &content.slice(1..CHUNK_BYTES as usize)).is_empty());
        let half = CHUNK_BYTES as usize / 2;
        assert!(own.take(FILE, CHUNK_BYTES, &content.slice(..half)).is_empty());
        assert!(own.take(FILE, CHUNK_BYTES + 1, &content.slice(1..half)).is_empty(), "written over");
        assert_eq!(own.end(FILE), None);
    }

    #[test]
    fn few_files_are_held() {
        let mut own = OwnContent::default();
        for file in 0..1000 {
            own.take(file, 0, &noise(9));
        }
        assert_eq!(own.begun.len(), FILES_MAX.get());
        assert_eq!(own.end(0), None);
        assert_eq!(own.end(999), Some((ChunkIndex(0), vec![noise(9)])));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_what_is_written_in_its_order_comes_out_whole(
            lens in prop::collection::vec(1usize..400_000, 1..12),
        ) {
            let content = noise(lens.iter().sum());
            let (mut own, mut written, mut out) = (OwnContent::default(), 0, Vec::new());
            for len in lens {
                out.extend(own.take(FILE, written as u64, &content.slice(written..written + len)));
                written += len;
            }
            out.extend(own.end(FILE));
            let chunks = content.chunks(CHUNK_BYTES as usize).enumerate();
            prop_assert_eq!(out.len(), content.len().div_ceil(CHUNK_BYTES as usize));
            for ((index, parts), (number, chunk)) in out.into_iter().zip(chunks) {
                prop_assert_eq!(index, ChunkIndex(number as u64));
                prop_assert!(parts.concat() == chunk);
            }
        }
    }
}
