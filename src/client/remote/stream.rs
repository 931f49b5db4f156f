//! One request on one stream: sends a frame, reads frames and raw bytes. It is cancelled on drop.

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;

use crate::proto::{FRAME_HEADER_BYTES, decode_body, frame_len};
use crate::transport::{Connection, Lane, RecvStream, SendStream};

/// Code of a cancelled stream. The host does not need the reason.
const CANCELLED: u32 = 0;

/// Reason why an exchange did not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is closed. Another one may work.
    Lost,
    /// The answer breaks off or is not valid.
    Broken(String),
}

/// A request that was sent, and the answer as far as it was read. Dropping it cancels the request on the
/// host.
pub(super) struct Exchange {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    complete: bool,
}

impl Exchange {
    /// Sends `frame` on a new stream of `connection`.
    pub(super) async fn begin(connection: &Connection, frame: &[u8], lane: Lane) -> Result<Self, Fault> {
        Self::begin_with(connection, frame, Bytes::new(), lane).await
    }

    /// Sends `frame` and then `content`. If the host refuses before it has read everything, its answer is
    /// still read.
    pub(super) async fn begin_with(
        connection: &Connection,
        frame: &[u8],
        content: Bytes,
        lane: Lane,
    ) -> Result<Self, Fault> {
        let (send, receive) = connection.open_stream(lane).await.map_err(|_| Fault::Lost)?;
        let mut exchange = Self { connection: connection.clone(), send, receive, complete: false };
        let mut sent = exchange.send.write_all(frame).await;
        if sent.is_ok() && !content.is_empty() {
            sent = exchange.send.write_chunk(content).await;
            if sent.is_err() && connection.close_reason().is_none() {
                sent = Ok(());
            }
        }
        // Finishing fails only if writing failed.
        let _ = exchange.send.finish();
        match sent {
            Ok(()) => Ok(exchange),
            Err(error) => Err(exchange.fault(&error)),
        }
    }

    /// Reads the next frame.
    pub(super) async fn frame<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.fill(&mut header).await?;
        let len = frame_len(header).map_err(|error| Fault::Broken(error.to_string()))?;
        let mut body = vec![0; len];
        self.fill(&mut body).await?;
        decode_body(&body).map_err(|error| Fault::Broken(error.to_string()))
    }

    /// Makes the next long portions of raw bytes, `len` bytes in all, adjacent in memory.
    pub(super) fn reserve_contiguous(&mut self, len: usize) {
        self.receive.reserve_contiguous(len);
    }

    /// Reads the next `len` raw bytes. `arrived` is called with the size of each portion.
    pub(super) async fn bytes(&mut self, len: usize, arrived: impl FnMut(u64)) -> Result<BytesMut, Fault> {
        let read = self.receive.read_bytes(len, arrived).await;
        read.map_err(|error| self.fault(&error))
    }

    /// Marks the answer as read to its end, so that nothing is cancelled.
    pub(super) const fn complete(&mut self) {
        self.complete = true;
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        match self.receive.read_exact(buffer).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fault(&error)),
        }
    }

    fn fault(&self, error: &impl ToString) -> Fault {
        match self.connection.close_reason() {
            Some(_) => Fault::Lost,
            None => Fault::Broken(error.to_string()),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.complete {
            // Both fail only if the stream is over already.
            let _ = self.send.reset(CANCELLED);
            let _ = self.receive.stop(CANCELLED);
        }
    }
}
