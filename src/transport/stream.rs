//! The two halves of a stream over either protocol.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::VarInt;
use thiserror::Error;
use tokio::io::AsyncReadExt;

use super::tcp::{TcpRecvStream, TcpSendStream};
use crate::io::{ContentBuffers, split_aligned};
use crate::proto::Lane;

/// Reason why a stream does not continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The connection is over.
    #[error("the connection is lost")]
    Lost,
    /// This side has ended the stream.
    #[error("the stream is closed")]
    Closed,
    /// The peer wants no more data, with its code.
    #[error("the other side wants no more data (code {0})")]
    Stopped(u32),
    /// The peer abandoned the stream, with its code.
    #[error("the other side gave up (code {0})")]
    Reset(u32),
    /// The stream ended before all expected bytes arrived.
    #[error("the stream ends too early")]
    EndedEarly,
    /// More bytes arrived than allowed.
    #[error("more than {0} bytes")]
    TooLong(usize),
}

/// Number that orders the streams of one priority.
static TURN: AtomicU32 = AtomicU32::new(0);

/// The sending half. On drop it finishes the written bytes.
pub struct SendStream(Sending);

enum Sending {
    Quic(quinn::SendStream),
    Tcp(TcpSendStream),
}

impl SendStream {
    pub(super) const fn quic(stream: quinn::SendStream) -> Self {
        Self(Sending::Quic(stream))
    }

    pub(super) const fn tcp(stream: TcpSendStream) -> Self {
        Self(Sending::Tcp(stream))
    }

    /// Queues `bytes` without copying them. Waits while much is queued already.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write_chunk(bytes).await.map_err(write_error),
            Sending::Tcp(stream) => stream.write(bytes).await,
        }
    }

    /// Queues several chunks in order and leaves them empty.
    pub async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write_all_chunks(chunks).await.map_err(write_error),
            Sending::Tcp(stream) => {
                for chunk in chunks {
                    stream.write(std::mem::take(chunk)).await?;
                }
                Ok(())
            }
        }
    }

    /// Queues a copy of `bytes`.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write_all(bytes).await.map_err(write_error),
            Sending::Tcp(stream) => stream.write(Bytes::copy_from_slice(bytes)).await,
        }
    }

    /// Marks the end of the stream. Fails if the stream has ended already.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let was_open = match &mut self.0 {
            Sending::Quic(stream) => stream.finish().is_ok(),
            Sending::Tcp(stream) => stream.finish(),
        };
        was_open.then_some(()).ok_or(StreamError::Closed)
    }

    /// Abandons the stream. The peer reads `code`. Fails if the stream has ended already.
    pub fn reset(&mut self, code: u32) -> Result<(), StreamError> {
        let was_open = match &mut self.0 {
            Sending::Quic(stream) => stream.reset(VarInt::from_u32(code)).is_ok(),
            Sending::Tcp(stream) => stream.reset(code),
        };
        was_open.then_some(()).ok_or(StreamError::Closed)
    }

    /// Sets the priority of later writes. Has no effect on a finished stream.
    pub fn set_lane(&self, lane: Lane) {
        match &self.0 {
            Sending::Quic(stream) => {
                let turn = TURN.fetch_add(1, Ordering::Relaxed);
                // The only failure is that the stream is closed.
                drop(stream.set_priority(lane.priority(turn)));
            }
            Sending::Tcp(stream) => stream.set_lane(lane),
        }
    }

    /// Waits until the peer wants no more data (returns its code), or until all written bytes and the end are
    /// delivered. Over QUIC the peer has them then. Over TCP the kernel has them, and a close comes after
    /// them.
    pub fn stopped(&self) -> impl Future<Output = Result<Option<u32>, StreamError>> + Send + 'static + use<> {
        enum Wait<Q, T> {
            Quic(Q),
            Tcp(T),
        }
        let wait = match &self.0 {
            Sending::Quic(stream) => Wait::Quic(stream.stopped()),
            Sending::Tcp(stream) => Wait::Tcp(stream.stopped()),
        };
        async move {
            match wait {
                Wait::Quic(stopped) => {
                    stopped.await.map(|code| code.map(code_of)).map_err(|_| StreamError::Lost)
                }
                Wait::Tcp(stopped) => stopped.await,
            }
        }
    }
}

/// The receiving half. On drop it asks for no more data.
pub struct RecvStream(Receiving);

enum Receiving {
    /// The stream, and the memory for the next long reads.
    Quic(quinn::RecvStream, BytesMut),
    Tcp(TcpRecvStream),
}

