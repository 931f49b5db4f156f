//! A link in simulated time, with quinn's rules of sending around the controller. Whole transfers take
//! milliseconds and always give the same result.
//!
//! Modelled of quinn: window check, pacer (1.25 x window / smoothed rtt, 2 ms of burst), loss by packet
//! threshold 3 and time threshold 9/8, timeouts with probes, persistent congestion. Modelled of the peer: an
//! acknowledgement after 64 packets, 5 ms, a gap, or a second of silence. Modelled of the link: rate, delay,
//! drop-tail queue, random loss, an interruption.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::Range,
    time::Duration,
};

use proptest::prelude::*;

use super::delivery::{AckPolicy, DeliveryRate};

const PACKET_BYTES: u16 = 1_452;
const ACKS: AckPolicy = AckPolicy { delay_max: Duration::from_millis(5), threshold_packets: 64 };

/// The forward direction with the bottleneck. The way back carries acknowledgements and has only the delay.
#[derive(Clone, Debug)]
struct Link {
    bytes_per_second: f64,
    rtt: Duration,
    queue_bytes: u64,
    loss: f64,
    cut: Range<Duration>,
}

impl Link {
    fn new(megabits_per_second: u64, rtt_ms: u64, loss: f64) -> Self {
        let bytes_per_second = megabits_per_second as f64 * 125_000.0;
        let rtt = Duration::from_millis(rtt_ms);
        let queue_bytes = (bytes_per_second * rtt.as_secs_f64()) as u64;
        let cut = Duration::MAX..Duration::MAX;
        Self { bytes_per_second, rtt, queue_bytes: queue_bytes.max(256 << 10), loss, cut }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start,
    /// The application has so many more bytes to send.
    Write {
        bytes: u64,
    },
    Arrive {
        number: u64,
    },
    AckTimer {
        epoch: u64,
    },
    KeepAlive,
    Ack {
        received_until: u64,
    },
    Pace,
    Timeout {
        epoch: u64,
    },
}

struct Packet {
    sent: Duration,
    received: Option<Duration>,
}

struct Flow {
    controller: DeliveryRate,
    /// Bytes that the application has yet to send, and the time at which nothing was in flight.
    backlog_bytes: u64,
    last_written: Duration,
    /// Times that each [`Event::Write`] took to be acknowledged.
    took: Vec<Duration>,
    outstanding: BTreeMap<u64, Packet>,
    next_number: u64,
    largest_acked: Option<u64>,
    in_flight_bytes: u64,
    smoothed_rtt: Duration,
    rtt_variation: Duration,
    rtt_sampled: bool,
    tokens: f64,
    refilled: Duration,
    pace_pending: bool,
    timeouts: u32,
    timeout_epoch: u64,
    unacked_packets: u32,
    largest_received: Option<u64>,
    ack_epoch: u64,
    delivered_bytes: u64,
    lost_packets: u64,
    sent_packets: u64,
    /// Time, delivered bytes and rtt of the newest packet at each acknowledgement.
    trace: Vec<(Duration, u64, Duration)>,
}

impl Flow {
    fn new() -> Self {
        Self {
            controller: DeliveryRate::new(PACKET_BYTES, ACKS),
            backlog_bytes: 0,
            last_written: Duration::ZERO,
            took: Vec::new(),
            outstanding: BTreeMap::new(),
            next_number: 0,
            largest_acked: None,
            in_flight_bytes: 0,
            smoothed_rtt: Duration::from_millis(100),
            rtt_variation: Duration::from_millis(50),
            rtt_sampled: false,
            tokens: 10.0 * f64::from(PACKET_BYTES),
            refilled: Duration::ZERO,
            pace_pending: false,
            timeouts: 0,
            timeout_epoch: 0,
            unacked_packets: 0,
            largest_received: None,
            ack_epoch: 0,
            delivered_bytes: 0,
            lost_packets: 0,
            sent_packets: 0,
            trace: Vec::new(),
        }
    }

    fn timeout_after(&self) -> Duration {
        (self.smoothed_rtt + self.rtt_variation * 4 + ACKS.delay_max) * 2_u32.pow(self.timeouts.min(6))
    }

    /// Returns the packets lost and sent so far.
    fn packets(&self) -> (u64, u64) {
        (self.lost_packets, self.sent_packets)
    }

    /// Returns the bytes delivered between two moments, by the acknowledgements.
    fn delivered_between(&self, from: Duration, to: Duration) -> u64 {
        let at =
            |when| self.trace.iter().take_while(|(time, ..)| *time <= when).last().map_or(0, |entry| entry.1);
        at(to) - at(from)
    }
}

struct Simulation {
    link: Link,
    flows: Vec<Flow>,
    now: Duration,
    link_free: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, usize, Event)>>,
    sequence: u64,
    random: u64,
}

