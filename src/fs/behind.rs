//! Content of one file that a program has written and the host has not accepted yet.
//!
//! Pure: no I/O, no clock.
//!
//! Writes queue in their order; one that goes on where the last one ends joins it, as long as that is not being sent. Extents are sent
//! many at once, but never one that overlaps another before it: which of two comes last is what a file is.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::chunk::ByteRange;
use crate::proto::{SessionRun, WRITE_BYTES_MAX};

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
    /// Under a lock of which life of the session.
    under: Option<SessionRun>,
}

impl Extent {
    const fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.len)
    }
}

#[derive(Debug)]
struct UnderWay {
    id: ExtentId,
    range: ByteRange,
    first: u64,
    under: Option<SessionRun>,
}

/// The unaccepted writes of one file.
#[derive(Debug, Default)]
pub(super) struct Behind {
    queue: VecDeque<Extent>,
    sending: Vec<UnderWay>,
    given: u64,
}

impl Behind {
    #[cfg(test)]
    fn push(&mut self, number: u64, offset: u64, bytes: Bytes) {
        self.push_under(None, number, offset, bytes);
    }

    /// A program has written, maybe under a lock that was taken in a life of the session; `number` counts the writes.
    pub(super) fn push_under(&mut self, under: Option<SessionRun>, number: u64, offset: u64, bytes: Bytes) {
        let len = bytes.len() as u64;
        match self.queue.back_mut() {
            Some(last)
                if last.range().end() == offset
                    && last.len + len <= WRITE_BYTES_MAX
                    && last.under == under =>
            {
                last.len += len;
                last.parts.push(bytes);
            }
            _ => self.queue.push_back(Extent { offset, len, parts: vec![bytes], first: number, under }),
        }
    }

    /// The next extent to be sent, if one may be: it is being sent from then on.
    pub(super) fn next(&mut self) -> Option<(ExtentId, u64, Bytes)> {
        let is_free = |at: usize| {
            let range = self.queue[at].range();
            let before = self.queue.iter().take(at).map(Extent::range);
            !before.chain(self.sending.iter().map(|sent| sent.range)).any(|other| overlap(other, range))
        };
        let at = (0..self.queue.len().min(LOOK_AHEAD)).find(|at| is_free(*at))?;
        let extent = self.queue.remove(at)?;
        self.given += 1;
        let id = ExtentId(self.given);
        self.sending.push(UnderWay { id, range: extent.range(), first: extent.first, under: extent.under });
        let bytes = match <[Bytes; 1]>::try_from(extent.parts) {
            Ok([one]) => one,
            Err(parts) => parts.concat().into(),
        };
        Some((id, extent.offset, bytes))
    }

    /// Under a lock of which life of the session what is being sent was written.
    pub(super) fn under(&self, id: ExtentId) -> Option<SessionRun> {
        self.sending.iter().find(|sent| sent.id == id).and_then(|sent| sent.under)
    }

    /// The host has accepted an extent, or will not.
    pub(super) fn done(&mut self, id: ExtentId) {
        self.sending.retain(|sent| sent.id != id);
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
        let (first, offset, bytes) = behind.next().unwrap();
        assert_eq!((offset, &bytes[..]), (0, &b"ab"[..]));
        behind.push(2, 2, Bytes::from_static(b"cd"));
        behind.push(3, 4, Bytes::from_static(b"ef"));
        assert_eq!((behind.bytes(), behind.end()), (6, 6));
        let (second, offset, bytes) = behind.next().unwrap();
        assert_eq!((offset, &bytes[..]), (2, &b"cdef"[..]));
        assert_eq!(behind.oldest(), Some(1));
        behind.done(first);
        assert_eq!(behind.oldest(), Some(2));
        behind.done(second);
        assert!(behind.is_empty());
    }

    #[test]
    fn what_is_written_under_a_lock_joins_its_like() {
        let run = |number| Some(SessionRun { instance: crate::proto::InstanceId([0; 16]), number });
        let mut behind = Behind::default();
        for (number, under) in [None, run(1), run(1), run(2)].into_iter().enumerate() {
            behind.push_under(under, number as u64, number as u64, Bytes::from_static(b"x"));
        }
        let mut sent = Vec::new();
        while let Some((id, offset, bytes)) = behind.next() {
            sent.push((behind.under(id), offset, bytes.len()));
        }
        assert_eq!(sent, [(None, 0, 1), (run(1), 1, 2), (run(2), 3, 1)]);
    }

    #[test]
    fn what_overlaps_waits_and_what_does_not_goes_past_it() {
        let mut behind = Behind::default();
        behind.push(4, 0, Bytes::from_static(b"first"));
        let (first, ..) = behind.next().unwrap();
        behind.push(5, 3, Bytes::from_static(b"over"));
        behind.push(6, 100, Bytes::from_static(b"far"));
        behind.push(7, 4, Bytes::from_static(b"!"));
        assert_eq!(behind.next().unwrap().1, 100);
        assert!(behind.next().is_none());
        behind.done(first);
        assert_eq!(behind.next().unwrap().1, 3);
        assert!(behind.next().is_none(), "the last byte waits for the one below it");
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
                    0 => under_way.extend(behind.next()),
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
                under_way.extend(behind.next());
                if let Some(extent) = under_way.pop() {
                    accept(extent, &mut behind);
                }
            }
            prop_assert_eq!(behind.bytes(), 0);
            prop_assert_eq!(host, expected);
        }
    }
}
