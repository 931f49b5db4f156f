//! Buffers for incoming content: aligned for direct I/O, and reused.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes, BytesMut};

use super::aligned::DIRECT_ALIGN_BYTES;
use super::sys::{LARGE_PAGE_BYTES, prefer_large_pages};

/// Length from which alignment matters, in bytes.
const ALIGNED_BYTES_MIN: usize = 64 << 10;

/// Allocates a buffer for `len` bytes. A long buffer starts at a multiple of [`DIRECT_ALIGN_BYTES`] and
/// keeps that as long as it does not grow, so that direct I/O can use it in place.
pub fn room_for(len: usize) -> BytesMut {
    if len < ALIGNED_BYTES_MIN {
        return BytesMut::with_capacity(len);
    }
    let mut bytes = BytesMut::with_capacity(len + DIRECT_ALIGN_BYTES - 1);
    let skipped = bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES - 1);
    bytes.resize(skipped, 0);
    bytes.advance(skipped);
    bytes
}

/// Splits a buffer for `len` bytes off the front of `room` if it is large enough, otherwise allocates one.
/// Consecutive pieces are adjacent in memory. The old content stays.
pub fn room_within(room: &mut BytesMut, len: usize) -> BytesMut {
    if len < ALIGNED_BYTES_MIN || room.capacity() < len {
        return room_for(len);
    }
    let rest = room.split_off(len);
    std::mem::replace(room, rest)
}

/// Size of a run buffer in bytes: the bytes that the kernel reads at a time.
pub const RUN_ROOM_BYTES: usize = 1 << 20;
/// Size of a chunk buffer in bytes.
const CHUNK_ROOM_BYTES: usize = 256 << 10;
/// Most unused chunk buffers that are kept: more than return at once, and little beside the content memory
/// of a mount.
const CHUNK_ROOMS_KEPT_MAX: usize = 32;

/// Size of the blocks from which run buffers are cut, in bytes. A block makes only two, because freeing one
/// of its buffers frees no memory while the other is in use.
const BLOCK_BYTES: usize = LARGE_PAGE_BYTES;

/// Pool of reused buffers. Reused memory is already zeroed and mapped.
///
/// Run buffers lie in large pages if the system has them, because the disk and the kernel must look up and
/// pin every page of the content. All returned run buffers are kept: they are no more than the most in use
/// at once, and freeing a part of a block would free no memory.
#[derive(Debug)]
pub struct Rooms {
    runs: Class,
    chunks: Class,
}

/// Buffers of one size.
#[derive(Debug)]
struct Class {
    room_bytes: usize,
    kept_max: usize,
    /// Unused buffers, the most recently used last.
    kept: Mutex<Vec<BytesMut>>,
}

impl Rooms {
    /// Creates an empty pool.
    pub fn new() -> Arc<Self> {
        let class = |room_bytes, kept_max| Class { room_bytes, kept_max, kept: Mutex::default() };
        let (runs, chunks) =
            (class(RUN_ROOM_BYTES, usize::MAX), class(CHUNK_ROOM_BYTES, CHUNK_ROOMS_KEPT_MAX));
        Arc::new(Self { runs, chunks })
    }

    /// Returns the pool of this process, so that its parts reuse each other's buffers.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<Rooms>> = LazyLock::new(Rooms::new);
        Arc::clone(&SHARED)
    }

    /// Returns a buffer of `len` bytes. It may have old content.
    pub fn lend(&self, len: usize) -> BytesMut {
        self.class(len).map_or_else(|| room_for(len), Class::lend)
    }

    /// Converts a filled buffer to `Bytes`. The buffer is reused when the last reference is dropped, if it
    /// is still whole.
    pub fn freeze(self: &Arc<Self>, content: BytesMut) -> Bytes {
        let is_aligned = content.as_ptr().align_offset(DIRECT_ALIGN_BYTES) == 0;
        if is_aligned && self.class(content.len()).is_some() {
            Bytes::from_owner(Lent { content, home: Arc::clone(self) })
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
        [&self.runs, &self.chunks].into_iter().find(|class| class.room_bytes == len)
    }
}

impl Class {
    fn lend(&self) -> BytesMut {
        let mut kept = self.kept();
        if kept.is_empty() && self.room_bytes >= BLOCK_BYTES / 2 {
            kept.extend(block(self.room_bytes));
        }
        kept.pop().unwrap_or_else(|| room_for(self.room_bytes))
    }

