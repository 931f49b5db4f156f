//! Who holds which bytes of a file, and who waits for some: the table that each side keeps of its locks.
//!
//! Pure: no I/O, no clock. What an owner is is up to the caller.
//!
//! - [`FileLocks`]: the locks of one file, as the kernel keeps them: an owner holds each byte once, what he takes replaces what he had
//! - [`Queue`]: who waits, in the order of arrival

mod queue;
mod ranges;

pub use queue::{Queue, QueueFull};
pub use ranges::{FileLocks, HeldLock};
