//! Whether the host is asked for chunks that programs write, before or while they are sent: what it has already need not be sent.
//!
//! Pure: no I/O, no clock.
//!
//! - From the second MiB of a file that is written front to back the host is asked about a few extents while they are sent, so
//!   that nobody waits for the answer. Until the answers are here no more is handed to the link than it takes in a round trip.
//! - Where the host has some of it, extents go as hashes alone; what it does not have follows as bytes, a round trip later.
//! - Where it has none, one extent in [`RARELY_ONE_IN`] is asked about, and of a next file fewer at its beginning.
//! - After a file that it had, the next one begins with hashes.
//!
//! On links above [`crate::client::FAST_BYTES_PER_SECOND`] nothing is asked.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::config::DedupWish;
use crate::chunk::{ByteRange, CHUNK_BYTES};
use crate::client::LinkState;
use crate::proto::WRITE_BYTES_MAX;

/// Bytes written in a row before the first question: small files are sent sooner than asked about.
const RUN_BYTES_MIN: u64 = 1024 * 1024;

/// Extents of a file that are asked about at once at its beginning; fewer after [`FRUITLESS_FILES`] files of which the host had nothing.
const EAGER_QUESTIONS: u32 = 4;
const EAGER_QUESTIONS_AFTER_FRUITLESS: u32 = 1;
const FRUITLESS_FILES: u32 = 4;

/// Later one extent in so many: 6 % of the hashing, and 0.001 % of the bytes.
const RARELY_ONE_IN: u32 = 16;

/// Extents in a row that the host had nothing of, after which bytes are sent at once again; one where the file began with hashes.
const MISSES_MAX: u32 = 4;

/// Files whose state is kept.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// How an extent goes to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As it is.
    Bytes,
    /// As it is, while the host is asked whether it has it.
    BytesAndQuestion,
    /// As hashes; what the host does not have follows.
    Hashes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Nothing was found, in so many questions.
    Unsure { fruitless: u32 },
    /// It pays. `missed`: extents in a row of which nothing was there.
    Finding { missed: u32, has_found: bool },
}

/// One file that is being written.
#[derive(Debug)]
struct Writing {
    /// Where the last extent ended, and how much was written in a row up to there.
    end: u64,
    run_bytes: u64,
    mood: Mood,
    questions: u32,
    /// Extents sent since the last question.
    since_question: u32,
}

/// All files of a mount.
#[derive(Debug)]
pub(super) struct Offers {
    wish: DedupWish,
    files: LruCache<u64, Writing>,
    is_lucky: bool,
    fruitless_files: u32,
}

impl Offers {
    pub(super) fn new(wish: DedupWish) -> Self {
        Self { wish, files: LruCache::new(FILES_MAX), is_lucky: false, fruitless_files: 0 }
    }

    /// The host does not know such questions.
    pub(super) fn turn_off(&mut self) {
        self.wish = DedupWish::Never;
    }

    /// An extent of a file is about to be sent: how. A question must be followed by [`Self::answered`], hashes by [`Self::taken`].
    pub(super) fn way(&mut self, file: u64, extent: ByteRange, link: &LinkState) -> Way {
        if self.wish == DedupWish::Never {
            return Way::Bytes;
        }
        let eager = self.eager_questions();
        let writing = self.writing(file, extent.offset);
        let is_next = writing.end == extent.offset;
        let before = if is_next { writing.run_bytes } else { 0 };
        (writing.end, writing.run_bytes) = (extent.end(), before + extent.len);
        writing.since_question += 1;
        if !is_whole_chunks(extent) {
            return Way::Bytes;
        }
        if self.goes_as_hashes(file, link) {
            return Way::Hashes;
        }
        let Some(writing) = self.files.peek_mut(&file).filter(|_| !link.sends_fast()) else {
            return Way::Bytes;
        };
        let Mood::Unsure { fruitless } = writing.mood else { return Way::Bytes };
        let is_time = fruitless + writing.questions < eager
            || (writing.questions == 0 && writing.since_question > RARELY_ONE_IN);
        if before < RUN_BYTES_MIN || !is_time {
            return Way::Bytes;
        }
        writing.questions += 1;
        writing.since_question = 0;
        Way::BytesAndQuestion
    }

    /// A question has its answer, or never will: how many of the chunks the host has.
    pub(super) fn answered(&mut self, file: u64, held: usize) {
        let eager = self.eager_questions();
        let Some(writing) = self.files.peek_mut(&file) else { return };
        writing.questions = writing.questions.saturating_sub(1);
        match &mut writing.mood {
            mood if held > 0 => *mood = Mood::Finding { missed: 0, has_found: true },
            Mood::Unsure { fruitless } => {
                *fruitless += 1;
                if *fruitless == eager {
                    self.fruitless_files = self.fruitless_files.saturating_add(1);
                }
            }
            Mood::Finding { .. } => {}
        }
        if held > 0 {
            self.found();
        }
    }

