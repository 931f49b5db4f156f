//! Errors of a disk engine.

use nix::errno::Errno;

/// Reason why an engine did not start, or an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The backend cannot be used here. The text names the cause and a remedy.
    #[error("{backend} is not available: {reason} ({errno})")]
    Unavailable {
        /// Name of the backend.
        backend: &'static str,
        /// Likely cause and remedy.
        reason: String,
        /// Error of the kernel.
        errno: Errno,
    },
    /// A setting of the engine is invalid.
    #[error("disk engine settings: {0}")]
    Config(&'static str),
    /// The name of the engine kind is unknown.
    #[error("unknown disk engine {0:?}: expected auto, uring or blocking")]
    UnknownKind(String),
    /// One read asks for more than a buffer holds.
    #[error("a read of {len} bytes does not fit a buffer of {len_max}: split it")]
    ReadTooLong {
        /// Requested bytes.
        len: usize,
        /// Largest possible read in bytes.
        len_max: usize,
    },
    /// The kernel refused or failed the operation.
    #[error("{what} of {len} bytes at offset {offset}: {errno}")]
    Failed {
        /// `read` or `write`.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Requested bytes.
        len: usize,
        /// Error of the kernel.
        errno: Errno,
    },
    /// The engine's thread ended after an error that the log shows. Only a new engine helps.
    #[error("the disk engine has stopped after an internal error: see the log, then restart")]
    Stopped,
}

impl IoError {
    /// Returns the nearest error number.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unavailable { errno, .. } | Self::Failed { errno, .. } => *errno,
            Self::Config(_) | Self::UnknownKind(_) | Self::ReadTooLong { .. } => Errno::EINVAL,
            Self::Stopped => Errno::EIO,
        }
    }
}
