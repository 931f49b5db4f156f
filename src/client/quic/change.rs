//! Changes, each under one number over any number of connections, so that the host does it once.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::call::{Retry, Stopped};
use super::live::Waiting;
use super::operations::Operations;
use super::shared::{CallCount, Shared, locked};
use super::stream::{Exchange, Fault};
use crate::chunk::ChunkHash;
use crate::client::CallError;
use crate::proto::{
    Change, ChangeRequest, LockAction, LockAnswer, LockCall, LockRequest, NodeId, Operation, OperationId,
    Reply, Request, SessionRun, WireError, WriteAt, WriteRequest, Written, encode_frame,
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
    /// The series of numbers that it belongs to.
    numbers: &'a Mutex<Operations>,
    id: OperationId,
    sent_first: Option<SessionRun>,
}

impl<'a> Turn<'a> {
    fn begin(shared: &'a Shared, numbers: &'a Mutex<Operations>) -> Self {
        Self { shared, numbers, id: locked(numbers).begin(), sent_first: None }
    }

    /// What the request carries when it is sent in this life of the session.
    fn operation(&mut self, run: SessionRun) -> Operation {
        Operation {
            id: self.id,
            answered_below: locked(self.numbers).answered_below(),
            sent_first: *self.sent_first.get_or_insert(run),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(self.numbers).end(self.id);
    }
}

/// Has `change` done.
pub(super) async fn change(shared: &Shared, change: Change) -> Result<Reply, CallError> {
    let _count = CallCount::new(shared);
    let takes_long =
        matches!(&change, Change::CopyRange { .. } | Change::Allocate { .. } | Change::SetAttributes { .. });
    let request = |operation| Request::Change(ChangeRequest { operation, change: change.clone() });
    let work = answered(shared, &shared.operations, Lane::Metadata, request, Bytes::new());
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
    let (len, hash) = (bytes.len() as u32, ChunkHash::of(&bytes));
    let request = |operation| Request::Write(WriteRequest { operation, node, at, len, hash });
    let answer = tokio::select! {
        biased;
        () = shared.closed() => return Err(CallError::Closed),
        answer = answered(shared, &shared.operations, Lane::Background, request, bytes) => answer?,
    };
    match answer {
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
    numbers: &Mutex<Operations>,
    lane: Lane,
    request: impl Fn(Operation) -> Request,
    content: Bytes,
) -> Result<Reply, CallError> {
    let mut turn = Turn::begin(shared, numbers);
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

/// Has something done about a lock. However long the host is away: a lock that nobody knows of would be nobody's to give back.
pub(super) async fn lock(shared: &Shared, call: LockCall) -> Result<LockAnswer, CallError> {
    let _count = CallCount::new(shared);
    // Who waits takes none of the streams that others need.
    let waits = matches!(call.action, LockAction::Take { wait: Some(_), .. });
    let _turn = if waits { shared.lock_waits.acquire().await.ok() } else { None };
    let request = |operation| Request::Lock(LockRequest { operation, call });
    let answer = tokio::select! {
        biased;
        () = shared.closed() => return Err(CallError::Closed),
        answer = answered(shared, &shared.lock_operations, Lane::Metadata, request, Bytes::new()) => answer?,
    };
    match answer {
        Reply::Lock(answer) => Ok(answer),
        _ => Err(CallError::BadAnswer("a reply of another kind than to a lock".into())),
    }
}
