//! Reads of one file that run side by side and come back in order, each proved to be of the version asked for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::attributes::system_error;
use super::context::ClientContext;
use super::tree::Handle;
use crate::chunk::ByteRange;
use crate::proto::{Errno, ErrorCode, Version, WireError};

/// Most reads of one request at a time: 2 MiB, which keeps an SSD busy and a disk streaming.
const READS_AHEAD_MAX: usize = 8;

/// A part of a file.
#[derive(Debug)]
pub(super) struct Part<T> {
    /// Which bytes.
    pub(super) range: ByteRange,
    /// What was made of them.
    pub(super) content: T,
    /// The connection's leave to have read this one ahead, for as long as it waits to be sent.
    _leave: Option<OwnedSemaphorePermit>,
}

/// Reads under way. Dropping it gives them up.
#[derive(Debug)]
pub(super) struct ReadAhead<R, M: Make> {
    context: Arc<ClientContext>,
    file: Arc<Handle>,
    version: Version,
    /// What is still to be begun.
    ranges: R,
    make: M,
    running: VecDeque<Running<M::Made>>,
}

/// What to make of the bytes of a part, in the task that read them.
pub(super) trait Make: Clone + Send + 'static {
    /// That.
    type Made: Send + 'static;

    /// Makes it of the bytes at `range`.
    fn make(self, range: ByteRange, bytes: Bytes) -> impl Future<Output = Self::Made> + Send;
}

impl<T: Send + 'static, F: Fn(Bytes) -> T + Clone + Send + 'static> Make for F {
    type Made = T;

    async fn make(self, _: ByteRange, bytes: Bytes) -> T {
        self(bytes)
    }
}

impl<R: Iterator<Item = ByteRange>, M: Make> ReadAhead<R, M> {
    /// Will read `ranges`, each at most a chunk long and within the size of `version`.
    pub(super) fn new(
        context: Arc<ClientContext>,
        file: Arc<Handle>,
        version: Version,
        ranges: R,
        make: M,
    ) -> Self {
        Self { context, file, version, ranges, make, running: VecDeque::new() }
    }

    /// The next part, or `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Part<M::Made>, WireError>> {
        while self.running.len() < READS_AHEAD_MAX {
            // One read a request needs no leave, so that requests never wait for each other.
            let leave = self.context.budget.leave_to_read_ahead();
            if leave.is_none() && !self.running.is_empty() {
                break;
            }
            let Some(range) = self.ranges.next() else { break };
            self.begin(range, leave);
        }
        let mut first = self.running.pop_front()?;
        Some((&mut first.0).await.unwrap_or_else(|_| Err(WireError::system(Errno::EIO))))
    }

    fn begin(&mut self, range: ByteRange, leave: Option<OwnedSemaphorePermit>) {
        let (context, file) = (Arc::clone(&self.context), Arc::clone(&self.file));
        let (version, make) = (self.version, self.make.clone());
        self.running.push_back(Running(tokio::spawn(async move {
            let bytes = read(&context, &file, range).await?;
            check_version(&context, &file, version).await?;
            if bytes.len() as u64 != range.len {
                return Err(WireError::new(
                    ErrorCode::System(Errno::EIO),
                    "the file is shorter than it says",
                ));
            }
            let content = make.make(range, context.budget.lending.lend(bytes)).await;
            Ok(Part { range, content, _leave: leave })
        })));
    }
}

/// Reads through the engine. A file system that may hang is read by a thread of the key: the engine's queue is everybody's.
async fn read(context: &ClientContext, file: &Handle, range: ByteRange) -> Result<Bytes, WireError> {
    let _under_way = context.counters().disk_inflight.enter();
    if !file.is_local {
        let file = Arc::clone(&file.file);
        return context.blocking(move |_| read_at(&file, range)).await;
    }
    let read = context.engine().read(Arc::clone(&file.file), range.offset, range.len as usize);
    read.await.map_err(|error| {
        tracing::debug!("reading {:?}: {error}", file.node);
        system_error(error.errno())
    })
}

/// Reads the range, less only where the file ends. Blocks.
fn read_at(file: &File, range: ByteRange) -> Result<Bytes, WireError> {
    let (mut bytes, mut filled) = (vec![0; range.len as usize], 0);
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], range.offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(WireError::system(error.raw_os_error().map_or(Errno::EIO, Errno))),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

/// Whether the file still is what was asked for.
pub(super) async fn check_version(
    context: &ClientContext,
    file: &Arc<Handle>,
    version: Version,
) -> Result<(), WireError> {
    let found = if file.is_local {
        file.version()?
    } else {
        let file = Arc::clone(file);
        context.blocking(move |_| file.version()).await?
    };
    if found == version { Ok(()) } else { Err(WireError::new(ErrorCode::VersionChanged, "")) }
}

/// A read in a task of its own, given up when dropped.
#[derive(Debug)]
struct Running<T>(JoinHandle<Result<Part<T>, WireError>>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
