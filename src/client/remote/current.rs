//! Reads of the present content of a file, in one answer that is complete or requested again.

use bytes::Bytes;

use super::active_connection::Waiting;
use super::call::{Retry, Stopped, broken};
use super::progress_timeout::ProgressTimeout;
use super::shared::{CallCount, Metered, Shared};
use super::stream::{Exchange, Fault};
use crate::chunk::{ByteRange, VerifiedChunk};
use crate::client::CallError;
use crate::proto::{NodeId, Reply, Request, WireError, encode_frame};
use crate::transport::Lane;

/// Returns the bytes of `range`, fewer only at the end of the file.
pub(super) async fn read(shared: &Shared, node: NodeId, range: ByteRange) -> Result<Bytes, CallError> {
    let _count = CallCount::new(shared);
    let timeout = ProgressTimeout::new(shared);
    tokio::select! {
        biased;
        () = shared.closed() => Err(CallError::Closed),
        bytes = answered(shared, node, range, &timeout) => bytes,
        () = timeout.exhausted() => Err(CallError::TimedOut(shared.deadline)),
    }
}

async fn answered(
    shared: &Shared,
    node: NodeId,
    range: ByteRange,
    timeout: &ProgressTimeout<'_>,
) -> Result<Bytes, CallError> {
    let frame = encode_frame(&Request::ReadCurrent { node, range });
    let mut retry = Retry::default();
    loop {
        match ask(shared, &frame, range, timeout).await {
            Ok(bytes) => return Ok(bytes),
            Err(stopped) => {
                let end = retry.after(shared, stopped).await;
                end.map_err(|error| error.unwrap_or(CallError::Closed))?;
            }
        }
    }
}

/// Sends the request once, on any usable connection.
async fn ask(
    shared: &Shared,
    frame: &[u8],
    range: ByteRange,
    timeout: &ProgressTimeout<'_>,
) -> Result<Bytes, Stopped> {
    let live = shared.usable().await.map_err(Stopped::Call)?;
    let mut waiting = Waiting::new(&live, range.len);
    let _permit = live.admit(Lane::Demand).await.map_err(|_| Fault::Lost)?;
    let mut exchange = Exchange::begin(&live.connection, frame, Lane::Demand).await?;
    let (hash, len) = match exchange.frame::<Result<Reply, WireError>>().await? {
        Ok(Reply::Current { hash, len }) if u64::from(len) <= range.len => (hash, len as usize),
        Ok(_) => return Err(broken("the reply has the wrong kind or length")),
        Err(refusal) => {
            exchange.complete();
            return Err(Stopped::Refused(refusal));
        }
    };
    let metered = Metered::new(shared);
    let arrived = |bytes| {
        waiting.arrived(bytes);
        metered.arrived(bytes);
        timeout.arrived(bytes);
    };
    let bytes = exchange.bytes(len, arrived).await?;
    exchange.complete();
    let proved = VerifiedChunk::verify(hash, bytes.freeze()).map_err(|error| broken(&error.to_string()))?;
    Ok(proved.into_bytes())
}
