//! Tables of file locks and their waiters, used by both sides.
//!
//! Pure: no I/O, no clock. The caller defines the type of owners.
//!
//! - [`FileLocks`]: the locks of one file with the semantics of the kernel: an owner holds each byte once,
//!   and a new lock replaces its old one.
//! - [`BothKinds`]: the same for the two independent kinds of locks on a host.
//! - [`Queue`]: the waiters in the order of arrival.

mod both;
mod queue;
mod ranges;

pub use both::BothKinds;
pub use queue::{Queue, QueueFull};
pub use ranges::{FileLocks, HeldLock};
