//! QUIC, through quinn: the UDP socket, and what connects and accepts on it.

mod endpoint;
pub(super) mod socket;

pub(super) use endpoint::{QuicEndpoint, QuicIncoming};