impl Simulation {
    fn new(link: Link, begins: &[Duration], seed: u64) -> Self {
        let flows = begins.iter().map(|_| Flow::new()).collect();
        let mut simulation = Self {
            link,
            flows,
            now: Duration::ZERO,
            link_free: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            random: seed,
        };
        for (index, &begin) in begins.iter().enumerate() {
            simulation.schedule(begin, index, Event::Start);
            simulation.schedule(begin, index, Event::KeepAlive);
        }
        simulation
    }

    fn schedule(&mut self, at: Duration, flow: usize, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, flow, event)));
    }

    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(&Reverse((at, _, flow, event))) = self.events.peek() {
            if at > end {
                break;
            }
            self.events.pop();
            self.now = at;
            match event {
                Event::Start => self.write(flow, u64::MAX),
                Event::Write { bytes } => self.write(flow, bytes),
                Event::Pace => {
                    self.flows[flow].pace_pending = false;
                    self.send(flow);
                }
                Event::Arrive { number } => self.arrive(flow, number),
                Event::AckTimer { epoch } if epoch == self.flows[flow].ack_epoch => self.send_ack(flow),
                Event::Ack { received_until } => self.handle_ack(flow, Duration::from_nanos(received_until)),
                Event::Timeout { epoch } if epoch == self.flows[flow].timeout_epoch => self.time_out(flow),
                Event::KeepAlive => {
                    self.send_ack(flow);
                    self.schedule(at + Duration::from_secs(1), flow, Event::KeepAlive);
                }
                Event::AckTimer { .. } | Event::Timeout { .. } => {}
            }
        }
        self.now = end;
    }

    fn write(&mut self, index: usize, bytes: u64) {
        let flow = &mut self.flows[index];
        flow.backlog_bytes = bytes;
        flow.last_written = self.now;
        self.send(index);
    }

    fn send(&mut self, index: usize) {
        let bytes = f64::from(PACKET_BYTES);
        while self.flows[index].backlog_bytes > 0 {
            let now = self.now;
            let flow = &mut self.flows[index];
            let window = flow.controller.window_bytes();
            if flow.in_flight_bytes + u64::from(PACKET_BYTES) >= window {
                return;
            }
            let rate = 1.25 * window as f64 / flow.smoothed_rtt.as_secs_f64();
            let capacity =
                (window as f64 * 0.002 / flow.smoothed_rtt.as_secs_f64()).clamp(10.0 * bytes, 256.0 * bytes);
            flow.tokens =
                (flow.tokens + rate * now.saturating_sub(flow.refilled).as_secs_f64()).min(capacity);
            flow.refilled = now;
            if flow.tokens < bytes {
                let wait = Duration::from_secs_f64((capacity - flow.tokens) / rate) + Duration::from_nanos(1);
                if !flow.pace_pending {
                    flow.pace_pending = true;
                    self.schedule(now + wait, index, Event::Pace);
                }
                return;
            }
            flow.tokens -= bytes;
            flow.backlog_bytes = flow.backlog_bytes.saturating_sub(u64::from(PACKET_BYTES));
            self.transmit(index);
        }
    }

    fn transmit(&mut self, index: usize) {
        let now = self.now;
        let lost = self.chance() < self.link.loss || self.link.cut.contains(&now);
        let flow = &mut self.flows[index];
        let number = flow.next_number;
        flow.next_number += 1;
        flow.sent_packets += 1;
        flow.in_flight_bytes += u64::from(PACKET_BYTES);
        flow.outstanding.insert(number, Packet { sent: now, received: None });
        flow.controller.on_sent(now, u64::from(PACKET_BYTES));
        if flow.outstanding.len() == 1 {
            self.arm_timeout(index);
        }
        let waiting = self.link_free.saturating_sub(now);
        if waiting.as_secs_f64() * self.link.bytes_per_second > self.link.queue_bytes as f64 {
            return;
        }
        self.link_free =
            now + waiting + Duration::from_secs_f64(f64::from(PACKET_BYTES) / self.link.bytes_per_second);
        if !lost {
            self.schedule(self.link_free + self.link.rtt / 2, index, Event::Arrive { number });
        }
    }

    fn arrive(&mut self, index: usize, number: u64) {
        let now = self.now;
        let flow = &mut self.flows[index];
        if let Some(packet) = flow.outstanding.get_mut(&number) {
            packet.received = Some(now);
        }
        let gap = flow.largest_received.is_some_and(|largest| number > largest + 1);
        flow.largest_received = flow.largest_received.max(Some(number));
        flow.unacked_packets += 1;
        if flow.unacked_packets > ACKS.threshold_packets || gap {
            self.send_ack(index);
        } else if flow.unacked_packets == 1 {
            flow.ack_epoch += 1;
            let epoch = flow.ack_epoch;
            self.schedule(now + ACKS.delay_max, index, Event::AckTimer { epoch });
        }
    }

    fn send_ack(&mut self, index: usize) {
        let now = self.now;
        let flow = &mut self.flows[index];
        flow.unacked_packets = 0;
        flow.ack_epoch += 1;
        if !self.link.cut.contains(&now) {
            let received_until = now.as_nanos() as u64;
            self.schedule(now + self.link.rtt / 2, index, Event::Ack { received_until });
        }
    }

    fn handle_ack(&mut self, index: usize, received_until: Duration) {
        let now = self.now;
        let flow = &mut self.flows[index];
        let arrived = |packet: &Packet| packet.received.is_some_and(|received| received <= received_until);
        let acked: Vec<(u64, Duration)> = flow
            .outstanding
            .iter()
            .filter(|(_, packet)| arrived(packet))
            .map(|(&number, packet)| (number, packet.sent))
            .collect();
        let Some(&(newest, newest_sent)) = acked.last() else { return };
        for (number, sent) in &acked {
            flow.outstanding.remove(number);
            flow.in_flight_bytes -= u64::from(PACKET_BYTES);
            flow.delivered_bytes += u64::from(PACKET_BYTES);
            flow.controller.on_ack(*sent, u64::from(PACKET_BYTES));
        }
        flow.controller.on_end_acks(now, flow.in_flight_bytes, flow.backlog_bytes == 0);
        if flow.backlog_bytes == 0 && flow.in_flight_bytes == 0 {
            flow.took.push(now.saturating_sub(flow.last_written));
        }
        flow.largest_acked = flow.largest_acked.max(Some(newest));
        let rtt = now.saturating_sub(newest_sent);
        flow.rtt_variation = (flow.rtt_variation * 3 + flow.smoothed_rtt.abs_diff(rtt)) / 4;
        flow.smoothed_rtt = if flow.rtt_sampled { (flow.smoothed_rtt * 7 + rtt) / 8 } else { rtt };
        flow.rtt_sampled = true;
        flow.trace.push((now, flow.delivered_bytes, rtt));
        flow.timeouts = 0;
        self.detect_losses(index, rtt);
        self.arm_timeout(index);
        self.send(index);
    }

    fn detect_losses(&mut self, index: usize, latest_rtt: Duration) {
        let now = self.now;
        let flow = &mut self.flows[index];
        let Some(largest) = flow.largest_acked else { return };
        let delay = flow.smoothed_rtt.max(latest_rtt) * 9 / 8;
        let lost: Vec<(u64, Duration)> = flow
            .outstanding
            .range(..largest)
            .filter(|(number, packet)| largest >= **number + 3 || now.saturating_sub(packet.sent) >= delay)
            .map(|(&number, packet)| (number, packet.sent))
            .collect();
        if lost.is_empty() {
            return;
        }
        let mut run_began = lost[0];
        let mut longest_run = Duration::ZERO;
        for pair in lost.windows(2) {
            if pair[1].0 != pair[0].0 + 1 {
                run_began = pair[1];
            }
            longest_run = longest_run.max(pair[1].1.saturating_sub(run_began.1));
        }
        for (number, _) in &lost {
            flow.outstanding.remove(number);
            flow.in_flight_bytes -= u64::from(PACKET_BYTES);
            flow.lost_packets += 1;
        }
        let persistent = longest_run > flow.timeout_after() * 3;
        flow.controller.on_loss(lost.len() as u64 * u64::from(PACKET_BYTES), persistent);
    }

    fn arm_timeout(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        flow.timeout_epoch += 1;
        let (epoch, after) = (flow.timeout_epoch, flow.timeout_after());
        self.schedule(self.now + after, index, Event::Timeout { epoch });
    }

    fn time_out(&mut self, index: usize) {
        if self.flows[index].outstanding.is_empty() {
            return;
        }
        self.flows[index].timeouts += 1;
        self.transmit(index);
        self.transmit(index);
        self.arm_timeout(index);
    }

    /// Returns the share of the link's capacity that a flow used between two moments.
    fn utilisation(&self, flow: usize, from: Duration, to: Duration) -> f64 {
        let delivered = self.flows[flow].delivered_between(from, to);
        delivered as f64 / (self.link.bytes_per_second * to.saturating_sub(from).as_secs_f64())
    }
}

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value)
}

