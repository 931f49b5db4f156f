//! FUSE adapter. It decides nothing: each callback logs, calls [`crate::fs`], and replies.
//!
//! - `convert` (pure): conversions of attributes, times and error numbers
//! - `adapter`, `filesystem`, `calls`: the callbacks
//! - `session`: mounting, options, end of a mount
//! - `claim`: the claim to mount on a folder
//! - `device`: access to the FUSE device
//! - [`table`]: the mount table, read without touching any mount
//! - `unmount`: removes mounts from the tree
//! - `pending_signals` (pure), `signals`: signals that end a program's wait for an answer
//! - `notify`: invalidates caches of the kernel
//! - `stub`: a file system that serves zeroes from memory, the ceiling for benchmarks
//!
//! # Interrupts
//!
//! The FUSE library answers `FUSE_INTERRUPT` with "not implemented", and then the kernel sends no more of
//! them. So `signals` reads the kernel's data about each thread that has waited for more than a moment. An
//! interrupted call is answered with EINTR, and its work is dropped. Only a close continues, with the data
//! that it must send to the host. The kernel itself withdraws a request that is still in its queue.

mod adapter;
mod calls;
mod capabilities;
mod claim;
mod convert;
mod device;
mod filesystem;
mod notify;
mod pending_signals;
mod reply;
mod session;
mod signals;
mod stub;
pub mod table;
mod unmount;

pub use claim::{Claim, ClaimError};
pub use device::{DeviceError, check_device};
pub use session::{Access, FuseConfig, FuseError, Mounted, mount};
pub use stub::{StubMount, mount_stub};
pub use unmount::{UnmountError, UnmountHow, abort_connection, unmount};
