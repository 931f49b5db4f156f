//! Changes, each done once however often it is asked for.
//!
//! The work runs in a task of its own: a stream that breaks off leaves it alone, and the request that comes again on the next
//! connection waits for the same answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::malformed;
use super::context::ClientContext;
use super::operations::{Begun, Operations};
use crate::proto::{Errno, ErrorCode, Operation, OperationId, Reply, WireError};

/// How long a change may be on its way that something else waits for. A client that still has it under way asks again.
const COMING_MAX: Duration = Duration::from_secs(10);

/// The answer, once there is one.
pub(super) type Outcome = watch::Receiver<Option<Result<Reply, WireError>>>;

/// What a session keeps of its changes.
pub(super) type Outcomes = Operations<Outcome>;

/// The answer to a change: from `work`, if it is new.
pub(super) async fn once<F>(
    context: &Arc<ClientContext>,
    operation: &Operation,
    work: impl FnOnce() -> F,
) -> Result<Reply, WireError>
where
    F: Future<Output = Result<Reply, WireError>> + Send + 'static,
{
    if context.read_only {
        return Err(WireError::new(ErrorCode::System(Errno::EROFS), "the host lets this client read only"));
    }
    let outcome = begin(context, &mut context.session.operations(), operation, work);
    wait(outcome?).await
}

/// The same for what is done about locks, which changes nothing.
pub(super) async fn lock_once<F>(
    context: &Arc<ClientContext>,
    operation: &Operation,
    work: impl FnOnce() -> F,
) -> Result<Reply, WireError>
where
    F: Future<Output = Result<Reply, WireError>> + Send + 'static,
{
    let outcome = begin(context, &mut context.session.lock_operations(), operation, work);
    wait(outcome?).await
}

/// Begins the work, unless that was done before.
fn begin<F>(
    context: &ClientContext,
    operations: &mut Outcomes,
    operation: &Operation,
    work: impl FnOnce() -> F,
) -> Result<Outcome, WireError>
where
    F: Future<Output = Result<Reply, WireError>> + Send + 'static,
{
    let (sender, receiver) = watch::channel(None);
    match operations.begin(operation.id, operation.answered_below, || receiver.clone()) {
        Begun::New => {
            context.session.has_begun();
            let work = work();
            tokio::spawn(async move {
                let answer = work.await;
                sender.send_replace(Some(answer));
            });
            Ok(receiver)
        }
        Begun::Known(outcome) => {
            context.counters().changes_repeated.add(1);
            Ok(outcome)
        }
        Begun::Over => Err(malformed("a change that was answered before")),
        Begun::Full => Err(WireError::new(ErrorCode::Busy, "too many changes at once")),
    }
}

/// Returns when a change is over, whatever came of it. It may not have come yet; where it does not, the client asks again.
pub(super) async fn over(context: &ClientContext, id: OperationId) -> Result<(), WireError> {
    let mut begun = context.session.begun();
    let came = async {
        loop {
            match context.session.operations().look(id) {
                Begun::Over | Begun::Full => return None,
                Begun::Known(outcome) => return Some(outcome),
                Begun::New => {}
            }
            if begun.changed().await.is_err() {
                return None;
            }
        }
    };
    match timeout(COMING_MAX, came).await {
        Ok(Some(outcome)) => {
            // What failed is told to who asked for it.
            let _ = wait(outcome).await;
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(_) => Err(WireError::new(ErrorCode::Busy, "a change that is to be waited for does not come")),
    }
}

async fn wait(mut outcome: Outcome) -> Result<Reply, WireError> {
    match outcome.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(lost())),
        // The task panicked, or the daemon ends.
        Err(_) => Err(lost()),
    }
}

fn lost() -> WireError {
    WireError::new(ErrorCode::System(Errno::EIO), "the host cannot tell whether it was done; see its log")
}