    /// An extent went as hashes: how many of its chunks the host had.
    pub(super) fn taken(&mut self, file: u64, taken: usize) {
        if taken > 0 {
            self.found();
        }
        let Some(writing) = self.files.peek_mut(&file) else { return };
        let Mood::Finding { missed, has_found } = &mut writing.mood else { return };
        if taken > 0 {
            (*missed, *has_found) = (0, true);
            return;
        }
        *missed += 1;
        let most = if *has_found { MISSES_MAX } else { 1 };
        if *missed >= most {
            self.is_lucky = false;
            writing.mood = Mood::Unsure { fruitless: EAGER_QUESTIONS };
        }
    }

    /// How much of a file may be on its way at a time, in bytes.
    pub(super) fn under_way_bytes_max(&self, file: u64, link: &LinkState) -> u64 {
        let waits = |writing: &Writing| {
            let is_first = matches!(writing.mood, Mood::Unsure { fruitless } if fruitless < EAGER_QUESTIONS);
            is_first && writing.questions > 0
        };
        if self.files.peek(&file).is_some_and(waits) {
            // A quarter more than a round trip takes, and one to follow.
            link.window_bytes.saturating_add(link.window_bytes / 4).max(2 * WRITE_BYTES_MAX)
        } else {
            u64::MAX
        }
    }

    /// Whether whole chunks of a file go as hashes: then small writes wait a little for others to make up a chunk with.
    pub(super) fn goes_as_hashes(&self, file: u64, link: &LinkState) -> bool {
        match self.wish {
            DedupWish::Never => false,
            DedupWish::Always => true,
            DedupWish::Worthwhile => {
                let is_finding = |writing: &Writing| matches!(writing.mood, Mood::Finding { .. });
                !link.sends_fast() && self.files.peek(&file).is_some_and(is_finding)
            }
        }
    }

    fn found(&mut self) {
        (self.is_lucky, self.fruitless_files) = (true, 0);
    }

    const fn eager_questions(&self) -> u32 {
        if self.fruitless_files < FRUITLESS_FILES { EAGER_QUESTIONS } else { EAGER_QUESTIONS_AFTER_FRUITLESS }
    }

    /// The state of a file, made anew where it is written from its beginning.
    fn writing(&mut self, file: u64, offset: u64) -> &mut Writing {
        if offset == 0 && self.files.peek(&file).is_some_and(|writing| writing.questions == 0) {
            self.files.pop(&file);
        }
        let is_lucky = self.is_lucky;
        self.files.get_or_insert_mut(file, || Writing::new(is_lucky))
    }
}

impl Writing {
    const fn new(is_lucky: bool) -> Self {
        let mood = if is_lucky {
            Mood::Finding { missed: 0, has_found: false }
        } else {
            Mood::Unsure { fruitless: 0 }
        };
        Self { end: 0, run_bytes: 0, mood, questions: 0, since_question: 0 }
    }
}

