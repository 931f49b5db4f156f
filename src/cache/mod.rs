//! The disk cache keyed by BLAKE3.
