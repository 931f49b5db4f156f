//! Which programs seem to copy within the mount: a large file that such a one opens is probably read by the host alone, so nothing
//! of it is brought ahead.
//!
//! Pure: `now` comes in.
//!
//! `cp` looks whether the name of the copy is taken, then opens the original; one that copies a tree makes the copies one after
//! the other. So a program that has just missed a name here, or made something, is taken for one that copies. The guess costs
//! a reader a round trip where it is wrong, and spares 64 KiB where it is right.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Programs remembered.
const PROGRAMS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// How long what a program did says what it is doing: a few round trips of a long way.
const FRESH: Duration = Duration::from_secs(2);

/// The programs that missed or made a name lately, by the number of their process.
#[derive(Debug)]
pub(super) struct Copiers {
    programs: LruCache<u32, Instant>,
}

impl Default for Copiers {
    fn default() -> Self {
        Self { programs: LruCache::new(PROGRAMS_MAX) }
    }
}

impl Copiers {
    /// A program has missed a name, or made one.
    pub(super) fn note(&mut self, process: u32, now: Instant) {
        self.programs.put(process, now);
    }

    /// Whether a program seems to copy.
    pub(super) fn seems_to_copy(&self, process: u32, now: Instant) -> bool {
        self.programs.peek(&process).is_some_and(|noted| now.saturating_duration_since(*noted) < FRESH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_taken_for_one_that_copies_for_a_while_after_it_missed_a_name() {
        let (mut copiers, start) = (Copiers::default(), Instant::now());
        copiers.note(7, start);
        assert!(copiers.seems_to_copy(7, start));
        assert!(!copiers.seems_to_copy(8, start));
        assert!(!copiers.seems_to_copy(7, start + FRESH));
    }

    #[test]
    fn few_programs_are_remembered() {
        let (mut copiers, start) = (Copiers::default(), Instant::now());
        for process in 0..1000 {
            copiers.note(process, start);
        }
        assert_eq!(copiers.programs.len(), PROGRAMS_MAX.get());
        assert!(copiers.seems_to_copy(999, start));
    }
}
