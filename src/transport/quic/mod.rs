//! QUIC through quinn: the UDP socket, and endpoints that connect and accept.

mod endpoint;
pub(super) mod socket;

pub(super) use endpoint::{QuicEndpoint, QuicIncoming};
