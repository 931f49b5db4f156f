//! Typed calls to a host.
