//! Reader, prefetcher and link in simulated time. Counts the cost of plans in round trips and bytes.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{CursorId, Demand, Limits, Plan, Prefetcher, window_limit};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkIndex};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const RTT: Duration = Duration::from_millis(50);
const GIGABIT: u64 = 125_000_000;

/// Bytes that the host has to send, and their purpose.
struct Job {
    ready: Instant,
    bytes: u64,
    chunk: Option<u64>,
    cursor: Option<CursorId>,
}

/// One reader at a time over a link that sends one chunk after another, demands first.
struct Simulation {
    now: Instant,
    start: Instant,
    size: u64,
    bytes_per_second: u64,
    share_bytes: u64,
    prefetcher: Prefetcher,
    demanded: VecDeque<Job>,
    ahead: VecDeque<Job>,
    /// Chunks in flight or arrived.
    asked: BTreeSet<u64>,
    /// Chunks and their arrival times.
    arrived: std::collections::BTreeMap<u64, Instant>,
    piece_arrived: Instant,
    link_free: Instant,
    wire_bytes: u64,
}

impl Simulation {
    fn new(size: u64) -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            size,
            bytes_per_second: GIGABIT,
            share_bytes: 48 * MIB,
            prefetcher: Prefetcher::new(),
            demanded: VecDeque::new(),
            ahead: VecDeque::new(),
            asked: BTreeSet::new(),
            arrived: std::collections::BTreeMap::new(),
            piece_arrived: start,
            link_free: start,
            wire_bytes: 0,
        }
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Reads and waits. Returns the time taken.
    fn read(&mut self, offset: u64, len: u64) -> Duration {
        let begun = self.now;
        let limits = Limits { window_bytes_max: window_limit(self.share_bytes, RTT, self.bytes_per_second) };
        let range = ByteRange::new(offset, len).clamp_to(self.size);
        let plan = self.prefetcher.on_read(self.now, range, self.size, limits);
        self.execute(&plan);
        match plan.demand {
            Demand::Piece(_) => {
                while !self.demanded.is_empty() {
                    self.send_next();
                }
                self.now = self.now.max(self.piece_arrived);
            }
            Demand::Chunks(chunks) => {
                for index in chunks.iter() {
                    while !self.arrived.contains_key(&index.0) {
                        self.send_next();
                    }
                    self.now = self.now.max(self.arrived[&index.0]);
                }
            }
        }
        // The copy to the reader, at 4 GB/s.
        self.now += Duration::from_nanos(range.len / 4);
        self.now - begun
    }

    fn execute(&mut self, plan: &Plan) {
        let ready = self.now + RTT / 2;
        for cursor in &plan.cancel {
            let (dropped, kept) = self.ahead.drain(..).partition(|job| job.cursor == Some(*cursor));
            self.ahead = kept;
            let dropped: VecDeque<Job> = dropped;
            self.asked.retain(|index| dropped.iter().all(|job| job.chunk != Some(*index)));
        }
        match plan.demand {
            Demand::Piece(piece) => {
                self.demanded.push_back(Job { ready, bytes: piece.len, chunk: None, cursor: None });
            }
            Demand::Chunks(chunks) => {
                for index in chunks.iter().filter(|index| self.asked.insert(index.0)) {
                    let bytes = index.bytes_in(self.size).len;
                    self.demanded.push_back(Job { ready, bytes, chunk: Some(index.0), cursor: None });
                }
            }
        }
        let Some(ahead) = plan.ahead else { return };
        for index in ahead.range.iter().filter(|index| self.asked.insert(index.0)) {
            let bytes = index.bytes_in(self.size).len;
            let cursor = Some(ahead.cursor);
            self.ahead.push_back(Job { ready, bytes, chunk: Some(index.0), cursor });
        }
    }

    fn send_next(&mut self) {
        let demand_ready = self.demanded.front().map(|job| job.ready.max(self.link_free));
        let ahead_ready = self.ahead.front().map(|job| job.ready.max(self.link_free));
        let demand_first = match (demand_ready, ahead_ready) {
            (Some(demand), Some(ahead)) => demand <= ahead,
            (demand, _) => demand.is_some(),
        };
        let queue = if demand_first { &mut self.demanded } else { &mut self.ahead };
        let job = queue.pop_front().expect("the reader waits for something that was asked for");
        let took = Duration::from_nanos(job.bytes * 1_000_000_000 / GIGABIT);
        self.link_free = job.ready.max(self.link_free) + took;
        self.wire_bytes += job.bytes;
        match job.chunk {
            Some(index) => drop(self.arrived.insert(index, self.link_free + RTT / 2)),
            None => self.piece_arrived = self.link_free + RTT / 2,
        }
    }

    /// Returns the requested bytes that have not arrived yet.
    fn in_flight_bytes(&self) -> u64 {
        let here = self.arrived.values().filter(|at| **at <= self.now).count() as u64;
        (self.asked.len() as u64 - here) * CHUNK_BYTES
    }
}

