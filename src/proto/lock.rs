//! File locks: what is asked for, and what is answered.
//!
//! A lock belongs to an owner, a number that the client chooses, and to a life of the client's session: with the session it ends.
//! Whoever must wait asks again and again under one ticket, which keeps his place, so that no request lasts long.

use serde::{Deserialize, Serialize};

use super::change::{Operation, SessionRun};
use super::node::{Attributes, NodeId};

/// Whose lock it is, among the locks of one session on one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner(pub u64);

/// With whom a lock can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// With other shared ones (`F_RDLCK`, `LOCK_SH`).
    Shared,
    /// With nobody (`F_WRLCK`, `LOCK_EX`).
    Exclusive,
}

/// Bytes of a file, whether they exist or not. Made by [`Self::new`]; what a peer sends is checked by [`Self::is_valid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockRange {
    /// The first.
    pub start: u64,
    /// The last; at most [`Self::LAST`], which stands for the end of the file wherever that is.
    pub end: u64,
}

impl LockRange {
    /// The last byte that a file can have.
    pub const LAST: u64 = i64::MAX as u64;

    /// All of a file.
    pub const WHOLE: Self = Self { start: 0, end: Self::LAST };

    /// From `start` to `end`, both included; `None` where there is no such range.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        let range = Self { start, end };
        if range.is_valid() { Some(range) } else { None }
    }

    /// Whether it is one that a file can have.
    pub const fn is_valid(self) -> bool {
        self.start <= self.end && self.end <= Self::LAST
    }

    /// Whether some byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// What a lock of a whole file stands for on the host, where two kinds of locks know nothing of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WholeFile {
    /// For both, as the client's kernel does not say which of the two is meant.
    Both,
    /// For one of `flock(2)`.
    Flock,
    /// For one of `fcntl(2)`.
    Fcntl,
}

/// Which of the host's two kinds of locks a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockKinds {
    /// One of `flock(2)`.
    pub flock: bool,
    /// One of `fcntl(2)`.
    pub fcntl: bool,
}

impl WholeFile {
    /// What a lock of this range is, if one of the whole file is this.
    pub fn kinds_of(self, range: LockRange) -> LockKinds {
        let is_whole = range == LockRange::WHOLE;
        LockKinds { flock: is_whole && self != Self::Fcntl, fcntl: !is_whole || self != Self::Flock }
    }
}

/// How one waits for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockWait {
    /// Names the wait in its session; who asks again under it keeps his place.
    pub ticket: u64,
    /// How long this request waits, in milliseconds, at most [`LOCK_WAIT_MS_MAX`].
    pub for_ms: u32,
}

/// Longest wait of one request, in milliseconds.
pub const LOCK_WAIT_MS_MAX: u32 = 30_000;

/// What is to be done about locks of one owner on one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockAction {
    /// Take one, in place of what the owner holds in the range, of either kind.
    Take {
        /// Which bytes.
        range: LockRange,
        /// Shared or not.
        kind: LockKind,
        /// What it means if the range is [`LockRange::WHOLE`].
        whole: WholeFile,
        /// The process that asks, by its number on the client; told to those who look who holds the lock.
        process: u32,
        /// Whether to wait.
        wait: Option<LockWait>,
    },
    /// Give back what the owner holds in the range.
    Release {
        /// Which bytes.
        range: LockRange,
    },
    /// Wait no longer.
    Leave {
        /// Which wait.
        ticket: u64,
    },
}

/// What a client asks about locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockCall {
    /// In which life of its session the client means to do it; in another one its locks are lost, and it is refused with
    /// [`super::ErrorCode::LocksLost`].
    pub run: SessionRun,
    /// Of which file.
    pub node: NodeId,
    /// For whom.
    pub owner: LockOwner,
    /// What.
    pub action: LockAction,
}

/// The same under a number, so that it is done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// Its number.
    pub operation: Operation,
    /// What is asked.
    pub call: LockCall,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockAnswer {
    /// It is so now. The file's attributes come along, as whoever takes a lock wants to know what was written under the last one.
    Done(Attributes),
    /// Somebody else holds a lock that stands against it; the time to wait, if any, is over.
    Held,
}

/// Whether a lock could be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockTest {
    /// Of which file.
    pub node: NodeId,
    /// For whom.
    pub owner: LockOwner,
    /// Which bytes.
    pub range: LockRange,
    /// Shared or not.
    pub kind: LockKind,
}

/// A lock that stands against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockFound {
    /// Its bytes.
    pub range: LockRange,
    /// Shared or not.
    pub kind: LockKind,
    /// The client's process that holds it; 0 for those of other clients and of the host.
    pub process: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_fcntl_and_a_whole_file_what_it_is_said_to_be() {
        let kinds = |flock, fcntl| LockKinds { flock, fcntl };
        let part = LockRange::new(1, LockRange::LAST).unwrap();
        for whole in [WholeFile::Both, WholeFile::Flock, WholeFile::Fcntl] {
            assert_eq!(whole.kinds_of(part), kinds(false, true));
        }
        assert_eq!(WholeFile::Both.kinds_of(LockRange::WHOLE), kinds(true, true));
        assert_eq!(WholeFile::Flock.kinds_of(LockRange::WHOLE), kinds(true, false));
        assert_eq!(WholeFile::Fcntl.kinds_of(LockRange::WHOLE), kinds(false, true));
    }

    #[test]
    fn ranges_have_both_ends() {
        assert_eq!(LockRange::new(0, LockRange::LAST), Some(LockRange::WHOLE));
        assert_eq!(LockRange::new(1, 0), None);
        assert_eq!(LockRange::new(0, LockRange::LAST + 1), None);
        let range = |start, end| LockRange::new(start, end).unwrap();
        assert!(range(0, 5).overlaps(range(5, 9)) && range(5, 9).overlaps(range(0, 5)));
        assert!(!range(0, 4).overlaps(range(5, 9)) && range(3, 3).overlaps(LockRange::WHOLE));
    }
}
