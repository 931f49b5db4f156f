//! Values for the tests of this crate.

use super::{Attributes, FileKind, NodeId, Timestamp, Trust};

/// Attributes of a file that lay still for long.
pub(crate) fn attributes(inode: u64, kind: FileKind) -> Attributes {
    Attributes {
        node: NodeId { device: 1, inode, birth_ns: 1 },
        kind,
        permissions: 0o755,
        links: 1,
        uid: 1000,
        gid: 1000,
        device_number: 0,
        size: 10,
        blocks: 8,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
        btime: None,
        has_xattrs: true,
        trust: Trust::Full,
        observed: Timestamp(i64::MAX),
    }
}
