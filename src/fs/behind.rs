//! Content of one file that a program has written and the host has not accepted yet.
//!
//! Pure: no I/O, no clock.
//!
//! Writes queue in their order; one that goes on where the last one ends joins it, as long as that is not being sent. Extents are sent
//! many at once, but never one that overlaps another before it: which of two comes last is what a file is. A long extent ends where a chunk
//! ends, so that those behind it are whole chunks in their places.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::chunk::{ByteRange, CHUNK_BYTES};
use crate::proto::WRITE_BYTES_MAX;

/// Names an extent that is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExtentId(u64);

#[derive(Debug)]
struct Extent {
    offset: u64,
    len: u64,
    parts: Vec<Bytes>,
    /// The first write in it.
    first: u64,
}

impl Extent {
    const fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.len)
    }

    /// How much can still join it. One that does not begin with a chunk ends with the chunk that it is in.
    const fn room(&self) -> u64 {
        let is_aligned = self.offset.is_multiple_of(CHUNK_BYTES);
        let most = if is_aligned { WRITE_BYTES_MAX } else { CHUNK_BYTES };
        let end = (self.offset + most) / CHUNK_BYTES * CHUNK_BYTES;
        end.saturating_sub(self.range().end())
    }

    /// Takes off what is behind its last whole chunk, if there is one and something behind it.
    fn split_last_part(&mut self) -> Option<Self> {
        let whole = self.len / CHUNK_BYTES * CHUNK_BYTES;
        if !self.offset.is_multiple_of(CHUNK_BYTES) || whole == 0 || whole == self.len {
            return None;
        }
        let mut bytes = Bytes::from(self.parts.concat());
        let last = bytes.split_off(whole as usize);
        let rest = Self { offset: self.offset + whole, len: last.len() as u64, parts: vec![last], ..*self };
        (self.len, self.parts) = (whole, vec![bytes]);
        Some(rest)
    }
}

#[derive(Debug)]
struct UnderWay {
    id: ExtentId,
    range: ByteRange,
    first: u64,
}

/// The unaccepted writes of one file.
#[derive(Debug, Default)]
pub(super) struct Behind {
    queue: VecDeque<Extent>,
    sending: Vec<UnderWay>,
    given: u64,
}

impl Behind {
    /// A program has written; `number` counts the writes.
    pub(super) fn push(&mut self, number: u64, mut offset: u64, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let joins = |last: &Extent| last.range().end() == offset && last.room() > 0;
            if !self.queue.back().is_some_and(joins) {
                self.queue.push_back(Extent { offset, len: 0, parts: Vec::new(), first: number });
            }
            let Some(last) = self.queue.back_mut() else { return };
            let part = bytes.split_to(bytes.len().min(last.room() as usize));
            (last.len, offset) = (last.len + part.len() as u64, offset + part.len() as u64);
            last.parts.push(part);
        }
    }

    /// The next extent to be sent, if one may be: it is being sent from then on. One that others may still join is held back if it
    /// begins with a write behind number `held_after`; then whole chunks and parts of chunks go apart, too.
    pub(super) fn next(&mut self, held_after: Option<u64>) -> Option<(ExtentId, u64, Bytes)> {
        let is_held = |at: usize| {
            let extent = &self.queue[at];
            let may_grow = at + 1 == self.queue.len() && extent.room() > 0;
            may_grow && held_after.is_some_and(|number| extent.first > number)
        };
        let is_free = |at: usize| {
            let range = self.queue[at].range();
            let before = self.queue.iter().take(at).map(Extent::range);
            !before.chain(self.sending.iter().map(|sent| sent.range)).any(|other| overlap(other, range))
        };
        let at = (0..self.queue.len().min(LOOK_AHEAD)).find(|at| is_free(*at) && !is_held(*at))?;
        let mut extent = self.queue.remove(at)?;
        if let Some(rest) = held_after.and_then(|_| extent.split_last_part()) {
            self.queue.insert(at, rest);
        }
        self.given += 1;
        let id = ExtentId(self.given);
        self.sending.push(UnderWay { id, range: extent.range(), first: extent.first });
        let bytes = match <[Bytes; 1]>::try_from(extent.parts) {
            Ok([one]) => one,
            Err(parts) => parts.concat().into(),
        };
        Some((id, extent.offset, bytes))
    }

    /// The host has accepted an extent, or will not.
    pub(super) fn done(&mut self, id: ExtentId) {
        self.sending.retain(|sent| sent.id != id);
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_all_sent(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that are being sent.
    pub(super) fn bytes_under_way(&self) -> u64 {
        self.sending.iter().map(|sent| sent.range.len).sum()
    }

    /// Whether the host has everything.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.sending.is_empty()
    }

    /// The first write of which the host lacks something.
    pub(super) fn oldest(&self) -> Option<u64> {
        let sending = self.sending.iter().map(|sent| sent.first);
        self.queue.iter().map(|extent| extent.first).chain(sending).min()
    }

    /// Bytes that the host does not have.
    pub(super) fn bytes(&self) -> u64 {
        let sending = self.sending.iter().map(|sent| sent.range.len);
        self.queue.iter().map(|extent| extent.len).chain(sending).sum()
    }

    /// Where the last of it ends.
    pub(super) fn end(&self) -> u64 {
        let sending = self.sending.iter().map(|sent| sent.range.end());
        self.queue.iter().map(|extent| extent.range().end()).chain(sending).max().unwrap_or(0)
    }
}

