//! QUIC: endpoints, identities, tickets, congestion.
