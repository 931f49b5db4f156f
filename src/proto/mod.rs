//! Everything the two sides say to each other, and how it looks on the wire.
//!
//! Pure: bytes in, values out. No socket, no clock, no task.
//!
//! # Participants
//!
//! A *client* mounts what a *host* exports. They hold a connection over QUIC, or over TLS on TCP with the
//! same streams (`transport::tcp`); either is TLS 1.3 with raw Ed25519 keys on both sides, ALPN [`ALPN`]. Who the peer is has been proved below this layer; whether it may come in is said in the [`Hello`]
//! exchange.
//!
//! # Shape
//!
//! One request is one bidirectional stream. The client sends one frame, and finishes its half. The host answers with
//! one frame, `Result<Reply, WireError>`; three replies are followed by more on the same stream:
//!
//! - [`Reply::Directory`]: frames of [`DirectoryBatch`], the last of which says so.
//! - [`Reply::Events`]: frames of [`HostEvent`], until either side ends the stream.
//! - [`Reply::Content`]: for each piece of content a frame [`ContentHeader`] and then `len` raw bytes; the last header
//!   is [`ContentHeader::End`].
//! - [`Reply::Current`]: `len` raw bytes.
//!
//! One request is followed by more on its stream: [`Request::Write`], by `len` raw bytes.
//!
//! Then the host finishes its half. Dropping a stream (STOP\_SENDING, RESET\_STREAM) cancels the request; the host
//! stops reading the disk for it.
//!
//! A frame is a little-endian `u32` length, at most [`FRAME_BYTES_MAX`], and that many bytes of a `postcard` value.
//!
//! The first stream of a connection carries the [`Hello`]; the host refuses all others until it has answered
//! [`Welcome`]. Streams are independent after that: requests are answered in any order.
//!
//! # Growing
//!
//! Messages are enums to which variants are appended; the meaning of a variant never changes under one
//! [`PROTOCOL_VERSION`]. What a side can do beyond the version's base it says in `features` ([`Features`]); unknown
//! bits are ignored, and an unknown version is refused in words.
//!
//! # Numbers
//!
//! Sizes and offsets are bytes, times are nanoseconds since 1970-01-01 UTC, names are bytes and not text, modes and
//! error numbers are Linux's.
//!
//! # Not here
//!
//! No request asks for a chunk by its bare hash: content is always asked of a node the client may read, so a peer
//! cannot probe for what lies outside its export. A client that writes may ask whether chunks are there
//! ([`Request::HaveChunks`], [`Change::WriteKnown`]); what counts is what it could read below what it has mounted.

mod change;
pub mod close;
mod error;
mod event;
mod frame;
#[cfg(test)]
mod fuzz;
mod lane;
mod lock;
mod message;
mod node;
#[cfg(test)]
pub(crate) mod testing;
pub mod words;

pub use change::{
    AllocateHow, BootId, Caller, Change, ChangeRequest, Changed, Growth, KnownChunk, OpenAccess, Operation,
    OperationId, RenameHow, SessionRun, SetAttributes, SetTime, WriteAt, WriteProof, WriteRequest, Written,
    XattrHow,
};
pub use error::{Errno, ErrorCode, WireError};
pub use event::{DirectoryChange, EVENT_ENTRIES_MAX, HostEvent, LeaseEpoch};
pub use frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameError, decode_body, encode_frame, frame_len};
pub use lane::Lane;
pub use lock::{
    LOCK_WAIT_MS_MAX, LockAction, LockAnswer, LockCall, LockFound, LockKind, LockKinds, LockOwner, LockRange,
    LockRequest, LockTest, LockWait, WholeFile,
};
pub use message::{
    ActingUser, CompressionWish, ContentHeader, DirectoryBatch, DirectoryEntry, Features, FsStatistics,
    Hello, InstanceId, ManifestRequest, OpenId, ReadRequest, Reply, Request, SeekTarget, SessionId,
    TicketSecret, Welcome,
};
pub use node::{Attributes, FileKind, NodeId, Timestamp, Trust, TrustReason, Version};

/// What TLS negotiates: the name of this protocol.
pub const ALPN: &[u8] = b"wormhole/1";

/// The version of the messages. A host refuses any other, saying which it speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Longest name of a directory entry, in bytes (Linux's `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Most chunks one [`Request::Read`] may ask for: 16 MiB, so that one stream never holds a host's buffers for long.
pub const READ_CHUNKS_MAX: u64 = 64;

/// Most names in one [`Request::LookupMany`]: the answer takes some 60 kB, half a millisecond of a 1 Gbit/s link.
pub const LOOKUPS_MAX: usize = 512;

/// Most bytes of all its names: a request is small.
pub const LOOKUP_NAME_BYTES_MAX: usize = 12 * 1024;

/// Most bytes that a [`Request::ReadCurrent`] may ask for: the longest read of a FUSE client.
pub const CURRENT_BYTES_MAX: u64 = 1024 * 1024;

/// Most bytes of a file that a [`Request::Blocks`] may ask about: what a client asks for in one request, and some 5 kB of answer.
pub const DELTA_BYTES_MAX: u64 = 1024 * 1024;

/// Most bytes of one [`Request::Write`] to a place in a file: the longest write of a FUSE client.
pub const WRITE_BYTES_MAX: u64 = 1024 * 1024;

/// Most bytes of one that goes to the end of a file. Appends come one after the other, so they must be long to fill a long way: 8 MiB
/// every 50 ms is 1.3 Gbit/s.
pub const APPEND_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Most changes that a [`Request::Sync`] may wait for: far more than a client has under way on one file.
pub const SYNC_AFTER_MAX: usize = 1024;

/// Most chunks of one [`Change::WriteKnown`] and one [`Request::HaveChunks`]: what one write carries, which the host reads for it.
pub const KNOWN_CHUNKS_MAX: usize = (WRITE_BYTES_MAX / crate::chunk::CHUNK_BYTES) as usize;

/// Largest value of an extended attribute, in bytes (the kernel's `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// Most chunk hashes that a [`Request::Read`] may carry.
pub const KNOWN_HASHES_MAX: usize = READ_CHUNKS_MAX as usize;

/// Most chunks that a [`Request::Manifest`] may ask about: 64 MiB of a file, whose hashes take 8 KiB.
pub const MANIFEST_CHUNKS_MAX: u64 = 256;
