//! What the kernel is offered when it says hello.

use fuser::{InitFlags, KernelConfig};

use crate::fs::RemoteLocks;

/// What the kernel is offered, where it has it.
const CAPABILITIES: [InitFlags; 11] = [
    // An abort is told from an unmount: readers get ECONNABORTED and not a story about sockets.
    InitFlags::FUSE_ABORT_ERROR,
    // Reads of one file at once, in any order.
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    // Lookups and listings of one directory at once.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Attributes along with names when a program seems to want them.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Pages are dropped when attributes show another time of change: an open file follows its host.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // Requests of up to 1 MiB.
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // The mask of whoever makes a file goes to the host, which knows whether the directory has an ACL in its place.
    InitFlags::FUSE_DONT_MASK,
    // Shared mappings of files that are read past the page cache.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Asks for all of them, and for those locks that are held on the host; the kernel keeps the others to itself.
pub(super) fn offer(config: &mut KernelConfig, locks: RemoteLocks) {
    let flock = locks.flock.then_some(InitFlags::FUSE_FLOCK_LOCKS);
    let fcntl = locks.fcntl.then_some(InitFlags::FUSE_POSIX_LOCKS);
    for capability in CAPABILITIES.into_iter().chain(flock).chain(fcntl) {
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "the kernel does not have it");
        }
    }
}
