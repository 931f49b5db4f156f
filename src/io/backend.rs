//! Interface of a disk backend.

use super::operation::Operation;

/// Executor of operations. Dropping it completes the queued and running ones, then stops its threads.
pub(super) trait Backend: Send + Sync {
    /// Returns the name shown to users.
    fn name(&self) -> &'static str;

    /// Queues `operation` and returns at once. The backend answers through the reply channel of the
    /// operation, or drops it if it cannot run it any more.
    ///
    /// Callers hold a queue slot for each operation, so the queue needs no bound of its own.
    fn push(&self, operation: Operation);
}