    fn take_back(&self, room: BytesMut) {
        let mut kept = self.kept();
        if kept.len() < self.kept_max {
            kept.push(room);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content of a buffer, which returns to its pool when dropped.
struct Lent {
    content: BytesMut,
    home: Arc<Rooms>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.content);
        if let Some(class) = self.home.class(room.len()) {
            class.take_back(room);
        }
    }
}

/// Allocates a block and cuts it into buffers.
fn block(room_bytes: usize) -> impl Iterator<Item = BytesMut> {
    // An aligning allocator would take as much memory. The bytes before and behind the block are never
    // touched.
    let mut memory = BytesMut::with_capacity(2 * BLOCK_BYTES - 1);
    let skipped = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES - 1);
    let mut rest = memory.split_off(skipped);
    prefer_large_pages(&mut rest.spare_capacity_mut()[..BLOCK_BYTES]);
    (0..BLOCK_BYTES / room_bytes).map(move |_| {
        let behind = rest.split_off(room_bytes);
        std::mem::replace(&mut rest, behind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_stays_at_an_aligned_address_while_it_is_put_there_and_after() {
        assert_eq!(room_for(ALIGNED_BYTES_MIN - 1).capacity(), ALIGNED_BYTES_MIN - 1);
        for len in [ALIGNED_BYTES_MIN, 262_144, 300_001] {
            let mut bytes = room_for(len);
            let address = bytes.as_ptr();
            (0..len).for_each(|at| bytes.extend_from_slice(&[at as u8]));
            assert_eq!((bytes.as_ptr(), address.align_offset(DIRECT_ALIGN_BYTES)), (address, 0));
            let frozen = bytes.freeze();
            assert_eq!((frozen.as_ptr(), frozen.len()), (address, len));
            assert!(frozen.iter().enumerate().all(|(at, byte)| *byte == at as u8));
        }
    }

    #[test]
    fn pieces_within_a_room_lie_side_by_side_until_it_is_full() {
        let mut room = room_for(3 * ALIGNED_BYTES_MIN);
        let mut pieces = Vec::new();
        for len in [ALIGNED_BYTES_MIN, 12, 2 * ALIGNED_BYTES_MIN, ALIGNED_BYTES_MIN] {
            let mut piece = room_within(&mut room, len);
            piece.extend_from_slice(&vec![len as u8; len]);
            pieces.push(piece.freeze());
        }
        let ends_at = |piece: &Bytes| piece.as_ptr_range().end;
        assert_eq!(ends_at(&pieces[0]), pieces[2].as_ptr());
        assert_eq!(pieces[2].as_ptr().align_offset(DIRECT_ALIGN_BYTES), 0);
        assert_ne!(ends_at(&pieces[2]), pieces[3].as_ptr());
        assert!(pieces[1].len() == 12 && room.capacity() < DIRECT_ALIGN_BYTES);
    }

    /// Returns a buffer filled with `byte` in two pieces, as a transport does.
    fn filled(rooms: &Rooms, len: usize, byte: u8) -> BytesMut {
        let mut room = rooms.lend(len);
        let mut pieces = [0, 1].map(|_| room_within(&mut room, len / 2));
        for piece in &mut pieces {
            piece.clear();
            piece.resize(len / 2, byte);
        }
        let [mut first, second] = pieces;
        first.unsplit(second);
        first
    }

    #[test]
    fn a_room_comes_back_when_nobody_holds_a_part_of_its_content_and_only_so_many_for_chunks_are_kept() {
        for (len, most) in [(RUN_ROOM_BYTES, 40), (CHUNK_ROOM_BYTES, CHUNK_ROOMS_KEPT_MAX)] {
            let rooms = Rooms::new();
            let content = rooms.freeze(filled(&rooms, len, 7));
            let (address, part) = (content.as_ptr(), content.slice(5..9));
            drop(content);
            let other = rooms.freeze(filled(&rooms, len, 8));
            assert_ne!(other.as_ptr(), address, "a part of it is still held");
            drop(other);
            assert_eq!(&part[..], [7; 4]);
            drop(part);
            let again = filled(&rooms, len, 9);
            assert_eq!(again.as_ptr(), address);
            drop(rooms.freeze(again));
            let many = (0..40).map(|byte| rooms.freeze(filled(&rooms, len, byte)));
            let many: Vec<Bytes> = many.collect();
            assert!(many.iter().zip(0..).all(|(content, byte)| content.iter().all(|found| *found == byte)));
            drop(many);
            assert_eq!(rooms.class(len).unwrap().kept().len(), most);
            rooms.clear();
            assert_eq!(rooms.class(len).unwrap().kept().len(), 0);
        }
    }

    #[test]
    fn what_is_no_whole_room_is_not_kept() {
        let rooms = Rooms::new();
        let mut part = filled(&rooms, RUN_ROOM_BYTES, 1);
        part.truncate(RUN_ROOM_BYTES - 1);
        rooms.clear();
        drop(rooms.freeze(part));
        let mut moved = room_for(RUN_ROOM_BYTES + 1);
        moved.resize(RUN_ROOM_BYTES + 1, 0);
        moved.advance(1);
        assert_eq!(rooms.freeze(moved).len(), RUN_ROOM_BYTES);
        assert_eq!(rooms.runs.kept().len(), 0);
        assert!(rooms.lend(100).capacity() >= 100);
    }
}
