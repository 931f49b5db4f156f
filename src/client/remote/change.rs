//! Changes and syncs. A change keeps one number over any number of connections, so that the host executes it
//! once. A sync names the changes that it waits for by these numbers.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::active_connection::Waiting;
use super::call::{Retry, Stopped};
use super::operations::Operations;
use super::shared::{CallCount, MeteredWrite, Shared, locked};
use super::stream::{Exchange, Fault};
use crate::client::{CallError, FirstSession, away, synced};
use crate::proto::{
    BootId, Change, ChangeRequest, LockAction, LockAnswer, LockCall, LockRequest, NodeId, Operation,
    OperationId, Reply, Request, SessionRun, WireError, WriteAt, WriteRequest, Written, encode_frame,
};
use crate::transport::Lane;

/// Deadlines that disk work may take while the host answers other requests. A slow disk needs minutes to sync
/// a gigabyte.
const WORK_DEADLINES: u32 = 10;

/// Interval at which the silence of the host is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A series of numbers. Lock operations have their own, because a wait must not delay the release of cached
/// replies.
#[derive(Debug, Clone, Copy)]
enum Series {
    Changes,
    Locks,
}

impl Series {
    const fn numbers(self, shared: &Shared) -> &Mutex<Operations> {
        match self {
            Self::Changes => &shared.operations,
            Self::Locks => &shared.lock_operations,
        }
    }
}

/// A change under way. On drop, the next request tells the host that its reply is no longer needed.
pub(super) struct OperationGuard {
    shared: Arc<Shared>,
    series: Series,
    id: OperationId,
    sent_first: FirstSession,
}

impl OperationGuard {
    /// Starts a change. `written` is the file whose content it writes.
    pub(super) fn begin(shared: &Arc<Shared>, written: Option<NodeId>, first: &FirstSession) -> Self {
        Self::begin_in(Series::Changes, shared, written, first)
    }

    fn begin_in(series: Series, shared: &Arc<Shared>, written: Option<NodeId>, first: &FirstSession) -> Self {
        let id = locked(series.numbers(shared)).begin(written);
        Self { shared: Arc::clone(shared), series, id, sent_first: first.clone() }
    }

    /// Returns the numbers that the request carries in this session epoch.
    fn numbers(&self, run: SessionRun) -> Operation {
        Operation {
            id: self.id,
            answered_below: locked(self.series.numbers(&self.shared)).answered_below(),
            sent_first: self.sent_first.or(run),
        }
    }
}

impl Drop for OperationGuard {
    fn drop(&mut self) {
        locked(self.series.numbers(&self.shared)).end(self.id);
    }
}

/// Executes `change`.
pub(super) async fn change(operation: OperationGuard, change: Change) -> Result<Reply, CallError> {
    let shared = &*Arc::clone(&operation.shared);
    let _count = CallCount::new(shared);
    let takes_long =
        matches!(&change, Change::CopyRange { .. } | Change::Allocate { .. } | Change::SetAttributes { .. });
    let request = |operation| Request::Change(ChangeRequest { operation, change: change.clone() });
    if matches!(change, Change::WriteKnown { .. }) {
        // Content, as in `write`, is not given up.
        return unless_closed(shared, answered(&operation, Lane::Background, request, Bytes::new())).await;
    }
    let work = answered(&operation, Lane::Metadata, request, Bytes::new());
    if takes_long {
        patiently(shared, ready(()), work).await
    } else {
        within(shared, shared.deadline, work).await
    }
}

/// Writes content and never gives up, however long the host is away: the program already got success. The
/// number keeps the write from being executed after a later one.
pub(super) async fn write(
    operation: OperationGuard,
    node: NodeId,
    at: WriteAt,
    bytes: Bytes,
) -> Result<Written, CallError> {
    let shared = &*Arc::clone(&operation.shared);
    let _count = CallCount::new(shared);
    let metered = MeteredWrite::new(shared);
    let (len, hash) = (bytes.len() as u32, at.proof(&bytes).hash);
    let request = |operation| Request::Write(WriteRequest { operation, node, at, len, hash });
    match unless_closed(shared, answered(&operation, Lane::Background, request, bytes)).await? {
        Reply::Written(written) if written.len == u64::from(len) => {
            metered.accepted(written.len);
            Ok(written)
        }
        _ => Err(CallError::BadAnswer("the reply to a write has the wrong kind or length".into())),
    }
}

