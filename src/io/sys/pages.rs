//! Large memory pages.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Size of a large page on most processors, in bytes.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Asks for large pages in the parts of `memory` that cover them whole. Has no effect if the kernel does
/// not provide them.
pub fn prefer_large_pages<T>(memory: &mut [T]) {
    let start: NonNull<c_void> = NonNull::from(&mut *memory).cast();
    // SAFETY: the caller holds the range exclusively, and the advice does not change its content.
    let _ = unsafe { madvise(start, size_of_val(memory), MmapAdvise::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_memory_range_is_accepted() {
        let mut memory = vec![7u8; 10_000];
        prefer_large_pages(&mut memory[3..9_000]);
        prefer_large_pages(&mut memory[..0]);
        assert!(memory.iter().all(|byte| *byte == 7));
    }
}
