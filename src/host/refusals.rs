//! One log line a second for all who were refused.
//!
//! Pure: `now` comes in as an argument, and a line comes out.

use std::time::{Duration, Instant};

/// How often a line may be written at most.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RefusalLine {
    /// What it says.
    pub(super) text: String,
    /// Whether somebody was refused who got as far as to say who it is.
    pub(super) is_warning: bool,
}

/// Who was refused since the last line.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Option<Instant>,
    count: u64,
    last: Option<RefusalLine>,
}

impl Refusals {
    /// Notes a refusal at `now`. Returns a line where one is due.
    pub(super) fn note(&mut self, line: RefusalLine, now: Instant) -> Option<RefusalLine> {
        self.count += 1;
        let is_warning = line.is_warning || self.last.as_ref().is_some_and(|last| last.is_warning);
        match &mut self.last {
            // Who got further is worth more than the last one of a flood.
            Some(last) if last.is_warning && !line.is_warning => {}
            last => *last = Some(RefusalLine { is_warning, ..line }),
        }
        self.due(now)
    }

    /// Returns the line about those who were not told of yet, where one is due at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<RefusalLine> {
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < LINE_EVERY) {
            return None;
        }
        let RefusalLine { text, is_warning } = self.last.take()?;
        self.told = Some(now);
        let text = match std::mem::take(&mut self.count) {
            1 => text,
            count => format!("{count} refused since the last such line, one of them: {text}"),
        };
        Some(RefusalLine { text, is_warning })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str, is_warning: bool) -> RefusalLine {
        RefusalLine { text: text.to_owned(), is_warning }
    }

    #[test]
    fn the_first_is_told_at_once_and_a_flood_in_one_line_that_names_the_one_who_got_furthest() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.note(line("a", true), start), Some(line("a", true)));
        assert_eq!(refusals.note(line("b", false), start), None);
        assert_eq!(refusals.note(line("c", true), start), None);
        assert_eq!(refusals.note(line("d", false), start), None);
        assert_eq!(refusals.due(start), None);
        let told = refusals.due(start + LINE_EVERY).unwrap();
        assert!(
            told.is_warning && told.text.starts_with("3 refused") && told.text.ends_with(": c"),
            "{told:?}"
        );
        assert_eq!(refusals.due(start + 2 * LINE_EVERY), None);
        assert_eq!(refusals.note(line("e", false), start + 2 * LINE_EVERY), Some(line("e", false)));
    }

    proptest! {
        /// Lines are a second apart, and each refusal is counted in exactly one.
        #[test]
        fn all_are_counted_in_few_lines(steps in proptest::collection::vec((0u64..700, 0u64..3), 0..80)) {
            let (mut refusals, mut now) = (Refusals::default(), Instant::now());
            let (mut noted, mut counted, mut told): (u64, u64, Vec<Instant>) = (0, 0, Vec::new());
            for (pause_ms, count) in steps {
                now += Duration::from_millis(pause_ms);
                noted += count;
                let lines = (0..count).filter_map(|_| refusals.note(line("x", false), now)).collect::<Vec<_>>();
                for line in lines.into_iter().chain(refusals.due(now)) {
                    counted += line.text.split_once(" refused").map_or(1, |(count, _)| count.parse().unwrap());
                    told.push(now);
                }
            }
            now += LINE_EVERY;
            if let Some(line) = refusals.due(now) {
                counted += line.text.split_once(" refused").map_or(1, |(count, _)| count.parse().unwrap());
            }
            prop_assert_eq!(counted, noted);
            prop_assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= LINE_EVERY));
        }
    }
}
