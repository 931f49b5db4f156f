//! Memory that files opened with `O_DIRECT` can be read into and written from.

use std::ops::{Deref, DerefMut};

use bytes::{Buf, BytesMut};

/// What addresses, offsets and lengths are multiples of in direct I/O, in bytes: the block of nearly every file system,
/// and never less than a disk asks for. Where more is asked for the kernel answers EINVAL.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// A buffer whose address and length are multiples of [`DIRECT_ALIGN_BYTES`].
///
/// It costs a block more than it holds: an allocator that aligns would take as much, and this needs no `unsafe`.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of zeroes, of at least `len` bytes.
    pub fn zeroed(len: usize) -> Self {
        let len = len.next_multiple_of(DIRECT_ALIGN_BYTES);
        let memory = vec![0; len + DIRECT_ALIGN_BYTES];
        // The memory of a vector that never grows never moves.
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        Self { memory, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// From this many bytes on it matters where content lies.
const ALIGNED_BYTES_MIN: usize = 64 << 10;

/// Room for `len` bytes of content. Where they are many they begin at a multiple of [`DIRECT_ALIGN_BYTES`], as long as no more
/// are put there: a disk can then take them from where they lie.
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

/// The same off the front of `room`, where that is enough: what is put into one such piece lies before what is put into the next.
pub fn room_within(room: &mut BytesMut, len: usize) -> BytesMut {
    if len < ALIGNED_BYTES_MIN || room.capacity() < len {
        return room_for(len);
    }
    let rest = room.split_off(len);
    std::mem::replace(room, rest)
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
    fn address_and_length_are_whole_blocks_also_after_a_move() {
        for len in [0, 1, 4096, 4097, 300_000] {
            let buffer = Box::new(AlignedBuffer::zeroed(len));
            let address = buffer.as_ptr();
            let moved = *buffer;
            assert_eq!((moved.as_ptr(), moved.as_ptr() as usize % DIRECT_ALIGN_BYTES), (address, 0));
            assert_eq!(moved.len(), len.next_multiple_of(DIRECT_ALIGN_BYTES));
            assert!(moved.iter().all(|&byte| byte == 0));
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
        let ends_at = |piece: &bytes::Bytes| piece.as_ptr_range().end;
        assert_eq!(ends_at(&pieces[0]), pieces[2].as_ptr());
        assert_eq!(pieces[2].as_ptr().align_offset(DIRECT_ALIGN_BYTES), 0);
        assert_ne!(ends_at(&pieces[2]), pieces[3].as_ptr());
        assert!(pieces[1].len() == 12 && room.capacity() < DIRECT_ALIGN_BYTES);
    }
}
