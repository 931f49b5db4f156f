//! Congestion control by delivery rate. It keeps a tenth more in flight than the link carries in one round
//! trip.
//!
//! Loss-based control (cubic, newreno) takes every lost packet for a full queue, and is very slow on radio
//! links. quinn's BBR keeps twice the bandwidth-delay product in flight. quinn's pacer (1.25 x window / rtt,
//! for any controller) then fills the queue, and half of the packets are lost. This controller multiplies two
//! measurements:
//!
//! * **bandwidth**: the best rate of acknowledged bytes over each of the last eight rounds. An
//!   application-limited round can raise the estimate but never lowers it. Such a round is judged by the time
//!   of its burst. A burst shorter than the round trip shows how fast it was carried, which the average over
//!   the round does not.
//! * **minimum round trip**: the smallest of the last ten seconds. If none that small was seen for ten
//!   seconds, the window shrinks to half for two rounds. The queue drains, and the minimum shows again.
//!
//! The window is 1.1 x their product, plus the bytes hidden by delayed acknowledgements. One round in eight
//! probes with a quarter more, and probing continues while the rate grows. The next round drains the queue
//! that the probe left. Losses below 8 % belong to the link and are ignored. Above that the queue overflows,
//! and the rate of the newest round replaces the best. Start-up doubles each round until the rate stops
//! growing or the round trip grows.
//!
//! Pure: times are durations since an origin that the caller chooses, and nothing is random. `simulate`
//! (tests) runs whole transfers in simulated time.

use std::{collections::VecDeque, time::Duration};

use super::sampler::Sampler;

