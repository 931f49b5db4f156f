//! Path of a request through the model host: arrival, wait, answer, counters.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::answer::boot_of;
use super::{Connection, MemoryHost, Stage};
use crate::chunk::ByteRange;
use crate::client::{CallError, ContentPart, ListPart};
use crate::proto::{NodeId, OperationId, ReadRequest, Reply, Request, WriteRequest, Written};
use crate::transport::Lane;

/// Entries in a part of a listing. They are few, so tests see several parts.
const ENTRIES_PER_PART: usize = 100;

type Parts<T> = mpsc::Sender<Result<T, CallError>>;

/// Counts the request as cancelled unless it completed.
struct Unfinished<'a> {
    host: &'a MemoryHost,
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.host.count(|counters| counters.cancelled += 1);
        }
    }
}

/// A write that is not done yet, until dropped. A sync waits for it.
pub(super) struct Writing {
    host: MemoryHost,
    id: OperationId,
}

impl Writing {
    pub(super) fn begin(host: &MemoryHost, id: OperationId, node: NodeId) -> Self {
        host.writing().insert(id, node);
        Self { host: host.clone(), id }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.host.writing().remove(&self.id);
        self.host.shared.changes.send_replace(());
    }
}

impl MemoryHost {
    pub(super) async fn serve_call(self, request: Request) -> Result<Reply, CallError> {
        let mut guard = Unfinished { host: &self, finished: false };
        let result = self.call_inner(&request).await;
        guard.finished = true;
        result
    }

    pub(super) async fn serve_current(self, node: NodeId, range: ByteRange) -> Result<Bytes, CallError> {
        let mut guard = Unfinished { host: &self, finished: false };
        let result = self.current_inner(node, range).await;
        guard.finished = true;
        result
    }

    pub(super) async fn serve_write(
        self,
        request: WriteRequest,
        bytes: Bytes,
        writing: Writing,
    ) -> Result<Written, CallError> {
        let mut guard = Unfinished { host: &self, finished: false };
        let result = self.write_inner(request, &bytes, writing).await;
        guard.finished = true;
        result
    }

    pub(super) async fn serve_list(self, node: NodeId, parts: Parts<ListPart>) {
        let work = async {
            let result = self.list_inner(node, &parts).await;
            send_end(&parts, result.map(|()| ListPart::End)).await
        };
        self.run_unless_dropped(&parts, work).await;
    }

    pub(super) async fn serve_read(self, request: ReadRequest, lane: Lane, parts: Parts<ContentPart>) {
        let work = async {
            let result = self.read_inner(request, lane, &parts).await;
            send_end(&parts, result).await
        };
        self.run_unless_dropped(&parts, work).await;
    }

    async fn call_inner(&self, request: &Request) -> Result<Reply, CallError> {
        self.arrive(request).await?;
        if let Request::Sync { after, .. } = request {
            self.until(|host| after.iter().all(|id| !host.writing().contains_key(id))).await;
        }
        let answer = match request {
            Request::TestLock(test) => Ok(self.answer_test(test)),
            request => self.tree().answer(self.client, request, self.instance()),
        };
        self.pass(request, Stage::Answered).await?;
        Ok(answer?)
    }

    async fn current_inner(&self, node: NodeId, range: ByteRange) -> Result<Bytes, CallError> {
        let request = Request::ReadCurrent { node, range };
        self.arrive(&request).await?;
        let bytes = self.tree().read_current(node, range)?;
        self.pass(&request, Stage::Answered).await?;
        self.count(|counters| counters.content_bytes += bytes.len() as u64);
        Ok(bytes)
    }

    async fn write_inner(
        &self,
        write: WriteRequest,
        bytes: &[u8],
        writing: Writing,
    ) -> Result<Written, CallError> {
        let request = Request::Write(write);
        self.arrive(&request).await?;
        self.check_write(&write)?;
        let written = self.tree().write(&write, bytes, boot_of(self.instance()));
        drop(writing);
        self.count(|counters| counters.written_bytes += bytes.len() as u64);
        self.pass(&request, Stage::Answered).await?;
        Ok(written?)
    }

