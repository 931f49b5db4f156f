//! Reads of content, delivered in verified parts as they arrive. A read that breaks off continues where it
//! was.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::active_connection::Waiting;
use super::call::{Retry, Stopped, broken};
use super::progress::{Next, Progress};
use super::progress_timeout::ProgressTimeout;
use super::shared::{CallCount, Metered, Shared};
use super::stream::{Exchange, Fault};
use crate::chunk::{ChunkHash, ChunkIndex, HashMismatch, VerifiedChunk, VerifiedRun};
use crate::client::{CallError, ContentPart};
use crate::proto::{ContentHeader, ErrorCode, ReadRequest, Reply, Request, WireError, encode_frame};
use crate::transport::{Lane, freeze};

type Parts = mpsc::Sender<Result<ContentPart, CallError>>;

/// Longest run of chunks that is delivered as a whole, in bytes: the size of a kernel request.
const RUN_BYTES_MAX: u64 = 1024 * 1024;

/// Delivers the content of `request` into `parts`.
pub(super) async fn read(shared: Arc<Shared>, request: ReadRequest, lane: Lane, parts: Parts) {
    let _count = CallCount::new(&shared);
    let Some(progress) = Progress::new(request) else {
        let error = WireError::new(ErrorCode::Malformed, "a read of more chunks than the protocol allows");
        let _ = parts.send(Err(error.into())).await;
        return;
    };
    let timeout = ProgressTimeout::new(&shared);
    let reading =
        Reading { shared: &shared, lane, parts: &parts, timeout: &timeout, progress, pending: None };
    let last = tokio::select! {
        biased;
        () = parts.closed() => return,
        () = shared.closed() => Some(Err(CallError::Closed)),
        last = reading.run() => last,
        () = timeout.exhausted() => Some(Err(CallError::TimedOut(shared.deadline))),
    };
    if let Some(last) = last {
        // The receiver may have gone.
        let _ = parts.send(last).await;
    }
}

struct Reading<'a> {
    shared: &'a Shared,
    lane: Lane,
    parts: &'a Parts,
    timeout: &'a ProgressTimeout<'a>,
    progress: Progress,
    /// Chunks that have arrived and are not delivered yet.
    pending: Option<PendingRun>,
}

/// Adjacent chunks, to be delivered together.
struct PendingRun {
    first: ChunkIndex,
    run: VerifiedRun,
}

impl PendingRun {
    fn at(first: ChunkIndex) -> Self {
        Self { first, run: VerifiedRun::default() }
    }

    fn is_followed_by(&self, index: ChunkIndex) -> bool {
        self.first.0 + self.run.chunks() as u64 == index.0
    }

    fn parts(self) -> impl Iterator<Item = ContentPart> {
        let indices = (self.first.0..).map(ChunkIndex);
        indices.zip(self.run.finish(freeze)).map(|(index, chunk)| ContentPart::Chunk { index, chunk })
    }
}

/// Counters of content while it arrives.
struct ArrivalCounters<'live, 'shared> {
    waiting: Waiting<'live>,
    metered: Option<Metered<'shared>>,
    timeout: &'shared ProgressTimeout<'shared>,
}

impl ArrivalCounters<'_, '_> {
    fn arrived(&mut self, bytes: u64) {
        self.waiting.arrived(bytes);
        if let Some(metered) = &self.metered {
            metered.arrived(bytes);
        }
        self.timeout.arrived(bytes);
    }
}

