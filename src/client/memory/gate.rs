//! Holds answers of the model host until a test releases them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::proto::Request;

/// Stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The host has the request and has done nothing yet. Its answer will show the state at the release.
    Arrived,
    /// The answer is made, from the earlier state, and is on its way.
    Answered,
    /// The part with this number (from 0) of a listing or a read is about to be made.
    Part(u64),
}

type Predicate = Box<dyn Fn(&Request, Stage) -> bool + Send + Sync>;

/// Queue of held requests.
#[derive(Default)]
pub(super) struct Gate {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    holds: Option<Predicate>,
    held: VecDeque<Held>,
}

struct Held {
    request: Request,
    stage: Stage,
    go: oneshot::Sender<()>,
}

impl Gate {
    /// Holds requests that `predicate` selects from now on.
    pub(super) fn hold(&self, predicate: Predicate) {
        self.lock().holds = Some(predicate);
    }

    /// Releases all and holds no more.
    pub(super) fn open(&self) {
        *self.lock() = Inner::default();
    }

    /// Releases the oldest held request. Returns false if there was none.
    pub(super) fn release_one(&self) -> bool {
        let mut inner = self.lock();
        while let Some(held) = inner.held.pop_front() {
            if held.go.send(()).is_ok() {
                return true;
            }
        }
        false
    }

    /// Returns the held requests, oldest first, without cancelled ones.
    pub(super) fn held(&self) -> Vec<(Request, Stage)> {
        let mut inner = self.lock();
        inner.held.retain(|held| !held.go.is_closed());
        inner.held.iter().map(|held| (held.request.clone(), held.stage)).collect()
    }

    /// Returns a receiver to wait for, if this request must be held. A dropped sender releases it, too.
    pub(super) fn enter(&self, request: &Request, stage: Stage) -> Option<oneshot::Receiver<()>> {
        let mut inner = self.lock();
        let holds = inner.holds.as_ref().is_some_and(|predicate| predicate(request, stage));
        holds.then(|| {
            let (go, wait) = oneshot::channel();
            inner.held.push_back(Held { request: request.clone(), stage, go });
            wait
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