const fn is_whole_chunks(extent: ByteRange) -> bool {
    extent.len > 0 && extent.offset.is_multiple_of(CHUNK_BYTES) && extent.len.is_multiple_of(CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;
    const FILE: u64 = 7;

    /// 50 ms, 1 Gbit/s.
    const LINK: LinkState = LinkState {
        connected: true,
        silent: Duration::ZERO,
        rtt: Duration::from_millis(50),
        bytes_per_second: 0,
        sent_bytes_per_second: 125_000_000,
        window_bytes: 6_250_000,
    };

    fn offers() -> Offers {
        Offers::new(DedupWish::Worthwhile)
    }

    fn mib(number: u64) -> ByteRange {
        ByteRange::new(number * MIB, MIB)
    }

    /// Writes a file of so many MiB of which the host has those that `has` names; answers come at once. How often each way was gone.
    fn write(offers: &mut Offers, file: u64, size_mib: u64, has: impl Fn(u64) -> bool) -> [u64; 3] {
        let mut ways = [0; 3];
        for number in 0..size_mib {
            let held = if has(number) { 4 } else { 0 };
            let way = offers.way(file, mib(number), &LINK);
            ways[way as usize] += 1;
            match way {
                Way::Bytes => {}
                Way::BytesAndQuestion => offers.answered(file, held),
                Way::Hashes => offers.taken(file, held),
            }
        }
        ways
    }

    #[test]
    fn a_copy_goes_as_hashes_from_the_third_mib_and_the_next_from_its_first() {
        let mut offers = offers();
        assert_eq!(write(&mut offers, 1, 100, |_| true), [1, 1, 98]);
        assert_eq!(write(&mut offers, 2, 100, |_| true), [0, 0, 100]);
        // One that is new costs the round trip of its first extent.
        let [bytes, questions, hashes] = write(&mut offers, 3, 100, |_| false);
        assert_eq!((bytes + questions, hashes), (99, 1));
        assert_eq!(write(&mut offers, 4, 3, |_| true), [1, 1, 1]);
    }

    #[test]
    fn noise_is_asked_about_rarely_and_later_files_less() {
        let mut offers = offers();
        for file in 0..4 {
            let [_, questions, hashes] = write(&mut offers, file, 200, |_| false);
            assert!((10..=16).contains(&questions) && hashes == 0, "{questions} questions");
        }
        let [_, questions, _] = write(&mut offers, 9, 10, |_| false);
        assert_eq!(questions, 1);
    }

    #[test]
    fn small_files_fast_links_and_parts_of_chunks_go_as_they_are() {
        let mut offers = offers();
        assert_eq!(offers.way(FILE, mib(0), &LINK), Way::Bytes);
        assert_eq!(offers.way(FILE, ByteRange::new(MIB, MIB - 1), &LINK), Way::Bytes);
        assert_eq!(offers.way(FILE, mib(5), &LINK), Way::Bytes, "not in a row");
        let fast = LinkState { sent_bytes_per_second: 600_000_000, ..LINK };
        assert_eq!(offers.way(FILE, mib(6), &fast), Way::Bytes);
        assert_eq!(offers.way(FILE, mib(7), &LINK), Way::BytesAndQuestion);
        offers.answered(FILE, 4);
        assert_eq!(offers.way(FILE, mib(8), &fast), Way::Bytes);
        assert_eq!(offers.way(FILE, mib(9), &LINK), Way::Hashes);
        offers.turn_off();
        assert_eq!(offers.way(FILE, mib(10), &LINK), Way::Bytes);
    }

    #[test]
    fn little_is_handed_to_the_link_until_the_first_answers_are_here() {
        let mut offers = offers();
        offers.way(FILE, mib(0), &LINK);
        assert_eq!(offers.under_way_bytes_max(FILE, &LINK), u64::MAX);
        offers.way(FILE, mib(1), &LINK);
        assert_eq!(offers.under_way_bytes_max(FILE, &LINK), 7_812_500);
        offers.answered(FILE, 0);
        assert_eq!(offers.under_way_bytes_max(FILE, &LINK), u64::MAX);
    }

    #[test]
    fn always_and_never_mean_it() {
        let mut always = Offers::new(DedupWish::Always);
        assert_eq!(write(&mut always, 1, 20, |_| false), [0, 0, 20]);
        let mut never = Offers::new(DedupWish::Never);
        assert_eq!(write(&mut never, 1, 20, |_| true), [20, 0, 0]);
    }

    proptest! {
        /// Whatever the host has, and in whichever order answers come: hashes are only sent after something was found, few are sent in
        /// vain, and questions are few.
        #[test]
        fn what_is_sent_in_vain_is_bounded(
            has in prop::collection::vec(any::<bool>(), 1..300),
            delay in 0usize..12,
        ) {
            let mut offers = offers();
            let (mut found, mut hits, mut in_vain, mut questions) = (0u32, 0u32, 0u32, 0u32);
            let mut pending = std::collections::VecDeque::new();
            for (number, has) in has.iter().enumerate() {
                if pending.len() > delay {
                    match pending.pop_front() {
                        Some((Way::Hashes, held)) => offers.taken(FILE, held),
                        Some((Way::BytesAndQuestion, held)) => offers.answered(FILE, held),
                        _ => {}
                    }
                }
                let (way, held) = (offers.way(FILE, mib(number as u64), &LINK), if *has { 4 } else { 0 });
                match way {
                    Way::Hashes => {
                        prop_assert!(found > 0, "nothing was found before");
                        in_vain += u32::from(!has);
                        hits += u32::from(*has);
                    }
                    Way::BytesAndQuestion => {
                        questions += 1;
                        found += u32::from(*has);
                    }
                    Way::Bytes => {}
                }
                pending.push_back((way, held));
            }
            let most = (found + hits) * MISSES_MAX + (found + 1) * (MISSES_MAX + delay as u32 + 1);
            prop_assert!(in_vain <= most, "{in_vain} in vain");
            prop_assert!(questions <= 2 * EAGER_QUESTIONS + has.len() as u32 / RARELY_ONE_IN + 1, "{questions} questions");
        }
    }
}
