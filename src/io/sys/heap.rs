//! The heap of this process.

/// Gives freed memory back to the system. The C library keeps it otherwise: pages between those in use cannot
/// be cut off the end of a heap. Takes some milliseconds for a heap of a hundred megabytes, during which
/// other threads may have to wait for memory. Does nothing where the C library is not GNU's.
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number only, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_env = "gnu")]
    use super::*;

    #[cfg(target_env = "gnu")]
    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn freed_memory_leaves_the_process() {
        const PIECES: usize = 200_000;
        const PIECE_BYTES: usize = 1000;
        let pieces: Vec<Box<[u8]>> = (0..PIECES).map(|_| vec![1u8; PIECE_BYTES].into_boxed_slice()).collect();
        let full = resident_bytes();
        // One of a hundred stays, so that nothing can be cut off the end.
        let kept: Vec<_> = pieces.into_iter().enumerate().filter(|(at, _)| at % 100 == 0).collect();
        return_free_memory();
        let left = resident_bytes();
        // Other tests run beside this one.
        assert!(left + PIECES * PIECE_BYTES / 4 < full, "{left} of {full} bytes, {} pieces kept", kept.len());
    }
}
