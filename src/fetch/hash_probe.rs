//! Policy of hash requests ahead of the reader, and of waiting for their answers. Pure: `now` comes in.
//!
//! The hashes of a file tell which of its chunks the disk cache already holds under another name. They are
//! cheap on the wire, 8 KiB for 64 MiB. But a host that does not know them must read and hash content that
//! it may then read and hash again to send. So:
//!
//! - Opening a file of 1 MiB or more requests the hashes of its first 4 MiB, the very first of them
//!   separately, so that they arrive with the open.
//! - If some of them help, the rest is requested in ranges that double, well ahead of the window.
//! - If none helps, a few are requested further on, at distances that double: 64 of 1,024 chunks, 2 % of a
//!   file of 1 GiB and more.
//! - After several files in a row without a hit, only one open in eight requests hashes.
//!
//! A read-ahead waits for hashes in flight for a bounded time, and proceeds without them if they do not
//! arrive. A program that reads several chunks in one call waits for a round trip and 10 ms from the
//! request, which was sent at the open. A program that reads one chunk or less never waits.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::content::FileContent;
use crate::cache::FileKey;
use crate::chunk::{CHUNK_BYTES, ChunkIndex, ChunkRange};
use crate::proto::MANIFEST_CHUNKS_MAX;

/// Smallest file to probe, in chunks. Below 1 MiB the hashes would not arrive before the content.
const FILE_CHUNKS_MIN: u64 = 4;

/// Chunks of a probe: 4 MiB, twice the first window of a reader, 2 ms of hashing.
const PROBE_CHUNKS: u64 = 16;

/// Chunks in the first request of an open: the first call of a program like `cp`.
const FIRST_CHUNKS: u64 = 4;

/// Most chunks in one request of a useful file: 32 MiB, which a host reads and hashes in some 25 ms.
const STEP_CHUNKS_MAX: u64 = 128;

/// Distance of requests ahead of the window in a useful file: 128 MiB. A fast disk reads that in a long
/// round trip and the time of the host.
const LEAD_CHUNKS: u64 = 512;

/// Most requests in flight for one file.
const FILE_REQUESTS_MAX: usize = 3;

/// Most requests in flight for all files.
const REQUESTS_MAX: usize = 16;

/// Distance from one fruitless probe to the next, in chunks. It is 16 MiB at first, and doubles up to 256
/// MiB each time the host had to compute hashes.
const GAP_CHUNKS: u64 = 64;
const GAP_CHUNKS_MAX: u64 = 1024;

/// A file is useful if the cache holds one chunk in this many.
const USEFUL_ONE_IN: u64 = 8;

/// Files in a row without a hit, after which only one in [`PROBE_BACKOFF_FILES`] is probed at its open.
const PROBE_MISSES_MAX: u32 = 4;
const PROBE_BACKOFF_FILES: u32 = 8;

/// Most files with state.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Most requested ranges of one file that are remembered.
const REQUESTED_RANGES_MAX: usize = 64;

/// Time that a read-ahead waits beyond the round trip. For a probe it is the time of a hard disk, which
/// then need not read the content again. For a useful file it is the time of a hard disk for a full
/// request.
const PROBE_WAIT: Duration = Duration::from_millis(50);
const FOLLOW_WAIT: Duration = Duration::from_millis(200);

/// Time that a program reading several chunks waits beyond the round trip: the hashing time of a busy host.
const DEMAND_WAIT: Duration = Duration::from_millis(10);

const _: () = assert!(STEP_CHUNKS_MAX <= MANIFEST_CHUNKS_MAX);

/// Current time and the round-trip time to the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) now: Instant,
    pub(super) rtt: Duration,
}

/// Outcome of a hash request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The hashes arrived.
    Hashes {
        /// Chunks of the range that the disk cache holds.
        held: u64,
        /// Chunks that the host had to read to compute the hashes.
        computed: u64,
    },
    /// They did not arrive: the file changed, or the host is gone.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeState {
    /// No hits yet: probe when the window reaches chunk `next`, then `gap` further on.
    Probing { next: u64, gap: u64 },
    /// Useful: request `step` chunks at a time.
    Following { step: u64 },
}

