//! What a mount that ends has still to send: how it is told, and how long that is waited for.
//!
//! Pure: `now` comes in as an argument.

use std::time::{Duration, Instant};

use super::words::{amount, rate};

/// How long nothing may have moved until nobody waits any more. The daemon itself waits on.
const STILL_MAX: Duration = Duration::from_secs(30);

/// Between two lines, where there is no terminal to show one that changes.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is left, since somebody began to wait.
#[derive(Debug)]
pub(super) struct Rest {
    began: Instant,
    first_bytes: Option<u64>,
    bytes: u64,
    moved: Instant,
    told: Option<Instant>,
}

impl Rest {
    /// Somebody begins to wait.
    pub(super) const fn new(now: Instant) -> Self {
        Self { began: now, first_bytes: None, bytes: 0, moved: now, told: None }
    }

    /// So many bytes are left.
    pub(super) fn look(&mut self, bytes: u64, now: Instant) {
        if bytes < self.bytes {
            self.moved = now;
        }
        self.first_bytes.get_or_insert(bytes);
        self.bytes = bytes;
    }

    /// Whether it has not gone on for so long that waiting makes no sense.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= STILL_MAX
    }

    /// How many bytes were left when it was last looked.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// For people: what is left, and how fast it becomes less. `None` if it is nothing.
    pub(super) fn text(&self, now: Instant) -> Option<String> {
        if self.bytes == 0 {
            return None;
        }
        let sent = self.first_bytes.unwrap_or_default().saturating_sub(self.bytes);
        let pace = rate(sent, now.saturating_duration_since(self.began).as_secs_f64());
        Some(format!("waiting until the host has everything: {} left, {pace}", amount(self.bytes)))
    }

    /// The same, if it is time for another line of it.
    pub(super) fn line(&mut self, now: Instant) -> Option<String> {
        let is_time = self.told.is_none_or(|told| now.saturating_duration_since(told) >= LINE_EVERY);
        let line = self.text(now).filter(|_| is_time)?;
        self.told = Some(now);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_now_and_then_with_its_pace() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rest = Rest::new(start);
        rest.look(0, start);
        assert_eq!(rest.line(start), None, "nothing is left");
        rest.look(3 << 20, start);
        let mut rest = Rest::new(start);
        rest.look(3 << 20, start);
        assert_eq!(
            rest.line(start).unwrap(),
            "waiting until the host has everything: 3.0 MiB left, 0.0 MB/s"
        );
        rest.look(2 << 20, at(1));
        assert_eq!(rest.line(at(1)), None, "a line a second would be many");
        assert!(rest.text(at(1)).unwrap().ends_with("2.0 MiB left, 1.0 MB/s"));
        assert!(rest.line(at(5)).is_some());
    }

    #[test]
    fn who_waits_gives_up_when_nothing_moves() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rest = Rest::new(start);
        rest.look(100, start);
        rest.look(100, at(29));
        assert!(!rest.is_stuck(at(29)));
        rest.look(99, at(29));
        assert!(!rest.is_stuck(at(58)));
        assert!(rest.is_stuck(at(59)));
        assert_eq!(rest.bytes(), 99);
    }
}
