//! Content of one file that a program has written and the host has not accepted yet.
//!
//! Pure: no I/O, no clock.
//!
//! Writes queue in their order; one that goes on where the last one ends joins it, as long as that is not being sent. Extents are sent
//! many at once, but never one that overlaps another before it: which of two comes last is what a file is.
//!
//! What goes to the end of the file, wherever that is, is sent alone, and joins while it waits: the next follows when the host has the one
//! before it. After one that failed those that waited behind it are given up, so that a log never has a gap.
//!
//! A long extent ends where a chunk ends, so that those behind it are whole chunks in their places.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::chunk::{ByteRange, CHUNK_BYTES};
use crate::proto::{APPEND_BYTES_MAX, Growth, SessionRun, WRITE_BYTES_MAX};

/// Names an extent that is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExtentId(u64);

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// To this offset.
    Offset(u64),
    /// To the end of the file, which is thought to have this size without what is queued.
    End(u64),
}

/// What is to be sent.
#[derive(Debug)]
pub(super) struct Extent {
    /// Whether it goes to the end of the file.
    pub appends: bool,
    /// Where it goes, or is thought to go.
    pub range: ByteRange,
    /// Its bytes, in their order.
    pub parts: Vec<Bytes>,
    /// The first write in it.
    first: u64,
    /// Under a lock of which life of the session.
    pub under: Option<SessionRun>,
    /// When it may make the file longer; known when it is to be sent.
    pub growth: Growth,
}

impl Extent {
    const fn turn(&self) -> Turn {
        Turn { first: self.first, offset: self.range.offset }
    }

    /// How much can still join it. One that does not begin with a chunk ends with the chunk that it is in.
    const fn room(&self) -> u64 {
        if self.appends {
            return APPEND_BYTES_MAX.saturating_sub(self.range.len);
        }
        let is_aligned = self.range.offset.is_multiple_of(CHUNK_BYTES);
        let most = if is_aligned { WRITE_BYTES_MAX } else { CHUNK_BYTES };
        let end = (self.range.offset + most) / CHUNK_BYTES * CHUNK_BYTES;
        end.saturating_sub(self.range.end())
    }

    /// Takes off what is behind its last whole chunk, if there is one and something behind it.
    fn split_last_part(&mut self) -> Option<Self> {
        let whole = self.range.len / CHUNK_BYTES * CHUNK_BYTES;
        if self.appends
            || !self.range.offset.is_multiple_of(CHUNK_BYTES)
            || whole == 0
            || whole == self.range.len
        {
            return None;
        }
        let mut bytes = Bytes::from(self.parts.concat());
        let last = bytes.split_off(whole as usize);
        let range = ByteRange::new(self.range.offset + whole, last.len() as u64);
        let rest = Self { range, parts: vec![last], ..*self };
        (self.range.len, self.parts) = (whole, vec![bytes]);
        Some(rest)
    }
}

/// Place of an extent in the order in which programs wrote. A write that was cut into extents went from its beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    first: u64,
    offset: u64,
}

#[derive(Debug)]
struct UnderWay {
    id: ExtentId,
    appends: bool,
    range: ByteRange,
    first: u64,
    is_begun: bool,
}

impl UnderWay {
    const fn turn(&self) -> Turn {
        Turn { first: self.first, offset: self.range.offset }
    }
}

/// The unaccepted writes of one file.
#[derive(Debug, Default)]
pub(super) struct Behind {
    queue: VecDeque<Extent>,
    sending: Vec<UnderWay>,
    given: u64,
    /// End of the last extent that failed: the file must not become longer behind it.
    failed_end: u64,
}

impl Behind {
    #[cfg(test)]
    fn push(&mut self, number: u64, place: Place, bytes: Bytes) {
        self.push_under(None, number, place, bytes);
    }

    /// A program has written, maybe under a lock that was taken in a life of the session; `number` counts the writes.
    pub(super) fn push_under(&mut self, under: Option<SessionRun>, number: u64, place: Place, bytes: Bytes) {
        let (appends, offset) = match place {
            Place::Offset(offset) => (false, offset),
            Place::End(size) => (true, size.max(self.end())),
        };
        let extent = |range| Extent {
            appends,
            range,
            parts: Vec::new(),
            first: number,
            under,
            growth: Growth::default(),
        };
        if appends {
            // Each write goes as a whole.
            let len = bytes.len() as u64;
            let joins = |last: &Extent| last.appends && last.range.end() == offset && len <= last.room();
            if !self.queue.back().is_some_and(joins) {
                self.queue.push_back(extent(ByteRange::new(offset, 0)));
            }
            return self.add_to_last(bytes);
        }
        let (mut offset, mut bytes) = (offset, bytes);
        while !bytes.is_empty() {
            let joins = |last: &Extent| {
                !last.appends && last.under == under && last.range.end() == offset && last.room() > 0
            };
            if !self.queue.back().is_some_and(joins) {
                self.queue.push_back(extent(ByteRange::new(offset, 0)));
            }
            let room = self.queue.back().map_or(0, Extent::room);
            let part = bytes.split_to(bytes.len().min(room as usize));
            offset += part.len() as u64;
            self.add_to_last(part);
        }
    }

