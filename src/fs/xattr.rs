//! Extended attributes: the host's own, and one that the mount adds.

use super::inodes::Inode;
use super::{FileSystem, FsError};
use crate::client::CallError;
use crate::proto::{Errno, WireError};

/// The BLAKE3 hash of a regular file as 64 hexadecimal digits, computed on the host. Not among the listed names: a
/// program that copies all attributes must not make the host read all files.
pub const SUM_XATTR: &[u8] = b"user.wormhole.blake3";

impl FileSystem {
    /// The value of an extended attribute.
    pub async fn getxattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if name == SUM_XATTR {
            let (hash, _) = self.ask(inode, |client, node| async move { client.sum(node).await }).await?;
            return Ok(hash.to_string().into_bytes());
        }
        if !self.config.xattrs {
            return Err(no_xattrs());
        }
        self.ask(inode, |client, node| {
            let name = name.to_vec();
            async move { client.get_xattr(node, &name).await }
        })
        .await
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub async fn listxattr(&self, inode: Inode) -> Result<Vec<u8>, FsError> {
        if !self.config.xattrs {
            return Err(no_xattrs());
        }
        self.ask(inode, |client, node| async move { client.list_xattr(node).await }).await
    }
}

const fn no_xattrs() -> FsError {
    FsError::Call(CallError::Host(WireError::system(Errno::EOPNOTSUPP)))
}
