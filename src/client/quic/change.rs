//! Changes, each under one number over any number of connections, so that the host does it once.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::call::{Retry, Stopped};
use super::live::Waiting;
use super::shared::{CallCount, Shared, locked};
use super::stream::{Exchange, Fault};
use crate::client::CallError;
use crate::proto::{
    Change, ChangeRequest, NodeId, Operation, OperationId, Reply, Request, SessionRun, WireError, WriteAt,
    WriteRequest, Written, encode_frame,
};
use crate::transport::Lane;

/// Deadlines that work on a disk may take while the host answers otherwise: a slow disk that has a gigabyte to bring home needs
/// minutes.
const WORK_DEADLINES: u32 = 10;

/// How often it is looked whether the host still answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A change under way; the host is told with the next one that its answer is no longer needed.
struct Turn<'a> {
    shared: &'a Shared,
    id: OperationId,
    sent_first: Option<SessionRun>,
}

impl<'a> Turn<'a> {
    fn begin(shared: &'a Shared) -> Self {
        Self { shared, id: locked(&shared.operations).begin(), sent_first: None }
    }

    /// What the request carries when it is sent in this life of the session.
    fn operation(&mut self, run: SessionRun) -> Operation {
        Operation {
            id: self.id,
            answered_below: locked(&self.shared.operations).answered_below(),
            sent_first: *self.sent_first.get_or_insert(run),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(&self.shared.operations).end(self.id);
    }
}

/// Has `change` done.
pub(super) async fn change(shared: &Shared, change: Change) -> Result<Reply, CallError> {
    let _count = CallCount::new(shared);
    let takes_long =
        matches!(&change, Change::CopyRange { .. } | Change::Allocate { .. } | Change::SetAttributes { .. });
    let request = |operation| Request::Change(ChangeRequest { operation, change: change.clone() });
    if matches!(change, Change::WriteKnown { .. }) {
        // Content, as of `write`: never given up either.
        return unless_closed(shared, answered(shared, Lane::Background, request, Bytes::new())).await;
    }
    let work = answered(shared, Lane::Metadata, request, Bytes::new());
    if takes_long { patiently(shared, work).await } else { within(shared, shared.deadline, work).await }
}

/// Has content written. However long the host is away: what a program was told is written is not given up, and under its number
/// it cannot come after what is written later.
pub(super) async fn write(
    shared: &Shared,
    node: NodeId,
    at: WriteAt,
    bytes: Bytes,
) -> Result<Written, CallError> {
    let _count = CallCount::new(shared);
    let (len, hash) = (bytes.len() as u32, at.proof(&bytes).hash);
    let request = |operation| Request::Write(WriteRequest { operation, node, at, len, hash });
    match unless_closed(shared, answered(shared, Lane::Background, request, bytes)).await? {
        Reply::Written(written) if written.len == u64::from(len) => Ok(written),
        _ => Err(CallError::BadAnswer("a reply of another kind or length than to a write".into())),
    }
}

/// Work that may take the host's disk long, without a change: a sync.
pub(super) async fn patiently<T>(
    shared: &Shared,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let away = async {
        let mut heard = Instant::now();
        while heard.elapsed() < shared.deadline {
            sleep(LOOK_INTERVAL.min(shared.deadline)).await;
            if shared.is_connected() {
                heard = Instant::now();
            }
        }
    };
    tokio::select! {
        biased;
        answer = within(shared, shared.deadline.saturating_mul(WORK_DEADLINES), work) => answer,
        () = away => Err(CallError::TimedOut(shared.deadline)),
    }
}

async fn unless_closed<T>(
    shared: &Shared,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::select! {
        biased;
        () = shared.closed() => Err(CallError::Closed),
        answer = work => answer,
    }
}

async fn within<T>(
    shared: &Shared,
    deadline: Duration,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::select! {
        biased;
        () = shared.closed() => Err(CallError::Closed),
        answer = timeout(deadline, work) => answer.unwrap_or(Err(CallError::TimedOut(deadline))),
    }
}

async fn answered(
    shared: &Shared,
    lane: Lane,
    request: impl Fn(Operation) -> Request,
    content: Bytes,
) -> Result<Reply, CallError> {
    let mut turn = Turn::begin(shared);
    let mut retry = Retry::default();
    loop {
        match ask(&mut turn, lane, &request, &content).await {
            Ok(reply) => return Ok(reply),
            Err(stopped) => {
                let end = retry.after(shared, stopped).await;
                end.map_err(|error| error.unwrap_or(CallError::Closed))?;
            }
        }
    }
}

/// Asks once, on whichever connection there is.
async fn ask(
    turn: &mut Turn<'_>,
    lane: Lane,
    request: &impl Fn(Operation) -> Request,
    content: &Bytes,
) -> Result<Reply, Stopped> {
    let live = turn.shared.usable().await.map_err(Stopped::Call)?;
    let _waiting = Waiting::new(&live, 0);
    let _permit = live.admit(lane).await.map_err(|_| Fault::Lost)?;
    let frame = encode_frame(&request(turn.operation(live.run)));
    let mut exchange = Exchange::begin_with(&live.connection, &frame, content.clone(), lane).await?;
    let reply: Result<Reply, WireError> = exchange.frame().await?;
    exchange.complete();
    reply.map_err(Stopped::Refused)
}