/// Queued extents that are looked at for one that may be sent: those behind wait for their turn.
const LOOK_AHEAD: usize = 32;

const fn overlap(one: ByteRange, other: ByteRange) -> bool {
    one.offset < other.end() && other.offset < one.end()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_writes_join_while_they_wait_and_not_while_they_are_sent() {
        let mut behind = Behind::default();
        behind.push(1, 0, Bytes::from_static(b"ab"));
        let (first, offset, bytes) = behind.next(None).unwrap();
        assert_eq!((offset, &bytes[..]), (0, &b"ab"[..]));
        behind.push(2, 2, Bytes::from_static(b"cd"));
        behind.push(3, 4, Bytes::from_static(b"ef"));
        assert_eq!((behind.bytes(), behind.end()), (6, 6));
        let (second, offset, bytes) = behind.next(None).unwrap();
        assert_eq!((offset, &bytes[..]), (2, &b"cdef"[..]));
        assert_eq!(behind.oldest(), Some(1));
        behind.done(first);
        assert_eq!(behind.oldest(), Some(2));
        behind.done(second);
        assert!(behind.is_empty());
    }

    #[test]
    fn what_overlaps_waits_and_what_does_not_goes_past_it() {
        let mut behind = Behind::default();
        behind.push(4, 0, Bytes::from_static(b"first"));
        let (first, ..) = behind.next(None).unwrap();
        behind.push(5, 3, Bytes::from_static(b"over"));
        behind.push(6, 100, Bytes::from_static(b"far"));
        behind.push(7, 4, Bytes::from_static(b"!"));
        assert_eq!(behind.next(None).unwrap().1, 100);
        assert!(behind.next(None).is_none());
        behind.done(first);
        assert_eq!(behind.next(None).unwrap().1, 3);
        assert!(behind.next(None).is_none(), "the last byte waits for the one below it");
    }

    #[test]
    fn long_extents_end_where_chunks_end_and_the_last_may_be_held_back() {
        let mut behind = Behind::default();
        let odd = 100_000;
        for number in 0..12 {
            behind.push(number, odd + number * 300_000, vec![number as u8; 300_000].into());
        }
        let mut lens = Vec::new();
        while let Some((_, offset, bytes)) = behind.next(Some(11)) {
            assert!(lens.is_empty() || offset.is_multiple_of(CHUNK_BYTES), "{offset}");
            lens.push(bytes.len());
        }
        assert_eq!(lens, [162_144, 1 << 20, 1 << 20, 1 << 20, 262_144, 29_984]);
        let next = |behind: &mut Behind, number| behind.next(Some(number)).map(|(_, _, bytes)| bytes.len());
        behind.push(12, odd + 3_600_000, vec![12; 300_000].into());
        assert_eq!(next(&mut behind, 11), Some(232_160), "up to the next chunk");
        assert_eq!(next(&mut behind, 11), None, "others may join");
        behind.push(13, odd + 3_900_000, vec![13; 300_000].into());
        assert_eq!(next(&mut behind, 12), Some(262_144), "it was asked for");
        assert_eq!(next(&mut behind, 12), Some(105_696));
    }

    proptest! {
        /// Whatever is accepted in whichever order: the file is as if it had been written in the order of the program.
        #[test]
        fn the_host_ends_with_what_the_program_wrote(
            steps in proptest::collection::vec((0u64..60, 1usize..20, 0usize..4, any::<u8>()), 1..60),
        ) {
            let (mut behind, mut under_way) = (Behind::default(), Vec::new());
            let mut number = 0;
            let (mut expected, mut host) = (vec![0u8; 100], vec![0u8; 100]);
            let mut accept = |(id, offset, bytes): (ExtentId, u64, Bytes), behind: &mut Behind| {
                host[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                behind.done(id);
            };
            for (offset, len, what, fill) in steps {
                match what {
                    0 => under_way.extend(behind.next(None)),
                    1 if !under_way.is_empty() => {
                        let at = fill as usize % under_way.len();
                        accept(under_way.remove(at), &mut behind);
                    }
                    _ => {
                        expected[offset as usize..offset as usize + len].fill(fill);
                        number += 1;
                        behind.push(number, offset, vec![fill; len].into());
                    }
                }
            }
            while !behind.is_empty() {
                under_way.extend(behind.next(None));
                if let Some(extent) = under_way.pop() {
                    accept(extent, &mut behind);
                }
            }
            prop_assert_eq!(behind.bytes(), 0);
            prop_assert_eq!(host, expected);
        }
    }
}
