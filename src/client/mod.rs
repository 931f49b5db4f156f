//! Typed calls to a host, which outlive a connection.
//!
//! [`Client`] is the seam between file-system semantics and the network: everything above it runs the same over a real
//! host, a model in memory, or one that fails on purpose. An implementation carries a request to the host and its answer
//! back; over lost connections it asks again until the request's deadline, because every request of the protocol may be
//! repeated.

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

/// A call under way; dropping it cancels the request on the host.
pub type CallFuture<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// How many parts of an answer wait for a reader that is slower than the link: four chunks, and the end.
pub const PARTS_QUEUED_MAX: usize = 5;

/// Calls to one export of one host.
pub trait Client: Send + Sync + 'static {
    /// Asks for something that is answered by one message.
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply>;

    /// Has something changed, exactly once however often the request has to be sent. Whether it was done is open after
    /// [`CallError::TimedOut`]; it will not be done later. Clients that only read need not have this.
    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        let _ = (change, first);
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::EROFS))) })
    }

    /// Has content written, as [`Self::change`], but without a deadline. At most
    /// [`crate::proto::WriteRequest::bytes_max`] bytes. From this call on, before the future is polled, it counts for [`Self::sync`].
    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, first: &FirstSession) -> CallFuture<Written> {
        let _ = (node, at, bytes, first);
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::EROFS))) })
    }

    /// Has what was written to a file brought to the host's disk, also what is still under way: the host waits for it, not we. A
    /// directory's entries likewise. Tells which run of the host's kernel did it.
    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        let asked = self.call(Request::Sync { node, data_only, after: Vec::new() }, Lane::Metadata);
        Box::pin(async move { synced(&asked.await?) })
    }

    /// Has everything on the disk of a file or directory brought to it. Tells which run of the host's kernel did it.
    fn sync_file_system(&self, node: NodeId) -> CallFuture<BootId> {
        let asked = self.call(Request::SyncFileSystem { node }, Lane::Metadata);
        Box::pin(async move { synced(&asked.await?) })
    }

    /// Which run of the host's kernel answered last, where that is known.
    fn boot(&self) -> Option<BootId> {
        None
    }

    /// Takes, gives back or waits for a lock, exactly once, and without a deadline: whoever gives up must still learn whether he has
    /// it. A wait takes no longer than it says while the host answers.
    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        let _ = call;
        Box::pin(async { Err(CallError::Host(WireError::system(Errno::ENOLCK))) })
    }

    /// Which life of the session this is, and when it is another one: locks do not go from one to the next. `None` where there are
    /// none.
    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        watch::channel(None).1
    }

    /// All entries of a directory, in batches as they arrive. The channel closes after [`ListPart::End`] or an error;
    /// a channel that closes without either means that the mount is going away. Dropping the receiver cancels.
    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>>;

    /// Content of a file, in parts as they arrive, each verified. Closes after [`ContentPart::End`] or an error, as `list`.
    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>>;

    /// Content of a file as it is now, all from one state, verified; shorter than `range` only at the end of the file.
    /// At most [`crate::proto::CURRENT_BYTES_MAX`] bytes.
    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes>;

    /// What the host tells unasked; `None` where nobody tells anything, and but for the first who asks.
    fn events(&self) -> Option<mpsc::Receiver<ClientEvent>> {
        None
    }

    /// The root of what is mounted, as it was when the connection was last made.
    fn root(&self) -> Attributes;

    /// What is known of the way to the host now.
    fn link(&self) -> LinkState;
}

/// To which life of the session a change was sent first, over all attempts to have it done: only so the host can see that an
/// earlier life of it may have done it already. One for each change.
#[derive(Debug, Clone, Default)]
pub struct FirstSession(Arc<OnceLock<SessionRun>>);

impl FirstSession {
    /// It is about to be sent to `run`.
    pub fn or(&self, run: SessionRun) -> SessionRun {
        *self.0.get_or_init(|| run)
    }
}

/// What the answer to [`Request::Sync`] tells.
pub(crate) fn synced(reply: &Reply) -> Result<BootId, CallError> {
    match reply {
        Reply::Synced { boot } => Ok(*boot),
        other => Err(calls::unexpected(other)),
    }
}

/// An event, as it concerns leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A new event stream: leases of this epoch may be given from now on.
    Started(LeaseEpoch),
    /// Told on that stream.
    Event(HostEvent),
    /// The stream is over, and its leases with it.
    Ended,
}

/// A part of a listing.
#[derive(Debug)]
pub enum ListPart {
    /// The listing begins; again, if it was cut off. Not every client sends this.
    Begin {
        /// The directory's own attributes, from before its entries were read.
        attributes: Option<Attributes>,
        /// The event stream that tells later changes.
        lease: Option<LeaseEpoch>,
    },
    /// The next entries.
    Entries(Vec<DirectoryEntry>),
    /// That was all.
    End,
}

/// A part of a file's content.
#[derive(Debug)]
pub enum ContentPart {
    /// A whole chunk, verified.
    Chunk {
        /// Which.
        index: ChunkIndex,
        /// Its bytes.
        chunk: VerifiedChunk,
    },
    /// The chunk whose hash the request carried is the right one.
    Same {
        /// Which.
        index: ChunkIndex,
    },
    /// Exactly the bytes asked for, verified.
    Piece {
        /// Where they begin.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Everything was sent, in the version asked for.
    End {
        /// The host's clock after the last byte was read.
        observed: Timestamp,
    },
}

/// The way to the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkState {
    /// Whether the host answers.
    pub connected: bool,
    /// How long it has not been heard; zero while it answers.
    pub silent: Duration,
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Rate at which content arrived lately, in bytes per second; 0 while unknown.
    pub bytes_per_second: u64,
    /// Rate at which the host takes in what is written, in bytes per second; 0 while unknown.
    pub sent_bytes_per_second: u64,
    /// Bytes that may be on their way to the host at a time; 0 while unknown.
    pub window_bytes: u64,
}

/// Above this rate of the link it takes longer to look for content that need not be sent than to send it, in bytes per second: both ends hash
/// what one of them has to read.
pub const FAST_BYTES_PER_SECOND: u64 = 300_000_000;

impl LinkState {
    /// How long a wait that begins now lasts at most, of `deadline` for a host that may come back.
    pub fn wait_max(&self, deadline: Duration) -> Duration {
        away::left(deadline, deadline, Duration::ZERO, self.silent)
    }

    /// Whether content goes to the host faster than [`FAST_BYTES_PER_SECOND`].
    pub const fn sends_fast(&self) -> bool {
        self.sent_bytes_per_second > FAST_BYTES_PER_SECOND
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The host says no.
    #[error(transparent)]
    Host(#[from] WireError),
    /// No answer before the deadline.
    #[error("the host did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Not known here, and the host is not asked.
    #[error("this is not known here, and the mount is offline")]
    Offline,
    /// What came breaks the protocol or does not match its hash, time and again.
    #[error("the host's answer cannot be used: {0}")]
    BadAnswer(String),
    /// The mount is going away.
    #[error("the mount is being taken down")]
    Closed,
}

impl CallError {
    /// What to tell a program that made a system call.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Host(error) => errno::of_host(error.errno()),
            Self::TimedOut(_) => Errno::ETIMEDOUT,
            Self::Offline => Errno::ENETUNREACH,
            Self::BadAnswer(_) => Errno::EIO,
            Self::Closed => Errno::ENOTCONN,
        }
    }

    /// The host's code, where the host answered.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Host(error) => Some(error.code),
            _ => None,
        }
    }
}
