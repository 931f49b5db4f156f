//! Choice of the protocol, and every number given to quinn, with its reason.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use quinn::{AckFrequencyConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::{
    congestion::{AckPolicy, CongestionKind},
    route::{Route, UDP_PAYLOAD_BYTES_MAX, UDP_PAYLOAD_BYTES_MIN},
};

/// Default memory of a connection in each direction. 1 Gbit/s at 250 ms needs 32 MiB.
pub const CONNECTION_MEMORY_BYTES_DEFAULT: u64 = 32 << 20;
/// Smallest memory. With less, a link of 100 Mbit/s and 100 ms could not be filled.
const CONNECTION_MEMORY_BYTES_MIN: u64 = 2 << 20;
/// Largest memory, 1 GiB. QUIC windows could be larger, but no sensible budget is.
const CONNECTION_MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Part of the connection's window that one stream gets. An unread stream leaves room for others.
const STREAM_SHARE_OF_CONNECTION: u64 = 4;

/// Bytes that an unadmitted client may send on all streams: several times the longest hello. (`tcp::frame`
/// has the same limit.)
const UNADMITTED_WINDOW_BYTES: u64 = 64 << 10;
/// Streams that an unadmitted client may open: one for its hello, and a few more before the answer arrives.
const UNADMITTED_STREAMS_MAX: u32 = 4;

/// Protocol that carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl TransportKind {
    /// Returns the name used in options and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// Protocols that may carry a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// The protocol that suits the route: TCP if the route is short or blocks UDP, else QUIC. A host listens
    /// for both.
    #[default]
    Auto,
    /// Only this protocol.
    Only(TransportKind),
}

impl TransportChoice {
    /// Returns true if `kind` may be used.
    pub fn allows(self, kind: TransportKind) -> bool {
        self == Self::Auto || self == Self::Only(kind)
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Only(kind) => kind.name(),
        })
    }
}

impl FromStr for TransportChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Auto, Self::Only(TransportKind::Quic), Self::Only(TransportKind::Tcp)];
        let found = all.into_iter().find(|choice| choice.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no transport: use auto, quic or tcp"))
    }
}

/// Parameters of a connection. The defaults suit everything from loopback to a lossy 1 Gbit/s at 250 ms.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportTuning {
    /// Protocols that may carry it.
    pub transport: TransportChoice,
    /// Largest round trip for which TCP is preferred. On such a route a lost segment costs little time, and
    /// the processor is the limit. TCP takes half of its time or less (`benches/README.md`). Longer routes
    /// are radio links or far, with loss that QUIC handles better.
    pub tcp_rtt_max: Duration,
    /// Unread bytes that the peer may send on one stream. A single stream must be able to fill the link too
    /// (`cp` of one file). So it is the bandwidth-delay product of a fast far link, not the size of one
    /// request.
    pub stream_receive_window_bytes: u64,
    /// Unread bytes that the peer may send on all streams: the memory that a peer can use here.
    pub receive_window_bytes: u64,
    /// Bytes kept until the peer acknowledges them: the memory that our own writes can use.
    pub send_window_bytes: u64,
    /// Requests that a peer may have in flight. 256 requests of 256 KiB are 64 MiB, more than the windows
    /// allow.
    pub bidirectional_streams_max: u32,
    /// Unidirectional streams: one of events for each session, and some spare ones.
    pub unidirectional_streams_max: u32,
    /// Interval of keep-alive packets. A dead link shows within seconds, and a NAT keeps its entry.
    pub keep_alive_interval: Duration,
    /// Silence after which the connection is closed. Its session lives on.
    pub idle_timeout: Duration,
    /// Ack-eliciting packets that the peer may receive before it must acknowledge. Every acknowledgement
    /// costs both ends a packet. 64 instead of quinn's 2 raised loopback throughput by a fifth.
    pub ack_threshold_packets: u32,
    /// Time that the peer may delay an acknowledgement. The window must cover it on top of the round trip.
    pub ack_delay_max: Duration,
    /// Congestion control.
    pub congestion: CongestionKind,
    /// Round trip assumed until one is measured. The first retransmission of the handshake comes after three
    /// of these. With the 333 ms of the standard one lost packet would cost a second.
    pub initial_rtt: Duration,
    /// Upper limit of packet size, UDP payload in bytes. The limit of the route applies if it is lower.
    pub datagram_bytes_max: u16,
}

