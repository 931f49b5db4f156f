//! What a host answers when it cannot do what it was asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An error number of Linux; the wire speaks these whatever system the two sides run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// Interrupted.
    pub const EINTR: Self = Self(4);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// No such device or address: `lseek` found no data or hole.
    pub const ENXIO: Self = Self(6);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// Try again: somebody else holds the lock.
    pub const EAGAIN: Self = Self(11);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// There is such a name already.
    pub const EEXIST: Self = Self(17);
    /// Not on one file system.
    pub const EXDEV: Self = Self(18);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(20);
    /// Is a directory.
    pub const EISDIR: Self = Self(21);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Too many open files.
    pub const EMFILE: Self = Self(24);
    /// File too large.
    pub const EFBIG: Self = Self(27);
    /// No room on the disk.
    pub const ENOSPC: Self = Self(28);
    /// Read-only file system.
    pub const EROFS: Self = Self(30);
    /// Result too large: the buffer of a `getxattr` is too small.
    pub const ERANGE: Self = Self(34);
    /// Two wait for each other's locks.
    pub const EDEADLK: Self = Self(35);
    /// Name too long.
    pub const ENAMETOOLONG: Self = Self(36);
    /// No more locks.
    pub const ENOLCK: Self = Self(37);
    /// Function not implemented.
    pub const ENOSYS: Self = Self(38);
    /// Directory not empty.
    pub const ENOTEMPTY: Self = Self(39);
    /// Too many links on the way.
    pub const ELOOP: Self = Self(40);
    /// No such attribute.
    pub const ENODATA: Self = Self(61);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(95);
    /// The network cannot be reached: the mount is one that does not ask.
    pub const ENETUNREACH: Self = Self(101);
    /// Not connected: the mount is going away.
    pub const ENOTCONN: Self = Self(107);
    /// No room within a quota.
    pub const EDQUOT: Self = Self(122);
    /// The host did not answer in time.
    pub const ETIMEDOUT: Self = Self(110);
    /// Stale file handle: the file is gone from the host.
    pub const ESTALE: Self = Self(116);
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The host's file system said so.
    System(Errno),
    /// The file is no longer in the version that was asked for; ask for its attributes and begin again.
    VersionChanged,
    /// The host does not know this node, because it restarted or forgot; look it up again by its path.
    UnknownNode,
    /// The request breaks the protocol.
    Malformed,
    /// The host does not know how to do this.
    Unsupported,
    /// The peer may not come in; the text says why.
    Refused,
    /// The host has too much to do or is shutting down; try again.
    Busy,
    /// The life of the session in which locks were taken is over, and the locks with it.
    LocksLost,
    /// A write would make its file longer before what was written earlier is there; nothing was written.
    TooEarly,
}

/// A host's refusal, with words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct WireError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed and why. Empty where the code says it all. What a peer sent is one line of bounded length.
    #[serde(deserialize_with = "super::words::deserialize")]
    pub text: String,
}

impl WireError {
    /// An error with words.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// An error of the host's file system, which its number explains.
    pub const fn system(errno: Errno) -> Self {
        Self { code: ErrorCode::System(errno), text: String::new() }
    }

    /// The same failure in a program's terms, for when nothing better can be done than to report it.
    pub const fn errno(&self) -> Errno {
        match self.code {
            ErrorCode::System(errno) => errno,
            ErrorCode::VersionChanged | ErrorCode::Malformed | ErrorCode::TooEarly => Errno::EIO,
            ErrorCode::UnknownNode | ErrorCode::LocksLost => Errno::ESTALE,
            ErrorCode::Unsupported => Errno::EOPNOTSUPP,
            ErrorCode::Refused => Errno::EACCES,
            ErrorCode::Busy => Errno::ETIMEDOUT,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.code, self.text.as_str()) {
            (ErrorCode::System(errno), "") => write!(f, "{}", std::io::Error::from_raw_os_error(errno.0)),
            (code, "") => write!(f, "{code:?}"),
            (_, text) => f.write_str(text),
        }
    }
}
