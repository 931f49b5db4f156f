//! Buffers for incoming content: aligned for direct I/O, and reused.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes, BytesMut};

use super::aligned::DIRECT_ALIGN_BYTES;
use super::sys::{LARGE_PAGE_BYTES, prefer_large_pages};

/// Length from which alignment matters, in bytes.
const ALIGNED_BYTES_MIN: usize = 64 << 10;

/// Allocates a buffer for `len` bytes. A long buffer starts at a multiple of [`DIRECT_ALIGN_BYTES`] and
/// keeps that as long as it does not grow, so that direct I/O can use it in place.
pub fn alloc_aligned(len: usize) -> BytesMut {
    if len < ALIGNED_BYTES_MIN {
        return BytesMut::with_capacity(len);
    }
    let mut bytes = BytesMut::with_capacity(len + DIRECT_ALIGN_BYTES - 1);
    let skipped = bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES - 1);
    bytes.resize(skipped, 0);
    bytes.advance(skipped);
    bytes
}

/// Splits a buffer for `len` bytes off the front of `buffer` if it is large enough, otherwise allocates one.
/// Consecutive pieces are adjacent in memory. The old content stays.
pub fn split_aligned(buffer: &mut BytesMut, len: usize) -> BytesMut {
    if len < ALIGNED_BYTES_MIN || buffer.capacity() < len {
        return alloc_aligned(len);
    }
    let rest = buffer.split_off(len);
    std::mem::replace(buffer, rest)
}

/// Size of a run buffer in bytes: the bytes that the kernel reads at a time.
pub const RUN_BUFFER_BYTES: usize = 1 << 20;
/// Size of a chunk buffer in bytes.
const CHUNK_BUFFER_BYTES: usize = 256 << 10;
/// Most unused chunk buffers that are kept: more than return at once, and little beside the content memory
/// of a mount.
const CHUNK_BUFFERS_KEPT_MAX: usize = 32;

/// Size of the blocks from which run buffers are cut, in bytes. A block makes only two, because freeing one
/// of its buffers frees no memory while the other is in use.
const BLOCK_BYTES: usize = LARGE_PAGE_BYTES;

/// Pool of reused buffers. Reused memory is already zeroed and mapped.
///
/// Run buffers lie in large pages if the system has them, because the disk and the kernel must look up and
/// pin every page of the content. All returned run buffers are kept: they are no more than the most in use
/// at once, and freeing a part of a block would free no memory.
#[derive(Debug)]
pub struct ContentBuffers {
    runs: Class,
    chunks: Class,
}

/// Buffers of one size.
#[derive(Debug)]
struct Class {
    buffer_bytes: usize,
    kept_max: usize,
    /// Unused buffers, the most recently used last.
    kept: Mutex<Vec<BytesMut>>,
}

impl ContentBuffers {
    /// Creates an empty pool.
    pub fn new() -> Arc<Self> {
        let class = |buffer_bytes, kept_max| Class { buffer_bytes, kept_max, kept: Mutex::default() };
        let (runs, chunks) =
            (class(RUN_BUFFER_BYTES, usize::MAX), class(CHUNK_BUFFER_BYTES, CHUNK_BUFFERS_KEPT_MAX));
        Arc::new(Self { runs, chunks })
    }

    /// Returns the pool of this process, so that its parts reuse each other's buffers.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<ContentBuffers>> = LazyLock::new(ContentBuffers::new);
        Arc::clone(&SHARED)
    }

    /// Returns a buffer of `len` bytes. It may have old content.
    pub fn alloc(&self, len: usize) -> BytesMut {
        self.class(len).map_or_else(|| alloc_aligned(len), Class::alloc)
    }

    /// Converts a filled buffer to `Bytes`. The buffer is reused when the last reference is dropped, if it
    /// is still whole.
    pub fn freeze(self: &Arc<Self>, content: BytesMut) -> Bytes {
        let is_aligned = content.as_ptr().align_offset(DIRECT_ALIGN_BYTES) == 0;
        if is_aligned && self.class(content.len()).is_some() {
            Bytes::from_owner(PooledContent { content, pool: Arc::clone(self) })
        } else {
            content.freeze()
        }
    }

    /// Frees the unused buffers.
    pub fn clear(&self) {
        for class in [&self.runs, &self.chunks] {
            drop(std::mem::take(&mut *class.kept()));
        }
    }

    fn class(&self, len: usize) -> Option<&Class> {
        [&self.runs, &self.chunks].into_iter().find(|class| class.buffer_bytes == len)
    }
}

impl Class {
    fn alloc(&self) -> BytesMut {
        let mut kept = self.kept();
        if kept.is_empty() && self.buffer_bytes >= BLOCK_BYTES / 2 {
            kept.extend(block(self.buffer_bytes));
        }
        kept.pop().unwrap_or_else(|| alloc_aligned(self.buffer_bytes))
    }

    fn put(&self, buffer: BytesMut) {
        let mut kept = self.kept();
        if kept.len() < self.kept_max {
            kept.push(buffer);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content of a buffer, which returns to its pool when dropped.
struct PooledContent {
    content: BytesMut,
    pool: Arc<ContentBuffers>,
}

impl AsRef<[u8]> for PooledContent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for PooledContent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.content);
        if let Some(class) = self.pool.class(buffer.len()) {
            class.put(buffer);
        }
    }
}