/// Rounds in the bandwidth maximum. They are one probe cycle, so the last successful probe still counts.
const ROUNDS_REMEMBERED: usize = 8;
/// Window over bandwidth x round trip. A tenth in the queue keeps the link busy when acknowledgements come
/// unevenly.
const WINDOW_GAIN: f64 = 1.1;
/// Factor on the window in a probe round.
const PROBE_GAIN: f64 = 1.25;
/// Window over bandwidth x round trip in the round after a probe. Below one, so that the queue empties and
/// the minimum round trip shows.
const DRAIN_WINDOW_GAIN: f64 = 0.95;
/// Growth of the rate that makes the next round probe again. It is well above noise.
const PROBE_SUCCESS: f64 = 1.1;
/// Loss that belongs to the link. With 8 % random loss more than nine tenths of the link remain.
const LOSS_TOLERATED: f64 = 0.08;
/// Growth of a round's smallest round trip that shows a standing queue. Heavy loss without a queue belongs to
/// the link. The window is a multiple of the bytes that arrive, which bounds the bytes lost.
const STANDING_QUEUE: f64 = 1.03;
const STANDING_QUEUE_MIN: Duration = Duration::from_millis(1);
/// Loss that a radio link has and a good cable does not. Together with a standing queue it shows a short
/// queue that our own extra tenth overflows.
const LOSS_OF_A_GOOD_LINK: f64 = 0.02;
/// Window over bandwidth x round trip with a short queue: nothing extra. It does not apply to loss without a
/// queue. There the window would shrink by the loss rate each round.
const WINDOW_GAIN_SHORT_QUEUE: f64 = 1.0;
/// Packets over which loss is judged. Fewer give no statistic.
const LOSS_SAMPLE_PACKETS: u64 = 64;
/// Largest cut of the estimate in one judgement. An interruption of half a second is not a slower link.
const LOSS_CUT: f64 = 0.5;
/// Rounds with less than a quarter of growth after which start-up ends.
const STARTUP_FLAT_ROUNDS: u32 = 3;
const STARTUP_GROWTH: f64 = 1.25;
/// Late acknowledgements in a row that end start-up. An acknowledgement is late if its round trip is an
/// eighth longer. The margin is at least the time that scheduling may add, plus the acknowledgement delay of
/// the peer.
const STARTUP_LATE_ACKS: u32 = 8;
const STARTUP_RTT_GROWTH: f64 = 0.125;
const STARTUP_RTT_GROWTH_MIN: Duration = Duration::from_millis(3);
/// Window over bandwidth x round trip after such an end. It keeps the link full while the rate is measured
/// once more.
const SETTLE_GAIN: f64 = 1.4;
/// Age at which the minimum round trip is measured again, because routes change.
const RTT_MIN_AGE: Duration = Duration::from_secs(10);
/// Shortest interval for a rate. A shorter one measures wake-ups of tasks. On loopback a round trip is
/// shorter than this.
const SAMPLE_INTERVAL_MIN: Duration = Duration::from_micros(50);
/// Divisor of the round trip for the time over which a burst is judged. The time covers several
/// acknowledgements.
const BURST_OF_RTT: u32 = 4;
/// Round trips within this factor of each other count as equal.
const RTT_SAME: f64 = 1.02;
/// Smallest round trip for the window. Below it the schedulers of both ends decide when acknowledgements
/// come.
const RTT_FLOOR: Duration = Duration::from_millis(1);
/// Shortest round. On a LAN eight rounds then last longer than one hiccup of a scheduler.
const ROUND_MIN: Duration = Duration::from_millis(10);
/// Idle time after which the old estimate is only a hint. Start-up then resumes from half of it.
const IDLE_RESTART: Duration = Duration::from_secs(10);
/// Delay of an acknowledgement that shows an interruption of the link. The other packets in flight are lost,
/// but quinn declares them lost only after several long timeouts. So they no longer count. New packets, once
/// acknowledged, prove the old ones lost.
const SILENCE: Duration = Duration::from_secs(1);
/// First window, in packets. quinn's pacer spreads a window over four fifths of a round trip. 128 packets of
/// 1,200 bytes send the 64 KiB with which most programs begin to read in under half of one.
pub(super) const INITIAL_WINDOW_PACKETS: u64 = 128;
/// Smallest window. With fewer packets a timer fires before a loss shows.
const WINDOW_PACKETS_MIN: u64 = 16;
/// Largest window. Beyond it quinn switches its pacer off.
const WINDOW_BYTES_MAX: u64 = u32::MAX as u64;
/// Acknowledgement policy of the peer. It delays acknowledgements, so bytes that have arrived still count as
/// in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckPolicy {
    /// Longest delay of an acknowledgement.
    pub delay_max: Duration,
    /// Packets after which the peer must acknowledge.
    pub threshold_packets: u32,
}

/// State of the controller. It takes reports of sent, acknowledged and lost packets, and returns a window.
#[derive(Clone, Debug)]
pub struct DeliveryRate {
    acks: AckPolicy,
    packet_bytes: u64,
    window_bytes: u64,
    mode: Mode,
    sampler: Sampler,
    rates: BestRate,
    round: Round,
    losses: Losses,
    /// True if the last judgement found a standing queue and more loss than a good link has.
    short_queue: bool,
    rtt_min: Option<RttMin>,
    /// Bytes that were sent before a silence. They are probably lost, but not yet declared lost.
    stranded_bytes: u64,
    /// Acknowledgements in a row with a round trip longer than the minimum.
    late_acks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Doubles the window each round.
    Startup { best_rate: f64, flat_rounds: u32 },
    /// Measures the rate of the full link for `rounds` more rounds. The window stays a little above the
    /// estimate.
    Settle { rounds: u32 },
    /// Holds the estimate for `rounds` more rounds, then probes.
    Cruise { rounds: usize },
    /// Probes for more than `before` bytes a second.
    Probe { before: f64 },
    /// Lets the queue run empty.
    Drain,
    /// Measures the minimum round trip with half the window.
    MeasureRtt { rounds: u32 },
}

