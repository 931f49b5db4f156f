//! Numbers as people read them.
//!
//! Pure.

/// Bytes: `0 B`, `1.5 MiB`.
pub(super) fn amount(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be printed as 1024.0 belongs to the next unit.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Things, in groups of three digits: `12,345`.
pub(super) fn count(things: u64) -> String {
    let digits = things.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Time, in its largest unit: `250 ms`, `3 s`, `5 min`, `2 h`, `9 days`.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{} s", ms / 1_000),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// Bytes in a time, as vendors of disks and networks count: `512 MB/s`.
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    let per_second = bytes as f64 / 1e6 / seconds.max(1e-6);
    if per_second < 10.0 { format!("{per_second:.1} MB/s") } else { format!("{per_second:.0} MB/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn counts() {
        for (things, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(things), text);
        }
    }

    #[test]
    fn durations() {
        for (ms, text) in
            [(0, "0 ms"), (999, "999 ms"), (59_999, "59 s"), (60_000, "1 min"), (7_200_000, "2 h")]
        {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(duration(172_800_000), "2 days");
    }

    #[test]
    fn rates() {
        assert_eq!(rate(100_000_000, 0.5), "200 MB/s");
        assert_eq!(rate(1_000_000, 1.0), "1.0 MB/s");
        assert!(rate(1, 0.0).ends_with("MB/s"));
    }
}
