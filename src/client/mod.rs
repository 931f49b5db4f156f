//! Typed calls to a host, which survive lost connections.
//!
//! [`Client`] is the interface between file-system semantics and the network. The code above it runs the same
//! over a real host, a model in memory, or a client with injected faults. An implementation sends a request
//! to the host and returns the answer. When connections are lost, it repeats the request until the deadline.
//! Every request of the protocol can be repeated.

pub mod away;
mod calls;
mod errno;
pub mod faulty;
pub mod memory;
pub mod remote;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::chunk::{ByteRange, ChunkIndex, VerifiedChunk};
use crate::proto::{
    Attributes, BootId, Change, DirectoryEntry, Errno, ErrorCode, HostEvent, LeaseEpoch, LockAnswer,
    LockCall, NodeId, ReadRequest, Reply, Request, SessionRun, Timestamp, WireError, WriteAt, Written,
};
pub use crate::transport::Lane;

/// A call under way. Dropping it cancels the request on the host.
pub type CallFuture<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// Parts of an answer that wait for a reader slower than the link: four chunks, and the end.
pub const PARTS_QUEUED_MAX: usize = 5;

/// Calls to one export of one host.
pub trait Client: Send + Sync + 'static {
    /// Sends a request that has one message as its answer.
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply>;

    /// Executes a change exactly once, however often the request must be sent. After [`CallError::TimedOut`]
    /// the result is unknown, but the change will not be executed later. Clients that only read need not
    /// implement this.
    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        let _ = (change, first);
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::EROFS))) })
    }

    /// Writes content like [`Self::change`], but without a deadline. At most
    /// [`crate::proto::WriteRequest::bytes_max`] bytes. [`Self::sync`] includes the write from this call on,
    /// before the future is polled.
    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, first: &FirstSession) -> CallFuture<Written> {
        let _ = (node, at, bytes, first);
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::EROFS))) })
    }

    /// Syncs a file to the host's disk, with the writes that are still under way: the host waits for them,
    /// not the client. For a directory it syncs the entries. Returns the boot of the host's kernel that did
    /// it.
    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        let asked = self.call(Request::Sync { node, data_only, after: Vec::new() }, Lane::Metadata);
        Box::pin(async move { synced(&asked.await?) })
    }

    /// Syncs the host's file system that holds a node. Returns the boot of the host's kernel that did it.
    fn sync_file_system(&self, node: NodeId) -> CallFuture<BootId> {
        let asked = self.call(Request::SyncFileSystem { node }, Lane::Metadata);
        Box::pin(async move { synced(&asked.await?) })
    }

    /// Returns the boot of the host's kernel that answered last, if known.
    fn boot(&self) -> Option<BootId> {
        None
    }

    /// Takes, releases or waits for a lock, exactly once and without a deadline. A caller that gives up must
    /// still learn if it holds the lock. While the host answers, a wait takes at most the time that the call
    /// gives.
    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        let _ = call;
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::ENOLCK))) })
    }

    /// Returns the epoch of the session, and its changes. Locks do not carry over to the next epoch. `None`
    /// for clients without epochs.
    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        watch::channel(None).1
    }

    /// Lists a directory, in batches as they arrive. The channel closes after [`ListPart::End`] or an error.
    /// If it closes without either, the mount is ending. Dropping the receiver cancels the call.
    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>>;

    /// Reads content of a file, in verified parts as they arrive. The channel closes like that of `list`.
    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>>;

    /// Reads the present content of a file, all from one state, verified. It is shorter than `range` only at
    /// the end of the file. At most [`crate::proto::CURRENT_BYTES_MAX`] bytes.
    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes>;

    /// Returns the events of the host. `None` for clients without events, and for every caller but the first.
    fn events(&self) -> Option<mpsc::Receiver<ClientEvent>> {
        None
    }

    /// Returns the root of the mounted tree, as of the last connection.
    fn root(&self) -> Attributes;

    /// Returns the present state of the link to the host.
    fn link(&self) -> LinkState;
}

