//! Why content could not be had.

use crate::client::CallError;
use crate::proto::{Errno, ErrorCode};

/// Why content could not be had. All who waited for the same request get the same error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The file has another version by now; ask for its attributes and read anew.
    #[error("the file changed on the host while it was read")]
    VersionChanged,
    /// The host restarted or forgot the node; look it up by its path and read anew.
    #[error("the host no longer knows the file; it has to be looked up again")]
    UnknownNode,
    /// The call failed otherwise.
    #[error(transparent)]
    Call(CallError),
}

impl FetchError {
    /// What to tell a program that made a system call, when asking anew did not help.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::VersionChanged => Errno::EIO,
            Self::UnknownNode => Errno::ESTALE,
            Self::Call(error) => error.errno(),
        }
    }
}

impl From<CallError> for FetchError {
    fn from(error: CallError) -> Self {
        match error.code() {
            Some(ErrorCode::VersionChanged) => Self::VersionChanged,
            Some(ErrorCode::UnknownNode) => Self::UnknownNode,
            _ => Self::Call(error),
        }
    }
}
