//! Delivery rates from sent packets and acknowledgements.
//!
//! Pure: times are durations since an origin that the caller chooses.

use std::{collections::VecDeque, time::Duration};

/// Snapshots kept. They cover some rounds at 32 a round.
const SNAPSHOTS_MAX: usize = 512;
/// Shortest time over which a burst is judged: twice the delay that a peer may hold an acknowledgement.
const BURST_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Acknowledgements of a burst that are remembered. A quarter of a second at one in half a millisecond gives
/// fewer.
const ARRIVALS_MAX: usize = 512;

/// State of delivery when a packet left. The rate over its flight is the bytes delivered since, divided by
/// the longer of two times: that of sending, and that of acknowledging.
#[derive(Clone, Copy, Debug, Default)]
struct Snapshot {
    sent: Duration,
    delivered_bytes: u64,
    delivered_at: Duration,
    first_sent: Duration,
    app_limited: bool,
}

/// Result of one acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) newest_sent: Duration,
    pub(super) rtt: Duration,
    pub(super) delivered_bytes: u64,
    pub(super) interval: Duration,
    pub(super) app_limited: bool,
}

/// State of delivery after an acknowledgement.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Duration,
    newest_sent: Duration,
    delivered_bytes: u64,
}

/// Turns sent packets and acknowledgements into rate samples (after
/// draft-cheng-iccrg-delivery-rate-estimation).
#[derive(Clone, Debug, Default)]
pub(super) struct Sampler {
    delivered_bytes: u64,
    delivered_at: Duration,
    first_sent: Duration,
    pub(super) last_sent: Duration,
    pub(super) in_flight_bytes: u64,
    /// Packets count as application-limited until more than this is delivered.
    app_limited_until_bytes: Option<u64>,
    snapshots: VecDeque<Snapshot>,
    newest_acked: Option<Duration>,
    /// Latest acknowledgements, as far back as a burst is judged, and one older.
    arrivals: VecDeque<Arrival>,
}

impl Sampler {
    pub(super) fn on_sent(&mut self, now: Duration, bytes: u64, spacing: Duration) {
        if self.in_flight_bytes == 0 {
            self.first_sent = now;
            self.delivered_at = now;
        }
        self.in_flight_bytes += bytes;
        self.last_sent = now;
        let due = self.snapshots.back().is_none_or(|last| now > last.sent + spacing);
        if due {
            if self.snapshots.len() == SNAPSHOTS_MAX {
                self.snapshots.pop_front();
            }
            self.snapshots.push_back(Snapshot {
                sent: now,
                delivered_bytes: self.delivered_bytes,
                delivered_at: self.delivered_at,
                first_sent: self.first_sent,
                app_limited: self.app_limited_until_bytes.is_some_and(|until| self.delivered_bytes <= until),
            });
        }
    }

    pub(super) fn on_ack(&mut self, sent: Duration, bytes: u64) {
        self.delivered_bytes += bytes;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
        self.newest_acked = self.newest_acked.max(Some(sent));
    }

    pub(super) fn finish(&mut self, now: Duration) -> Option<Sample> {
        let newest_sent = self.newest_acked.take()?;
        self.delivered_at = now;
        let position = self.snapshots.partition_point(|snapshot| snapshot.sent <= newest_sent);
        // Older snapshots are not needed again.
        self.snapshots.drain(..position.saturating_sub(1));
        let snapshot = *self.snapshots.front().filter(|_| position > 0)?;
        self.first_sent = self.first_sent.max(newest_sent);
        let sending = newest_sent.saturating_sub(snapshot.first_sent);
        let acknowledging = now.saturating_sub(snapshot.delivered_at);
        Some(Sample {
            newest_sent,
            rtt: now.saturating_sub(newest_sent),
            delivered_bytes: self.delivered_bytes - snapshot.delivered_bytes,
            interval: sending.max(acknowledging),
            app_limited: snapshot.app_limited,
        })
    }

