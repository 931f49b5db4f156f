//! Content of a file, as it arrives, verified; a read that is cut off goes on where it was.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::call::{Retry, Stopped, broken};
use super::live::Waiting;
use super::patience::Patience;
use super::progress::{Next, Progress};
use super::shared::{CallCount, Metered, Shared};
use super::stream::{Exchange, Fault};
use crate::chunk::VerifiedChunk;
use crate::client::{CallError, ContentPart};
use crate::proto::{ContentHeader, ErrorCode, ReadRequest, Reply, Request, WireError, encode_frame};
use crate::transport::Lane;

type Parts = mpsc::Sender<Result<ContentPart, CallError>>;

/// Delivers what `request` asks for into `parts`.
pub(super) async fn read(shared: Arc<Shared>, request: ReadRequest, lane: Lane, parts: Parts) {
    let _count = CallCount::new(&shared);
    let Some(progress) = Progress::new(request) else {
        let error = WireError::new(ErrorCode::Malformed, "a read of more chunks than the protocol allows");
        let _ = parts.send(Err(error.into())).await;
        return;
    };
    let patience = Patience::new(&shared);
    let reading = Reading { shared: &shared, lane, parts: &parts, patience: &patience, progress };
    let last = tokio::select! {
        biased;
        () = parts.closed() => return,
        () = shared.closed() => Some(Err(CallError::Closed)),
        last = reading.run() => last,
        () = patience.exhausted() => Some(Err(CallError::TimedOut(shared.deadline))),
    };
    if let Some(last) = last {
        // A receiver that is gone has its reasons.
        let _ = parts.send(last).await;
    }
}

struct Reading<'a> {
    shared: &'a Shared,
    lane: Lane,
    parts: &'a Parts,
    patience: &'a Patience<'a>,
    progress: Progress,
}

impl Reading<'_> {
    /// The last part, or why there is none; `None` where nobody listens any more.
    async fn run(mut self) -> Option<Result<ContentPart, CallError>> {
        let mut retry = Retry::default();
        loop {
            match self.attempt().await {
                Ok(end) => return Some(Ok(end)),
                Err(stopped) => {
                    if let Err(end) = retry.after(self.shared, stopped).await {
                        return end.map(Err);
                    }
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<ContentPart, Stopped> {
        let live = self.shared.usable().await.map_err(Stopped::Call)?;
        let mut waiting = Waiting::new(&live, self.progress.bytes_missing());
        let _permit = live.admit(self.lane).await.map_err(|_| Fault::Lost)?;
        let frame = encode_frame(&Request::Read(self.progress.remaining(), self.lane));
        let mut exchange = Exchange::begin(&live.connection, &frame, self.lane).await?;
        match exchange.frame::<Result<Reply, WireError>>().await? {
            Ok(Reply::Content) => {}
            Ok(_) => return Err(broken("a reply of another kind than content")),
            Err(refusal) => {
                exchange.complete();
                return Err(Stopped::Refused(refusal));
            }
        }
        let mut metered = Some(Metered::new(self.shared));
        loop {
            let header: ContentHeader = exchange.frame().await?;
            if let ContentHeader::Failed(code) = header {
                exchange.complete();
                return Err(Stopped::Refused(WireError { code, text: String::new() }));
            }
            let next = self.progress.check(&header).map_err(broken)?;
            let received = self.receive(next, &mut exchange, &mut waiting, metered.as_ref()).await;
            let part = received.inspect_err(|fault| {
                if matches!(fault, Fault::Broken(_)) {
                    self.progress.doubt();
                }
            })?;
            let fresh = self.progress.note(next);
            if let end @ ContentPart::End { .. } = part {
                exchange.complete();
                return Ok(end);
            }
            if !fresh {
                continue;
            }
            if let Err(mpsc::error::TrySendError::Full(part)) = self.parts.try_send(Ok(part)) {
                // The reader is slower than the link: neither the meter nor the host is to blame.
                drop(metered.take());
                waiting.pause();
                self.patience.pause();
                self.parts.send(part).await.map_err(|_| Stopped::Dropped)?;
                waiting.resume();
                metered = Some(Metered::new(self.shared));
            }
            self.patience.renew();
        }
    }

    /// The part that `next` announces, with its bytes proved.
    async fn receive(
        &self,
        next: Next,
        exchange: &mut Exchange,
        waiting: &mut Waiting<'_>,
        metered: Option<&Metered<'_>>,
    ) -> Result<ContentPart, Fault> {
        let arrived = |bytes| {
            waiting.arrived(bytes);
            if let Some(metered) = metered {
                metered.arrived(bytes);
            }
            self.patience.arrived(bytes);
        };
        let unproved = |error: crate::chunk::HashMismatch| Fault::Broken(error.to_string());
        Ok(match next {
            Next::Chunk { index, hash, len } => {
                let bytes = exchange.bytes(len, arrived).await?;
                ContentPart::Chunk { index, chunk: VerifiedChunk::verify(hash, bytes).map_err(unproved)? }
            }
            Next::Packed { index, hash, len, packed_len } => {
                let bytes = unpacked(exchange, (len, packed_len), arrived).await?;
                ContentPart::Chunk { index, chunk: VerifiedChunk::verify(hash, bytes).map_err(unproved)? }
            }
            Next::Piece { offset, hash, len } => {
                let bytes = exchange.bytes(len, arrived).await?;
                let bytes = VerifiedChunk::verify(hash, bytes).map_err(unproved)?.into_bytes();
                ContentPart::Piece { offset, bytes }
            }
            Next::PackedPiece { offset, hash, len, packed_len } => {
                let bytes = unpacked(exchange, (len, packed_len), arrived).await?;
                let bytes = VerifiedChunk::verify(hash, bytes).map_err(unproved)?.into_bytes();
                ContentPart::Piece { offset, bytes }
            }
            Next::Same { index } => ContentPart::Same { index },
            Next::End { observed } => ContentPart::End { observed },
        })
    }
}

/// The next `packed_len` raw bytes, from which `len` come out.
async fn unpacked(
    exchange: &mut Exchange,
    (len, packed_len): (usize, usize),
    mut arrived: impl FnMut(u64),
) -> Result<Bytes, Fault> {
    let packed = exchange.bytes(packed_len, &mut arrived).await?;
    // What it took less to send came as fast.
    arrived((len - packed_len) as u64);
    unpack(&packed, len)
}

/// The `len` bytes that were compressed to `packed`.
fn unpack(packed: &[u8], len: usize) -> Result<Bytes, Fault> {
    // More than `len` bytes do not come out, whatever the frame says of itself.
    let bytes =
        zstd::bulk::decompress(packed, len).map_err(|error| Fault::Broken(format!("zstd: {error}")))?;
    if bytes.len() == len {
        Ok(bytes.into())
    } else {
        Err(Fault::Broken("less than was announced".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_exactly_what_was_announced() {
        let plain = [7; 1000];
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        assert_eq!(unpack(&packed, 1000).unwrap(), plain.as_slice());
        assert!(unpack(&packed, 999).is_err());
        assert!(unpack(&packed, 1001).is_err());
        assert!(unpack(&packed[..packed.len() - 1], 1000).is_err());
        assert!(unpack(b"no frame", 1000).is_err());
    }
}