impl<'a> Reading<'a> {
    /// Returns the last part or the error, `None` if there is no receiver any more.
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
        let waiting = Waiting::new(&live, self.progress.bytes_missing());
        let _permit = live.admit(self.lane).await.map_err(|_| Fault::Lost)?;
        let frame = encode_frame(&Request::Read(self.progress.remaining(), self.lane));
        let mut exchange = Exchange::begin(&live.connection, &frame, self.lane).await?;
        let delivers_runs = self.delivers_runs();
        if delivers_runs {
            exchange.reserve_contiguous(self.progress.bytes_missing() as usize);
        }
        match exchange.frame::<Result<Reply, WireError>>().await? {
            Ok(Reply::Content) => {}
            Ok(_) => return Err(broken("the reply is not content")),
            Err(refusal) => {
                exchange.complete();
                return Err(Stopped::Refused(refusal));
            }
        }
        let mut counters =
            ArrivalCounters { waiting, metered: Some(Metered::new(self.shared)), timeout: self.timeout };
        let ended = self.take_parts(&mut exchange, &mut counters, delivers_runs).await;
        // Verified content is not requested again.
        self.deliver_pending(&mut counters).await?;
        ended
    }

    /// Returns true if chunks should be delivered together, so that they can be read as one. The read must
    /// not be longer than a kernel request, and the link must be fast enough that no reader waits.
    fn delivers_runs(&self) -> bool {
        self.progress.asks_for_chunks()
            && self.progress.bytes_missing() <= RUN_BYTES_MAX
            && self.shared.meter().bytes_per_second() >= self.shared.runs_from_bytes_per_second
    }

    /// Takes the parts as they arrive. Returns the last one.
    async fn take_parts(
        &mut self,
        exchange: &mut Exchange,
        counters: &mut ArrivalCounters<'_, 'a>,
        delivers_runs: bool,
    ) -> Result<ContentPart, Stopped> {
        let mut parts_max = self.progress.parts_max();
        loop {
            let header: ContentHeader = exchange.frame().await?;
            if let ContentHeader::Failed(code) = header {
                exchange.complete();
                return Err(Stopped::Refused(WireError { code, text: String::new() }));
            }
            let next = self.progress.check(&header).map_err(broken)?;
            if !matches!(next, Next::End { .. }) {
                // A part that repeats is no progress.
                parts_max = parts_max.checked_sub(1).ok_or_else(|| broken("more parts than requested"))?;
            }
            if let (Next::Chunk { index, hash, len }, true) = (next, delivers_runs) {
                let bytes = exchange.bytes(len, |bytes| counters.arrived(bytes)).await?;
                if !self.progress.has(index) {
                    self.gather(index, hash, bytes, counters).await?;
                }
                self.progress.note(next);
                self.timeout.renew();
                continue;
            }
            let part = self.receive(next, exchange, counters).await?;
            let fresh = self.progress.note(next);
            if let end @ ContentPart::End { .. } = part {
                exchange.complete();
                return Ok(end);
            }
            if fresh {
                self.deliver_pending(counters).await?;
                self.deliver(part, counters).await?;
            }
            self.timeout.renew();
        }
    }

    /// Returns the part that `next` announces, with its bytes verified.
    async fn receive(
        &mut self,
        next: Next,
        exchange: &mut Exchange,
        counters: &mut ArrivalCounters<'_, 'a>,
    ) -> Result<ContentPart, Fault> {
        let arrived = |bytes| counters.arrived(bytes);
        Ok(match next {
            Next::Chunk { index, hash, len } => {
                let bytes = exchange.bytes(len, arrived).await?.freeze();
                ContentPart::Chunk { index, chunk: self.verify(hash, bytes)? }
            }
            Next::Packed { index, hash, len, packed_len } => {
                let bytes = read_decompressed(exchange, (len, packed_len), arrived).await?;
                ContentPart::Chunk { index, chunk: self.verify(hash, bytes)? }
            }
            Next::Piece { offset, hash, len } => {
                let bytes = exchange.bytes(len, arrived).await?.freeze();
                ContentPart::Piece { offset, bytes: self.verify(hash, bytes)?.into_bytes() }
            }
            Next::PackedPiece { offset, hash, len, packed_len } => {
                let bytes = read_decompressed(exchange, (len, packed_len), arrived).await?;
                ContentPart::Piece { offset, bytes: self.verify(hash, bytes)?.into_bytes() }
            }
            Next::Same { index } => ContentPart::Same { index },
            Next::End { observed } => ContentPart::End { observed },
        })
    }

    fn verify(&mut self, hash: ChunkHash, bytes: Bytes) -> Result<VerifiedChunk, Fault> {
        VerifiedChunk::verify(hash, bytes).map_err(|error| self.mismatch(&error))
    }

    fn mismatch(&mut self, error: &HashMismatch) -> Fault {
        self.progress.note_mismatch();
        Fault::Broken(error.to_string())
    }

    /// Verifies a chunk and keeps it with its predecessors. If it is not adjacent to them, they are delivered
    /// first.
    async fn gather(
        &mut self,
        index: ChunkIndex,
        hash: ChunkHash,
        bytes: BytesMut,
        counters: &mut ArrivalCounters<'_, 'a>,
    ) -> Result<(), Stopped> {
        if self.pending.as_ref().is_some_and(|pending| !pending.is_followed_by(index)) {
            self.deliver_pending(counters).await?;
        }
        let pending = self.pending.get_or_insert_with(|| PendingRun::at(index));
        pending.run.push(hash, bytes).map_err(|error| self.mismatch(&error).into())
    }

    async fn deliver_pending(&mut self, counters: &mut ArrivalCounters<'_, 'a>) -> Result<(), Stopped> {
        for part in self.pending.take().into_iter().flat_map(PendingRun::parts) {
            self.deliver(part, counters).await?;
        }
        Ok(())
    }

    async fn deliver(
        &self,
        part: ContentPart,
        counters: &mut ArrivalCounters<'_, 'a>,
    ) -> Result<(), Stopped> {
        let Err(mpsc::error::TrySendError::Full(part)) = self.parts.try_send(Ok(part)) else { return Ok(()) };
        // The reader is slower than the link, so neither the rate nor the host is at fault.
        counters.metered = None;
        counters.waiting.pause();
        self.timeout.pause();
        self.parts.send(part).await.map_err(|_| Stopped::Dropped)?;
        counters.waiting.resume();
        counters.metered = Some(Metered::new(self.shared));
        Ok(())
    }
}

/// Reads the next `packed_len` raw bytes and decompresses them to `len`.
async fn read_decompressed(
    exchange: &mut Exchange,
    (len, packed_len): (usize, usize),
    mut arrived: impl FnMut(u64),
) -> Result<Bytes, Fault> {
    let packed = exchange.bytes(packed_len, &mut arrived).await?;
    // Bytes that compression saved count as arrived.
    arrived((len - packed_len) as u64);
    decompress(&packed, len)
}

/// Decompresses `packed` to `len` bytes.
fn decompress(packed: &[u8], len: usize) -> Result<Bytes, Fault> {
    // The output is limited to `len` bytes, whatever the frame claims.
    let bytes =
        zstd::bulk::decompress(packed, len).map_err(|error| Fault::Broken(format!("zstd: {error}")))?;
    if bytes.len() == len {
        Ok(bytes.into())
    } else {
        Err(Fault::Broken("less content than announced".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decompressed_content_has_exactly_the_announced_length() {
        let plain = [7; 1000];
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        assert_eq!(decompress(&packed, 1000).unwrap(), plain.as_slice());
        assert!(decompress(&packed, 999).is_err());
        assert!(decompress(&packed, 1001).is_err());
        assert!(decompress(&packed[..packed.len() - 1], 1000).is_err());
        assert!(decompress(b"no frame", 1000).is_err());
    }
}
