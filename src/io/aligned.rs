//! Memory that is aligned for direct I/O (`O_DIRECT`).

use std::ops::{Deref, DerefMut};

use super::sys::{LARGE_PAGE_BYTES, prefer_large_pages};

/// Alignment of addresses, offsets and lengths in direct I/O, in bytes. It is the block size of nearly
/// every file system, and never less than a disk demands. If a device demands more, the kernel answers
/// EINVAL.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// Buffer whose address and length are multiples of [`DIRECT_ALIGN_BYTES`]. A buffer that can hold a large
/// page starts at one, if the system has them.
///
/// It takes a block or a page more address space than it holds. An aligning allocator would take as much,
/// and this needs no `unsafe`.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Creates a buffer of at least `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let len = len.next_multiple_of(DIRECT_ALIGN_BYTES);
        let align_bytes = if len >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { DIRECT_ALIGN_BYTES };
        let mut memory = vec![0; len + align_bytes];
        // The memory of a vector does not move while it does not grow.
        let start = memory.as_ptr().align_offset(align_bytes);
        if align_bytes == LARGE_PAGE_BYTES {
            prefer_large_pages(&mut memory[start..start + len]);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_length_are_whole_blocks_also_after_a_move() {
        for len in [0, 1, 4096, 4097, 300_000, LARGE_PAGE_BYTES + 1] {
            let buffer = Box::new(AlignedBuffer::zeroed(len));
            let address = buffer.as_ptr();
            let moved = *buffer;
            assert_eq!((moved.as_ptr(), moved.as_ptr() as usize % DIRECT_ALIGN_BYTES), (address, 0));
            assert_eq!(moved.len(), len.next_multiple_of(DIRECT_ALIGN_BYTES));
            assert!(moved.iter().all(|&byte| byte == 0));
        }
    }
}
