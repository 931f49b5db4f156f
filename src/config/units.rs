//! Notation of sizes, times and masks.
//!
//! Pure. Sizes are bytes, with `K M G T P` for powers of 1,024. Times are in the unit of the option's
//! convention (NFS: whole seconds, tenths of a second, minutes; libfuse: seconds with a fraction).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest time of an option: 30 days. Longer times are typing errors.
const TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Amount of storage or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Size {
    /// Number of bytes.
    Bytes(u64),
    /// Share of the total, in per cent: 1 to 100.
    Percent(u8),
}

impl Size {
    /// Description of the values that [`Self::parse`] accepts.
    pub const ALLOWED: &str = "a number of bytes with K, M, G or T such as 50G, or a share such as 10%";

    /// Reads `4096`, `50G`, `50GiB` or `10%`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Self::Percent),
            None => bytes(text).map(Self::Bytes),
        }
    }

    /// Returns the number of bytes, given a total of `total_bytes`.
    pub const fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(share) => ((total_bytes as u128 * share as u128) / 100) as u64,
        }
    }
}

/// Reads `4096`, `50G`, `50GB`, `50GiB`, in powers of 1,024.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads a whole number of units, each `unit` long.
pub(super) fn whole(text: &str, unit: Duration) -> Option<Duration> {
    digits(text)?
        .parse::<u32>()
        .ok()
        .and_then(|count| unit.checked_mul(count))
        .filter(|time| *time <= TIME_MAX)
}

/// Reads seconds with an optional fraction: `1`, `0.5`.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole)?;
    digits(fraction)?;
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= TIME_MAX)
}

/// Reads permission bits in octal: `022`.
pub(super) fn mask(text: &str) -> Option<u16> {
    u16::from_str_radix(digits(text)?, 8).ok().filter(|mask| *mask <= 0o777)
}

/// Returns `text` if it has only digits. The number parsers of the library also accept a sign.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, meant) in [
            ("0", Some(Size::Bytes(0))),
            ("4096", Some(Size::Bytes(4096))),
            ("50G", Some(Size::Bytes(50 << 30))),
            ("50g", Some(Size::Bytes(50 << 30))),
            ("1KiB", Some(Size::Bytes(1024))),
            ("2TB", Some(Size::Bytes(2 << 40))),
            ("10%", Some(Size::Percent(10))),
            ("100%", Some(Size::Percent(100))),
            ("0%", None),
            ("101%", None),
            ("", None),
            ("G", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("50X", None),
            ("99999999999P", None),
        ] {
            assert_eq!(Size::parse(text), meant, "{text}");
        }
    }

    #[test]
    fn a_share_of_the_largest_disk_does_not_overflow() {
        assert_eq!(Size::Percent(100).bytes_of(u64::MAX), u64::MAX);
        assert_eq!(Size::Percent(10).bytes_of(1000), 100);
    }

    #[test]
    fn times() {
        assert_eq!(whole("300", Duration::from_millis(100)), Some(Duration::from_secs(30)));
        assert_eq!(seconds("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        for wrong in ["", "-1", "+1", "1e9", "inf", "nan", "99999999999", ".", "1.", ".5"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
            assert_eq!(whole(wrong, Duration::from_secs(1)), None, "{wrong}");
        }
    }

    #[test]
    fn masks() {
        assert_eq!(mask("022"), Some(0o022));
        assert_eq!(mask("0777"), Some(0o777));
        for wrong in ["", "8", "1000", "-1", "+7", "rwx"] {
            assert_eq!(mask(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn sizes_with_a_unit_are_read_back(number in 0_u64..1 << 13, unit in 0_usize..6) {
            let text = format!("{number}{}", ["", "K", "M", "G", "T", "P"][unit]);
            prop_assert_eq!(bytes(&text), Some(number << (10 * unit)));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,12}") {
            let _ = (Size::parse(&text), seconds(&text), whole(&text, Duration::from_secs(60)), mask(&text));
        }
    }
}
