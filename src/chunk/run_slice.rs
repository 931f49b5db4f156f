//! Slices of runs in memory: adjacent slices can be joined without a copy.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Bytes together with the run of memory that contains them. Cloning copies nothing and keeps the whole run
/// alive.
#[derive(Clone, Debug)]
pub struct RunSlice {
    bytes: Bytes,
    run: Bytes,
}

impl RunSlice {
    /// Cuts a run into slices of these lengths.
    pub(super) fn cut(run: Bytes, lengths: impl IntoIterator<Item = usize>) -> impl Iterator<Item = Self> {
        let mut rest = run.clone();
        lengths.into_iter().map(move |len| Self { bytes: rest.split_to(len), run: run.clone() })
    }

    /// Returns the bytes at `part` of `run`. Panics if `part` is out of bounds.
    pub fn part(run: &Bytes, part: Range<usize>) -> Self {
        Self { bytes: run.slice(part), run: run.clone() }
    }

    /// Returns the bytes.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Joins the bytes of neighbours, without the first `skip` bytes and at most `len`. They are sliced
    /// from their run if they are adjacent in it, otherwise copied once.
    pub fn join(parts: &[Self], skip: usize, len: usize) -> Bytes {
        Self::adjacent(parts).map_or_else(
            || Self::copied(parts, skip, len),
            |whole| whole.slice(skip.min(whole.len())..skip.saturating_add(len).min(whole.len())),
        )
    }

    fn adjacent(parts: &[Self]) -> Option<Bytes> {
        let first = parts.first()?;
        let run = first.run.as_ptr_range();
        let mut end = first.bytes.as_ptr();
        for part in parts {
            if part.run.as_ptr_range() != run || part.bytes.as_ptr() != end {
                return None;
            }
            end = part.bytes.as_ptr_range().end;
        }
        let offset = |address: *const u8| address.addr() - run.start.addr();
        Some(first.run.slice(offset(first.bytes.as_ptr())..offset(end)))
    }

    fn copied(parts: &[Self], mut skip: usize, len: usize) -> Bytes {
        let there = parts.iter().map(|part| part.bytes.len()).sum();
        let mut joined = BytesMut::with_capacity(len.min(there));
        for part in parts {
            let from = skip.min(part.bytes.len());
            skip -= from;
            let until = from.saturating_add(len - joined.len()).min(part.bytes.len());
            joined.extend_from_slice(&part.bytes[from..until]);
        }
        joined.freeze()
    }
}

/// Bytes that are a run of their own.
impl From<Bytes> for RunSlice {
    fn from(bytes: Bytes) -> Self {
        Self { run: bytes.clone(), bytes }
    }
}

impl PartialEq for RunSlice {
    /// Compares the bytes, wherever they are.
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for RunSlice {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_neighbours_are_joined(
            // Lengths of the parts, each with `true` if it begins a new run.
            parts in prop::collection::vec((0..50usize, any::<bool>()), 0..6),
            skip in 0..120usize,
            len in 0..120usize,
        ) {
            let whole: Vec<u8> = (0..255).cycle().take(parts.iter().map(|(len, _)| len).sum()).collect();
            let (mut run_slice, mut at) = (Vec::new(), 0);
            for run in parts.chunk_by(|_, (_, begins)| !begins) {
                let lengths: Vec<usize> = run.iter().map(|(len, _)| *len).collect();
                let bytes: usize = lengths.iter().sum();
                run_slice.extend(RunSlice::cut(Bytes::copy_from_slice(&whole[at..at + bytes]), lengths));
                at += bytes;
            }
            let expected: Vec<u8> = whole.iter().copied().skip(skip).take(len).collect();
            prop_assert_eq!(RunSlice::join(&run_slice, skip, len), expected);
        }
    }

    #[test]
    fn only_adjacent_slices_are_joined_without_a_copy() {
        let run = Bytes::from_static(b"abcdef");
        let parts: Vec<RunSlice> = RunSlice::cut(run.clone(), [2, 3, 1]).collect();
        assert_eq!(RunSlice::join(&parts, 1, 4).as_ptr(), run[1..].as_ptr());
        assert_eq!(RunSlice::join(&parts[1..], 0, 9), "cdef");
        let swapped = [parts[1].clone(), parts[0].clone()];
        assert_eq!(RunSlice::join(&swapped, 1, 3), "dea");
        let gap = [parts[0].clone(), parts[2].clone()];
        assert_eq!(RunSlice::join(&gap, 0, 9), "abf");
        // Neighbours in memory that belong to two different runs.
        let halves = [RunSlice::from(run.slice(..3)), RunSlice::from(run.slice(3..))];
        assert_eq!(RunSlice::join(&halves, 0, 9), "abcdef");
    }
}
