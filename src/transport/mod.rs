//! QUIC: endpoints, identities, tickets, congestion.

mod lane;

pub use lane::Lane;
