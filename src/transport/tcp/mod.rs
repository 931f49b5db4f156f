//! TLS 1.3 over TCP, with the same streams as QUIC.
//!
//! TCP serves networks that block UDP, and short routes. The kernel splits and joins TCP packets at almost no
//! cost, while QUIC handles each packet in user space. TCP has three drawbacks: one lost segment delays all
//! streams for a round trip, the kernel's congestion control takes loss for congestion on most systems, and a
//! client that changes its address must reconnect.
//!
//! In reading order:
//!
//! 1. [`handshake`], [`record`]: rustls makes the keys, this module encrypts and decrypts records
//! 2. [`frame`], [`mux`]: many streams over one connection
//! 3. [`batch_size`], [`congestion`], [`driver`]: the task between the socket and the streams
//! 4. [`handle`], [`endpoint`]: the interface to the rest of the transport

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