fn one_flow(link: Link, end: Duration, seed: u64) -> Simulation {
    let mut simulation = Simulation::new(link, &[Duration::ZERO], seed);
    simulation.run_until(end);
    simulation
}

/// Returns the round trips in the steady state, ascending.
fn round_trips_after(simulation: &Simulation, from: Duration) -> Vec<Duration> {
    let trace = simulation.flows[0].trace.iter();
    let mut round_trips: Vec<_> = trace.filter(|entry| entry.0 > from).map(|entry| entry.2).collect();
    round_trips.sort();
    round_trips
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn fills_long_and_lossy_links_without_filling_their_queues(seed: u64) {
        for (megabits, rtt_ms, loss) in [(1_000, 50, 0.0), (200, 50, 0.01), (100, 100, 0.03), (10, 20, 0.0)] {
            let mut simulation = one_flow(Link::new(megabits, rtt_ms, loss), seconds(2.0), seed);
            let (lost_at_start, sent_at_start) = simulation.flows[0].packets();
            simulation.run_until(seconds(6.0));
            let used = simulation.utilisation(0, seconds(2.0), seconds(6.0));
            prop_assert!(used >= 0.8, "{megabits} Mbit/s, {rtt_ms} ms, loss {loss}: {used:.2} used");
            let round_trips = round_trips_after(&simulation, seconds(2.0));
            let worst = round_trips[round_trips.len() * 99 / 100];
            prop_assert!(worst < Duration::from_millis(2 * rtt_ms), "{megabits} Mbit/s, {rtt_ms} ms: rtt {worst:?}");
            let (lost, sent) = simulation.flows[0].packets();
            // Start-up may overflow the queue once. Only the loss afterwards counts.
            prop_assert!(lost_at_start < sent_at_start / 4, "{lost_at_start} of {sent_at_start} lost at the start");
            let lost = (lost - lost_at_start) as f64 / (sent - sent_at_start) as f64;
            prop_assert!(lost < loss + 0.01, "{megabits} Mbit/s, {rtt_ms} ms, loss {loss}: {lost:.3} lost");
        }
    }

    /// Bursts of 2.4 MB, like seeks in a film. Each is a third of the bandwidth-delay product.
    #[test]
    fn bursts_come_to_be_sent_as_fast_as_the_link_carries(seed: u64, pause_ms in 1..400_u64) {
        let mut simulation = Simulation::new(Link::new(1_000, 50, 0.0), &[], seed);
        simulation.flows.push(Flow::new());
        for burst in 0..20 {
            let at = Duration::from_millis(burst * (400 + pause_ms));
            simulation.schedule(at, 0, Event::Write { bytes: 2_400_000 });
        }
        simulation.run_until(seconds(30.0));
        let flow = &simulation.flows[0];
        prop_assert_eq!(flow.took.len(), 20);
        // A round trip, 19 ms of the link, 5 ms of a delayed acknowledgement, and a tenth.
        prop_assert!(flow.took[5..].iter().all(|took| *took < Duration::from_millis(82)), "{:?}", flow.took);
        prop_assert!(flow.lost_packets * 50 < flow.sent_packets, "{:?}", flow.packets());
    }

    #[test]
    fn heavy_random_loss_does_not_starve_it(seed: u64) {
        let simulation = one_flow(Link::new(50, 50, 0.12), seconds(10.0), seed);
        prop_assert!(simulation.utilisation(0, seconds(3.0), seconds(10.0)) >= 0.6);
    }

    #[test]
    fn a_short_queue_costs_little(seed: u64) {
        let mut link = Link::new(200, 50, 0.0);
        link.queue_bytes = 125_000;
        let simulation = one_flow(link, seconds(10.0), seed);
        prop_assert!(simulation.utilisation(0, seconds(2.0), seconds(10.0)) >= 0.8);
        let flow = &simulation.flows[0];
        prop_assert!(flow.lost_packets * 8 < flow.sent_packets);
    }

    #[test]
    fn comes_back_within_few_round_trips_of_a_cut(seed: u64, cut_ms in 100..12_000_u64) {
        let mut link = Link::new(100, 50, 0.0);
        let back = seconds(4.0) + Duration::from_millis(cut_ms);
        link.cut = seconds(4.0)..back;
        let simulation = one_flow(link, back + seconds(10.0), seed);
        let first = simulation.flows[0].trace.iter().find(|entry| entry.0 > back).map(|entry| entry.0);
        let first = first.expect("the timeout's probe goes through");
        let used = simulation.utilisation(0, first + seconds(0.5), first + seconds(1.5));
        prop_assert!(used >= 0.7, "after a cut of {cut_ms} ms {used:.2} used");
    }

    #[test]
    fn two_flows_share(seed: u64, head_start_ms in 0..3_000_u64) {
        let begins = [Duration::ZERO, Duration::from_millis(head_start_ms)];
        let mut simulation = Simulation::new(Link::new(100, 50, 0.0), &begins, seed);
        simulation.run_until(seconds(25.0));
        let shares = [0, 1].map(|flow| simulation.utilisation(flow, seconds(10.0), seconds(25.0)));
        prop_assert!(shares[0] < 3.0 * shares[1] && shares[1] < 3.0 * shares[0], "{shares:?}");
        prop_assert!(shares[0] + shares[1] >= 0.8, "{shares:?}");
    }
}
