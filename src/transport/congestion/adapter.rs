//! Adapter from [`DeliveryRate`] to quinn's clock and controller trait. It decides nothing.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::delivery::{AckPolicy, DeliveryRate};

/// Builds a [`DeliveryRate`] for each path of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeliveryFactory {
    pub(super) acks: AckPolicy,
}

impl ControllerFactory for DeliveryFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let core = DeliveryRate::new(current_mtu, self.acks);
        Box::new(DeliveryController { origin: now, initial_window_bytes: core.window_bytes(), core })
    }
}

#[derive(Clone, Debug)]
struct DeliveryController {
    origin: Instant,
    initial_window_bytes: u64,
    core: DeliveryRate,
}

impl DeliveryController {
    fn since_origin(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.origin)
    }
}

impl Controller for DeliveryController {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.core.on_sent(self.since_origin(now), bytes);
    }

    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.core.on_ack(self.since_origin(sent), bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest_acked: Option<u64>) {
        self.core.on_end_acks(self.since_origin(now), in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, persistent: bool, lost_bytes: u64) {
        self.core.on_loss(lost_bytes, persistent);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.core.on_packet_size(new_mtu);
    }

    fn window(&self) -> u64 {
        self.core.window_bytes()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
