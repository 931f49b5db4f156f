//! Test content, and mutations of it.

pub(crate) mod fuzz;

/// Returns incompressible bytes that are determined by the seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
