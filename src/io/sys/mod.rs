//! System calls that need `unsafe` or a retry rule, each behind a safe function.
//!
//! Calls with a safe wrapper in `nix` are used from there: `posix_fadvise`, `faccessat`, `renameat2`,
//! `pread`, `pwrite`, `fallocate` and others. All functions here block as long as the file system does,
//! except [`read_cached`]: call them from a thread that may block.

mod append;
mod credentials;
mod file_system;
mod heap;
mod limits;
mod lock;
mod open;
mod pages;
mod priority;
mod residency;
mod socket;
mod stat;
mod tcp;
mod xattr;

pub use append::append;
pub use credentials::{Assumed, Credentials};
pub use file_system::file_system_uuid;
pub use heap::return_free_memory;
pub use limits::raise_memlock;
pub use lock::{lock_range, lock_whole, test_range};
pub use open::open_beneath;
pub use pages::{LARGE_PAGE_BYTES, prefer_large_pages};
pub use priority::idle_thread;
pub use residency::{is_cached, read_cached};
pub use socket::{set_receive_buffer_force, set_send_buffer_force};
pub use stat::{Statx, Timestamp, device_of, fstatx, statx};
pub use tcp::{TcpInfo, tcp_info};
pub use xattr::{
    XATTR_BYTES_MAX, XattrSet, XattrTarget, get_xattr, list_xattr, remove_xattr, set_xattr, split_xattr_names,
};
