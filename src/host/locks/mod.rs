//! Locks that clients hold on the host's files: as if each owner were a process here.
//!
//! - `holding`: what the kernel holds for one owner, as locks that belong to an open file
//! - `file`: one file's locks and waiters
//! - here: which files have any, what a session holds, and the requests
//!
//! Whoever waits for another client is told at once when it is his turn; for a process of the host it is looked again and again,
//! [`LOOK_LONGEST`] apart at most, since a wait in the kernel could not be ended. What a session holds ends with it.

mod file;
mod holding;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use self::file::{LockedFile, Owner, Ticket, Wanted};
use self::holding::{Holding, attributes_of};
use super::answer::malformed;
use super::budget::FileBudget;
use super::context::ClientContext;
use super::once::lock_once;
use super::session::Session;
use crate::proto::{
    Errno, ErrorCode, LOCK_WAIT_MS_MAX, LockAction, LockAnswer, LockCall, LockKind, LockOwner, LockRequest,
    LockTest, NodeId, Reply, WholeFile, WireError,
};

/// How soon it is looked again whether a process of the host still holds a lock; doubles up to [`LOOK_LONGEST`].
const LOOK_FIRST: Duration = Duration::from_millis(5);

/// How long it may take until a lock that a process of the host has given back is noticed.
const LOOK_LONGEST: Duration = Duration::from_millis(100);

/// Files on which some client holds or wants locks.
#[derive(Debug, Default)]
pub(super) struct Locks {
    files: Mutex<HashMap<NodeId, Arc<SharedFile>>>,
}

/// One file's locks.
#[derive(Debug, Default)]
struct SharedFile {
    /// Held while the file system is asked, which may hang.
    file: Mutex<LockedFile>,
    /// How many locks there were when it was held last, for those who may not wait.
    count: AtomicU64,
}

impl Locks {
    /// How many locks clients hold. Waits for no file system.
    pub(super) fn count(&self) -> u64 {
        lock(&self.files).values().map(|shared| shared.count.load(Ordering::Relaxed)).sum()
    }

    /// Works on the locks of a file.
    fn with<T>(&self, node: NodeId, work: impl FnOnce(&mut LockedFile) -> T) -> T {
        loop {
            let shared = Arc::clone(lock(&self.files).entry(node).or_default());
            let mut locked = lock(&shared.file);
            if locked.is_gone {
                continue;
            }
            let result = work(&mut locked);
            shared.count.store(locked.count() as u64, Ordering::Relaxed);
            if locked.is_idle() {
                locked.is_gone = true;
                lock(&self.files).remove(&node);
            }
            return result;
        }
    }
}

/// What one session holds.
#[derive(Debug)]
pub(super) struct SessionLocks {
    number: u64,
    all: Arc<Locks>,
    /// Where it may hold something.
    nodes: Mutex<HashSet<NodeId>>,
    has_ended: AtomicBool,
    files: FileBudget,
}

impl SessionLocks {
    /// Nothing is held. `files`: what its key may have open, over all sessions.
    pub(super) fn new(number: u64, all: Arc<Locks>, files: FileBudget) -> Arc<Self> {
        let (nodes, has_ended) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { number, all, nodes, has_ended, files })
    }

    /// Gives everything back, now and for good. Blocks.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        // Apart, as nobody may wait for a file with this lock in his hand.
        let nodes = std::mem::take(&mut *lock(&self.nodes));
        for node in nodes {
            self.all.with(node, |file| file.end(self.number));
        }
    }

    fn with<T>(
        &self,
        node: NodeId,
        work: impl FnOnce(&mut LockedFile) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        self.all.with(node, |file| {
            lock(&self.nodes).insert(node);
            // Looked at after the file was noted, and the end of the session sets it before it goes through what is noted: either
            // this is refused, or what is taken here is given back there.
            let result = if self.has_ended.load(Ordering::SeqCst) { Err(lost()) } else { work(file) };
            if !file.has(self.number) {
                lock(&self.nodes).remove(&node);
            }
            result
        })
    }

    const fn owner(&self, owner: LockOwner) -> Owner {
        (self.number, owner)
    }

    /// An open file for an owner of locks. Blocks.
    fn open(&self, session: &Session, node: NodeId, read_only: bool) -> Result<Holding, WireError> {
        let place = self.files.take().ok_or_else(|| WireError::system(Errno::EMFILE))?;
        let (fd, access) = session.file_to_lock(node, !read_only)?;
        Ok(Holding::new(fd, access, place))
    }
}

/// How far a request has come.
enum Step {
    Answered(LockAnswer),
    /// The lock is another's; it is told here when that changes.
    Waits(oneshot::Receiver<Result<(), WireError>>),
}

/// Takes, gives back or waits for a lock, once.
pub(super) async fn serve(context: &Arc<ClientContext>, request: LockRequest) -> Result<Reply, WireError> {
    let LockRequest { operation, call } = request;
    if context.session.run != call.run {
        return Err(lost());
    }
    check(&call)?;
    let (worker, locks) = (Arc::clone(context), Arc::clone(&context.session.locks));
    let work = move || async move {
        let read_only = worker.read_only;
        let step = worker.blocking(move |session| begin(session, read_only, &call)).await;
        // From here on nothing keeps the session: if it ends, so does the wait.
        drop(worker);
        match step? {
            Step::Answered(answer) => Ok(Reply::Lock(answer)),
            Step::Waits(told) => wait(locks, call, told).await.map(Reply::Lock),
        }
    };
    lock_once(context, &operation, work).await
}

