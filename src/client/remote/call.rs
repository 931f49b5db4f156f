//! A request with one message for an answer, asked again until it is answered or too late.

use std::time::Duration;

use tokio::time::sleep;

use super::active_connection::Waiting;
use super::shared::{CallCount, Shared, add};
use super::stream::{Exchange, Fault};
use crate::client::CallError;
use crate::proto::{ErrorCode, Reply, Request, WireError, encode_frame};
use crate::transport::Lane;

/// How often an answer that cannot be used is asked for: a flipped bit does not come three times.
const TRIES_MAX: u32 = 3;
/// First wait after a host said that it is busy; doubles up to the longest.
const BUSY_WAIT_FIRST: Duration = Duration::from_millis(50);
const BUSY_WAIT_LONGEST: Duration = Duration::from_secs(2);
/// Deadlines that a whole-file sum may take: at 1 GB/s the default of 60 s sums 3.6 TB.
const SUM_DEADLINES: u32 = 60;

/// Asks until there is an answer, at most until the deadline.
pub(super) async fn call(shared: &Shared, request: Request, lane: Lane) -> Result<Reply, CallError> {
    let _count = CallCount::new(shared);
    let deadline = match request {
        Request::Sum { .. } => shared.deadline * SUM_DEADLINES,
        _ => shared.deadline,
    };
    let frame = encode_frame(&request);
    drop(request);
    tokio::select! {
        biased;
        () = shared.closed() => Err(CallError::Closed),
        answer = answered(shared, &frame, lane) => answer,
        () = shared.too_late(deadline) => Err(CallError::TimedOut(deadline)),
    }
}

async fn answered(shared: &Shared, frame: &[u8], lane: Lane) -> Result<Reply, CallError> {
    let mut retry = Retry::default();
    loop {
        match ask(shared, frame, lane).await {
            Ok(reply) => return Ok(reply),
            Err(stopped) => {
                let end = retry.after(shared, stopped).await;
                end.map_err(|error| error.unwrap_or(CallError::Closed))?;
            }
        }
    }
}

/// Asks once, on whichever connection there is.
pub(super) async fn ask(shared: &Shared, frame: &[u8], lane: Lane) -> Result<Reply, Stopped> {
    let live = shared.usable().await.map_err(Stopped::Call)?;
    let _waiting = Waiting::new(&live, 0);
    let _permit = live.admit(lane).await.map_err(|_| Fault::Lost)?;
    let mut exchange = Exchange::begin(&live.connection, frame, lane).await?;
    let reply: Result<Reply, WireError> = exchange.frame().await?;
    exchange.complete();
    reply.map_err(Stopped::Refused)
}

/// How one attempt ended that did not end the call.
pub(super) enum Stopped {
    /// The host says no.
    Refused(WireError),
    /// The answer did not come, or cannot be used.
    Fault(Fault),
    /// There is no sense in another attempt.
    Call(CallError),
    /// Nobody listens any more.
    Dropped,
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// An answer that cannot be used.
pub(super) fn broken(reason: &str) -> Stopped {
    Stopped::Fault(Fault::Broken(reason.to_owned()))
}

/// What may be asked again, and when.
#[derive(Debug, Default)]
pub(super) struct Retry {
    broken: u32,
    busy: u32,
}

impl Retry {
    /// Returns `Ok` when it is worth asking again; otherwise what to tell the caller, if there still is one.
    pub(super) async fn after(&mut self, shared: &Shared, stopped: Stopped) -> Result<(), Option<CallError>> {
        match stopped {
            Stopped::Dropped => Err(None),
            Stopped::Call(error) => Err(Some(error)),
            Stopped::Refused(refusal) if refusal.code == ErrorCode::Busy => {
                let wait = BUSY_WAIT_FIRST.saturating_mul(1 << self.busy.min(16)).min(BUSY_WAIT_LONGEST);
                self.busy += 1;
                sleep(wait).await;
                Ok(())
            }
            Stopped::Refused(refusal) => Err(Some(refusal.into())),
            // As often as it takes: another connection is somebody else's care, and the deadline the caller's.
            Stopped::Fault(Fault::Lost) => Ok(()),
            Stopped::Fault(Fault::Broken(reason)) => self.after_broken(shared, reason).await,
        }
    }

    async fn after_broken(&mut self, shared: &Shared, reason: String) -> Result<(), Option<CallError>> {
        add(&shared.totals.bad_answers, 1);
        tracing::warn!(reason, "an answer of the host cannot be used");
        self.broken += 1;
        if self.broken >= TRIES_MAX {
            return Err(Some(CallError::BadAnswer(reason)));
        }
        // A host that is going down resets its streams a little before its connections.
        sleep(BUSY_WAIT_FIRST).await;
        Ok(())
    }
}