impl DeliveryRate {
    /// Returns a controller for packets of `packet_bytes`. The peer acknowledges by `acks`.
    pub fn new(packet_bytes: u16, acks: AckPolicy) -> Self {
        let packet_bytes = u64::from(packet_bytes);
        Self {
            acks,
            packet_bytes,
            window_bytes: INITIAL_WINDOW_PACKETS * packet_bytes,
            mode: Mode::startup(),
            sampler: Sampler::default(),
            rates: BestRate::default(),
            round: Round::default(),
            losses: Losses::default(),
            short_queue: false,
            rtt_min: None,
            stranded_bytes: 0,
            late_acks: 0,
        }
    }

    /// Returns the bytes that may be in flight.
    pub fn window_bytes(&self) -> u64 {
        (self.window_bytes + self.stranded_bytes).min(WINDOW_BYTES_MAX)
    }

    /// Returns the bandwidth estimate in bytes a second, 0 before the first.
    pub fn bandwidth_bytes_per_second(&self) -> f64 {
        self.rates.best()
    }

    /// Records that a packet was sent.
    pub fn on_sent(&mut self, now: Duration, bytes: u64) {
        let idle =
            self.sampler.in_flight_bytes == 0 && now.saturating_sub(self.sampler.last_sent) > IDLE_RESTART;
        if idle && !matches!(self.mode, Mode::Startup { .. }) {
            self.restart(self.window_bytes / 2);
            self.round.begin(now);
        }
        let spacing = self.rtt_min.map_or(Duration::ZERO, |rtt| rtt.value / 32);
        self.sampler.on_sent(now, bytes, spacing);
    }

    /// Records that a packet sent at `sent` was acknowledged.
    pub fn on_ack(&mut self, sent: Duration, bytes: u64) {
        self.sampler.on_ack(sent, bytes);
        self.losses.delivered_bytes += bytes;
        self.stranded_bytes = self.stranded_bytes.saturating_sub(bytes);
        if matches!(self.mode, Mode::Startup { .. }) {
            self.window_bytes = (self.window_bytes + bytes).min(WINDOW_BYTES_MAX);
        }
    }

    /// Ends the packets of one acknowledgement. `in_flight_bytes` are left. `app_limited` says that the
    /// application had no more to send.
    pub fn on_end_acks(&mut self, now: Duration, in_flight_bytes: u64, app_limited: bool) {
        self.sampler.in_flight_bytes = in_flight_bytes;
        let Some(sample) = self.sampler.finish(now) else { return };
        if app_limited {
            self.sampler.mark_app_limited();
        }
        if self.rtt_min.is_some_and(|rtt| sample.rtt > (rtt.value * 8).max(SILENCE)) {
            self.stranded_bytes = in_flight_bytes;
        }
        self.round.add_rtt(sample.rtt);
        self.count_late_acks(sample.rtt, sample.app_limited);
        // A rate over less than a round trip measures bunched acknowledgements, not the link.
        let shortest = self.rtt_min.map_or(Duration::ZERO, |rtt| rtt.value);
        if sample.interval >= shortest.max(SAMPLE_INTERVAL_MIN) {
            let rate = sample.delivered_bytes as f64 / sample.interval.as_secs_f64();
            self.round.add(rate, sample.app_limited);
        }
        if sample.app_limited
            && let Some(rate) = self.sampler.burst_rate(now, sample.newest_sent, shortest / BURST_OF_RTT)
        {
            self.round.add(rate, true);
        }
        if self.queue_grows() {
            self.mode = Mode::Settle { rounds: 1 };
            let settled = self.window_for(self.round.best_rate, SETTLE_GAIN);
            self.window_bytes = self.window_bytes.min(settled);
        }
        if self.round.is_over(now, sample.newest_sent) {
            self.end_round(now);
        }
        self.update_window();
    }

