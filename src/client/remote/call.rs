//! Requests with a single message as answer, repeated until they are answered or too late.

use std::time::Duration;

use tokio::time::sleep;

use super::active_connection::Waiting;
use super::shared::{CallCount, Shared, add};
use super::stream::{Exchange, Fault};
use crate::client::CallError;
use crate::proto::{ErrorCode, Reply, Request, WireError, encode_frame};
use crate::transport::Lane;

/// Number of attempts for an answer that cannot be used. A flipped bit does not occur three times.
const TRIES_MAX: u32 = 3;
/// First wait after a host said that it is busy. The wait doubles up to the longest.
const BUSY_WAIT_FIRST: Duration = Duration::from_millis(50);
const BUSY_WAIT_LONGEST: Duration = Duration::from_secs(2);
/// Deadlines that the sum of a whole file may take. At 1 GB/s the default of 60 s sums 3.6 TB.
const SUM_DEADLINES: u32 = 60;

/// Sends the request until there is an answer, at most until the deadline.
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

/// Sends the request once, on any usable connection.
pub(super) async fn ask(shared: &Shared, frame: &[u8], lane: Lane) -> Result<Reply, Stopped> {
    let live = shared.usable().await.map_err(Stopped::Call)?;
    let _waiting = Waiting::new(&live, 0);
    let _permit = live.admit(lane).await.map_err(|_| Fault::Lost)?;
    let mut exchange = Exchange::begin(&live.connection, frame, lane).await?;
    let reply: Result<Reply, WireError> = exchange.frame().await?;
    exchange.complete();
    reply.map_err(Stopped::Refused)
}

/// Reason why one attempt failed without ending the call.
pub(super) enum Stopped {
    /// The host refused.
    Refused(WireError),
    /// The answer did not arrive, or cannot be used.
    Fault(Fault),
    /// Another attempt is useless.
    Call(CallError),
    /// There is no receiver any more.
    Dropped,
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Returns the fault for an answer that cannot be used.
pub(super) fn broken(reason: &str) -> Stopped {
    Stopped::Fault(Fault::Broken(reason.to_owned()))
}

/// Rules for repeating a request.
#[derive(Debug, Default)]
pub(super) struct Retry {
    broken: u32,
    busy: u32,
}

impl Retry {
    /// Returns `Ok` if another attempt is worthwhile, after a wait. Otherwise returns the error for the
    /// caller, `None` if there is no caller any more.
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
            // Any number of attempts is allowed. The supervisor makes a new connection, and the caller has
            // the deadline.
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
        // A host that shuts down resets its streams a little before its connections.
        sleep(BUSY_WAIT_FIRST).await;
        Ok(())
    }
}
