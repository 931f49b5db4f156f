//! File locks: `fcntl` and `flock`, held on the host.
//!
//! The kernel keeps nothing of them; it names an owner, and tells when a descriptor is closed. Before a lock is given back the host has
//! what was written under it, and who has been given one sees what was written under the last: the host's answer brings the file's
//! attributes, and the kernel is told to drop its copies before the program goes on.
//!
//! Whoever gives up, because of a signal or because the host is away, is answered at once. What the host makes of his request is
//! put right behind his back, and what the same owner asks of the file next waits for that.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::events::{EventLane, FsEvent};
use super::files::OpenFile;
use super::inodes::Inode;
use super::own_locks::{Debt, OwnLocks, Taker, put_back};
use super::{FileSystem, FsError, lock};
use crate::client::{CallError, Client};
use crate::lock::HeldLock;
use crate::proto::{
    Attributes, ErrorCode, LockAction, LockAnswer, LockCall, LockFound, LockKind, LockOwner, LockRange,
    LockTest, LockWait, NodeId, SessionRun, Timestamp, WholeFile,
};

/// Longest wait of one request. Who waits asks again; so a request that is lost costs no more than this.
const WAIT_LONGEST: Duration = Duration::from_secs(5);

/// How often the host is told that somebody waits no longer, until his request has been answered.
const LEAVE_EVERY: Duration = Duration::from_millis(250);

/// How often it is looked whether the host is there while somebody waits for a lock.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often a lock is asked for in a new life of the session before it counts as not to be had.
const LIVES_MAX: u32 = 4;

/// A lock that a program wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockWish {
    /// For whom, by the kernel's number.
    pub owner: u64,
    /// Which bytes.
    pub range: LockRange,
    /// Shared or not.
    pub kind: LockKind,
    /// Which process asks.
    pub process: u32,
}

/// Which kinds of locks are held on the host. The kernel keeps the others on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteLocks {
    /// Those of `flock(2)`.
    pub flock: bool,
    /// Those of `fcntl(2)` and `lockf(3)`.
    pub fcntl: bool,
}

impl RemoteLocks {
    /// Neither.
    pub const NONE: Self = Self { flock: false, fcntl: false };

    /// Both.
    pub const ALL: Self = Self { flock: true, fcntl: true };

    /// Whether any are.
    pub const fn any(self) -> bool {
        self.flock || self.fcntl
    }

    /// What a lock of a whole file is: the kernel does not tell which kind it means.
    const fn whole(self) -> WholeFile {
        match (self.flock, self.fcntl) {
            (true, false) => WholeFile::Flock,
            (false, true) => WholeFile::Fcntl,
            _ => WholeFile::Both,
        }
    }
}

/// The locks of a mount.
pub(super) struct Locks {
    table: std::sync::Mutex<OwnLocks>,
    runs: watch::Receiver<Option<SessionRun>>,
    /// Changes when a debt is settled.
    settled: watch::Sender<()>,
    tickets: AtomicU64,
}

impl Locks {
    pub(super) fn new(runs: watch::Receiver<Option<SessionRun>>) -> Self {
        let table = std::sync::Mutex::default();
        Self { table, runs, settled: watch::channel(()).0, tickets: AtomicU64::new(0) }
    }
}

/// A debt that is settled when this is dropped.
struct Owed {
    fs: Arc<FileSystem>,
    debt: Debt,
}

impl Drop for Owed {
    fn drop(&mut self) {
        lock(&self.fs.locks.table).settle(self.debt);
        self.fs.locks.settled.send_replace(());
    }
}

/// A request to take a lock, and who carries it out.
struct Attempt {
    answer: oneshot::Receiver<Result<LockAnswer, FsError>>,
    give_up: oneshot::Sender<Owed>,
}

