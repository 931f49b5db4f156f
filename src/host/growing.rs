//! Writes that wait until they may make their file longer: decided by `growth`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::context::ClientContext;
use super::growth::Turn;
use super::tree::Handle;
use crate::proto::{ErrorCode, Growth, NodeId, WireError};

/// Longest wait for what was written before. Its client then sends it again when that is there.
const WAIT_LONGEST: Duration = Duration::from_secs(30);

/// A write under way, counted until it is dropped.
pub(super) struct GrowingWrite {
    context: Arc<ClientContext>,
    node: NodeId,
    growth: Growth,
    /// Failures of the file before it came.
    failures: u64,
}

impl GrowingWrite {
    /// Takes note of a write.
    pub(super) fn begin(context: &Arc<ClientContext>, node: NodeId, growth: Growth) -> Self {
        let failures = context.session.growths().begin(node);
        Self { context: Arc::clone(context), node, growth, failures }
    }

    /// Waits before the content is taken in, while too much content waits for other. Returns its place among that, to be held
    /// until it is written; content that need not wait has none.
    pub(super) async fn find_room(&self) -> Option<OwnedSemaphorePermit> {
        let mut landed = self.context.session.landed();
        // Where it ends is looked at when the file is at hand.
        while self.turn(u64::MAX) == Turn::Later {
            tokio::select! {
                place = self.context.budget.leave_to_wait() => return place,
                _ = landed.changed() => {}
            }
        }
        None
    }

    fn turn(&self, end: u64) -> Turn {
        self.context.session.growths().turn(self.node, end, self.growth, self.failures)
    }

    /// Returns when content that ends at `end` may be written.
    pub(super) async fn may_go(&self, handle: &Arc<Handle>, end: u64) -> Result<(), WireError> {
        let mut landed = self.context.session.landed();
        if self.turn(end) == Turn::Now {
            return Ok(());
        }
        self.look(handle).await?;
        let come = async { while self.turn(end) == Turn::Later && landed.changed().await.is_ok() {} };
        if timeout(WAIT_LONGEST, come).await.is_err() || self.turn(end) != Turn::Now {
            // A program of the host may have made it longer meanwhile.
            self.look(handle).await?;
        }
        if self.turn(end) == Turn::Now { Ok(()) } else { Err(too_early()) }
    }

    /// Looks how long the file is.
    async fn look(&self, handle: &Arc<Handle>) -> Result<(), WireError> {
        let handle = Arc::clone(handle);
        let size = self.context.blocking(move |_| Ok(handle.version()?.size)).await?;
        self.context.session.growths().reached(self.node, size);
        Ok(())
    }

    /// The write is over. `reached` is the size that the file has at least, or that it could not be written.
    pub(super) fn over(&self, reached: Result<u64, &WireError>) {
        {
            let mut growths = self.context.session.growths();
            match reached {
                Ok(size) => growths.reached(self.node, size),
                // It comes again, and others wait for it.
                Err(error) if error.code == ErrorCode::TooEarly => return,
                Err(_) => growths.failed(self.node),
            }
        }
        self.context.session.has_landed();
    }
}

impl Drop for GrowingWrite {
    fn drop(&mut self) {
        self.context.session.growths().end(self.node);
    }
}

fn too_early() -> WireError {
    WireError::new(ErrorCode::TooEarly, "what was written before this is not there")
}
