//! TLS 1.3 over TCP, with the same streams as QUIC.
//!
//! For networks that block UDP, and for short ways: the kernel cuts TCP into packets and joins them for next to nothing, which
//! QUIC does in user space packet by packet. What TCP cannot do: one lost segment holds up all streams for a round trip, the kernel's
//! congestion control takes loss for congestion on most systems, and a client that changes its address must connect anew.
//!
//! In reading order:
//!
//! 1. [`handshake`], [`record`]: rustls makes the keys, records are sealed and opened here
//! 2. [`frame`], [`mux`]: many streams over one connection
//! 3. [`batch_size`], [`congestion`], [`driver`]: the task between the socket and the streams
//! 4. [`handle`], [`endpoint`]: what the rest of the transport uses

mod batch_size;
mod congestion;
mod driver;
mod endpoint;
mod frame;
#[cfg(test)]
mod fuzz;
mod handle;
mod handshake;
mod mux;
mod record;
mod record_buffer;
#[cfg(test)]
mod tests;

pub(super) use endpoint::{Connected, Registry, TcpAcceptor, TcpIncoming, connect, secure};
pub(super) use handle::{TcpConnection, TcpRecvStream, TcpSendStream};
