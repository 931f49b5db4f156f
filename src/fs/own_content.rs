//! Whole chunks out of what programs write front to back, so that the cache can keep them: how writes are cut on their way to the host
//! has nothing to do with chunks.
//!
//! Pure: no I/O, no clock. What comes out may be in the file or not, as others may write, too; whoever uses it asks the host.

use std::num::NonZeroUsize;

use bytes::{Bytes, BytesMut};
use lru::LruCache;

use crate::chunk::{CHUNK_BYTES, ChunkIndex};

/// Files of which the beginning of a chunk is held: 8 MiB in all, however small the writes are.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");

/// The chunks that are being written.
#[derive(Debug)]
pub(super) struct OwnContent {
    begun: LruCache<u64, Begun>,
}

/// A chunk of which the beginning was written.
#[derive(Debug)]
struct Begun {
    index: ChunkIndex,
    content: BytesMut,
}

impl Default for OwnContent {
    fn default() -> Self {
        Self { begun: LruCache::new(FILES_MAX) }
    }
}

impl OwnContent {
    /// A program has written `bytes` at `offset` of a file. Gives the chunks that are whole by that.
    pub(super) fn take(&mut self, file: u64, offset: u64, bytes: &[u8]) -> Vec<(ChunkIndex, Bytes)> {
        let (mut whole, mut offset, mut bytes) = (Vec::new(), offset, bytes);
        while !bytes.is_empty() {
            let index = ChunkIndex::containing(offset);
            let room = (index.offset() + CHUNK_BYTES - offset) as usize;
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            match self.begun.get_mut(&file) {
                Some(begun) if begun.end() == offset => begun.content.extend_from_slice(part),
                _ if offset == index.offset() => {
                    self.begun.put(file, Begun { index, content: part.into() });
                }
                _ => {
                    self.begun.pop(&file);
                }
            }
            let is_whole = |begun: &Begun| begun.content.len() as u64 == CHUNK_BYTES;
            if self.begun.peek(&file).is_some_and(is_whole) {
                whole.extend(self.end(file));
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        whole
    }

    /// The file ends here for now: gives its last chunk, if that was written from its beginning.
    pub(super) fn end(&mut self, file: u64) -> Option<(ChunkIndex, Bytes)> {
        self.begun.pop(&file).map(|begun| (begun.index, begun.content.freeze()))
    }
}

impl Begun {
    /// Where in the file what is held of it ends.
    fn end(&self) -> u64 {
        self.index.offset() + self.content.len() as u64
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
        assert_eq!(own.end(999), Some((ChunkIndex(0), noise(9))));
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
            for ((index, whole), (number, chunk)) in out.into_iter().zip(chunks) {
                prop_assert_eq!(index, ChunkIndex(number as u64));
                prop_assert!(whole == chunk);
            }
        }
    }
}
