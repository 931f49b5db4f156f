//! One line on a terminal that says how far something is; nothing where standard error is no terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);

/// Back to the first column, and the rest of the line cleared.
const OVER: &str = "\r\x1b[K";

/// The line. It is cleared when dropped.
pub(super) struct Progress {
    is_terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), shown: None }
    }

    /// Whether anybody sees it.
    pub(super) const fn is_seen(&self) -> bool {
        self.is_terminal
    }

    /// Shows `text`, ten times a second at most.
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        if self.is_terminal && self.shown.is_none_or(|shown| shown.elapsed() >= EVERY) {
            self.shown = Some(Instant::now());
            // A terminal that is gone needs no progress.
            let _ = write!(io::stderr(), "{OVER}{}", text());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "{OVER}");
        }
    }
}
