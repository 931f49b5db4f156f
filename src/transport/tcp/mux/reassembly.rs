//! (P) Reassembly of a piece of content in the memory where it stays.

use bytes::BytesMut;

/// The received part of a piece, and memory for the rest.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// Bytes beyond `filled` may be left from an earlier use.
    memory: BytesMut,
    filled: usize,
    left: usize,
}

impl Reassembly {
    /// Returns a piece of `len` bytes, for which `memory` has room.
    pub(super) const fn new(memory: BytesMut, len: usize) -> Self {
        Self { memory, filled: 0, left: len }
    }

    /// Returns the number of bytes that are still to come.
    pub(super) const fn left(&self) -> usize {
        self.left
    }

    /// Returns true if all received bytes were taken.
    pub(super) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Adds `bytes`.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let (over, behind) = bytes.split_at(bytes.len().min(self.memory.len() - self.filled));
        self.memory[self.filled..][..over.len()].copy_from_slice(over);
        self.memory.extend_from_slice(behind);
        self.has_put(bytes.len());
    }

    /// Lets `fill` write the next bytes into `len` bytes of memory. `len` must be less than the rest of the
    /// piece, otherwise `fill` is not called. `fill` returns the number of bytes written.
    pub(super) fn fill<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        if len >= self.left {
            return None;
        }
        let end = self.filled + len;
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        let filled = fill(&mut self.memory[self.filled..end]);
        self.has_put(filled.as_ref().map_or(0, |filled| *filled));
        Some(filled)
    }

    fn has_put(&mut self, len: usize) {
        self.filled += len;
        self.left -= len;
    }

    /// Takes the received bytes. The rest of the piece follows.
    pub(super) fn take(&mut self) -> BytesMut {
        self.memory.split_to(std::mem::take(&mut self.filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_received_bytes_are_taken_from_reused_memory() {
        let mut piece = Reassembly::new(BytesMut::from(&b"old"[..]), 9);
        assert!(piece.is_empty() && piece.take().is_empty());
        piece.put(b"a");
        let filled = piece.fill(4, |room| {
            assert_eq!(room, b"ld\0\0");
            room.copy_from_slice(b"bcxx");
            Ok::<_, ()>(2)
        });
        assert_eq!((filled, &piece.take()[..]), (Some(Ok(2)), &b"abc"[..]));
        assert_eq!(piece.fill(5, |_| Err("wrong")), Some(Err("wrong")));
        assert!(piece.is_empty());
        piece.put(b"defgh");
        assert_eq!((piece.left(), &piece.take()[..]), (1, &b"defgh"[..]));
        assert_eq!(piece.fill(1, |_| Ok::<_, ()>(1)), None, "it may be more than this piece");
    }
}