impl TransportTuning {
    /// Returns windows for `connection_memory_bytes` of buffers in each direction (clamped to 2 MiB..=1 GiB).
    pub fn for_memory(connection_memory_bytes: u64) -> Self {
        let memory = connection_memory_bytes.clamp(CONNECTION_MEMORY_BYTES_MIN, CONNECTION_MEMORY_BYTES_MAX);
        Self {
            transport: TransportChoice::Auto,
            tcp_rtt_max: Duration::from_millis(1),
            stream_receive_window_bytes: memory / STREAM_SHARE_OF_CONNECTION,
            receive_window_bytes: memory,
            send_window_bytes: memory,
            bidirectional_streams_max: 256,
            unidirectional_streams_max: 8,
            keep_alive_interval: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(30),
            ack_threshold_packets: 64,
            ack_delay_max: Duration::from_millis(5),
            congestion: CongestionKind::default(),
            initial_rtt: Duration::from_millis(100),
            datagram_bytes_max: UDP_PAYLOAD_BYTES_MAX,
        }
    }

    /// Returns quinn's configuration for a connection over `route`.
    pub fn transport_config(&self, route: Route) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(var_int(self.stream_receive_window_bytes))
            .receive_window(var_int(self.receive_window_bytes))
            .send_window(self.send_window_bytes)
            // This applies to streams of one priority, of which there are none (`Lane::priority`).
            .send_fairness(true)
            .max_concurrent_bidi_streams(self.bidirectional_streams_max.into())
            .max_concurrent_uni_streams(self.unidirectional_streams_max.into())
            .keep_alive_interval(Some(self.keep_alive_interval))
            .max_idle_timeout(self.idle_timeout.try_into().ok())
            .initial_rtt(self.initial_rtt)
            .datagram_receive_buffer_size(None)
            .congestion_controller_factory(
                self.congestion.factory(self.ack_policy(route), self.initial_datagram_bytes(route)),
            );
        Self::configure_acks(&mut config, self.ack_policy(route));
        self.configure_datagram_size(&mut config, route);
        Arc::new(config)
    }

    /// Returns the same tuning with the limits of a client that is not admitted yet.
    pub fn before_admission(&self) -> Self {
        Self {
            receive_window_bytes: self.receive_window_bytes.min(UNADMITTED_WINDOW_BYTES),
            bidirectional_streams_max: self.bidirectional_streams_max.min(UNADMITTED_STREAMS_MAX),
            unidirectional_streams_max: 0,
            ..self.clone()
        }
    }

    fn ack_policy(&self, route: Route) -> AckPolicy {
        let fitting = ACK_THRESHOLD_BYTES_MAX / u32::from(self.datagram_bytes(route));
        AckPolicy {
            delay_max: self.ack_delay_max,
            threshold_packets: self.ack_threshold_packets.min(fitting),
        }
    }

    fn configure_acks(config: &mut TransportConfig, policy: AckPolicy) {
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(policy.threshold_packets.into()).max_ack_delay(Some(policy.delay_max));
        config.ack_frequency_config(Some(acks));
    }

    fn configure_datagram_size(&self, config: &mut TransportConfig, route: Route) {
        let upper = self.datagram_bytes(route);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(upper).black_hole_cooldown(BLACK_HOLE_COOLDOWN);
        config.mtu_discovery_config(Some(discovery)).min_mtu(UDP_PAYLOAD_BYTES_MIN);
        config.initial_mtu(self.initial_datagram_bytes(route));
        // If less than two datagrams fit one send of 64 KiB, batches are useless.
        config.enable_segmentation_offload(upper <= UDP_PAYLOAD_BYTES_MAX / 2);
    }

    /// Returns the largest datagram that the route and the configuration allow.
    fn datagram_bytes(&self, route: Route) -> u16 {
        route.udp_payload_bytes_max.min(self.datagram_bytes_max).max(UDP_PAYLOAD_BYTES_MIN)
    }

    /// Returns the first datagram size. On this machine no hop is narrower than the interface, so it is the
    /// full size.
    fn initial_datagram_bytes(&self, route: Route) -> u16 {
        if route.same_machine { self.datagram_bytes(route) } else { UDP_PAYLOAD_BYTES_MIN }
    }
}

