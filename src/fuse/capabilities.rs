//! Capabilities requested from the kernel at the start of a session.

use fuser::{InitFlags, KernelConfig};

use crate::fs::RemoteLocks;

/// Capabilities that are requested if the kernel has them.
const CAPABILITIES: [InitFlags; 12] = [
    // Lets readers get ECONNABORTED after an abort, so that an abort differs from an unmount.
    InitFlags::FUSE_ABORT_ERROR,
    // Concurrent reads of one file, in any order.
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    // Concurrent lookups and listings of one directory.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Attributes with names if a program seems to want them.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Pages are dropped when attributes show another mtime, so an open file follows its host.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // Requests of up to 1 MiB.
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // The umask of the creating process goes to the host, which knows if a default ACL of the directory
    // replaces it.
    InitFlags::FUSE_DONT_MASK,
    // Files are found by handles (`open_by_handle_at`, an NFS server) after the kernel forgot their inodes.
    InitFlags::FUSE_EXPORT_SUPPORT,
    // Shared mappings of files that use direct I/O.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Requests all of them, and the kinds of locks that are held on the host. The kernel keeps the other kinds.
pub(super) fn offer(config: &mut KernelConfig, locks: RemoteLocks) {
    let flock = locks.flock.then_some(InitFlags::FUSE_FLOCK_LOCKS);
    let fcntl = locks.fcntl.then_some(InitFlags::FUSE_POSIX_LOCKS);
    for capability in CAPABILITIES.into_iter().chain(flock).chain(fcntl) {
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "the kernel does not have it");
        }
    }
}
