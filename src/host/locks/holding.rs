//! What the kernel holds for one owner: an open file of its own, to which its locks belong.
//!
//! A lock of a whole file is, as far as the client cannot tell, both of `flock` and of `fcntl`, which know nothing of each other on the
//! host. One of a range is of `fcntl` for certain.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno as SystemErrno;

use crate::host::attributes::{of_open, system_error};
use crate::host::budget::Place;
use crate::io::sys;
use crate::lock::HeldLock;
use crate::proto::{Attributes, Errno, LockKind, LockKinds, LockRange, OpenAccess, WholeFile, WireError};

/// An owner's open file. Dropping it gives everything back.
#[derive(Debug)]
pub(super) struct Holding {
    file: Arc<File>,
    access: OpenAccess,
    /// What it holds of `flock`.
    whole: Option<LockKind>,
    /// The process on the client that asked last.
    pub(super) process: u32,
    _place: Place,
}

impl Holding {
    /// Nothing is held yet.
    pub(super) fn new(fd: OwnedFd, access: OpenAccess, place: Place) -> Self {
        Self { file: Arc::new(File::from(fd)), access, whole: None, process: 0, _place: place }
    }

    /// The file, for a look at its attributes.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Which kinds a lock is of. The client's kernel lets nobody lock by `fcntl` what he has not opened for it; so where this file
    /// cannot be opened for it either, a lock that may be of both kinds is one of `flock`.
    pub(super) fn kinds(&self, range: LockRange, kind: LockKind, whole: WholeFile) -> LockKinds {
        let is_allowed = match kind {
            LockKind::Shared => self.access.reads,
            LockKind::Exclusive => self.access.writes,
        };
        let kinds = whole.kinds_of(range);
        LockKinds { fcntl: kinds.fcntl && (is_allowed || !kinds.flock), ..kinds }
    }

    /// Takes a lock of these kinds, and gives back what is held of the other. `false`: a process of the host holds one that stands
    /// against it, and nothing has changed.
    pub(super) fn take(
        &mut self,
        range: LockRange,
        kind: LockKind,
        kinds: LockKinds,
    ) -> Result<bool, SystemErrno> {
        let before = self.whole;
        if kinds.flock && !self.set_whole(Some(kind))? {
            self.go_back(before)?;
            return Ok(false);
        }
        let taken = self.set_range(range, Some(kind).filter(|_| kinds.fcntl));
        if !matches!(taken, Ok(true)) {
            self.go_back(before)?;
            return taken;
        }
        if kinds.flock { Ok(true) } else { self.set_whole(None) }
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, range: LockRange) -> Result<(), SystemErrno> {
        self.set_whole(None)?;
        self.set_range(range, None).map(drop)
    }

    /// A lock of a process of the host that stands against this one.
    pub(super) fn test(&self, range: LockRange, kind: LockKind) -> Result<Option<HeldLock>, SystemErrno> {
        let found = sys::test_range(&self.file, range.start, range.end, kind == LockKind::Exclusive)?;
        Ok(found.and_then(|(start, end, is_exclusive)| {
            let kind = if is_exclusive { LockKind::Exclusive } else { LockKind::Shared };
            Some(HeldLock { range: LockRange::new(start, end)?, kind })
        }))
    }

    fn set_range(&self, range: LockRange, kind: Option<LockKind>) -> Result<bool, SystemErrno> {
        sys::lock_range(&self.file, range.start, range.end, kind.map(|kind| kind == LockKind::Exclusive))
    }

    fn set_whole(&mut self, kind: Option<LockKind>) -> Result<bool, SystemErrno> {
        if self.whole == kind {
            return Ok(true);
        }
        let done = sys::lock_whole(&self.file, kind.map(|kind| kind == LockKind::Exclusive))?;
        if done {
            self.whole = kind;
        }
        Ok(done)
    }

    /// Has of `flock` what it had before. The kernel gives up what is held before it tries for more, so somebody else may have come
    /// in between; that can happen to programs on the host, too.
    fn go_back(&mut self, before: Option<LockKind>) -> Result<(), SystemErrno> {
        if self.whole == before && before.is_none() {
            return Ok(());
        }
        // What the kernel has now is not what was noted.
        let is_back = sys::lock_whole(&self.file, before.map(|kind| kind == LockKind::Exclusive))?;
        self.whole = if is_back { before } else { None };
        if !is_back {
            tracing::warn!("a lock was lost to a process of this machine while its kind was changed");
        }
        Ok(())
    }
}

/// What a file looks like now.
pub(super) fn attributes_of(file: &File) -> Result<Attributes, WireError> {
    of_open(file.as_fd())
}

/// What the kernel says about a lock.
pub(super) fn refusal(error: SystemErrno) -> WireError {
    match error {
        // Some file systems have no locks.
        SystemErrno::EOPNOTSUPP | SystemErrno::ENOSYS => WireError::system(Errno::ENOLCK),
        error => system_error(error),
    }
}
