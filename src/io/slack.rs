//! Decides when memory that was freed is worth going through the heap to give it back to the system.
//!
//! Pure: what is in use comes in, a decision goes out.

/// Least that must have been freed, in bytes.
const WORTH_BYTES: usize = 8 * 1024 * 1024;

/// History of the memory that a process has in use. To be told of it every [`Slack::LOOK_EVERY_SECONDS`].
#[derive(Debug, Default)]
pub struct Slack {
    peak: usize,
    last: usize,
}

impl Slack {
    /// Time between two looks. Freed memory is given back after the first look that finds nothing going on,
    /// so after some 4 s. A peak that comes and goes between two looks is not seen.
    pub const LOOK_EVERY_SECONDS: u64 = 2;

    /// Returns `true` if free memory is worth giving back, now that `used` bytes are in use: much less than
    /// before, and steadily so.
    pub fn look(&mut self, used: usize) -> bool {
        let is_steady = used.abs_diff(self.last) < WORTH_BYTES / 8;
        self.last = used;
        self.peak = self.peak.max(used);
        let is_due = is_steady && self.peak - used >= WORTH_BYTES;
        if is_due {
            self.peak = used;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn memory_goes_back_once_when_its_use_has_fallen() {
        let mut slack = Slack::default();
        let used = [1, 100, 300, 300, 150, 20, 20, 20, 21, 20, 40, 10, 10, 10, 9];
        let due: Vec<usize> = (0..used.len()).filter(|at| slack.look(used[*at] * MIB)).collect();
        assert_eq!(due, [6, 12], "once after each fall, when nothing goes on any more");
    }

    #[test]
    fn little_is_not_worth_it() {
        let mut slack = Slack::default();
        assert!((0..100).all(|at| !slack.look(100 * MIB + at % 2 * (WORTH_BYTES - 1))));
    }
}
