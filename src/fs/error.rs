//! What can go wrong below a system call, and the one place where it becomes an error number.

use super::ids::Unmapped;
use crate::client::CallError;
use crate::fetch::FetchError;
use crate::proto::{Errno, ErrorCode};

/// Why an operation on the mount failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The host refused, or did not answer in time.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Content could not be had.
    #[error(transparent)]
    Content(FetchError),
    /// There is no such name.
    #[error("no such file or directory")]
    NotFound,
    /// The kernel names an inode that was never told to it, or that it gave back.
    #[error("inode {0} is not known here")]
    UnknownInode(u64),
    /// The kernel names a handle that is not open.
    #[error("handle {0} is not open")]
    BadHandle(u64),
    /// What the path leads to now is not the file that was meant.
    #[error("the file is gone from the host, or another one took its name")]
    Stale,
    /// The mount does not change anything on the host.
    #[error("the mount is read-only")]
    ReadOnly,
    /// An owner is to be changed that is not the host's.
    #[error("the mount shows another owner than the host has (uid=, gid=), which cannot be changed")]
    OwnerIsShown,
    /// An owner has no counterpart here, or one of here none on the host.
    #[error(transparent)]
    Unmapped(#[from] Unmapped),
    /// The host's machine restarted before what it had accepted was on its disk.
    #[error("the host restarted before what was written was on its disk")]
    LostWrites,
    /// Locks that were taken through the handle are another's by now, or nobody's.
    #[error("a file lock was lost: the host restarted, or was out of reach for too long")]
    LocksLost,
    /// Somebody else holds a lock that stands against the one that was asked for.
    #[error("somebody else holds the lock")]
    LockHeld,
    /// Locks are not held on the host.
    #[error("there are no file locks on this mount")]
    NoLocks,
    /// A signal came while the program waited.
    #[error("the wait was interrupted")]
    Interrupted,
    /// A file was written to all the time while one range of it was to be read.
    #[error("the file is written to without a pause, faster than the host can read it")]
    KeepsChanging,
    /// A directory with so many entries that its listing would not fit in memory.
    #[error("the directory has more than {0} entries, which is the most that is kept of a listing")]
    TooManyEntries(usize),
    /// The directories that are being listed at the time are so large together that they would not fit in memory.
    #[error("the listings of this mount take more than {0} bytes together, which is the most that is kept")]
    ListingsTooLarge(usize),
    /// A name that no file system takes.
    #[error("the name has {0} bytes, which is too long")]
    NameTooLong(usize),
    /// The call makes no sense.
    #[error("invalid argument")]
    Invalid,
}

impl From<FetchError> for FsError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Call(error) => Self::Call(error),
            other => Self::Content(other),
        }
    }
}

impl FsError {
    /// What to tell the program that made the system call.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Call(error) => error.errno(),
            Self::Content(error) => error.errno(),
            Self::NotFound => Errno::ENOENT,
            // Opening the file again is the cure. From a read, EIO is a corrupt database to SQLite.
            Self::UnknownInode(_) | Self::Stale | Self::LocksLost => Errno::ESTALE,
            Self::BadHandle(_) => Errno::EBADF,
            Self::ReadOnly => Errno::EROFS,
            Self::OwnerIsShown | Self::Unmapped(_) => Errno::EPERM,
            Self::LostWrites | Self::KeepsChanging => Errno::EIO,
            Self::LockHeld => Errno::EAGAIN,
            Self::NoLocks => Errno::ENOLCK,
            Self::Interrupted => Errno::EINTR,
            Self::TooManyEntries(_) | Self::ListingsTooLarge(_) => Errno::ENOMEM,
            Self::NameTooLong(_) => Errno::ENAMETOOLONG,
            Self::Invalid => Errno::EINVAL,
        }
    }

    /// Whether it failed because the host cannot be reached, so that an old copy is better than nothing.
    pub(super) fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Call(error) if Remedy::of(error) == Remedy::UseCopy)
    }

    /// Whether the host says that there is no such file.
    pub(super) const fn is_not_found(&self) -> bool {
        matches!(self.errno(), Errno::ENOENT)
    }
}

/// What a failed call asks of whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Look the node up again by its path, then repeat.
    Resolve,
    /// Answer from an old copy if there is one: the host is out of reach.
    UseCopy,
    /// Report it.
    None,
}

impl Remedy {
    pub(super) const fn of(error: &CallError) -> Self {
        match error {
            CallError::TimedOut(_) | CallError::Offline => Self::UseCopy,
            CallError::Host(refusal) => match refusal.code {
                ErrorCode::UnknownNode => Self::Resolve,
                _ => Self::None,
            },
            CallError::BadAnswer(_) | CallError::Closed => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::WireError;

    #[test]
    fn every_kind_of_failure_has_its_number() {
        let system = |errno| CallError::Host(WireError::system(errno));
        let cases = [
            (FsError::Call(system(Errno::EACCES)), Errno::EACCES),
            (FsError::Call(CallError::TimedOut(Duration::from_secs(1))), Errno::ETIMEDOUT),
            (FsError::Call(CallError::Offline), Errno::ENETUNREACH),
            (FsError::Call(CallError::Closed), Errno::ENOTCONN),
            (FsError::from(FetchError::VersionChanged), Errno::EIO),
            (FsError::from(FetchError::UnknownNode), Errno::ESTALE),
            (FsError::NotFound, Errno::ENOENT),
            (FsError::UnknownInode(7), Errno::ESTALE),
            (FsError::BadHandle(7), Errno::EBADF),
            (FsError::Stale, Errno::ESTALE),
            (FsError::ReadOnly, Errno::EROFS),
            (FsError::OwnerIsShown, Errno::EPERM),
            (FsError::Unmapped(Unmapped(7)), Errno::EPERM),
            (FsError::LostWrites, Errno::EIO),
            (FsError::KeepsChanging, Errno::EIO),
            (FsError::LocksLost, Errno::ESTALE),
            (FsError::LockHeld, Errno::EAGAIN),
            (FsError::NoLocks, Errno::ENOLCK),
            (FsError::Interrupted, Errno::EINTR),
            (FsError::TooManyEntries(1), Errno::ENOMEM),
            (FsError::ListingsTooLarge(1), Errno::ENOMEM),
            (FsError::NameTooLong(256), Errno::ENAMETOOLONG),
            (FsError::Invalid, Errno::EINVAL),
        ];
        for (error, errno) in cases {
            assert_eq!(error.errno(), errno, "{error}");
        }
    }

    #[test]
    fn only_what_can_be_mended_is_mended() {
        let host = |code| CallError::Host(WireError::new(code, ""));
        assert_eq!(Remedy::of(&host(ErrorCode::UnknownNode)), Remedy::Resolve);
        assert_eq!(Remedy::of(&host(ErrorCode::VersionChanged)), Remedy::None);
        assert_eq!(Remedy::of(&CallError::TimedOut(Duration::ZERO)), Remedy::UseCopy);
        assert_eq!(Remedy::of(&host(ErrorCode::Refused)), Remedy::None);
        assert_eq!(Remedy::of(&CallError::Closed), Remedy::None);
    }
}