/// Allocates a block and cuts it into buffers.
fn block(buffer_bytes: usize) -> impl Iterator<Item = BytesMut> {
    // An aligning allocator would take as much memory. The bytes before and behind the block are never
    // touched.
    let mut memory = BytesMut::with_capacity(2 * BLOCK_BYTES - 1);
    let skipped = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES - 1);
    let mut rest = memory.split_off(skipped);
    prefer_large_pages(&mut rest.spare_capacity_mut()[..BLOCK_BYTES]);
    (0..BLOCK_BYTES / buffer_bytes).map(move |_| {
        let behind = rest.split_off(buffer_bytes);
        std::mem::replace(&mut rest, behind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_stays_at_an_aligned_address_while_it_is_put_there_and_after() {
        assert_eq!(alloc_aligned(ALIGNED_BYTES_MIN - 1).capacity(), ALIGNED_BYTES_MIN - 1);
        for len in [ALIGNED_BYTES_MIN, 262_144, 300_001] {
            let mut bytes = alloc_aligned(len);
            let address = bytes.as_ptr();
            (0..len).for_each(|at| bytes.extend_from_slice(&[at as u8]));
            assert_eq!((bytes.as_ptr(), address.align_offset(DIRECT_ALIGN_BYTES)), (address, 0));
            let frozen = bytes.freeze();
            assert_eq!((frozen.as_ptr(), frozen.len()), (address, len));
            assert!(frozen.iter().enumerate().all(|(at, byte)| *byte == at as u8));
        }
    }

    #[test]
    fn pieces_of_a_buffer_are_adjacent_until_it_is_full() {
        let mut buffer = alloc_aligned(3 * ALIGNED_BYTES_MIN);
        let mut pieces = Vec::new();
        for len in [ALIGNED_BYTES_MIN, 12, 2 * ALIGNED_BYTES_MIN, ALIGNED_BYTES_MIN] {
            let mut piece = split_aligned(&mut buffer, len);
            piece.extend_from_slice(&vec![len as u8; len]);
            pieces.push(piece.freeze());
        }
        let ends_at = |piece: &Bytes| piece.as_ptr_range().end;
        assert_eq!(ends_at(&pieces[0]), pieces[2].as_ptr());
        assert_eq!(pieces[2].as_ptr().align_offset(DIRECT_ALIGN_BYTES), 0);
        assert_ne!(ends_at(&pieces[2]), pieces[3].as_ptr());
        assert!(pieces[1].len() == 12 && buffer.capacity() < DIRECT_ALIGN_BYTES);
    }

    /// Returns a buffer filled with `byte` in two pieces, as a transport does.
    fn filled(buffers: &ContentBuffers, len: usize, byte: u8) -> BytesMut {
        let mut buffer = buffers.alloc(len);
        let mut pieces = [0, 1].map(|_| split_aligned(&mut buffer, len / 2));
        for piece in &mut pieces {
            piece.clear();
            piece.resize(len / 2, byte);
        }
        let [mut first, second] = pieces;
        first.unsplit(second);
        first
    }

    #[test]
    fn a_buffer_returns_with_its_last_reference() {
        for (len, most) in [(RUN_BUFFER_BYTES, 40), (CHUNK_BUFFER_BYTES, CHUNK_BUFFERS_KEPT_MAX)] {
            let buffers = ContentBuffers::new();
            let content = buffers.freeze(filled(&buffers, len, 7));
            let (address, part) = (content.as_ptr(), content.slice(5..9));
            drop(content);
            let other = buffers.freeze(filled(&buffers, len, 8));
            assert_ne!(other.as_ptr(), address, "a part of it is still held");
            drop(other);
            assert_eq!(&part[..], [7; 4]);
            drop(part);
            let again = filled(&buffers, len, 9);
            assert_eq!(again.as_ptr(), address);
            drop(buffers.freeze(again));
            let many = (0..40).map(|byte| buffers.freeze(filled(&buffers, len, byte)));
            let many: Vec<Bytes> = many.collect();
            assert!(many.iter().zip(0..).all(|(content, byte)| content.iter().all(|found| *found == byte)));
            drop(many);
            assert_eq!(buffers.class(len).unwrap().kept().len(), most);
            buffers.clear();
            assert_eq!(buffers.class(len).unwrap().kept().len(), 0);
        }
    }

    #[test]
    fn a_part_of_a_buffer_is_not_kept() {
        let buffers = ContentBuffers::new();
        let mut part = filled(&buffers, RUN_BUFFER_BYTES, 1);
        part.truncate(RUN_BUFFER_BYTES - 1);
        buffers.clear();
        drop(buffers.freeze(part));
        let mut moved = alloc_aligned(RUN_BUFFER_BYTES + 1);
        moved.resize(RUN_BUFFER_BYTES + 1, 0);
        moved.advance(1);
        assert_eq!(buffers.freeze(moved).len(), RUN_BUFFER_BYTES);
        assert_eq!(buffers.runs.kept().len(), 0);
        assert!(buffers.alloc(100).capacity() >= 100);
    }
}