/// Hash request in flight.
#[derive(Debug)]
struct PendingRequest {
    chunks: Range<u64>,
    is_probe: bool,
    /// Deadlines for a waiting read-ahead and for a waiting program; `None` if neither waits.
    deadlines: Option<(Instant, Instant)>,
}

/// State of one file version.
#[derive(Debug)]
struct FileProbe {
    state: ProbeState,
    /// End of the last known window of a reader, in chunks.
    window_end: u64,
    /// Requested ranges: sorted and disjoint.
    asked: Vec<Range<u64>>,
    requests: Vec<PendingRequest>,
    /// True if the last answer came after the deadline.
    is_late: bool,
    has_answer: bool,
}

/// States of all files of a mount.
#[derive(Debug)]
pub(super) struct HashProbe {
    files: LruCache<FileKey, FileProbe>,
    in_flight: usize,
    missed_files: u32,
    is_disabled: bool,
}

impl HashProbe {
    pub(super) fn new() -> Self {
        Self { files: LruCache::new(FILES_MAX), in_flight: 0, missed_files: 0, is_disabled: false }
    }

    /// Disables hash requests, because the host does not support them.
    pub(super) fn disable(&mut self) {
        self.is_disabled = true;
    }

    /// Starts probing a file that is being opened. Returns the requests to send; each must be followed by
    /// [`Self::answered`].
    pub(super) fn opened(&mut self, content: &FileContent, at: Now) -> Vec<ChunkRange> {
        let is_requested = self.files.get(&content.key).is_some_and(|probe| !probe.requests.is_empty());
        if is_requested || !self.may_probe(content) {
            return Vec::new();
        }
        // The content of the cache may have changed since the file was last open.
        let is_backed_off = self.missed_files >= PROBE_MISSES_MAX
            && !(self.missed_files - PROBE_MISSES_MAX + 1).is_multiple_of(PROBE_BACKOFF_FILES);
        self.missed_files = self.missed_files.saturating_add(u32::from(is_backed_off));
        let next = if is_backed_off { GAP_CHUNKS } else { 0 };
        let probe = FileProbe::new(next);
        self.files.put(content.key, probe);
        if is_backed_off {
            return Vec::new();
        }
        let end = PROBE_CHUNKS.min(chunks_of(content));
        let requests = [0..FIRST_CHUNKS.min(end), FIRST_CHUNKS.min(end)..end];
        let requests = requests.into_iter().filter(|chunks| !chunks.is_empty());
        requests.filter_map(|chunks| self.ask(content.key, chunks, at, Some(PROBE_WAIT))).collect()
    }

    /// Records that a reader's window ends at the end of `window`.
    pub(super) fn reached(&mut self, content: &FileContent, window: ChunkRange) {
        if self.may_probe(content) {
            let probe = self.files.get_or_insert_mut(content.key, || FileProbe::new(0));
            probe.window_end = window.as_range().end;
        }
    }

    /// Returns the next request for a file, if one is due. Call it until it returns `None`.
    pub(super) fn next(&mut self, content: &FileContent, at: Now) -> Option<ChunkRange> {
        if !self.may_probe(content) {
            return None;
        }
        let probe = self.files.get(&content.key)?;
        let chunks = probe.wanted(chunks_of(content))?;
        let wait = matches!(probe.state, ProbeState::Following { .. }).then_some(FOLLOW_WAIT);
        self.ask(content.key, chunks, at, wait)
    }

    /// Records the answer to a request, or its failure.
    pub(super) fn answered(&mut self, key: &FileKey, range: ChunkRange, answer: Answer, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(probe) = self.files.get_mut(key) else { return };
        let is_first = !probe.has_answer;
        probe.take_answer(range.as_range(), answer, now);
        match answer {
            Answer::Hashes { held, .. } if held > 0 => self.missed_files = 0,
            Answer::Hashes { .. } if is_first => {
                self.missed_files = self.missed_files.saturating_add(1);
            }
            _ => {}
        }
    }

    /// Returns `true` if hashes of some of these chunks are in flight.
    pub(super) fn is_requested(&self, key: &FileKey, chunks: ChunkRange) -> bool {
        let chunks = chunks.as_range();
        let overlaps =
            |request: &PendingRequest| request.chunks.start < chunks.end && chunks.start < request.chunks.end;
        self.files.peek(key).is_some_and(|probe| probe.requests.iter().any(overlaps))
    }