impl RecvStream {
    pub(super) fn quic(stream: quinn::RecvStream) -> Self {
        Self(Receiving::Quic(stream, BytesMut::new()))
    }

    pub(super) const fn tcp(stream: TcpRecvStream) -> Self {
        Self(Receiving::Tcp(stream))
    }

    /// Returns up to `max` received bytes in order, without a copy. Returns `None` at the end.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        match &mut self.0 {
            Receiving::Quic(stream, _) => {
                let chunk = stream.read_chunk(max, true).await.map_err(read_error)?;
                Ok(chunk.map(|chunk| chunk.bytes))
            }
            Receiving::Tcp(stream) => stream.read(max).await,
        }
    }

    /// Makes the next long reads, `len` bytes in all, adjacent in memory.
    pub fn reserve_contiguous(&mut self, len: usize) {
        let room = ContentBuffers::shared().alloc(len);
        match &mut self.0 {
            Receiving::Quic(_, old) => *old = room,
            Receiving::Tcp(stream) => stream.use_memory(room),
        }
    }

    /// Returns exactly `len` bytes. Over QUIC they are copied once, out of the packets. Over TCP they are
    /// received in place if the peer wrote them in one piece. `arrived` is called with the size of each
    /// portion.
    pub async fn read_bytes(
        &mut self,
        len: usize,
        mut arrived: impl FnMut(u64),
    ) -> Result<BytesMut, StreamError> {
        match &mut self.0 {
            Receiving::Quic(stream, room) => {
                let mut buffer = split_aligned(room, len);
                buffer.clear();
                while buffer.len() < len {
                    let missing = len - buffer.len();
                    let read = stream.read_buf(&mut (&mut buffer).limit(missing)).await;
                    match read.map_err(|error| io_error(&error))? {
                        0 => return Err(StreamError::EndedEarly),
                        count => arrived(count as u64),
                    }
                }
                Ok(buffer)
            }
            Receiving::Tcp(stream) => stream.read_bytes(len, arrived).await,
        }
    }

    /// Fills `buffer`.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        match &mut self.0 {
            Receiving::Quic(stream, _) => stream.read_exact(buffer).await.map_err(|error| match error {
                quinn::ReadExactError::FinishedEarly(_) => StreamError::EndedEarly,
                quinn::ReadExactError::ReadError(error) => read_error(error),
            }),
            Receiving::Tcp(stream) => {
                buffer.copy_from_slice(&stream.read_bytes(buffer.len(), |_| {}).await?);
                Ok(())
            }
        }
    }

    /// Returns everything up to the end, at most `max` bytes.
    pub async fn read_to_end(&mut self, max: usize) -> Result<Vec<u8>, StreamError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.read_chunk(usize::MAX).await? {
            if chunk.len() > max - all.len() {
                return Err(StreamError::TooLong(max));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Asks for no more data. The peer reads `code`. Fails if the stream has ended already.
    pub fn stop(&mut self, code: u32) -> Result<(), StreamError> {
        let was_open = match &mut self.0 {
            Receiving::Quic(stream, _) => stream.stop(VarInt::from_u32(code)).is_ok(),
            Receiving::Tcp(stream) => stream.stop(code),
        };
        was_open.then_some(()).ok_or(StreamError::Closed)
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SendStream").finish_non_exhaustive()
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RecvStream").finish_non_exhaustive()
    }
}

/// Makes received content shareable. Its memory is used again when the last part is dropped.
pub fn freeze(content: BytesMut) -> Bytes {
    ContentBuffers::shared().freeze(content)
}

/// Returns a code of this protocol. A larger one comes from a foreign peer.
fn code_of(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "the form `map_err` wants")]
fn write_error(error: quinn::WriteError) -> StreamError {
    match error {
        quinn::WriteError::Stopped(code) => StreamError::Stopped(code_of(code)),
        quinn::WriteError::ClosedStream => StreamError::Closed,
        _ => StreamError::Lost,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form `map_err` wants")]
fn read_error(error: quinn::ReadError) -> StreamError {
    match error {
        quinn::ReadError::Reset(code) => StreamError::Reset(code_of(code)),
        quinn::ReadError::ClosedStream => StreamError::Closed,
        _ => StreamError::Lost,
    }
}

fn io_error(error: &std::io::Error) -> StreamError {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<quinn::ReadError>());
    inner.cloned().map_or(StreamError::Lost, read_error)
}
