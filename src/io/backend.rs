//! What a disk backend must do.

use super::operation::Operation;

/// Runs operations. Dropping it lets those that are queued or running end, then stops its threads.
pub(super) trait Backend: Send + Sync {
    /// How users know it.
    fn name(&self) -> &'static str;

    /// Queues `operation` and returns at once. The backend answers it through its reply channel; where it cannot any
    /// more, it drops it.
    ///
    /// Callers hold a place for each operation, so the queue is bounded without a limit of its own.
    fn push(&self, operation: Operation);
}