    /// Returns the time until which to wait for hashes of `chunks` in flight; `None` if there is nothing to
    /// wait for.
    pub(super) fn wait_until(
        &self,
        key: &FileKey,
        chunks: ChunkRange,
        is_ahead: bool,
        now: Instant,
    ) -> Option<Instant> {
        if !is_ahead && chunks.count < 2 {
            return None;
        }
        let probe = self.files.peek(key).filter(|probe| !probe.is_late)?;
        let chunks = chunks.as_range();
        let overlapping = probe
            .requests
            .iter()
            .filter(|request| request.chunks.start < chunks.end && chunks.start < request.chunks.end);
        let until = overlapping.filter_map(|request| request.deadlines);
        until.map(|(ahead, demand)| if is_ahead { ahead } else { demand }).filter(|until| *until > now).max()
    }

    fn may_probe(&self, content: &FileContent) -> bool {
        !self.is_disabled && chunks_of(content) >= FILE_CHUNKS_MIN
    }

    fn ask(
        &mut self,
        key: FileKey,
        chunks: Range<u64>,
        at: Now,
        wait: Option<Duration>,
    ) -> Option<ChunkRange> {
        let probe = self.files.peek_mut(&key).filter(|_| self.in_flight < REQUESTS_MAX)?;
        self.in_flight += 1;
        probe.note_requested(chunks.clone());
        // A quarter of a round trip is added, because its length varies.
        let back = at.now + at.rtt + at.rtt / 4;
        let deadlines = wait.map(|wait| (back + wait, back + DEMAND_WAIT));
        let range = ChunkRange::new(ChunkIndex(chunks.start), chunks.end - chunks.start);
        let is_probe = matches!(probe.state, ProbeState::Probing { .. });
        probe.requests.push(PendingRequest { chunks, is_probe, deadlines });
        Some(range)
    }
}

impl FileProbe {
    const fn new(next: u64) -> Self {
        Self {
            state: ProbeState::Probing { next, gap: GAP_CHUNKS },
            window_end: 0,
            asked: Vec::new(),
            requests: Vec::new(),
            is_late: false,
            has_answer: false,
        }
    }

    /// Returns the next range to request in a file of `chunks_max` chunks.
    fn wanted(&self, chunks_max: u64) -> Option<Range<u64>> {
        let (from, len) = match self.state {
            ProbeState::Probing { next, .. } => {
                if !self.requests.is_empty() || self.window_end < next {
                    return None;
                }
                // The chunks in the window are already being fetched.
                (self.first_unrequested(self.window_end), PROBE_CHUNKS)
            }
            ProbeState::Following { step } => {
                let from = self.first_unrequested(self.window_end);
                if self.requests.len() >= FILE_REQUESTS_MAX || from >= self.window_end + LEAD_CHUNKS {
                    return None;
                }
                (from, step)
            }
        };
        let asked_next = self.asked.iter().map(|range| range.start).find(|start| *start > from);
        let end = (from + len).min(chunks_max).min(asked_next.unwrap_or(u64::MAX));
        (from < end).then_some(from..end)
    }

    fn first_unrequested(&self, from: u64) -> u64 {
        self.asked.iter().find(|range| range.contains(&from)).map_or(from, |range| range.end)
    }

    fn note_requested(&mut self, chunks: Range<u64>) {
        if let ProbeState::Following { step } = &mut self.state {
            *step = (*step * 2).min(STEP_CHUNKS_MAX);
        }
        let at = self.asked.partition_point(|range| range.start < chunks.start);
        self.asked.insert(at, chunks);
        self.asked.dedup_by(|later, earlier| {
            let meets = earlier.end >= later.start;
            if meets {
                earlier.end = earlier.end.max(later.end);
            }
            meets
        });
        if self.asked.len() > REQUESTED_RANGES_MAX {
            self.asked.remove(0);
        }
    }

