//! The daemon, asked by a client over a real connection.