    /// Records lost packets. `persistent` means that nothing sent over several timeouts arrived.
    pub fn on_loss(&mut self, lost_bytes: u64, persistent: bool) {
        self.sampler.in_flight_bytes = self.sampler.in_flight_bytes.saturating_sub(lost_bytes);
        self.losses.lost_bytes += lost_bytes;
        self.stranded_bytes = self.stranded_bytes.saturating_sub(lost_bytes);
        if persistent {
            // The link was interrupted, and its rate is unknown now. Two doublings bring the old rate back.
            self.rates.forget();
            self.losses = Losses::default();
            self.restart(self.window_bytes / 4);
        }
    }

    /// Sets the size of packets from now on.
    pub fn on_packet_size(&mut self, packet_bytes: u16) {
        self.packet_bytes = u64::from(packet_bytes);
        self.window_bytes = self.clamped(self.window_bytes);
    }

    fn restart(&mut self, window_bytes: u64) {
        self.mode = Mode::startup();
        self.window_bytes = window_bytes.clamp(
            INITIAL_WINDOW_PACKETS * self.packet_bytes,
            WINDOW_BYTES_MAX.max(INITIAL_WINDOW_PACKETS * self.packet_bytes),
        );
        self.round = Round { began: self.round.began, ..Round::default() };
    }

    /// Counts late acknowledgements in a row. An application-limited sender does not fill the queue, so its
    /// samples do not count. The queue may be in the other direction.
    fn count_late_acks(&mut self, sample: Duration, app_limited: bool) {
        let known = self.rtt_min.map_or(sample, |rtt| rtt.value);
        let growth = known.mul_f64(STARTUP_RTT_GROWTH).max(STARTUP_RTT_GROWTH_MIN) + self.acks.delay_max;
        let is_late = !app_limited && sample > known + growth;
        self.late_acks = if is_late { self.late_acks + 1 } else { 0 };
    }

    fn learn_rtt(&mut self, now: Duration, round: &Round) {
        let Some(sample) = round.rtt() else { return };
        match &mut self.rtt_min {
            Some(known) if sample >= known.value => {
                if sample <= known.value.mul_f64(RTT_SAME) {
                    known.seen = now;
                }
            }
            known => *known = Some(RttMin { value: sample, seen: now }),
        }
    }

    /// Returns true if start-up must end early: the queue grows, so the link is full. One more doubling would
    /// overflow it.
    fn queue_grows(&self) -> bool {
        matches!(self.mode, Mode::Startup { .. })
            && self.late_acks >= STARTUP_LATE_ACKS
            && self.round.best_rate > 0.0
    }

    fn end_round(&mut self, now: Duration) {
        let round = self.round;
        self.round.begin(now);
        self.learn_rtt(now, &round);
        if round.counts(self.rates.best()) {
            self.rates.add(round.best_rate);
        }
        let mut overflow = false;
        if let Some(loss) = self.losses.judge(LOSS_SAMPLE_PACKETS * self.packet_bytes) {
            self.short_queue = loss > LOSS_OF_A_GOOD_LINK && self.queue_stands(&round);
            overflow = loss > LOSS_TOLERATED && self.short_queue;
        }
        if overflow && round.best_rate > 0.0 {
            self.rates.replace(round.best_rate.max(self.rates.best() * LOSS_CUT));
        }
        self.mode = self.next_mode(now, &round, overflow);
    }

    /// Returns true if not even the fastest packet of the round found an empty queue.
    fn queue_stands(&self, round: &Round) -> bool {
        self.rtt_min.zip(round.rtt()).is_some_and(|(known, least)| {
            least > known.value.mul_f64(STANDING_QUEUE).max(known.value + STANDING_QUEUE_MIN)
        })
    }