    fn take_answer(&mut self, chunks: Range<u64>, answer: Answer, now: Instant) {
        self.has_answer = true;
        if let Some(at) = self.requests.iter().position(|request| request.chunks == chunks) {
            let request = self.requests.swap_remove(at);
            let is_late = request.deadlines.is_some_and(|(ahead, _)| ahead < now);
            // A late probe counts as on time, because readers wait for it only briefly.
            self.is_late = is_late && !request.is_probe;
        }
        let has_more = !self.requests.is_empty();
        self.state = match (answer, self.state) {
            (Answer::None, _) => ProbeState::Probing { next: u64::MAX, gap: GAP_CHUNKS_MAX },
            (Answer::Hashes { held, .. }, state) if held * USEFUL_ONE_IN >= chunks.end - chunks.start => {
                match state {
                    ProbeState::Following { .. } => state,
                    ProbeState::Probing { .. } => ProbeState::Following { step: 2 * PROBE_CHUNKS },
                }
            }
            (Answer::Hashes { .. }, ProbeState::Following { .. }) => {
                ProbeState::Probing { next: chunks.end + GAP_CHUNKS, gap: GAP_CHUNKS }
            }
            // The other half of the first probe is still in flight.
            (Answer::Hashes { .. }, state @ ProbeState::Probing { .. }) if has_more => state,
            (Answer::Hashes { computed, .. }, ProbeState::Probing { gap, .. }) => {
                let longer = if computed > 0 { (gap * 2).min(GAP_CHUNKS_MAX) } else { gap };
                ProbeState::Probing { next: chunks.end.saturating_add(gap), gap: longer }
            }
        };
    }
}

