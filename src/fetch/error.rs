//! Errors of fetching content.

use crate::client::CallError;
use crate::proto::{Errno, ErrorCode};

/// Reason why content could not be fetched. All waiters of one request get the same error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The file has another version by now. Get its attributes and read again.
    #[error("the file changed on the host while it was read")]
    VersionChanged,
    /// The host restarted or forgot the node. Look it up by path and read again.
    #[error("the host no longer knows the file; it has to be looked up again")]
    UnknownNode,
    /// The call failed for another reason.
    #[error(transparent)]
    Call(CallError),
}

impl FetchError {
    /// Returns the error number for a program if a retry did not help.
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
