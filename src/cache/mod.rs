//! The disk cache keyed by BLAKE3.
#![allow(dead_code)]
mod eviction;
mod index;
mod record;