const fn chunks_of(content: &FileContent) -> u64 {
    content.version.size.div_ceil(CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    fn at(start: Instant) -> Now {
        Now { now: start, rtt: RTT }
    }

    fn range(first: u64, count: u64) -> ChunkRange {
        ChunkRange::new(ChunkIndex(first), count)
    }

    fn pair(range: ChunkRange) -> (u64, u64) {
        (range.first.0, range.as_range().end)
    }

    const fn held(held: u64) -> Answer {
        Answer::Hashes { held, computed: 1 }
    }

    /// Reads a file from start to end. The answer to each request comes when the window moves on.
    fn read_through(chunks: u64, is_held: impl Fn(u64) -> bool) -> BTreeSet<u64> {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, chunks), Instant::now());
        let mut requests: Vec<ChunkRange> = hash_probe.opened(&content, at(start));
        let mut asked = BTreeSet::new();
        for window in (0..chunks).step_by(4) {
            hash_probe.reached(&content, range(window, 4));
            requests.extend(std::iter::from_fn(|| hash_probe.next(&content, at(start))));
            for request in std::mem::take(&mut requests) {
                let count = request.iter().filter(|index| is_held(index.0)).count() as u64;
                hash_probe.answered(&content.key, request, held(count), start);
                for index in request.as_range() {
                    assert!(index < chunks && asked.insert(index), "{index} was asked about twice");
                }
            }
        }
        asked
    }

    #[test]
    fn a_copy_is_probed_as_a_whole_and_the_rest_at_two_percent() {
        assert_eq!(read_through(4096, |_| true).len(), 4096);
        assert_eq!(read_through(5, |_| true).len(), 5);
        let asked = read_through(40_960, |_| false).len();
        assert!((100..=40_960 / 50).contains(&asked), "{asked}");
    }

    #[test]
    fn a_copy_that_begins_otherwise_is_found_later() {
        let asked = read_through(8192, |index| index >= 1000);
        let in_copy = asked.range(1000..).count();
        assert!(in_copy > 6500, "{in_copy} of 7192");
        let asked = read_through(8192, |index| index < 1000);
        assert!(asked.range(1000..).count() < 1200, "{}", asked.len());
    }

    fn answer_opening(hash_probe: &mut HashProbe, content: &FileContent, answer: Answer, now: Instant) {
        hash_probe.answered(&content.key, range(0, 4), answer, now);
        hash_probe.answered(&content.key, range(4, 12), answer, now);
    }

    #[test]
    fn an_open_requests_the_beginning_and_a_hit_requests_more() {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, 4096), Instant::now());
        let first: Vec<_> = hash_probe.opened(&content, at(start)).into_iter().map(pair).collect();
        assert_eq!(first, [(0, 4), (4, 16)]);
        assert_eq!(hash_probe.opened(&content, at(start)), [], "it is in flight");
        assert_eq!(hash_probe.next(&content, at(start)), None);
        answer_opening(&mut hash_probe, &content, held(12), start);
        let next: Vec<_> = std::iter::from_fn(|| hash_probe.next(&content, at(start))).map(pair).collect();
        assert_eq!(next, [(16, 48), (48, 112), (112, 240)]);
        hash_probe.answered(&content.key, range(16, 32), held(32), start);
        hash_probe.answered(&content.key, range(48, 64), held(64), start);
        hash_probe.answered(&content.key, range(112, 128), held(128), start);
        let next: Vec<_> = std::iter::from_fn(|| hash_probe.next(&content, at(start))).map(pair).collect();
        assert_eq!(next, [(240, 368), (368, 496), (496, 624)]);
        for (first, count) in [(240, 128), (368, 128), (496, 128)] {
            hash_probe.answered(&content.key, range(first, count), held(count), start);
        }
        assert_eq!(hash_probe.next(&content, at(start)), None, "far enough in front of the window");
    }

    #[test]
    fn read_ahead_waits_briefly_for_requests_in_flight() {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, 4096), Instant::now());
        assert_eq!(hash_probe.opened(&content, at(start)).len(), 2);
        let until = hash_probe.wait_until(&content.key, range(15, 4), true, start).unwrap();
        assert!(until - start <= RTT * 5 / 4 + PROBE_WAIT);
        let program = |count| hash_probe.wait_until(&content.key, range(3, count), false, start);
        assert!(program(4).unwrap() - start <= RTT * 5 / 4 + DEMAND_WAIT);
        assert_eq!(program(1), None, "a read of one chunk never waits");
        assert_eq!(
            hash_probe.wait_until(&content.key, range(16, 4), true, start),
            None,
            "nothing is under way there"
        );
        assert_eq!(hash_probe.wait_until(&content.key, range(15, 4), true, until), None, "it has waited");
        answer_opening(&mut hash_probe, &content, held(12), start);
        assert_eq!(hash_probe.wait_until(&content.key, range(0, 4), true, start), None);
        hash_probe.next(&content, at(start)).unwrap();
        assert!(hash_probe.wait_until(&content.key, range(16, 4), true, start).is_some());
    }

    #[test]
    fn a_late_answer_ends_waiting() {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, 4096), Instant::now());
        assert_eq!(hash_probe.opened(&content, at(start)).len(), 2);
        let late = start + Duration::from_secs(1);
        answer_opening(&mut hash_probe, &content, held(12), late);
        hash_probe.next(&content, at(start)).unwrap();
        assert!(hash_probe.wait_until(&content.key, range(16, 4), true, start).is_some(), "it was a probe");
        hash_probe.next(&content, at(start)).unwrap();
        hash_probe.answered(&content.key, range(16, 32), held(32), late);
        assert_eq!(hash_probe.wait_until(&content.key, range(48, 4), true, start), None);
        hash_probe.answered(&content.key, range(48, 64), held(64), start);
        hash_probe.next(&content, at(start)).unwrap();
        assert!(
            hash_probe.wait_until(&content.key, range(112, 4), true, start).is_some(),
            "it came in time again"
        );
    }

    #[test]
    fn no_read_waits_for_a_later_probe() {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, 4096), Instant::now());
        assert_eq!(hash_probe.opened(&content, at(start)).len(), 2);
        answer_opening(&mut hash_probe, &content, held(0), start);
        hash_probe.reached(&content, range(70, 9));
        assert_eq!(hash_probe.next(&content, at(start)), None);
        hash_probe.reached(&content, range(80, 10));
        assert_eq!(hash_probe.next(&content, at(start)).map(pair), Some((90, 106)));
        assert_eq!(hash_probe.wait_until(&content.key, range(90, 4), true, start), None);
    }

    #[test]
    fn small_and_refused_files_are_not_probed() {
        let (mut hash_probe, start) = (HashProbe::new(), Instant::now());
        let small = FileContent::sample(1, FILE_CHUNKS_MIN - 1);
        hash_probe.reached(&small, range(0, 3));
        let asked = (hash_probe.opened(&small, at(start)), hash_probe.next(&small, at(start)));
        assert_eq!(asked, (Vec::new(), None));
        hash_probe.disable();
        assert_eq!(hash_probe.opened(&FileContent::sample(3, 100), at(start)), []);
    }

    #[test]
    fn a_file_without_an_answer_is_left_alone() {
        let (mut hash_probe, content, start) =
            (HashProbe::new(), FileContent::sample(1, 4096), Instant::now());
        assert_eq!(hash_probe.opened(&content, at(start)).len(), 2);
        answer_opening(&mut hash_probe, &content, Answer::None, start);
        hash_probe.reached(&content, range(2000, 10));
        assert_eq!(hash_probe.next(&content, at(start)), None);
    }

    #[test]
    fn few_opens_probe_without_hits() {
        let (mut hash_probe, start) = (HashProbe::new(), Instant::now());
        let mut open = |file, found| {
            let content = FileContent::sample(file, 100);
            let requests = hash_probe.opened(&content, at(start));
            for request in &requests {
                hash_probe.answered(&content.key, *request, held(found), start);
            }
            !requests.is_empty()
        };
        let asked = (0..100).filter(|file| open(*file, 0)).count();
        assert!((8..=20).contains(&asked), "{asked} of 100");
        let lucky = (100..120).find(|file| open(*file, 1)).expect("some are asked about");
        assert!((lucky + 1..lucky + 4).all(|file| open(file, 0)), "luck is remembered");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open(u8),
        Reach(u8, u64),
        /// Answers one of the requests in flight.
        Answer(usize, u64),
        Fail(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0..8u8).prop_map(Step::Open),
            4 => (0..8u8, 0..3000u64).prop_map(|(file, end)| Step::Reach(file, end)),
            6 => (any::<usize>(), 0..200u64).prop_map(|(pick, held)| Step::Answer(pick, held)),
            1 => any::<usize>().prop_map(Step::Fail),
        ]
    }

    proptest! {
        #[test]
        fn bounds_hold_and_no_range_is_requested_twice_at_a_time(steps in prop::collection::vec(step(), 0..200)) {
            let (mut hash_probe, start) = (HashProbe::new(), Instant::now());
            let mut running: Vec<(u8, ChunkRange)> = Vec::new();
            for step in steps {
                match step {
                    Step::Open(file) => {
                        let requests = hash_probe.opened(&FileContent::sample(file, 2000), at(start));
                        running.extend(requests.into_iter().map(|range| (file, range)));
                    }
                    Step::Reach(file, end) => {
                        let content = FileContent::sample(file, 2000);
                        hash_probe.reached(&content, range(end.saturating_sub(8), 8.min(end)));
                        let more = std::iter::from_fn(|| hash_probe.next(&content, at(start)));
                        running.extend(more.map(|range| (file, range)));
                    }
                    Step::Answer(pick, found) if !running.is_empty() => {
                        let (file, range) = running.swap_remove(pick % running.len());
                        hash_probe.answered(&FileContent::sample(file, 2000).key, range, held(found.min(range.count)), start);
                    }
                    Step::Fail(pick) if !running.is_empty() => {
                        let (file, range) = running.swap_remove(pick % running.len());
                        hash_probe.answered(&FileContent::sample(file, 2000).key, range, Answer::None, start);
                    }
                    _ => {}
                }
                prop_assert!(running.len() <= REQUESTS_MAX);
                prop_assert_eq!(hash_probe.in_flight, running.len());
                for file in 0..8 {
                    let own: Vec<_> = running.iter().filter(|(of, _)| *of == file).collect();
                    prop_assert!(own.len() <= FILE_REQUESTS_MAX);
                    let chunks: BTreeSet<_> = own.iter().flat_map(|(_, range)| range.as_range()).collect();
                    let sum: u64 = own.iter().map(|(_, range)| range.count).sum();
                    prop_assert_eq!(chunks.len() as u64, sum, "two requests about one chunk at a time");
                    prop_assert!(chunks.iter().all(|chunk| *chunk < 2000));
                    prop_assert!(own.iter().all(|(_, range)| range.count <= STEP_CHUNKS_MAX));
                }
            }
        }
    }
}
