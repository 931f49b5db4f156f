//! Kernel glue that decides nothing: each callback logs, calls [`crate::fs`], and replies.
//!
//! - `convert` (pure): attributes, times, error numbers in FUSE's terms
//! - `filesystem`, `calls`: the callbacks
//! - `session`: mounting, the options, the end
//! - `device`: whether this user may use FUSE at all
//! - [`table`]: which mounts there are, without touching any
//! - `unmount`: taking them out of the tree
//! - `signals`: who waits for a lock and is interrupted
//! - `notify`: tells the kernel which of its copies hold no longer
//! - `stub`: a file system that serves zeroes from memory, the ceiling for benchmarks
//!
//! # Interrupts
//!
//! The FUSE library answers `FUSE_INTERRUPT` with "not implemented", after which the kernel sends no more of them. So a
//! program that is killed while it waits for a request is gone when the request is answered, which the client's deadlines
//! bound; a request that still lies in the kernel's queue is taken back at once. What nobody waits for any more ends at
//! the file's release.
//!
//! Only a wait for a lock has no bound, so there the kernel's account of the waiting thread is looked at (`signals`).

mod calls;
mod capabilities;
mod convert;
mod device;
mod filesystem;
mod notify;
mod reply;
mod session;
mod signals;
mod stub;
pub mod table;
mod unmount;

pub use device::{DeviceError, check_device};
pub use session::{Access, FuseConfig, FuseError, Mounted, mount};
pub use stub::{StubMount, mount_stub};
pub use unmount::{UnmountError, UnmountHow, abort_connection, unmount};
