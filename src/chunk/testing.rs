//! Content for the tests of this crate, and mutations of it.

pub(crate) mod fuzz;

/// Bytes that no codec and no luck makes equal: different for each seed, the same for the same.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
