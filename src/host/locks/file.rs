//! The locks of one file: the table of all clients' locks, what the kernel holds for each owner, and who waits.
//!
//! The table decides between clients and says who is next; the kernel decides between clients and processes of the host. Every call
//! may block for as long as the file system does, and is made under the lock of its file alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::holding::{Holding, refusal};
use crate::lock::{BothKinds, HeldLock, Queue};
use crate::proto::{Errno, LockFound, LockKind, LockOwner, LockRange, WholeFile, WireError};

/// Most locks on one file.
const LOCKS_MAX: usize = 16_384;

/// Most who wait for locks of one file.
pub(super) const WAITERS_MAX: usize = 1_024;

/// An owner of locks: the session's number, and its own number in the session.
pub(super) type Owner = (u64, LockOwner);

/// One who waits: the session's number, and the wait's number in the session.
pub(super) type Ticket = (u64, u64);

/// A lock that somebody wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) owner: Owner,
    pub(super) range: LockRange,
    pub(super) kind: LockKind,
    pub(super) whole: WholeFile,
    pub(super) process: u32,
}

/// How somebody hears that he has what he waited for.
pub(super) type Granted = oneshot::Sender<Result<(), WireError>>;

#[derive(Debug)]
struct Waiter {
    wanted: Wanted,
    /// `None` while he is away: he keeps his place, and is given nothing.
    tell: Option<Granted>,
}

/// The locks of one file.
#[derive(Debug, Default)]
pub(super) struct LockedFile {
    locks: BothKinds<Owner>,
    holdings: HashMap<Owner, Holding>,
    queue: Queue<Ticket, Waiter>,
    /// Whether it was taken out of the daemon's table.
    pub(super) is_gone: bool,
}

impl LockedFile {
    /// Takes a lock; `false` where somebody stands against it. `open` gives the owner an open file, if he has none.
    pub(super) fn take(
        &mut self,
        wanted: &Wanted,
        open: impl FnOnce() -> Result<Holding, WireError>,
    ) -> Result<bool, WireError> {
        self.offer();
        if self.locks.count() >= LOCKS_MAX {
            return Err(WireError::system(Errno::ENOLCK));
        }
        self.hold(wanted, open)?;
        let taken = take(&mut self.locks, &mut self.holdings, wanted);
        match taken {
            // What was exclusive before may be shared now.
            Ok(true) => self.offer(),
            Ok(false) => {}
            Err(_) => self.let_go(wanted.owner),
        }
        taken
    }

    /// Waits for a lock, in the place that the ticket has if it has one.
    pub(super) fn wait(&mut self, ticket: Ticket, wanted: Wanted, tell: Granted) -> Result<(), WireError> {
        let waiter = Waiter { wanted, tell: Some(tell) };
        self.queue.join(ticket, waiter, WAITERS_MAX).map_err(|_| WireError::system(Errno::ENOLCK))
    }

    /// He asks no more for now; `true` if he has what he waited for.
    pub(super) fn pause(&mut self, ticket: Ticket, wanted: &Wanted) -> bool {
        match self.queue.get_mut(ticket) {
            Some(waiter) => {
                waiter.tell = None;
                false
            }
            None => self.locks.holds(wanted.owner, HeldLock { range: wanted.range, kind: wanted.kind }),
        }
    }

