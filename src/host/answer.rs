//! The two halves of a request's stream, as frames and content.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::time::timeout;

use super::counters::{Counters, Sending};
use crate::proto::{
    ErrorCode, FRAME_HEADER_BYTES, Reply, WireError, XATTR_VALUE_BYTES_MAX, encode_frame, frame_len,
};
use crate::transport::{Lane, RecvStream, SendStream, StreamError};

/// How long a client may fall silent within a request. A stream is open as soon as a later one is, and on a narrow way others go before it; a
/// link that was cut comes back on another connection.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Most bytes of a request: above the largest, the value of an extended attribute. Answers may be longer.
const REQUEST_BYTES_MAX: usize = XATTR_VALUE_BYTES_MAX + 8 * 1024;

/// The client no longer wants the answer, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Reads the body of the one frame that a client sends.
pub(super) async fn read_request(receive: &mut RecvStream) -> Result<Vec<u8>, WireError> {
    let read = async {
        let mut header = [0; FRAME_HEADER_BYTES];
        receive.read_exact(&mut header).await.map_err(|error| cut_short(&error))?;
        let len = frame_len(header).map_err(malformed)?;
        if len > REQUEST_BYTES_MAX {
            return Err(malformed(format!("a request of {len} bytes; at most {REQUEST_BYTES_MAX} are read")));
        }
        let mut body = vec![0; len];
        receive.read_exact(&mut body).await.map_err(|error| cut_short(&error))?;
        Ok(body)
    };
    patiently(&AtomicU64::new(0), read).await
}

/// Reads the bytes that follow a request, at the client's pace as long as it has one.
pub(super) async fn read_body(receive: &mut RecvStream, len: usize) -> Result<Bytes, WireError> {
    let came = AtomicU64::new(0);
    let read = async {
        let read = receive.read_bytes(len, |bytes| {
            came.fetch_add(bytes, Ordering::Relaxed);
        });
        read.await
            .map(BytesMut::freeze)
            .map_err(|error| malformed(format!("the content ends too soon: {error}")))
    };
    patiently(&came, read).await
}

/// Waits as long as the client is not silent for [`PAUSE_MAX`]. `came` counts what has come.
async fn patiently<T>(
    came: &AtomicU64,
    read: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    let mut read = pin!(read);
    loop {
        let before = came.load(Ordering::Relaxed);
        match timeout(PAUSE_MAX, &mut read).await {
            Ok(read) => return read,
            // Nothing was done, and it may be asked for again: the way is to blame rather than the client.
            Err(_) if came.load(Ordering::Relaxed) == before => {
                return Err(WireError::new(ErrorCode::Busy, "the request does not come"));
            }
            Err(_) => {}
        }
    }
}

fn cut_short(error: &StreamError) -> WireError {
    malformed(format!("the request ends too soon: {error}"))
}

/// The answer to what breaks the protocol.
pub(super) fn malformed(why: impl fmt::Display) -> WireError {
    WireError::new(ErrorCode::Malformed, why.to_string())
}

/// Where the answer goes. Dropped before [`Self::finish`], it tells the client that the answer is not whole.
#[derive(Debug)]
pub(super) struct Answer {
    send: SendStream,
    is_finished: bool,
    sending: Option<Sending>,
}

impl Answer {
    /// An answer on `send`, before anything is written.
    pub(super) fn new(send: SendStream) -> Self {
        Self { send, is_finished: false, sending: None }
    }

    /// Sends the answer's first message.
    pub(super) async fn reply(&mut self, reply: &Result<Reply, WireError>) -> Result<(), Gone> {
        self.frame(reply).await
    }

    /// Sends one more message.
    pub(super) async fn frame(&mut self, message: &impl Serialize) -> Result<(), Gone> {
        self.send.write_chunk(encode_frame(message).into()).await.map_err(|_| Gone)
    }

    /// Sends a part of a file; its bytes are not copied. Until this is dropped its content counts as on its way.
    pub(super) async fn content(
        &mut self,
        header: &impl Serialize,
        bytes: Bytes,
        counters: &Arc<Counters>,
    ) -> Result<(), Gone> {
        self.sending.get_or_insert_with(|| Sending::begin(counters));
        let mut parts = [encode_frame(header).into(), bytes];
        self.send.write_all_chunks(&mut parts).await.map_err(|_| Gone)
    }

    /// What this answer gives way to.
    pub(super) fn set_lane(&self, lane: Lane) {
        self.send.set_lane(lane);
    }

    /// Comes back when the client no longer wants the answer.
    pub(super) fn unwanted(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.send.stopped();
        async move {
            let _ = stopped.await;
        }
    }

    /// The answer is whole.
    pub(super) fn finish(&mut self) {
        self.is_finished = true;
        // It fails only where the client has stopped the stream.
        let _ = self.send.finish();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_finished {
            // The stream would be finished, and half an answer would look like a whole one.
            let _ = self.send.reset(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_long_and_one_that_does_not_come_may_be_asked_again() {
        let came = AtomicU64::new(0);
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(PAUSE_MAX * 3 / 4).await;
                came.fetch_add(1, Ordering::Relaxed);
            }
            Ok(7)
        };
        assert_eq!(patiently(&came, slow).await, Ok(7));
        let silent = patiently(&came, pending::<Result<(), WireError>>()).await;
        assert_eq!(silent.unwrap_err().code, ErrorCode::Busy);
    }
}