    async fn list_inner(&self, node: NodeId, parts: &Parts<ListPart>) -> Result<(), CallError> {
        let request = Request::ReadDirectory { node };
        self.arrive(&request).await?;
        let entries = self.tree().list(node)?;
        self.pass(&request, Stage::Answered).await?;
        for (number, batch) in entries.chunks(ENTRIES_PER_PART).enumerate() {
            self.pass(&request, Stage::Part(number as u64)).await?;
            send(parts, ListPart::Entries(batch.to_vec())).await?;
        }
        Ok(())
    }

    async fn read_inner(
        &self,
        read: ReadRequest,
        lane: Lane,
        parts: &Parts<ContentPart>,
    ) -> Result<ContentPart, CallError> {
        let request = Request::Read(read.clone(), lane);
        self.arrive(&request).await?;
        let mut cursor = self.tree().begin_read(read)?;
        self.pass(&request, Stage::Answered).await?;
        for number in 0.. {
            self.pass(&request, Stage::Part(number)).await?;
            let next = self.tree().next_part(&mut cursor);
            match next {
                ControlFlow::Continue(part) => {
                    self.count_part(&part);
                    send(parts, part).await?;
                }
                ControlFlow::Break(end) => return Ok(end?),
            }
        }
        Err(CallError::Closed)
    }

    /// Counts a request and takes it through the stages before its answer.
    async fn arrive(&self, request: &Request) -> Result<(), CallError> {
        self.count(|counters| counters.count(request));
        self.pass(request, Stage::Arrived).await?;
        let error = self.settings().error.clone();
        match error.and_then(|error| error(request)) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Waits for the link, the delay and the gate, at most until the deadline.
    pub(super) async fn pass(&self, request: &Request, stage: Stage) -> Result<(), CallError> {
        let deadline = self.settings().deadline;
        let mut connected = self.shared.connected.subscribe();
        let wait = async {
            connected.wait_for(|state| *state != Connection::Cut).await.map_err(|_| CallError::Closed)?;
            if stage == Stage::Arrived {
                let delay = self.settings().delay.clone().map(|delay| delay(request));
                if let Some(delay) = delay.filter(|delay| *delay > Duration::ZERO) {
                    tokio::time::sleep(delay).await;
                }
            }
            if let Some(released) = self.shared.gate.enter(request, stage) {
                self.shared.changes.send_replace(());
                // A dropped sender means that all requests were released.
                let _ = released.await;
            }
            Ok(())
        };
        let mut closed = self.shared.connected.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|state| *state == Connection::Closed) => Err(CallError::Closed),
            result = tokio::time::timeout(deadline, wait) => {
                result.unwrap_or(Err(CallError::TimedOut(deadline)))
            }
        }
    }

    fn count_part(&self, part: &ContentPart) {
        self.count(|counters| match part {
            ContentPart::Chunk { chunk, .. } => {
                counters.chunks += 1;
                counters.content_bytes += chunk.bytes().len() as u64;
            }
            ContentPart::Same { .. } => counters.same += 1,
            ContentPart::Piece { bytes, .. } => {
                counters.pieces += 1;
                counters.content_bytes += bytes.len() as u64;
            }
            ContentPart::End { .. } => {}
        });
    }

    async fn run_unless_dropped<T>(
        &self,
        parts: &Parts<T>,
        work: impl Future<Output = Result<(), CallError>>,
    ) {
        let mut guard = Unfinished { host: self, finished: false };
        tokio::select! {
            biased;
            () = parts.closed() => {}
            result = work => guard.finished = result.is_ok(),
        }
    }
}

async fn send<T>(parts: &Parts<T>, part: T) -> Result<(), CallError> {
    parts.send(Ok(part)).await.map_err(|_| CallError::Closed)
}

async fn send_end<T>(parts: &Parts<T>, end: Result<T, CallError>) -> Result<(), CallError> {
    parts.send(end).await.map_err(|_| CallError::Closed)
}
