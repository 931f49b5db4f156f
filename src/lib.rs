//! wormhole mounts a folder of another machine so that it feels local.
//!
//! Kernel read calls through FUSE become prefetched chunk requests over parallel QUIC streams to a host daemon; a local
//! cache keyed by BLAKE3 serves what was seen before; the host feeds the streams from `io_uring` without copying.
//!
//! Each noun of that sentence is a module. In reading order:
//!
//! 1. [`chunk`]: what content is, and what proves it
//! 2. [`proto`]: what the two sides say to each other
//! 3. [`io`], [`transport`]: the disk and the network, each behind a small interface
//! 4. [`lock`]: who holds which bytes of a file, for both sides
//! 5. [`host`]: the daemon that serves a folder
//! 6. [`client`]: typed calls to a host, which outlive a connection
//! 7. [`cache`], [`prefetch`], [`fetch`]: what is kept, what is asked ahead, where a chunk comes from
//! 8. [`fs`], [`fuse`]: file-system semantics, and a kernel adapter that decides nothing
//! 9. [`mount`], [`control`], [`config`], [`cli`]: the parts wired together, watched, and told what to do
//!
//! `ARCHITECTURE.md` has the arrows between them, `SEMANTICS.md` what users are promised.

pub mod cache;
pub mod chunk;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod host;
pub mod io;
pub mod lock;
pub mod metadata_cache;
pub mod metrics;
pub mod mount;
pub mod prefetch;
pub mod proto;
pub mod transport;