    /// Returns the rate in bytes a second over the last `interval`, for an acknowledgement that comes now.
    /// The time is the longer of sending and acknowledging. `None` while the burst is younger.
    pub(super) fn burst_rate(
        &mut self,
        now: Duration,
        newest_sent: Duration,
        interval: Duration,
    ) -> Option<f64> {
        let interval = interval.max(BURST_INTERVAL_MIN);
        let is_old = |arrival: &Arrival| now.saturating_sub(arrival.at) >= interval;
        let old = self.arrivals.iter().take_while(|arrival| is_old(arrival)).count();
        self.arrivals.drain(..old.saturating_sub(1));
        let since = self.arrivals.front().copied().filter(is_old);
        if self.arrivals.len() == ARRIVALS_MAX {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(Arrival { at: now, newest_sent, delivered_bytes: self.delivered_bytes });
        let since = since?;
        let sending = newest_sent.saturating_sub(since.newest_sent);
        let took = sending.max(now.saturating_sub(since.at));
        Some((self.delivered_bytes - since.delivered_bytes) as f64 / took.as_secs_f64())
    }

    /// Returns true if memory is within its bounds.
    #[cfg(test)]
    pub(super) fn is_bounded(&self) -> bool {
        self.snapshots.len() <= SNAPSHOTS_MAX && self.arrivals.len() <= ARRIVALS_MAX
    }

    pub(super) fn mark_app_limited(&mut self) {
        self.app_limited_until_bytes = Some(self.delivered_bytes + self.in_flight_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sampler that remembers every packet and searches all of them.
    #[derive(Default)]
    struct SlowSampler {
        fast: Sampler,
        sendings: Vec<Snapshot>,
    }

    impl SlowSampler {
        fn on_sent(&mut self, now: Duration, bytes: u64) {
            self.fast.snapshots.clear();
            self.fast.on_sent(now, bytes, Duration::ZERO);
            self.sendings.extend(self.fast.snapshots.back());
        }

        fn finish(&mut self, now: Duration) -> Option<Sample> {
            let newest = self.fast.newest_acked?;
            let covering = *self.sendings.iter().rfind(|snapshot| snapshot.sent <= newest)?;
            self.fast.snapshots = VecDeque::from([covering]);
            self.fast.finish(now)
        }
    }

    proptest! {
        #[test]
        fn samples_are_those_of_a_sampler_that_forgets_nothing(
            steps in prop::collection::vec((0..3_u8, 1..50_000_u64, any::<prop::sample::Index>()), 1..200),
        ) {
            let (mut fast, mut slow) = (Sampler::default(), SlowSampler::default());
            let (mut now, mut flying) = (Duration::from_secs(1), VecDeque::new());
            for (kind, micros, how_many) in steps {
                now += Duration::from_micros(micros);
                if kind == 0 || flying.is_empty() {
                    fast.on_sent(now, 1_200, Duration::ZERO);
                    slow.on_sent(now, 1_200);
                    flying.push_back(now);
                    continue;
                }
                for sent in flying.drain(..=how_many.index(flying.len())) {
                    fast.on_ack(sent, 1_200);
                    slow.fast.on_ack(sent, 1_200);
                }
                prop_assert_eq!(format!("{:?}", fast.finish(now)), format!("{:?}", slow.finish(now)));
                if kind == 2 {
                    fast.mark_app_limited();
                    slow.fast.mark_app_limited();
                }
            }
        }
    }

    #[test]
    fn a_burst_is_judged_by_its_own_time_and_not_by_the_round_trip() {
        const MS: Duration = Duration::from_millis(1);
        let mut sampler = Sampler::default();
        let sent = |packet: u32| Duration::from_secs(1) + MS * packet;
        (0..40).for_each(|packet| sampler.on_sent(sent(packet), 1_000, Duration::ZERO));
        let mut rates = Vec::new();
        for packet in 0..40 {
            sampler.on_ack(sent(packet), 1_000);
            sampler.finish(sent(packet) + 50 * MS);
            rates.push(sampler.burst_rate(sent(packet) + 50 * MS, sent(packet), 20 * MS));
        }
        assert!(rates[..20].iter().all(Option::is_none));
        assert!(rates[20..].iter().flatten().all(|rate| (rate - 1e6).abs() < 1.0), "{rates:?}");
    }
}