    fn next_mode(&mut self, now: Duration, round: &Round, overflow: bool) -> Mode {
        match self.mode {
            Mode::Startup { .. } if overflow => Mode::Drain,
            Mode::Startup { best_rate, flat_rounds } => {
                Mode::after_startup_round(round, best_rate, flat_rounds)
            }
            // Goes through the drain, because start-up leaves a queue behind.
            Mode::Settle { rounds: 0 } => Mode::Drain,
            Mode::Settle { rounds } => Mode::Settle { rounds: rounds - 1 },
            Mode::MeasureRtt { rounds: 0 } => {
                self.rtt_min = round.rtt().map(|value| RttMin { value, seen: now }).or(self.rtt_min);
                Mode::Cruise { rounds: 0 }
            }
            Mode::MeasureRtt { rounds } => Mode::MeasureRtt { rounds: rounds - 1 },
            _ if self.rtt_min.is_some_and(|rtt| now.saturating_sub(rtt.seen) > RTT_MIN_AGE) => {
                Mode::MeasureRtt { rounds: 1 }
            }
            Mode::Probe { before } if !overflow && round.best_rate > before * PROBE_SUCCESS => {
                Mode::Probe { before: round.best_rate }
            }
            Mode::Probe { .. } => Mode::Drain,
            Mode::Drain => Mode::Cruise { rounds: ROUNDS_REMEMBERED - 3 },
            Mode::Cruise { rounds: 0 } => Mode::Probe { before: self.rates.best() },
            Mode::Cruise { rounds } => Mode::Cruise { rounds: rounds - 1 },
        }
    }

    fn update_window(&mut self) {
        if self.rtt_min.is_none() {
            return;
        }
        let cruise = if self.short_queue { WINDOW_GAIN_SHORT_QUEUE } else { WINDOW_GAIN };
        let gain = match self.mode {
            Mode::Startup { .. } | Mode::Settle { .. } => return,
            Mode::Cruise { .. } => cruise,
            Mode::Probe { .. } => cruise * PROBE_GAIN,
            Mode::Drain => DRAIN_WINDOW_GAIN,
            Mode::MeasureRtt { .. } => 0.5,
        };
        self.window_bytes = self.window_for(self.rates.best(), gain);
    }

    /// Returns `gain` times the bandwidth-delay product at `rate`, plus the bytes hidden by delayed
    /// acknowledgements.
    fn window_for(&self, rate: f64, gain: f64) -> u64 {
        let rtt = self.rtt_min.map_or(RTT_FLOOR, |rtt| rtt.value.max(RTT_FLOOR));
        let held_back_bytes = (rate * self.acks.delay_max.as_secs_f64())
            .min((u64::from(self.acks.threshold_packets) * self.packet_bytes) as f64);
        self.clamped((rate * rtt.as_secs_f64() * gain + held_back_bytes) as u64)
    }

    fn clamped(&self, window_bytes: u64) -> u64 {
        let floor = WINDOW_PACKETS_MIN * self.packet_bytes;
        window_bytes.clamp(floor, WINDOW_BYTES_MAX.max(floor))
    }
}

impl Mode {
    fn startup() -> Self {
        Self::Startup { best_rate: 0.0, flat_rounds: 0 }
    }

    fn after_startup_round(round: &Round, best_rate: f64, flat_rounds: u32) -> Self {
        if round.app_limited || round.best_rate <= 0.0 {
            // Too little was sent to tell that the rate has stopped growing.
            return Self::Startup { best_rate, flat_rounds };
        }
        if round.best_rate >= best_rate * STARTUP_GROWTH {
            return Self::Startup { best_rate: round.best_rate, flat_rounds: 0 };
        }
        if flat_rounds + 1 >= STARTUP_FLAT_ROUNDS {
            return Self::Drain;
        }
        Self::Startup { best_rate, flat_rounds: flat_rounds + 1 }
    }
}

/// Smallest round trip and the time it was last seen.
#[derive(Clone, Copy, Debug)]
struct RttMin {
    value: Duration,
    seen: Duration,
}