/// Syncs `node` to the host's disk after the changes `after`, which are under way.
pub(super) async fn sync(
    shared: &Shared,
    node: NodeId,
    data_only: bool,
    after: Vec<OperationId>,
) -> Result<BootId, CallError> {
    let _count = CallCount::new(shared);
    let left = || locked(&shared.operations).left_of(&after);
    let work = async {
        let mut retry = Retry::default();
        loop {
            let after = left();
            let waits = !after.is_empty();
            let frame = encode_frame(&Request::Sync { node, data_only, after });
            let stopped = tokio::select! {
                biased;
                answer = super::call::ask(shared, &frame, Lane::Metadata) => match answer {
                    Ok(reply) => return synced(&reply),
                    Err(stopped) => stopped,
                },
                // The host may wait for a change that it will never see: an earlier run answered it, or it
                // was refused before.
                () = over_for_a_while(&left), if waits => continue,
            };
            let end = retry.after(shared, stopped).await;
            end.map_err(|error| error.unwrap_or(CallError::Closed))?;
        }
    };
    // Writes have no deadline on their way to the host.
    let arrived = over_for_a_while(&left);
    patiently(shared, arrived, work).await
}

/// Waits until no change is left, and then long enough for a reply that was sent with it.
async fn over_for_a_while(left: impl Fn() -> Vec<OperationId>) {
    while !left().is_empty() {
        sleep(LOOK_INTERVAL).await;
    }
    sleep(LOOK_INTERVAL).await;
}

/// Runs work that may keep the host's disk busy for long. The time counts from the end of `begins`.
async fn patiently<T>(
    shared: &Shared,
    begins: impl Future<Output = ()>,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let deadline = shared.deadline.saturating_mul(WORK_DEADLINES);
    let too_long = async {
        begins.await;
        sleep(deadline).await;
    };
    let away = async {
        let begun = shared.now();
        loop {
            sleep(LOOK_INTERVAL.min(shared.deadline)).await;
            let waited = shared.now().saturating_sub(begun);
            if away::left(Duration::MAX, shared.deadline, waited, shared.silent_for()).is_zero() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.closed() => Err(CallError::Closed),
        answer = work => answer,
        () = too_long => Err(CallError::TimedOut(deadline)),
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
        answer = work => answer,
        () = shared.too_late(deadline) => Err(CallError::TimedOut(deadline)),
    }
}

async fn answered(
    operation: &OperationGuard,
    lane: Lane,
    request: impl Fn(Operation) -> Request,
    content: Bytes,
) -> Result<Reply, CallError> {
    let mut retry = Retry::default();
    loop {
        match ask(operation, lane, &request, &content).await {
            Ok(reply) => return Ok(reply),
            Err(stopped) => {
                let end = retry.after(&operation.shared, stopped).await;
                end.map_err(|error| error.unwrap_or(CallError::Closed))?;
            }
        }
    }
}

/// Sends the change once, on any usable connection.
async fn ask(
    operation: &OperationGuard,
    lane: Lane,
    request: &impl Fn(Operation) -> Request,
    content: &Bytes,
) -> Result<Reply, Stopped> {
    let live = operation.shared.usable().await.map_err(Stopped::Call)?;
    let _waiting = Waiting::new(&live, 0);
    let _permit = live.admit(lane).await.map_err(|_| Fault::Lost)?;
    let frame = encode_frame(&request(operation.numbers(live.run)));
    let mut exchange = Exchange::begin_with(&live.connection, &frame, content.clone(), lane).await?;
    let reply: Result<Reply, WireError> = exchange.frame().await?;
    exchange.complete();
    reply.map_err(Stopped::Refused)
}

/// Executes a lock operation and never gives up. A lock that the client does not know of could never be
/// released.
pub(super) async fn lock(shared: &Arc<Shared>, call: LockCall) -> Result<LockAnswer, CallError> {
    let _count = CallCount::new(shared);
    // A waiting lock request takes none of the streams that others need.
    let waits = matches!(call.action, LockAction::Take { wait: Some(_), .. });
    let _place = if waits { shared.lock_waits.acquire().await.ok() } else { None };
    let operation = OperationGuard::begin_in(Series::Locks, shared, None, &FirstSession::default());
    let request = |operation| Request::Lock(LockRequest { operation, call });
    match unless_closed(shared, answered(&operation, Lane::Metadata, request, Bytes::new())).await? {
        Reply::Lock(answer) => Ok(answer),
        _ => Err(CallError::BadAnswer("the reply to a lock request has the wrong kind".into())),
    }
}
