//! One request on one stream: the frame out, frames and raw bytes back, cancelled when dropped.

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;

use crate::proto::{FRAME_HEADER_BYTES, decode_body, frame_len};
use crate::transport::{Connection, Lane, RecvStream, SendStream};

/// The code of a stream that is given up. The host need not know why.
const CANCELLED: u32 = 0;

/// Why an exchange did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is over; another one may do.
    Lost,
    /// The answer breaks off or makes no sense.
    Broken(String),
}

/// A request that was sent, and the answer as far as it was read. Dropping it cancels the request on the host.
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

    /// Sends `frame`, and `content` behind it. A host that refuses before it has read everything says why.
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
        // Finishing fails only where writing failed.
        let _ = exchange.send.finish();
        match sent {
            Ok(()) => Ok(exchange),
            Err(error) => Err(exchange.fault(&error)),
        }
    }

    /// The next frame.
    pub(super) async fn frame<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.fill(&mut header).await?;
        let len = frame_len(header).map_err(|error| Fault::Broken(error.to_string()))?;
        let mut body = vec![0; len];
        self.fill(&mut body).await?;
        decode_body(&body).map_err(|error| Fault::Broken(error.to_string()))
    }

    /// The long portions of raw bytes that come next, `len` bytes of them, shall lie side by side.
    pub(super) fn reserve_contiguous(&mut self, len: usize) {
        self.receive.reserve_contiguous(len);
    }

    /// The next `len` raw bytes. `arrived` is told of each portion.
    pub(super) async fn bytes(&mut self, len: usize, arrived: impl FnMut(u64)) -> Result<BytesMut, Fault> {
        let read = self.receive.read_bytes(len, arrived).await;
        read.map_err(|error| self.fault(&error))
    }

    /// The answer was read to its end: there is nothing to cancel.
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
            // Both fail only where the stream is over already.
            let _ = self.send.reset(CANCELLED);
            let _ = self.receive.stop(CANCELLED);
        }
    }
}