/// Acknowledgements of one round trip. It ends when a packet sent after its beginning is acknowledged.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Duration,
    best_rate: f64,
    app_limited: bool,
    /// The two smallest round trips, `MAX` without samples.
    rtt_least: [Duration; 2],
}

impl Default for Round {
    fn default() -> Self {
        Self { began: Duration::ZERO, best_rate: 0.0, app_limited: false, rtt_least: [Duration::MAX; 2] }
    }
}

impl Round {
    fn begin(&mut self, now: Duration) {
        *self = Self { began: now, ..Self::default() };
    }

    fn add_rtt(&mut self, sample: Duration) {
        let [least, second] = &mut self.rtt_least;
        *second = (*second).min(sample.max(*least));
        *least = (*least).min(sample);
    }

    /// Returns the second smallest round trip of the round. On a busy machine quinn dates received packets
    /// back to its last wake-up. One such sample would make the route look shorter than light allows.
    fn rtt(&self) -> Option<Duration> {
        let [least, second] = self.rtt_least;
        let sample = if second == Duration::MAX { least } else { second };
        (sample != Duration::MAX).then(|| sample.max(Duration::from_micros(1)))
    }

    fn add(&mut self, rate: f64, app_limited: bool) {
        self.best_rate = self.best_rate.max(rate);
        self.app_limited |= app_limited;
    }

    fn is_over(&self, now: Duration, newest_sent: Duration) -> bool {
        newest_sent >= self.began && now.saturating_sub(self.began) >= ROUND_MIN
    }

    /// Returns true if the round may change the estimate. An application-limited round counts only if it is
    /// faster than the best.
    fn counts(&self, best_so_far: f64) -> bool {
        self.best_rate > 0.0 && (!self.app_limited || self.best_rate > best_so_far)
    }
}

/// Rates of the last rounds.
#[derive(Clone, Debug, Default)]
struct BestRate {
    rounds: VecDeque<f64>,
}

impl BestRate {
    fn best(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }

    fn add(&mut self, rate: f64) {
        if self.rounds.len() == ROUNDS_REMEMBERED {
            self.rounds.pop_front();
        }
        self.rounds.push_back(rate);
    }

    fn replace(&mut self, rate: f64) {
        self.forget();
        self.add(rate);
    }

    fn forget(&mut self) {
        self.rounds.clear();
    }
}

/// Bytes lost and delivered since the last judgement.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    lost_bytes: u64,
    delivered_bytes: u64,
}