    fn add_to_last(&mut self, bytes: Bytes) {
        if let Some(last) = self.queue.back_mut() {
            last.range.len += bytes.len() as u64;
            last.parts.push(bytes);
        }
    }

    /// The next extent to be sent, if one may be: it is being sent from then on. One that others may still join is held back if it
    /// begins with a write behind number `held_after`; then whole chunks and parts of chunks go apart, too.
    pub(super) fn next(&mut self, held_after: Option<u64>) -> Option<(ExtentId, Extent)> {
        let is_held = |at: usize| {
            let extent = &self.queue[at];
            let may_grow = !extent.appends && at + 1 == self.queue.len() && extent.room() > 0;
            may_grow && held_after.is_some_and(|number| extent.first > number)
        };
        let at = (0..self.queue.len().min(LOOK_AHEAD)).find(|at| self.may_go(*at) && !is_held(*at))?;
        let mut extent = self.queue.remove(at)?;
        if let Some(rest) = held_after.and_then(|_| extent.split_last_part()) {
            self.queue.insert(at, rest);
        }
        extent.growth = self.growth(extent.turn());
        self.given += 1;
        let id = ExtentId(self.given);
        let Extent { appends, range, first, .. } = extent;
        self.sending.push(UnderWay { id, appends, range, first, is_begun: false });
        Some((id, extent))
    }

    /// When an extent may make the file longer: when everything before it has.
    fn growth(&self, turn: Turn) -> Growth {
        let before = self.before(turn).map(ByteRange::end).max().unwrap_or(0);
        Growth { from: before.max(self.failed_end) }
    }

    /// Extents before `turn` that the host does not have.
    fn before(&self, turn: Turn) -> impl Iterator<Item = ByteRange> {
        let sending = self.sending.iter().filter(move |sent| sent.turn() < turn).map(|sent| sent.range);
        // The queue is in the order of turns.
        let queued = self.queue.iter().take_while(move |extent| extent.turn() < turn);
        sending.chain(queued.map(|extent| extent.range))
    }

    /// When an extent that is being sent may make the file longer, as soon as nothing before it is under way.
    pub(super) fn growth_alone(&self, id: ExtentId) -> Option<Growth> {
        let turn = self.sending.iter().find(|sent| sent.id == id)?.turn();
        self.before(turn).next().is_none().then(|| self.growth(turn))
    }

