//! Limits of what a key may use, as `authorized_keys` sets them.
//!
//! Pure: text in, numbers out.

use std::fmt::Write as _;

use serde::Serialize;

/// The most that a key may have at a time, over all its mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct KeyLimits {
    /// Connections.
    pub max_connections: u32,
    /// Mounts, those that lost their link a moment ago included.
    pub max_sessions: u32,
    /// Files open on the host.
    pub max_open: u32,
    /// Requests under way; more wait.
    pub max_requests: u32,
    /// Threads of the host that wait for a disk, or for a file system that hangs.
    pub max_threads: u32,
}

impl Default for KeyLimits {
    /// Far above what programs use, and below what would be felt by others.
    fn default() -> Self {
        Self {
            max_connections: 256,
            max_sessions: 64,
            max_open: 65_536,
            max_requests: 1_024,
            max_threads: 32,
        }
    }
}

impl KeyLimits {
    /// Names of the options, in the order in which they are written.
    pub const NAMES: [&'static str; 5] =
        ["max_connections", "max_sessions", "max_open", "max_requests", "max_threads"];

    /// Returns the limits in the order of [`Self::NAMES`].
    pub const fn values(&self) -> [u32; 5] {
        [self.max_connections, self.max_sessions, self.max_open, self.max_requests, self.max_threads]
    }

    const fn of_values(values: [u32; 5]) -> Self {
        let [max_connections, max_sessions, max_open, max_requests, max_threads] = values;
        Self { max_connections, max_sessions, max_open, max_requests, max_threads }
    }

    /// Takes in the option `name=value`. `None`: the option is another one.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        let Some(number) = value.parse().ok().filter(|number| *number > 0) else {
            return Some(Err(format!("{name}={value} needs a number from 1 on")));
        };
        let mut values = self.values();
        values[at] = number;
        *self = Self::of_values(values);
        Some(Ok(()))
    }

    /// Returns the lower one of each limit.
    pub(super) fn narrowed(&self, other: &Self) -> Self {
        let (mut values, others) = (self.values(), other.values());
        for (value, other) in values.iter_mut().zip(others) {
            *value = other.min(*value);
        }
        Self::of_values(values)
    }

    /// Returns the options that differ from the default, each behind `separator`.
    pub fn to_words(self, separator: &str) -> String {
        let defaults = Self::default().values();
        let mut words = String::new();
        for ((name, value), default) in Self::NAMES.into_iter().zip(self.values()).zip(defaults) {
            if value != default {
                // Writing to a String never fails.
                let _ = write!(words, "{separator}{name}={value}");
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_are_written_and_the_lower_of_two_holds() {
        let mut limits = KeyLimits::default();
        for (number, name) in (7..).zip(KeyLimits::NAMES) {
            assert_eq!(limits.take(name, &number.to_string()), Some(Ok(())));
        }
        assert_eq!(limits.values(), [7, 8, 9, 10, 11]);
        let mut again = KeyLimits::default();
        for word in limits.to_words(" ").split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap();
            assert_eq!(again.take(name, value), Some(Ok(())));
        }
        assert_eq!(again, limits);
        assert_eq!(KeyLimits::default().narrowed(&limits), limits);
        assert_eq!(limits.narrowed(&KeyLimits::default()), limits);
    }

    #[test]
    fn nonsense_is_no_limit() {
        let mut limits = KeyLimits::default();
        assert_eq!(limits.take("max_opne", "1"), None);
        for value in ["", "0", "-1", "many", "5000000000"] {
            assert!(limits.take("max_open", value).unwrap().is_err(), "{value:?}");
        }
        assert_eq!(limits, KeyLimits::default());
    }
}