impl Losses {
    /// Returns the share of lost bytes once `sample_bytes` have been counted, and starts counting anew.
    fn judge(&mut self, sample_bytes: u64) -> Option<f64> {
        let counted = self.lost_bytes + self.delivered_bytes;
        if counted < sample_bytes.max(1) {
            return None;
        }
        let share = self.lost_bytes as f64 / counted as f64;
        *self = Self::default();
        Some(share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ACKS: AckPolicy = AckPolicy { delay_max: Duration::from_millis(5), threshold_packets: 64 };
    const PACKET: u64 = 1_200;
    const RTT: Duration = Duration::from_millis(50);

    /// Sends `packets` at once and acknowledges all of them one round trip later.
    fn one_round(controller: &mut DeliveryRate, now: &mut Duration, packets: u64, app_limited: bool) {
        let sent = *now;
        (0..packets).for_each(|_| controller.on_sent(sent, PACKET));
        *now += RTT;
        (0..packets).for_each(|_| controller.on_ack(sent, PACKET));
        controller.on_end_acks(*now, 0, app_limited);
    }

    /// Returns a controller after rounds of 500 packets, and the time.
    fn settled() -> (DeliveryRate, Duration) {
        let mut controller = DeliveryRate::new(PACKET as u16, ACKS);
        let mut now = Duration::from_secs(1);
        for _ in 0..30 {
            one_round(&mut controller, &mut now, 500, false);
        }
        (controller, now)
    }

    #[test]
    fn settles_at_rate_times_round_trip() {
        let (controller, _) = settled();
        let pipe = 500 * PACKET;
        assert!((controller.bandwidth_bytes_per_second() - pipe as f64 / RTT.as_secs_f64()).abs() < 1.0);
        assert!(
            (pipe * 9 / 10..pipe * 17 / 10).contains(&controller.window_bytes()),
            "{}",
            controller.window_bytes()
        );
    }

    #[test]
    fn an_application_that_sends_little_does_not_lower_the_estimate() {
        let (mut controller, mut now) = settled();
        let before = controller.bandwidth_bytes_per_second();
        for _ in 0..100 {
            one_round(&mut controller, &mut now, 3, true);
        }
        assert!((controller.bandwidth_bytes_per_second() - before).abs() < 1.0);
        for _ in 0..=ROUNDS_REMEMBERED + 1 {
            one_round(&mut controller, &mut now, 30, false);
        }
        assert!(controller.bandwidth_bytes_per_second() < before / 10.0);
    }

    /// Models a host that receives writes. It sends small answers while the queue of the other direction
    /// grows.
    #[test]
    fn a_queue_in_the_other_direction_does_not_end_start_up() {
        let mut controller = DeliveryRate::new(PACKET as u16, ACKS);
        let mut now = Duration::from_secs(1);
        for round in 0..100u32 {
            let sent = now;
            (0..3).for_each(|_| controller.on_sent(sent, PACKET));
            now += if round < 10 { RTT } else { RTT * 3 / 2 };
            for _ in 0..3 {
                controller.on_ack(sent, PACKET);
                controller.on_end_acks(now, 0, true);
            }
        }
        assert!(
            controller.window_bytes() >= INITIAL_WINDOW_PACKETS * PACKET,
            "{}",
            controller.window_bytes()
        );
        assert!(matches!(controller.mode, Mode::Startup { .. }), "{:?}", controller.mode);
    }

    #[test]
    fn persistent_loss_starts_over_from_a_quarter() {
        let (mut controller, mut now) = settled();
        let before = controller.window_bytes();
        controller.on_loss(400 * PACKET, true);
        assert_eq!(controller.window_bytes(), before / 4);
        one_round(&mut controller, &mut now, before / 4 / PACKET, false);
        one_round(&mut controller, &mut now, before / 2 / PACKET, false);
        assert!(controller.window_bytes() > before * 8 / 10);
    }

    #[test]
    fn long_silence_halves_and_doubles_again() {
        let (mut controller, mut now) = settled();
        let before = controller.window_bytes();
        now += IDLE_RESTART * 2;
        controller.on_sent(now, PACKET);
        assert_eq!(controller.window_bytes(), before / 2);
    }

    proptest! {
        #[test]
        fn window_stays_within_its_bounds_for_any_reports(
            steps in prop::collection::vec((0..6_u8, 0..200_000_u64, 0..2_000_000_u64), 1..300),
        ) {
            let mut controller = DeliveryRate::new(1_200, ACKS);
            let mut now = Duration::ZERO;
            for (kind, micros, bytes) in steps {
                now += Duration::from_micros(micros);
                match kind {
                    0 | 1 => controller.on_sent(now, bytes),
                    2 => controller.on_ack(now.saturating_sub(Duration::from_micros(bytes)), bytes),
                    3 => controller.on_end_acks(now, bytes, bytes % 2 == 0),
                    4 => controller.on_loss(bytes, bytes % 7 == 0),
                    _ => controller.on_packet_size(if bytes % 2 == 0 { 1_200 } else { 65_507 }),
                }
                let window = controller.window_bytes();
                prop_assert!((WINDOW_PACKETS_MIN * 1_200..=WINDOW_BYTES_MAX).contains(&window), "{}", window);
                prop_assert!(controller.sampler.is_bounded());
                prop_assert!(controller.rates.rounds.len() <= ROUNDS_REMEMBERED);
            }
        }
    }
}