/// Session epoch to which a change was sent first, over all attempts. It only shows the host that an earlier
/// epoch may have executed the change already. One for each change.
#[derive(Debug, Clone, Default)]
pub struct FirstSession(Arc<OnceLock<SessionRun>>);

impl FirstSession {
    /// Returns the first epoch. If the change was not sent before, this is `run`.
    pub fn or(&self, run: SessionRun) -> SessionRun {
        *self.0.get_or_init(|| run)
    }
}

/// Returns the boot in the answer to [`Request::Sync`].
pub(crate) fn synced(reply: &Reply) -> Result<BootId, CallError> {
    match reply {
        Reply::Synced { boot } => Ok(*boot),
        other => Err(calls::unexpected(other)),
    }
}

/// An event about leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A new event stream. From now on leases of this epoch may be given.
    Started(LeaseEpoch),
    /// An event on that stream.
    Event(HostEvent),
    /// The stream has ended, and its leases with it.
    Ended,
}

/// A part of a listing.
#[derive(Debug)]
pub enum ListPart {
    /// The listing begins, or begins again after it broke off. Not every client sends this.
    Begin {
        /// Attributes of the directory, from before its entries were read.
        attributes: Option<Attributes>,
        /// Event stream on which later changes are reported.
        lease: Option<LeaseEpoch>,
    },
    /// Next entries.
    Entries(Vec<DirectoryEntry>),
    /// The end of the listing.
    End,
}

/// A part of a file's content.
#[derive(Debug)]
pub enum ContentPart {
    /// A whole chunk, verified.
    Chunk {
        /// Index of the chunk.
        index: ChunkIndex,
        /// Content of the chunk.
        chunk: VerifiedChunk,
    },
    /// The chunk matches the hash in the request.
    Same {
        /// Index of the chunk.
        index: ChunkIndex,
    },
    /// Exactly the requested bytes, verified.
    Piece {
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// All content was sent, in the requested version.
    End {
        /// Clock of the host after the last byte was read.
        observed: Timestamp,
    },
}

/// State of the link to the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkState {
    /// True while the host answers.
    pub connected: bool,
    /// Length of the present silence, zero while the host answers.
    pub silent: Duration,
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Recent rate of arriving content, in bytes per second, 0 while unknown.
    pub bytes_per_second: u64,
    /// Recent rate at which the host accepts written bytes, in bytes per second, 0 while unknown.
    pub sent_bytes_per_second: u64,
    /// Congestion window towards the host, in bytes, 0 while unknown.
    pub window_bytes: u64,
}

/// Link rate above which a search for known content takes longer than sending it, in bytes per second. Both
/// ends would hash content that one of them has to read.
pub const FAST_BYTES_PER_SECOND: u64 = 300_000_000;

impl LinkState {
    /// Returns the time for which a new wait lasts at most, given the `deadline` for a host that may come
    /// back.
    pub fn wait_max(&self, deadline: Duration) -> Duration {
        away::left(deadline, deadline, Duration::ZERO, self.silent)
    }

    /// Returns true if content is sent faster than [`FAST_BYTES_PER_SECOND`].
    pub const fn sends_fast(&self) -> bool {
        self.sent_bytes_per_second > FAST_BYTES_PER_SECOND
    }
}

/// Reason why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The host refused.
    #[error(transparent)]
    Host(#[from] WireError),
    /// No answer before the deadline.
    #[error("the host did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Not cached, and the mount is offline.
    #[error("this is not cached, and the mount is offline")]
    Offline,
    /// The answer breaks the protocol or does not match its hash, in every attempt.
    #[error("the host's answer cannot be used: {0}")]
    BadAnswer(String),
    /// The mount is ending.
    #[error("the mount is being taken down")]
    Closed,
}

impl CallError {
    /// Returns the error number for the program that made the system call.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Host(error) => errno::of_host(error.errno()),
            Self::TimedOut(_) => Errno::ETIMEDOUT,
            Self::Offline => Errno::ENETUNREACH,
            Self::BadAnswer(_) => Errno::EIO,
            Self::Closed => Errno::ENOTCONN,
        }
    }

    /// Returns the code of the host, if the host answered.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Host(error) => Some(error.code),
            _ => None,
        }
    }
}