fn sequential_fills_the_link(read_bytes: u64, bytes_per_second: u64) {
    let mut simulation = Simulation::new(GIB);
    simulation.bytes_per_second = bytes_per_second;
    let mut in_flight = 0;
    for offset in (0..GIB).step_by(read_bytes as usize) {
        simulation.read(offset, read_bytes);
        if simulation.elapsed() <= RTT * 4 {
            in_flight = in_flight.max(simulation.in_flight_bytes());
        }
    }
    assert!(in_flight >= 6_250_000, "{in_flight} bytes in flight with reads of {read_bytes}");
    let ideal = Duration::from_nanos(GIB * 1_000_000_000 / GIGABIT);
    let took = simulation.elapsed();
    assert!(took <= ideal + RTT * 3, "{took:?}, where the link alone needs {ideal:?}");
    assert_eq!(simulation.wire_bytes, GIB);
}

#[test]
fn cat_fills_a_long_link_within_four_round_trips() {
    sequential_fills_the_link(128 * 1024, GIGABIT);
    sequential_fills_the_link(256 * 1024, GIGABIT);
}

#[test]
fn cp_fills_a_long_link_within_four_round_trips() {
    sequential_fills_the_link(MIB, GIGABIT);
}

#[test]
fn a_link_of_unknown_rate_is_filled_as_well() {
    sequential_fills_the_link(128 * 1024, 0);
}

/// Simulates a viewer that seeks and reads 2 MiB in calls of 1 MiB, which the kernel cuts into requests of
/// `request_bytes`.
fn scrub(request_bytes: u64, seeks: u64, bytes_per_second: u64) -> Simulation {
    let mut simulation = Simulation::new(10 * GIB);
    simulation.bytes_per_second = bytes_per_second;
    for seek in 0..seeks {
        let at = (seek * 7_919 % 101) * 100 * MIB + seek * 4_099;
        let took: Duration = (0..2 * MIB / request_bytes)
            .map(|i| simulation.read(at + i * request_bytes, request_bytes))
            .sum();
        assert!(took <= RTT + Duration::from_millis(40), "seek {seek} took {took:?}");
    }
    simulation
}

#[test]
fn a_seek_costs_a_round_trip() {
    scrub(MIB, 20, GIGABIT);
    scrub(128 * 1024, 20, GIGABIT);
    scrub(MIB, 20, 0);
    // The rate as measured during a film.
    scrub(MIB, 20, 1_000_000);
}

#[test]
fn scrubbing_learns_the_length_of_a_seek() {
    let simulation = scrub(MIB, 40, GIGABIT);
    let used = 40 * 2 * MIB;
    let bound = used + 40 * CHUNK_BYTES + 12 * MIB;
    assert!(simulation.wire_bytes <= bound, "{} bytes for {used}", simulation.wire_bytes);
}

#[test]
fn small_random_reads_cost_a_round_trip_and_few_bytes() {
    for size in [64 * MIB, 256 * MIB, 10 * GIB] {
        let mut simulation = Simulation::new(size);
        let mut random = 88_172_645_463_325_252_u64;
        for _ in 0..500 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let took = simulation.read(random % size / 4096 * 4096, 4096);
            assert!(took <= RTT + Duration::from_millis(5), "{took:?}");
        }
        assert!(simulation.wire_bytes <= 500 * 128 * 1024, "{} bytes", simulation.wire_bytes);
    }
}

#[test]
fn a_header_costs_its_bytes() {
    for first in [4096, 16 * 1024] {
        let mut simulation = Simulation::new(10 * GIB);
        simulation.read(0, first);
        assert!(simulation.wire_bytes <= 64 * 1024);
        assert!(simulation.ahead.is_empty());
    }
}

#[test]
fn a_reader_of_pages_is_detected() {
    let mut simulation = Simulation::new(64 * MIB);
    for offset in (0..64 * MIB).step_by(4096) {
        simulation.read(offset, 4096);
    }
    let ideal = Duration::from_nanos(64 * MIB * 1_000_000_000 / GIGABIT);
    assert!(simulation.elapsed() <= ideal + RTT * 7, "{:?}", simulation.elapsed());
}

#[test]
fn a_film_starts_with_its_index_at_the_end() {
    let size = 4 * GIB;
    let mut simulation = Simulation::new(size);
    simulation.read(0, 32 * 1024);
    let index = size - 3 * MIB;
    for offset in (index..size).step_by(32 * 1024) {
        simulation.read(offset, 32 * 1024);
    }
    for offset in (48..20 * MIB).step_by(64 * 1024) {
        simulation.read(offset, 64 * 1024);
    }
    let ideal = Duration::from_nanos(23 * MIB * 1_000_000_000 / GIGABIT);
    assert!(simulation.elapsed() <= ideal + RTT * 12, "{:?}", simulation.elapsed());
    // Only the window behind the reader was unused.
    assert!(simulation.wire_bytes <= 23 * MIB + 20 * MIB);
    let last = ChunkIndex::containing(size - 1);
    assert!(simulation.asked.iter().all(|index| *index <= last.0));
}
