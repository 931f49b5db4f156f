//! Who holds which bytes of a file, and who waits for some: the table that each side keeps of its locks.
//!
//! Pure: no I/O, no clock. What an owner is is up to the caller.
//!
//! - [`FileLocks`]: the locks of one file, as the kernel keeps them: an owner holds each byte once, what he takes replaces what he had
//! - [`BothKinds`]: the same for the two kinds of locks that a host has, which know nothing of each other
//! - [`Queue`]: who waits, in the order of arrival

mod both;
mod queue;
mod ranges;

pub use both::BothKinds;
pub use queue::{Queue, QueueFull};
pub use ranges::{FileLocks, HeldLock};
