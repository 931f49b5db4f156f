//! Counters of a client and its connections, for `status`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::link::Phase;
use super::shared::{Shared, locked};
use crate::proto::TrustReason;
use crate::transport::LinkStats;

/// Counters and state of the link to a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClientStatistics {
    /// `connected`, `silent`, `reconnecting`, `down` or `refused`.
    pub state: &'static str,
    /// The protocol below: `quic` or `tcp`; `none` while there is no connection.
    pub transport: &'static str,
    /// Address of the host, absent while there is no connection.
    pub address: Option<String>,
    /// Reason for the trust class of the root's file system.
    pub trust_reason: TrustReason,
    /// Connections in use now.
    pub connections: usize,
    /// Round-trip time, smoothed, in milliseconds; 0 while there is no connection.
    pub rtt_ms: f64,
    /// Recent rate of arriving content, in bytes per second, 0 while unknown.
    pub bytes_per_second: u64,
    /// UDP payload received over all connections ever, in bytes.
    pub bytes_received: u64,
    /// UDP payload sent over all connections ever, in bytes.
    pub bytes_sent: u64,
    /// Content received, in bytes, before it was verified.
    pub content_bytes: u64,
    /// Calls made.
    pub requests: u64,
    /// Calls under way.
    pub requests_in_flight: usize,
    /// Reconnections after the first connections.
    pub reconnects: u64,
    /// Restarts of the host that were noticed.
    pub instance_changes: u64,
    /// Answers that could not be used.
    pub bad_answers: u64,
    /// QUIC packets sent over all connections ever.
    pub packets_sent: u64,
    /// Packets declared lost.
    pub packets_lost: u64,
    /// UDP payload of a full packet, in bytes; 0 while there is no connection.
    pub mtu_bytes: u16,
    /// The smaller of the socket's buffers, in bytes, absent while there is no connection over QUIC.
    pub udp_buffer_bytes: Option<usize>,
    /// Congestion window towards the host in bytes, over all connections.
    pub congestion_window_bytes: u64,
}

/// Counters over the life of a client.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) requests: AtomicU64,
    pub(super) content_bytes: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) bad_answers: AtomicU64,
    retired: Mutex<Wire>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wire {
    bytes_received: u64,
    bytes_sent: u64,
    packets_sent: u64,
    packets_lost: u64,
}

impl Wire {
    const fn add(&mut self, stats: &LinkStats) {
        self.bytes_received += stats.bytes_received;
        self.bytes_sent += stats.bytes_sent;
        self.packets_sent += stats.sent_packets;
        self.packets_lost += stats.lost_packets;
    }
}

impl Totals {
    /// Adds the counters of a connection that has ended.
    pub(super) fn retire(&self, stats: &LinkStats) {
        locked(&self.retired).add(stats);
    }
}

impl Shared {
    pub(super) fn statistics(&self) -> ClientStatistics {
        let mut wire = *locked(&self.totals.retired);
        let states: Vec<_> = self.states().collect();
        let live: Vec<_> = states.iter().filter_map(|state| state.live.as_ref()).collect();
        let stats: Vec<_> = live.iter().map(|live| live.connection.stats()).collect();
        for stats in &stats {
            wire.add(stats);
        }
        let best = states.iter().map(|state| state.phase).min_by_key(|phase| *phase as u8);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientStatistics {
            state: best.map_or("down", name),
            transport: live.first().map_or("none", |live| live.connection.kind().name()),
            address: live.first().map(|live| live.connection.remote_address().to_string()),
            trust_reason: self.trust_reason(),
            connections: live.len(),
            rtt_ms: stats.first().map_or(0.0, |stats| stats.rtt.as_secs_f64() * 1e3),
            bytes_per_second: self.meter().bytes_per_second(),
            bytes_received: wire.bytes_received,
            bytes_sent: wire.bytes_sent,
            content_bytes: count(&self.totals.content_bytes),
            requests: count(&self.totals.requests),
            requests_in_flight: self.calls(),
            reconnects: count(&self.totals.reconnects),
            instance_changes: *self.instance_changes.borrow(),
            bad_answers: count(&self.totals.bad_answers),
            packets_sent: wire.packets_sent,
            packets_lost: wire.packets_lost,
            mtu_bytes: stats.first().map_or(0, |stats| stats.mtu_bytes),
            udp_buffer_bytes: live.iter().find_map(|live| live.udp_buffer_bytes()),
            congestion_window_bytes: stats.iter().map(|stats| stats.congestion_window_bytes).sum(),
        }
    }
}

const fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Connected => "connected",
        Phase::Silent => "silent",
        Phase::Reconnecting => "reconnecting",
        Phase::Down => "down",
        Phase::Refused => "refused",
    }
}
