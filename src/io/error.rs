//! What can go wrong in a disk engine.

use nix::errno::Errno;

/// Why an engine did not start, or an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The backend cannot be used here; the text names the cause and its cure.
    #[error("{backend} is not available: {reason} ({errno})")]
    Unavailable {
        /// Name of the backend.
        backend: &'static str,
        /// Likely cause, and what would help.
        reason: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// A setting of the engine makes no sense.
    #[error("disk engine settings: {0}")]
    Config(&'static str),
    /// No such kind of engine.
    #[error("unknown disk engine {0:?}: expected auto, uring or blocking")]
    UnknownKind(String),
    /// One read asks for more than a buffer holds.
    #[error("a read of {len} bytes does not fit a buffer of {len_max}: split it")]
    ReadTooLong {
        /// Bytes asked for.
        len: usize,
        /// Bytes that one read can give.
        len_max: usize,
    },
    /// The kernel refused or failed the operation.
    #[error("{what} of {len} bytes at offset {offset}: {errno}")]
    Failed {
        /// `read` or `write`.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// Why.
        errno: Errno,
    },
    /// The engine's thread ended after an error that the log holds; only a new engine helps.
    #[error("the disk engine has stopped after an internal error: see the log, then restart")]
    Stopped,
}

impl IoError {
    /// The nearest error number.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unavailable { errno, .. } | Self::Failed { errno, .. } => *errno,
            Self::Config(_) | Self::UnknownKind(_) | Self::ReadTooLong { .. } => Errno::EINVAL,
            Self::Stopped => Errno::EIO,
        }
    }
}