/// Largest amount of data for one acknowledgement. With 64 packets of 64 KiB the sender would have to keep 4
/// MiB in flight to get any.
const ACK_THRESHOLD_BYTES_MAX: u32 = 1 << 20;
/// Time after which quinn tries large packets again. It can take random loss for a route that swallows them,
/// and falls back to 1,200 bytes. Its own minute would mean a minute of small packets for one bad second of
/// radio.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(10);

impl Default for TransportTuning {
    fn default() -> Self {
        Self::for_memory(CONNECTION_MEMORY_BYTES_DEFAULT)
    }
}

pub(super) fn var_int(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: Route = Route { same_machine: false, udp_payload_bytes_max: 1_472 };
    const JUMBO: Route = Route { same_machine: false, udp_payload_bytes_max: 8_972 };
    const LOOPBACK: Route = Route { same_machine: true, udp_payload_bytes_max: UDP_PAYLOAD_BYTES_MAX };

    #[test]
    fn windows_follow_the_memory_given() {
        for memory in [0, 1 << 20, 32 << 20, u64::MAX] {
            let tuning = TransportTuning::for_memory(memory);
            let window = tuning.receive_window_bytes;
            assert!((CONNECTION_MEMORY_BYTES_MIN..=CONNECTION_MEMORY_BYTES_MAX).contains(&window));
            assert_eq!(tuning.stream_receive_window_bytes * STREAM_SHARE_OF_CONNECTION, window);
            assert_eq!(tuning.send_window_bytes, window);
        }
        assert_eq!(TransportTuning::default(), TransportTuning::for_memory(CONNECTION_MEMORY_BYTES_DEFAULT));
    }

    #[test]
    fn packets_start_small_on_a_network_and_whole_on_this_machine() {
        let tuning = TransportTuning::default();
        assert_eq!(tuning.initial_datagram_bytes(ETHERNET), UDP_PAYLOAD_BYTES_MIN);
        assert_eq!(tuning.datagram_bytes(ETHERNET), 1_472);
        assert_eq!(tuning.initial_datagram_bytes(LOOPBACK), UDP_PAYLOAD_BYTES_MAX);
        let small = TransportTuning { datagram_bytes_max: 1_300, ..tuning };
        assert_eq!((small.datagram_bytes(JUMBO), small.initial_datagram_bytes(LOOPBACK)), (1_300, 1_300));
    }

    #[test]
    fn acknowledgements_come_at_least_each_mebibyte() {
        let tuning = TransportTuning::default();
        assert_eq!(tuning.ack_policy(ETHERNET).threshold_packets, 64);
        assert_eq!(tuning.ack_policy(JUMBO).threshold_packets, 64);
        assert_eq!(tuning.ack_policy(LOOPBACK).threshold_packets, 16);
    }

    #[test]
    fn quinn_gets_the_configuration() {
        let config = |route| format!("{:?}", TransportTuning::default().transport_config(route));
        for (route, wanted) in [
            (ETHERNET, ["initial_mtu: 1200", "min_mtu: 1200", "enable_segmentation_offload: true"]),
            (LOOPBACK, ["initial_mtu: 65507", "min_mtu: 1200", "enable_segmentation_offload: false"]),
        ] {
            let told = config(route);
            for part in wanted.into_iter().chain(["keep_alive_interval: Some(1s)", "send_fairness: true"]) {
                assert!(told.contains(part), "{part} is missing in {told}");
            }
        }
    }
}
