//! BLAKE3 hashes of chunks, and the verification of bytes.

use std::fmt;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::RunSlice;

/// BLAKE3 hash of a chunk's plain bytes: 32 bytes, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash([u8; 32]);

impl ChunkHash {
    /// Creates a hash from 32 bytes off the wire or the disk. Verifies nothing.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Checks that this is the hash of `bytes`.
    fn check(self, bytes: &[u8]) -> Result<(), HashMismatch> {
        let actual = Self::of(bytes);
        if actual == self { Ok(()) } else { Err(HashMismatch { expected: self, actual }) }
    }

    /// Returns the 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkHash({:.16})", blake3::Hash::from(self.0).to_hex().as_str())
    }
}

/// Bytes that do not match their hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("content does not match its hash: expected {expected}, got {actual}")]
pub struct HashMismatch {
    /// Claimed hash.
    pub expected: ChunkHash,
    /// Hash of the bytes.
    pub actual: ChunkHash,
}

/// Bytes with their hash, which this process computed from them.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedChunk {
    hash: ChunkHash,
    run_slice: RunSlice,
}

impl VerifiedChunk {
    /// Hashes `bytes`, which come from the original file.
    pub fn compute(bytes: Bytes) -> Self {
        Self { hash: ChunkHash::of(&bytes), run_slice: bytes.into() }
    }

    /// Accepts `bytes` if their hash is `expected`. For bytes from a peer or a disk.
    pub fn verify(expected: ChunkHash, bytes: impl Into<RunSlice>) -> Result<Self, HashMismatch> {
        let run_slice = bytes.into();
        expected.check(run_slice.bytes())?;
        Ok(Self { hash: expected, run_slice })
    }

    /// Returns the hash.
    pub const fn hash(&self) -> ChunkHash {
        self.hash
    }

    /// Returns the plain bytes. Cloning them copies nothing.
    pub const fn bytes(&self) -> &Bytes {
        self.run_slice.bytes()
    }

    /// Returns the bytes with the run that contains them.
    pub const fn run_slice(&self) -> &RunSlice {
        &self.run_slice
    }

    /// Returns the bytes without the hash.
    pub fn into_bytes(self) -> Bytes {
        self.run_slice.bytes().clone()
    }
}

impl fmt::Debug for VerifiedChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedChunk({} bytes, {:?})", self.bytes().len(), self.hash)
    }
}

/// Chunks received into adjacent memory, each verified on arrival.
#[derive(Debug, Default)]
pub struct VerifiedRun {
    bytes: BytesMut,
    chunks: Vec<(ChunkHash, usize)>,
}

impl VerifiedRun {
    /// Accepts the next chunk if its hash is `expected`. It is not copied if it lies directly behind the
    /// earlier ones in what was one [`BytesMut`].
    pub fn push(&mut self, expected: ChunkHash, bytes: BytesMut) -> Result<(), HashMismatch> {
        expected.check(&bytes)?;
        self.chunks.push((expected, bytes.len()));
        self.bytes.unsplit(bytes);
        Ok(())
    }

    /// Returns the number of accepted chunks.
    pub const fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Returns the chunks in order. `freeze` converts their memory to shared bytes.
    pub fn finish(self, freeze: impl FnOnce(BytesMut) -> Bytes) -> impl Iterator<Item = VerifiedChunk> {
        let (hashes, lengths): (Vec<_>, Vec<_>) = self.chunks.into_iter().unzip();
        let parts = RunSlice::cut(freeze(self.bytes), lengths);
        hashes.into_iter().zip(parts).map(|(hash, run_slice)| VerifiedChunk { hash, run_slice })
    }
}

/// Hasher of a whole file, fed from front to back in pieces of any size. The result equals `b3sum`.
#[derive(Debug, Default)]
pub struct FileHasher(blake3::Hasher);

impl FileHasher {
    /// Adds the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of all bytes so far.
    pub fn finish(&self) -> ChunkHash {
        ChunkHash(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_the_empty_chunk_is_blake3s() {
        // From the BLAKE3 reference test vectors, input_len 0.
        let known = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ChunkHash::of(b"").to_string(), known);
    }

    #[test]
    fn one_flipped_bit_is_refused() {
        let chunk = VerifiedChunk::compute(Bytes::from_static(b"content"));
        let error = VerifiedChunk::verify(chunk.hash(), Bytes::from_static(b"contenu")).unwrap_err();
        assert_eq!(error.expected, chunk.hash());
        assert_eq!(VerifiedChunk::verify(chunk.hash(), chunk.bytes().clone()).unwrap(), chunk);
    }

    #[test]
    fn a_run_takes_chunks_in_place_and_rejects_wrong_ones() {
        let mut room = BytesMut::from(&b"contentandmore"[..]);
        let address = room.as_ptr();
        let more = room.split_off(7);
        let mut run = VerifiedRun::default();
        run.push(ChunkHash::of(b"content"), room).unwrap();
        assert!(run.push(ChunkHash::of(b"content"), BytesMut::from(&b"contenu"[..])).is_err());
        run.push(ChunkHash::of(b"andmore"), more).unwrap();
        let chunks: Vec<VerifiedChunk> = run.finish(BytesMut::freeze).collect();
        assert_eq!(
            chunks,
            [&b"content"[..], b"andmore"].map(|part| VerifiedChunk::compute(Bytes::from(part)))
        );
        let run_slice = [chunks[0].run_slice().clone(), chunks[1].run_slice().clone()];
        let joined = RunSlice::join(&run_slice, 0, 14);
        assert_eq!((joined.as_ptr(), &joined[..]), (address, &b"contentandmore"[..]));
    }

    #[test]
    fn a_file_fed_in_pieces_has_the_hash_of_the_whole() {
        let whole: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let mut hasher = FileHasher::default();
        whole.chunks(77_777).for_each(|piece| hasher.update(piece));
        assert_eq!(hasher.finish(), ChunkHash::of(&whole));
    }
}
