//! Holding answers of the model host back until a test lets them go.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::proto::Request;

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The host has it and has done nothing yet: it will answer with how things are when it goes on.
    Arrived,
    /// The answer is made, from how things were, and is on its way.
    Answered,
    /// The part of a listing or a read with this number (from 0) is about to be made.
    Part(u64),
}

type Predicate = Box<dyn Fn(&Request, Stage) -> bool + Send + Sync>;

/// The queue of what is held.
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
    /// From now on what `predicate` says is held.
    pub(super) fn hold(&self, predicate: Predicate) {
        self.lock().holds = Some(predicate);
    }

    /// Holds nothing more and lets everything go.
    pub(super) fn open(&self) {
        *self.lock() = Inner::default();
    }

    /// Lets the oldest of what is held go; whether there was one.
    pub(super) fn release_one(&self) -> bool {
        let mut inner = self.lock();
        while let Some(held) = inner.held.pop_front() {
            if held.go.send(()).is_ok() {
                return true;
            }
        }
        false
    }

    /// What is held, oldest first; what was cancelled is not among it.
    pub(super) fn held(&self) -> Vec<(Request, Stage)> {
        let mut inner = self.lock();
        inner.held.retain(|held| !held.go.is_closed());
        inner.held.iter().map(|held| (held.request.clone(), held.stage)).collect()
    }

    /// Something to wait for before going on, if this is to be held. A dropped sender lets go too.
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