    /// He waits no longer.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if let Some(waiter) = self.queue.leave(ticket) {
            self.let_go(waiter.wanted.owner);
        }
    }

    /// Gives back what an owner holds in a range.
    pub(super) fn release(&mut self, owner: Owner, range: LockRange) -> Result<(), WireError> {
        if let Some(holding) = self.holdings.get_mut(&owner) {
            holding.release(range).map_err(refusal)?;
        }
        self.locks.release(owner, range);
        self.let_go(owner);
        self.offer();
        Ok(())
    }

    /// Gives back everything that a session holds, and its places in the queue.
    pub(super) fn end(&mut self, session: u64) {
        for owner in self.locks.owners().into_iter().filter(|owner| owner.0 == session) {
            self.locks.release(owner, LockRange::WHOLE);
        }
        self.queue.offer(|ticket, _| ticket.0 == session);
        self.holdings.retain(|owner, _| owner.0 != session);
        self.offer();
    }

    /// Gives those who wait what they can have by now.
    pub(super) fn offer(&mut self) {
        while self.offer_once() {}
    }

    fn offer_once(&mut self) -> bool {
        let Self { locks, holdings, queue, .. } = self;
        queue.offer(|_, waiter| {
            if waiter.tell.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return false;
            }
            let told = match take(locks, holdings, &waiter.wanted) {
                Ok(false) => return false,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            // Whoever turns away in this very moment finds out when he looks for his place.
            let _ = waiter.tell.take().map(|tell| tell.send(told));
            true
        })
    }

    /// Who stands against a lock.
    pub(super) fn test(
        &mut self,
        wanted: &Wanted,
        open: impl FnOnce() -> Result<Holding, WireError>,
    ) -> Result<Option<LockFound>, WireError> {
        let &Wanted { owner, range, kind, whole, .. } = wanted;
        if let Some((other, held)) = self.locks.conflict(owner, range, whole.kinds_of(range), kind) {
            let holding = self.holdings.get(&other).filter(|_| other.0 == owner.0);
            let process = holding.map_or(0, |holding| holding.process);
            return Ok(Some(LockFound { range: held.range, kind: held.kind, process }));
        }
        self.hold(wanted, open)?;
        let found = self.holdings.get(&owner).map_or(Ok(None), |holding| holding.test(range, kind));
        self.let_go(owner);
        let found = found.map_err(refusal)?;
        Ok(found.map(|held| LockFound { range: held.range, kind: held.kind, process: 0 }))
    }

    /// An owner's open file.
    pub(super) fn file_of(&self, owner: Owner) -> Option<Arc<File>> {
        self.holdings.get(&owner).map(Holding::file)
    }

    /// Whether a session holds something, or waits.
    pub(super) fn has(&self, session: u64) -> bool {
        self.holdings.keys().any(|owner| owner.0 == session)
    }

    /// How many locks are held.
    pub(super) fn count(&self) -> usize {
        self.locks.count()
    }

    /// Whether nobody holds anything, nor waits.
    pub(super) fn is_idle(&self) -> bool {
        self.locks.is_empty() && self.queue.is_empty() && self.holdings.is_empty()
    }

    /// Gives an owner an open file.
    fn hold(
        &mut self,
        wanted: &Wanted,
        open: impl FnOnce() -> Result<Holding, WireError>,
    ) -> Result<(), WireError> {
        let holding = match self.holdings.entry(wanted.owner) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(open()?),
        };
        if wanted.process != 0 {
            holding.process = wanted.process;
        }
        Ok(())
    }

    /// Closes an owner's file if nothing is held or waited for by it.
    pub(super) fn let_go(&mut self, owner: Owner) {
        let waits = self.queue.waiting().any(|waiter| waiter.wanted.owner == owner);
        if !waits && !self.locks.has(owner) {
            self.holdings.remove(&owner);
        }
    }
}

fn take(
    locks: &mut BothKinds<Owner>,
    holdings: &mut HashMap<Owner, Holding>,
    wanted: &Wanted,
) -> Result<bool, WireError> {
    let &Wanted { owner, range, kind, whole, .. } = wanted;
    let Some(holding) = holdings.get_mut(&owner) else { return Err(WireError::system(Errno::EIO)) };
    let kinds = holding.kinds(range, kind, whole);
    if locks.conflict(owner, range, kinds, kind).is_some() {
        return Ok(false);
    }
    let taken = holding.take(range, kind, kinds).map_err(refusal)?;
    if taken {
        locks.set(owner, range, kinds, Some(kind));
    }
    Ok(taken)
}