    /// Whether an extent has failed and others behind it are not over yet.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed_end > 0
    }

    /// An extent that is being sent cannot be written.
    pub(super) fn failed(&mut self, id: ExtentId) {
        let failed = self.sending.iter().find(|sent| sent.id == id && !sent.appends);
        self.failed_end = self.failed_end.max(failed.map_or(0, |sent| sent.range.end()));
    }

    fn may_go(&self, at: usize) -> bool {
        let extent = &self.queue[at];
        if extent.appends {
            return at == 0 && self.sending.is_empty();
        }
        let queued = self.queue.iter().take(at).map(|before| (before.appends, before.range));
        let mut before = queued.chain(self.sending.iter().map(|sent| (sent.appends, sent.range)));
        !before.any(|(appends, range)| appends || overlap(range, extent.range))
    }

    /// An extent is with the client: a sync waits for it from now on.
    pub(super) fn begun(&mut self, id: ExtentId) {
        if let Some(sent) = self.sending.iter_mut().find(|sent| sent.id == id) {
            sent.is_begun = true;
        }
    }

    /// The host has accepted an extent, or will not.
    pub(super) fn done(&mut self, id: ExtentId) {
        self.sending.retain(|sent| sent.id != id);
    }

    /// Gives up what waits to be appended; how many bytes that was.
    pub(super) fn drop_appends(&mut self) -> u64 {
        let before = self.bytes();
        self.queue.retain(|extent| !extent.appends);
        before - self.bytes()
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

    /// The first write of which something is not with the client.
    pub(super) fn oldest_unbegun(&self) -> Option<u64> {
        let sending = self.sending.iter().filter(|sent| !sent.is_begun).map(|sent| sent.first);
        self.queue.iter().map(|extent| extent.first).chain(sending).min()
    }

    /// Bytes that the host does not have.
    pub(super) fn bytes(&self) -> u64 {
        let sending = self.sending.iter().map(|sent| sent.range.len);
        self.queue.iter().map(|extent| extent.range.len).chain(sending).sum()
    }

    /// Where the last of it ends.
    pub(super) fn end(&self) -> u64 {
        let sending = self.sending.iter().map(|sent| sent.range.end());
        self.queue.iter().map(|extent| extent.range.end()).chain(sending).max().unwrap_or(0)
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

    fn at(offset: u64) -> Place {
        Place::Offset(offset)
    }

    fn next(behind: &mut Behind) -> (ExtentId, bool, u64, Vec<u8>) {
        let (id, extent) = behind.next(None).unwrap();
        (id, extent.appends, extent.range.offset, extent.parts.concat())
    }

    #[test]
    fn small_writes_join_while_they_wait_and_not_while_they_are_sent() {
        let mut behind = Behind::default();
        behind.push(1, at(0), Bytes::from_static(b"ab"));
        let (first, _, offset, bytes) = next(&mut behind);
        assert_eq!((offset, &bytes[..]), (0, &b"ab"[..]));
        behind.push(2, at(2), Bytes::from_static(b"cd"));
        behind.push(3, at(4), Bytes::from_static(b"ef"));
        assert_eq!((behind.bytes(), behind.end()), (6, 6));
        let (second, _, offset, bytes) = next(&mut behind);
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
            behind.push_under(under, number as u64, at(number as u64), Bytes::from_static(b"x"));
        }
        let mut sent = Vec::new();
        while let Some((_, extent)) = behind.next(None) {
            sent.push((extent.under, extent.range.offset, extent.range.len));
        }
        assert_eq!(sent, [(None, 0, 1), (run(1), 1, 2), (run(2), 3, 1)]);
    }

    #[test]
    fn what_overlaps_waits_and_what_does_not_goes_past_it() {
        let mut behind = Behind::default();
        behind.push(4, at(0), Bytes::from_static(b"first"));
        let (first, ..) = behind.next(None).unwrap();
        behind.push(5, at(3), Bytes::from_static(b"over"));
        behind.push(6, at(100), Bytes::from_static(b"far"));
        behind.push(7, at(4), Bytes::from_static(b"!"));
        assert_eq!(next(&mut behind).2, 100);
        assert!(behind.next(None).is_none());
        behind.done(first);
        assert_eq!(next(&mut behind).2, 3);
        assert!(behind.next(None).is_none(), "the last byte waits for the one below it");
    }

    #[test]
    fn appends_join_and_go_one_at_a_time_and_no_other_write_passes_them() {
        let mut behind = Behind::default();
        behind.push(1, Place::End(5), Bytes::from_static(b"one,"));
        let (first, appends, offset, bytes) = next(&mut behind);
        assert_eq!((appends, offset, &bytes[..]), (true, 5, &b"one,"[..]));
        behind.push(2, Place::End(5), Bytes::from_static(b"two,"));
        // What is known of the size may be newer than what is under way.
        behind.push(3, Place::End(9), Bytes::from_static(b"three,"));
        behind.push(4, at(0), Bytes::from_static(b"page"));
        assert_eq!(behind.end(), 19);
        assert!(behind.next(None).is_none());
        behind.done(first);
        let (second, appends, offset, bytes) = next(&mut behind);
        assert_eq!((appends, offset, &bytes[..]), (true, 9, &b"two,three,"[..]));
        assert!(behind.next(None).is_none(), "the page waits");
        behind.push(5, Place::End(19), Bytes::from_static(b"four"));
        behind.done(second);
        let (page, appends, ..) = next(&mut behind);
        assert!(!appends && behind.next(None).is_none(), "and is waited for");
        assert_eq!(behind.drop_appends(), 4);
        behind.done(page);
        assert!(behind.is_empty());
    }

    #[test]
    fn what_is_with_the_client_is_known() {
        let mut behind = Behind::default();
        behind.push(1, at(0), Bytes::from_static(b"ab"));
        behind.push(2, at(9), Bytes::from_static(b"cd"));
        let ((first, _), (second, _)) = (behind.next(None).unwrap(), behind.next(None).unwrap());
        assert_eq!(behind.oldest_unbegun(), Some(1));
        behind.begun(first);
        assert_eq!(behind.oldest_unbegun(), Some(2));
        behind.begun(second);
        assert_eq!((behind.oldest_unbegun(), behind.oldest()), (None, Some(1)));
    }

    #[test]
    fn long_extents_end_where_chunks_end_and_the_last_may_be_held_back() {
        let mut behind = Behind::default();
        let odd = 100_000;
        for number in 0..12 {
            behind.push(number, at(odd + number * 300_000), vec![number as u8; 300_000].into());
        }
        let mut lens = Vec::new();
        while let Some((_, extent)) = behind.next(Some(11)) {
            let offset = extent.range.offset;
            assert!(lens.is_empty() || offset.is_multiple_of(CHUNK_BYTES), "{offset}");
            lens.push(extent.range.len);
        }
        assert_eq!(lens, [162_144, 1 << 20, 1 << 20, 1 << 20, 262_144, 29_984]);
        let next =
            |behind: &mut Behind, number| behind.next(Some(number)).map(|(_, extent)| extent.range.len);
        behind.push(12, at(odd + 3_600_000), vec![12; 300_000].into());
        assert_eq!(next(&mut behind, 11), Some(232_160), "up to the next chunk");
        assert_eq!(next(&mut behind, 11), None, "others may join");
        behind.push(13, at(odd + 3_900_000), vec![13; 300_000].into());
        assert_eq!(next(&mut behind, 12), Some(262_144), "it was asked for");
        assert_eq!(next(&mut behind, 12), Some(105_696));
    }

    #[test]
    fn an_extent_makes_the_file_longer_behind_what_was_written_before_it_and_not_behind_what_passed_it() {
        let mut behind = Behind::default();
        let next = |behind: &mut Behind| behind.next(None).map(|(id, extent)| (id, extent.growth)).unwrap();
        let from = |from| Growth { from };
        behind.push(1, at(0), Bytes::from_static(b"first"));
        let (first, growth) = next(&mut behind);
        assert_eq!(growth, from(0));
        behind.push(2, at(3), Bytes::from_static(b"over"));
        behind.push(3, at(100), Bytes::from_static(b"far"));
        let (far, growth) = next(&mut behind);
        assert_eq!(growth, from(7));
        assert_eq!(behind.growth_alone(far), None);
        behind.done(first);
        let (over, growth) = next(&mut behind);
        assert_eq!((growth, behind.growth_alone(over)), (from(0), Some(from(0))));
        behind.failed(over);
        behind.done(over);
        assert!(behind.has_failed());
        assert_eq!(behind.growth_alone(far), Some(from(7)), "nothing makes the file longer behind a gap");
        behind.done(far);
        behind.push(4, at(9), Bytes::from_static(b"later"));
        assert_eq!(next(&mut behind).1, from(7));
    }

    proptest! {
        /// Whatever arrives in whichever order: the file is as if it had been written in the order of the program, and is never of a
        /// size that it had not then.
        #[test]
        fn the_host_ends_with_what_the_program_wrote(
            steps in proptest::collection::vec((0u64..60, 1usize..20, 0usize..5, any::<u8>()), 1..60),
        ) {
            let (mut behind, mut under_way) = (Behind::default(), Vec::new());
            let mut number = 0;
            let (mut expected, mut host, mut sizes) = (Vec::new(), Vec::new(), vec![0]);
            let put = |file: &mut Vec<u8>, offset: usize, bytes: &[u8]| {
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[offset..offset + bytes.len()].copy_from_slice(bytes);
            };
            let accept = |(id, extent): (ExtentId, Extent), host: &mut Vec<u8>, behind: &mut Behind| {
                let offset = if extent.appends { host.len() } else { extent.range.offset as usize };
                put(host, offset, &extent.parts.concat());
                behind.done(id);
            };
            let may_go = |extent: &Extent, host: &[u8]| {
                extent.appends || (host.len() as u64) >= extent.growth.from.min(extent.range.end())
            };
            for (offset, len, what, fill) in steps {
                match what {
                    0 => under_way.extend(behind.next(None)),
                    1 if !under_way.is_empty() => {
                        let at = fill as usize % under_way.len();
                        if may_go(&under_way[at].1, &host) {
                            accept(under_way.remove(at), &mut host, &mut behind);
                            prop_assert!(sizes.contains(&host.len()), "a size that the file never had");
                        }
                    }
                    _ => {
                        let bytes = vec![fill; len];
                        number += 1;
                        let place = if what == 4 { Place::End(host.len() as u64) } else { Place::Offset(offset) };
                        let offset = if what == 4 { expected.len() } else { offset as usize };
                        put(&mut expected, offset, &bytes);
                        sizes.push(expected.len());
                        behind.push(number, place, bytes.into());
                        prop_assert_eq!(behind.end().max(host.len() as u64), expected.len() as u64);
                    }
                }
            }
            while !behind.is_empty() {
                under_way.extend(behind.next(None));
                let last = under_way.iter().rposition(|(_, extent)| may_go(extent, &host));
                prop_assert!(last.is_some(), "they wait for each other");
                accept(under_way.remove(last.unwrap()), &mut host, &mut behind);
                prop_assert!(sizes.contains(&host.len()), "a size that the file never had");
            }
            prop_assert_eq!(behind.bytes(), 0);
            prop_assert_eq!(host, expected);
        }
    }
}
