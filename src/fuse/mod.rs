//! Kernel glue that decides nothing: each callback logs, calls [`crate::fs`], and replies.
//!
//! - `convert` (pure): attributes, times, error numbers in FUSE's terms
//! - `glue`, `filesystem`, `calls`: the callbacks
//! - `session`: mounting, the options, the end
//! - `claim`: who may mount on a folder
//! - `device`: whether this user may use FUSE at all
//! - [`table`]: which mounts there are, without touching any
//! - `unmount`: taking them out of the tree
//! - `pending` (pure), `signals`: signals that end a program's wait for an answer
//! - `notify`: tells the kernel which of its copies hold no longer
//! - `stub`: a file system that serves zeroes from memory, the ceiling for benchmarks
//!
//! # Interrupts
//!
//! The FUSE library answers `FUSE_INTERRUPT` with "not implemented", after which the kernel sends no more of
//! them. So the kernel's account of each thread that has waited for more than a moment is looked at
//! (`signals`). A call that ends so is answered with EINTR and its work is dropped; only a close goes on,
//! with what it has to bring to the host. A request that still lies in the kernel's queue is taken back by
//! the kernel.

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