/// Who stands against a lock. Blocks.
pub(super) fn test(session: &Session, read_only: bool, test: LockTest) -> Result<Reply, WireError> {
    let LockTest { node, owner, range, kind } = test;
    if !range.is_valid() {
        return Err(malformed("a lock of no bytes"));
    }
    let locks = &session.locks;
    let owner = locks.owner(owner);
    let wanted = Wanted { owner, range, kind, whole: WholeFile::Fcntl, process: 0 };
    let found = locks.with(node, |file| file.test(&wanted, || locks.open(session, node, read_only)))?;
    Ok(Reply::LockTest(found))
}

fn check(call: &LockCall) -> Result<(), WireError> {
    let (range, wait) = match call.action {
        LockAction::Take { range, wait, .. } => (range, wait),
        LockAction::Release { range } => (range, None),
        LockAction::Leave { .. } => return Ok(()),
    };
    if !range.is_valid() {
        return Err(malformed("a lock of no bytes"));
    }
    if wait.is_some_and(|wait| wait.for_ms > LOCK_WAIT_MS_MAX) {
        return Err(malformed("a longer wait than one request may take"));
    }
    Ok(())
}

/// Does what can be done at once. Blocks.
fn begin(session: &Session, read_only: bool, call: &LockCall) -> Result<Step, WireError> {
    let (locks, node) = (&session.locks, call.node);
    let owner = locks.owner(call.owner);
    match call.action {
        LockAction::Take { range, kind, whole, process, wait } => {
            if kind == LockKind::Exclusive && read_only {
                let text = "the host lets this client read only: it may take shared locks";
                return Err(WireError::new(ErrorCode::System(Errno::EROFS), text));
            }
            let wanted = Wanted { owner, range, kind, whole, process };
            let waits = locks.with(node, |file| {
                if file.take(&wanted, || locks.open(session, node, read_only))? {
                    if let Some(wait) = wait {
                        file.leave((locks.number, wait.ticket));
                    }
                    return Ok(None);
                }
                let Some(wait) = wait else {
                    file.let_go(owner);
                    return Ok(Some(Step::Answered(LockAnswer::Held)));
                };
                let (tell, told) = oneshot::channel();
                file.wait((locks.number, wait.ticket), wanted, tell).inspect_err(|_| file.let_go(owner))?;
                Ok(Some(Step::Waits(told)))
            })?;
            waits.map_or_else(|| done(locks, call).map(Step::Answered), Ok)
        }
        LockAction::Release { range } => {
            let attributes = session.attributes(node);
            locks.with(node, |file| file.release(owner, range))?;
            Ok(Step::Answered(LockAnswer::Done(attributes?)))
        }
        LockAction::Leave { ticket } => {
            locks.with(node, |file| {
                file.leave((locks.number, ticket));
                file.let_go(owner);
                Ok(())
            })?;
            Ok(Step::Answered(LockAnswer::Held))
        }
    }
}

/// The owner has the lock; what does the file look like now? Blocks.
fn done(locks: &SessionLocks, call: &LockCall) -> Result<LockAnswer, WireError> {
    let file = locks.with(call.node, |file| Ok(file.file_of(locks.owner(call.owner))))?;
    // Without one the owner's other threads gave the lock back meanwhile.
    let file = file.ok_or_else(|| WireError::system(Errno::EIO))?;
    attributes_of(&file).map(LockAnswer::Done)
}

/// Waits until the lock is given, or for as long as the request may.
async fn wait(
    locks: Arc<SessionLocks>,
    call: LockCall,
    mut told: oneshot::Receiver<Result<(), WireError>>,
) -> Result<LockAnswer, WireError> {
    let LockAction::Take { range, kind, whole, process, wait: Some(wait) } = call.action else {
        return Err(malformed("a wait for nothing"));
    };
    let until = Instant::now() + Duration::from_millis(u64::from(wait.for_ms));
    let mut pause = LOOK_FIRST;
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        if let Ok(answer) = timeout(pause.min(left), &mut told).await {
            // Nobody is there to tell any more: he has left, or asked anew.
            let Ok(given) = answer else { return Ok(LockAnswer::Held) };
            given?;
            return in_background(move || done(&locks, &call)).await;
        }
        pause = (pause * 2).min(LOOK_LONGEST);
        let looker = Arc::clone(&locks);
        in_background(move || {
            looker.with(call.node, |file| {
                file.offer();
                Ok(())
            })
        })
        .await?;
    }
    let wanted = Wanted { owner: locks.owner(call.owner), range, kind, whole, process };
    in_background(move || {
        let ticket: Ticket = (locks.number, wait.ticket);
        if locks.with(call.node, |file| Ok(file.pause(ticket, &wanted)))? {
            done(&locks, &call)
        } else {
            Ok(LockAnswer::Held)
        }
    })
    .await
}

/// Runs what may block where that is allowed.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> Result<T, WireError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(WireError::system(Errno::EIO)))
}

/// The answer to what was to be done under a lock that is lost.
pub(super) fn lost() -> WireError {
    WireError::new(ErrorCode::LocksLost, "the session in which the lock was taken is over")
}

/// Every change under these locks is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