impl FileSystem {
    /// Takes a lock. With `waits` until it can be had, or `interrupted` comes back.
    pub async fn lock(
        self: &Arc<Self>,
        handle: u64,
        wish: LockWish,
        waits: bool,
        interrupted: impl Future<Output = ()>,
    ) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        let owner = LockOwner(wish.owner);
        let mut interrupted = pin!(interrupted);
        let known = self.with_record(file.inode, |record| record.attributes().ctime)?;
        let ticket = self.locks.tickets.fetch_add(1, Ordering::Relaxed);
        let mut lives = 0;
        let ready = async {
            self.settled(file.inode, owner, None).await?;
            self.sent(file.inode).await
        };
        tokio::select! {
            biased;
            ready = ready => ready?,
            () = &mut interrupted => return Err(FsError::Interrupted),
        }
        loop {
            let run = self.life().ok_or(FsError::NoLocks)?;
            file.check_locks()?;
            let begun = Instant::now();
            let taker = Taker { inode: file.inode, handle, owner, process: wish.process };
            let whole = self.whole_for(taker, run).await?;
            let attempt = self.attempt((file.inode, run), &wish, whole, waits.then_some(ticket));
            let answer = self.answer_to(attempt, (file.inode, owner), waits, interrupted.as_mut()).await;
            match answer {
                Ok(LockAnswer::Done(attributes)) => {
                    let held = HeldLock { range: wish.range, kind: wish.kind };
                    if lock(&self.locks.table).taken(run, taker, held, whole) {
                        self.granted(&file, (known, attributes), begun).await;
                        return Ok(());
                    }
                }
                Ok(LockAnswer::Held) if waits => {
                    lives = 0;
                    continue;
                }
                Ok(LockAnswer::Held) => return Err(FsError::LockHeld),
                Err(error) if is_lost(&error) => {}
                Err(error) => return Err(error),
            }
            // The host has begun another life of the session; what was held before is lost, and this is asked for anew.
            lives += 1;
            if lives == LIVES_MAX {
                return Err(FsError::LocksLost);
            }
            tokio::select! {
                biased;
                () = self.another_life(run) => {}
                () = &mut interrupted => return Err(FsError::Interrupted),
            }
        }
    }

    /// Gives a lock back, when the host has what was written under it.
    pub async fn unlock(self: &Arc<Self>, handle: u64, owner: u64, range: LockRange) -> Result<(), FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.give_back(file.inode, LockOwner(owner), range).await
    }

    /// A lock that stands against one.
    pub async fn test_lock(&self, handle: u64, wish: LockWish) -> Result<Option<LockFound>, FsError> {
        let file = lock(&self.files).get(handle).ok_or(FsError::BadHandle(handle))?;
        self.life();
        file.check_locks()?;
        let LockWish { owner, range, kind, .. } = wish;
        let test = |node| LockTest { node, owner: LockOwner(owner), range, kind };
        self.ask(file.inode, |client, node| async move { client.test_lock(test(node)).await }).await
    }

    /// How many locks programs hold on the host, and how many were lost so far.
    pub fn lock_counts(&self) -> (u64, u64) {
        let table = lock(&self.locks.table);
        (table.count() as u64, table.lost())
    }

    /// An owner has closed a descriptor of the handle's file: what he has locked in it is free, through whichever it was taken.
    pub async fn closed_by(self: &Arc<Self>, handle: u64, owner: u64) -> Result<(), FsError> {
        self.unlock(handle, owner, LockRange::WHOLE).await
    }

    /// The last descriptor of a handle is closed: what belongs to it and not to a process is free.
    pub(super) async fn let_go_of(self: &Arc<Self>, inode: Inode, handle: u64) {
        let owners = lock(&self.locks.table).owners_through(inode, handle);
        for owner in owners {
            if let Err(error) = self.give_back(inode, owner, LockRange::WHOLE).await {
                tracing::debug!(%error, "a lock of a file that is closed is given back later");
            }
        }
    }

    /// Notices at once when a life of the session is over.
    pub(super) fn watch_lives(self: &Arc<Self>) {
        let (fs, mut runs) = (Arc::downgrade(self), self.locks.runs.clone());
        self.runtime.spawn(async move {
            while runs.changed().await.is_ok() {
                let Some(fs) = fs.upgrade() else { return };
                fs.life();
            }
        });
    }

    /// Which life of the session this is. If it is a new one, what was locked before is lost, and its handles know.
    pub(super) fn life(&self) -> Option<SessionRun> {
        let (run, count, handles) = {
            let mut table = lock(&self.locks.table);
            let run = *self.locks.runs.borrow();
            let (count, handles) = table.live_in(run);
            (run, count, handles)
        };
        if count > 0 {
            tracing::error!(
                "{count} file locks are lost: the host restarted, or was out of reach for too long; \
                 what is done through the files that held them fails until they are opened again"
            );
        }
        let files = lock(&self.files);
        for file in handles.into_iter().filter_map(|handle| files.get(handle)) {
            file.locks_lost.store(true, Ordering::Relaxed);
        }
        run
    }

    /// One request. Whatever becomes of who made it, what the host does is known in the end.
    fn attempt(
        self: &Arc<Self>,
        place: (Inode, SessionRun),
        wish: &LockWish,
        whole: WholeFile,
        ticket: Option<u64>,
    ) -> Attempt {
        let (tell, answer) = oneshot::channel();
        let (give_up, given_up) = oneshot::channel();
        let (fs, wish) = (Arc::clone(self), (*wish, whole));
        self.runtime.spawn(async move { fs.carry_out(place, wish, ticket, tell, given_up).await });
        Attempt { answer, give_up }
    }

    /// What a lock of the whole file is, after what was held before was put right.
    async fn whole_for(&self, taker: Taker, run: SessionRun) -> Result<WholeFile, FsError> {
        let (whole, twin) = lock(&self.locks.table).whole_for(taker, self.config.locks.whole());
        let Some((twin, kind)) = twin else { return Ok(whole) };
        let Taker { inode, process, .. } = taker;
        let (range, flock) = (LockRange::WHOLE, WholeFile::Flock);
        let action = LockAction::Take { range, kind, whole: flock, process, wait: None };
        let patience = self.patience();
        let asked = timeout(patience, self.ask_to_lock(inode, run, twin, action)).await;
        asked.map_err(|_| FsError::Call(CallError::TimedOut(patience)))??;
        lock(&self.locks.table).turned_out(inode, twin, flock);
        Ok(whole)
    }

    async fn carry_out(
        self: Arc<Self>,
        (inode, run): (Inode, SessionRun),
        (wish, whole): (LockWish, WholeFile),
        ticket: Option<u64>,
        tell: oneshot::Sender<Result<LockAnswer, FsError>>,
        mut given_up: oneshot::Receiver<Owed>,
    ) {
        let owner = LockOwner(wish.owner);
        let wait_ms = WAIT_LONGEST.min(self.config.patience / 2).as_millis() as u32;
        let action = LockAction::Take {
            range: wish.range,
            kind: wish.kind,
            whole,
            process: wish.process,
            wait: ticket.map(|ticket| LockWait { ticket, for_ms: wait_ms }),
        };
        let mut asked = pin!(self.ask_to_lock(inode, run, owner, action));
        let (answer, owed) = tokio::select! {
            biased;
            answer = &mut asked => match tell.send(answer) {
                Ok(()) => return,
                Err(answer) => (answer, given_up.await),
            },
            owed = &mut given_up => {
                let answer = loop {
                    tokio::select! {
                        biased;
                        answer = &mut asked => break answer,
                        () = self.leave(inode, run, owner, ticket) => {}
                    }
                };
                (answer, owed)
            }
        };
        self.leave_once(inode, run, owner, ticket).await;
        if matches!(answer, Ok(LockAnswer::Done(_))) {
            self.take_back(inode, run, owner, wish.range).await;
        }
        drop(owed);
    }

    /// Has the host know that nobody waits any more, and takes a break.
    async fn leave(&self, inode: Inode, run: SessionRun, owner: LockOwner, ticket: Option<u64>) {
        self.leave_once(inode, run, owner, ticket).await;
        sleep(LEAVE_EVERY).await;
    }

    async fn leave_once(&self, inode: Inode, run: SessionRun, owner: LockOwner, ticket: Option<u64>) {
        let Some(ticket) = ticket else { return };
        let left = self.ask_to_lock(inode, run, owner, LockAction::Leave { ticket }).await;
        if let Err(error) = left {
            tracing::debug!(%error, "the host does not know that nobody waits for a lock any more");
        }
    }

    /// A lock was given to one who has gone: he is to hold what he held before.
    async fn take_back(&self, inode: Inode, run: SessionRun, owner: LockOwner, range: LockRange) {
        let (held, whole) = {
            let table = lock(&self.locks.table);
            (table.within(inode, owner, range), table.whole_of(inode, owner))
        };
        let whole = whole.unwrap_or(WholeFile::Both);
        for (range, kind) in put_back(range, &held) {
            let action = match kind {
                Some(kind) => LockAction::Take { range, kind, whole, process: 0, wait: None },
                None => LockAction::Release { range },
            };
            if let Err(error) = self.ask_to_lock(inode, run, owner, action).await {
                tracing::debug!(%error, "a lock that nobody wanted any more was not given back");
            }
        }
    }

    async fn ask_to_lock(
        &self,
        inode: Inode,
        run: SessionRun,
        owner: LockOwner,
        action: LockAction,
    ) -> Result<LockAnswer, FsError> {
        let call = |client: Arc<dyn Client>, node: NodeId| async move {
            client.lock(LockCall { run, node, owner, action }).await
        };
        self.ask(inode, call).await
    }

    /// Waits for the answer, or gives up.
    async fn answer_to(
        self: &Arc<Self>,
        attempt: Attempt,
        (inode, owner): (Inode, LockOwner),
        waits: bool,
        interrupted: impl Future<Output = ()>,
    ) -> Result<LockAnswer, FsError> {
        let Attempt { mut answer, give_up } = attempt;
        let away = self.away(waits);
        let reason = tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or(Err(FsError::Call(CallError::Closed))),
            () = interrupted => FsError::Interrupted,
            () = away => FsError::Call(CallError::TimedOut(self.config.patience)),
        };
        answer.close();
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        let _ = give_up.send(self.owe(inode, owner));
        Err(reason)
    }

    /// Comes back when the host has been away for as long as anybody waits for it; who waits for a lock and not for the host waits as
    /// long as it takes.
    async fn away(&self, waits: bool) {
        let (mut heard, mut patience) = (Instant::now(), self.patience());
        while heard.elapsed() < patience {
            sleep(LOOK_EVERY.min(patience)).await;
            if waits && self.is_connected() {
                (heard, patience) = (Instant::now(), self.config.patience);
            }
        }
    }

    /// A lock is given: the file and its name look as whoever had it before has left them. `known` is the change time of before;
    /// a file that was removed, replaced or moved has another one.
    async fn granted(&self, file: &OpenFile, (known, attributes): (Timestamp, Attributes), begun: Instant) {
        file.has_locked.store(true, Ordering::Relaxed);
        self.learn_own([&attributes], begun, Instant::now());
        if attributes.links == 0 {
            self.forget_name_of(file.inode);
        } else if attributes.ctime != known {
            self.doubt_name_of(file.inode);
        }
        self.drop_pages(file.inode, &attributes);
        self.events.send(FsEvent::InvalidateAttributes { inode: file.inode });
        self.kernel_knows(EventLane::Copies).await;
    }

    /// Gives back what an owner holds in a range. If the host does not answer in time the program goes on, and it is done later.
    async fn give_back(
        self: &Arc<Self>,
        inode: Inode,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<(), FsError> {
        self.life();
        let (holds, owes) = {
            let table = lock(&self.locks.table);
            (!table.within(inode, owner, range).is_empty(), table.owes(inode, owner, None))
        };
        if !holds && !owes {
            return Ok(());
        }
        let owed = self.owe(inode, owner);
        let fs = Arc::clone(self);
        let work =
            self.runtime.spawn(async move { fs.give_back_in_the_end(inode, owner, range, owed).await });
        match timeout(self.patience(), work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(FsError::Call(CallError::Closed)),
            Err(_) => Err(FsError::Call(CallError::TimedOut(self.config.patience))),
        }
    }

    async fn give_back_in_the_end(
        self: Arc<Self>,
        inode: Inode,
        owner: LockOwner,
        range: LockRange,
        owed: Owed,
    ) {
        while self.settled(inode, owner, Some(owed.debt)).await.is_err() {}
        // Whoever gets the lock next sees what was written under this one.
        while self.sent(inode).await.is_err() {}
        let Some(run) = self.life() else { return };
        if lock(&self.locks.table).within(inode, owner, range).is_empty() {
            return;
        }
        let answer = self.ask_to_lock(inode, run, owner, LockAction::Release { range }).await;
        if let Err(error) = &answer
            && !is_lost(error)
        {
            tracing::warn!(%error, "the host could not take a lock back");
        }
        lock(&self.locks.table).released(inode, owner, range);
    }

    /// Something about an owner's locks is to be put right.
    fn owe(self: &Arc<Self>, inode: Inode, owner: LockOwner) -> Owed {
        let debt = lock(&self.locks.table).owe(inode, owner);
        Owed { fs: Arc::clone(self), debt }
    }

    /// Returns when nothing that came before is to be put right about an owner's locks on a file.
    async fn settled(&self, inode: Inode, owner: LockOwner, before: Option<Debt>) -> Result<(), FsError> {
        let mut settled = self.locks.settled.subscribe();
        while lock(&self.locks.table).owes(inode, owner, before) {
            let patience = self.patience();
            let change = timeout(patience, settled.changed()).await;
            // The sender lives as long as `self`.
            let _ = change.map_err(|_| FsError::Call(CallError::TimedOut(patience)))?;
        }
        Ok(())
    }

    /// The host refused because this life of the session is over; waits a moment until the next one is known.
    async fn another_life(&self, over: SessionRun) {
        let mut runs = self.locks.runs.clone();
        let _ = timeout(self.patience(), runs.wait_for(|run| *run != Some(over))).await;
    }
}

impl OpenFile {
    /// An error if locks that were taken through this handle are lost.
    pub(super) fn check_locks(&self) -> Result<(), FsError> {
        if self.locks_lost.load(Ordering::Relaxed) { Err(FsError::LocksLost) } else { Ok(()) }
    }
}

impl FileSystem {
    /// In which life of the session locks are held that were taken through a handle.
    pub(super) fn locked_in(&self, file: &OpenFile, handle: u64) -> Option<SessionRun> {
        if !file.has_locked.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.locks.table).held_in(file.inode, handle)
    }

    /// Before content is read or written: nothing must be done under a lock that another may hold by now.
    pub(super) fn check_locked(&self, file: &OpenFile) -> Result<(), FsError> {
        if !file.has_locked.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.life();
        file.check_locks()
    }
}

fn is_lost(error: &FsError) -> bool {
    matches!(error, FsError::Call(error) if error.code() == Some(ErrorCode::LocksLost))
}
