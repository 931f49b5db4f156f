//! (P) Time for which a call waits for a silent host.
//!
//! A silent host gets the deadline once, and not once for each call. After a silence of that length it counts
//! as away. Calls that wait for it fail then. Later calls fail soon, until the host answers again.

use std::time::Duration;

/// Time for which a call waits if it starts while the host is away. It covers a new connection over a long
/// route, if the host is back.
pub const AWAY_CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the time for which a call still waits. `left` is the rest of its own deadline, `waited` the time
/// it has waited, `silent` the silence of the host (zero while it answers). After a silence of `silence_max`
/// the host is away.
pub fn left(left: Duration, silence_max: Duration, waited: Duration, silent: Duration) -> Duration {
    if silent.is_zero() {
        return left;
    }
    let until_away = silence_max.saturating_sub(silent);
    let at_least = AWAY_CALL_TIMEOUT.min(silence_max).saturating_sub(waited);
    left.min(until_away.max(at_least))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Returns the end of a call that starts at `begun` and is never answered, for a caller that sleeps for
    /// the returned times.
    fn ends(begun: u64, deadline: u64, silences: &[(u64, u64)]) -> u64 {
        let silent = |now: u64| {
            let (from, _) = silences.iter().find(|(from, to)| (*from..*to).contains(&now))?;
            Some(now - from)
        };
        let mut now = begun;
        loop {
            let silent = ms(silent(now).unwrap_or(0));
            let own = ms((begun + deadline).saturating_sub(now));
            let left = left(own, ms(deadline), ms(now - begun), silent).as_millis() as u64;
            if left == 0 {
                return now;
            }
            now += left;
        }
    }

    #[test]
    fn calls_in_a_row_wait_once() {
        let silence = [(0, u64::MAX)];
        let first = ends(100, 60_000, &silence);
        assert_eq!(first, 60_000, "the silence began before the call");
        let second = ends(first, 60_000, &silence);
        assert_eq!(second, first + 2_000);
        assert_eq!(ends(59_500, 60_000, &silence), 61_500, "each call has some time");
        assert_eq!(ends(5_000, 1_000, &silence), 6_000, "never longer than its deadline");
    }

    #[test]
    fn without_a_deadline_a_call_waits_on() {
        let forever = Duration::from_secs(u64::from(u32::MAX));
        assert!(left(forever, forever, ms(0), ms(100_000_000)) > ms(100_000_000));
    }

    #[test]
    fn a_host_that_answers_again_has_the_whole_deadline() {
        assert_eq!(ends(59_000, 60_000, &[(0, 60_500)]), 59_000 + 60_000);
        assert_eq!(ends(70_000, 60_000, &[(0, 70_000)]), 130_000);
    }

    proptest! {
        #[test]
        fn no_history_makes_a_call_wait_for_more_than_it_should(
            begun in 0u64..200_000,
            deadline in 1u64..100_000,
            times in proptest::collection::vec(1u64..50_000, 0..12),
        ) {
            let mut at = 0;
            let edges: Vec<u64> = times.iter().map(|time| { at += time; at }).collect();
            let silences: Vec<(u64, u64)> =
                edges.chunks(2).map(|edge| (edge[0], edge.get(1).copied().unwrap_or(u64::MAX))).collect();
            let end = ends(begun, deadline, &silences);
            prop_assert!(end <= begun + deadline);
            let away_when_begun = silences.iter().any(|(from, to)| (*from + deadline..*to).contains(&begun));
            if away_when_begun && silences.iter().any(|(from, to)| (*from..*to).contains(&(begun + 2_000))) {
                prop_assert!(end <= begun + 2_000 || silences.iter().any(|(_, to)| (begun..begun + 2_000).contains(to)));
            }
            if end < begun + deadline {
                let (from, _) = silences.iter().find(|(from, to)| (*from..*to).contains(&end)).unwrap();
                prop_assert!(end - from >= deadline, "given up while the host might come back");
                prop_assert!(end >= begun + deadline.min(2_000));
            }
        }
    }
}
