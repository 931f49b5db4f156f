//! Changes of attributes: `setattr`, `setxattr`, `removexattr`.

use std::time::Duration;

use super::events::FsEvent;
use super::inodes::Inode;
use super::xattr::SUM_XATTR;
use super::{FileSystem, FsError, lock};
use crate::proto::{Attributes, Change, Errno, NodeId, SetAttributes, XattrHow};

/// Bit that runs a program as the owner of its file.
const SET_USER_ID: u16 = 0o4000;

/// Bit that runs a program as the group of its file, if the group may execute it. Otherwise it means nothing for programs.
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// Returns the permissions without the bits that a write by anybody but root takes away, as Linux does on a local disk.
const fn without_set_id(permissions: u16) -> u16 {
    let runs_as_group = permissions & GROUP_EXECUTE != 0;
    permissions & !if runs_as_group { SET_USER_ID | SET_GROUP_ID } else { SET_USER_ID }
}

impl FileSystem {
    /// Changes attributes. What they are then, as users see them, and how long that holds.
    pub async fn setattr(&self, inode: Inode, set: SetAttributes) -> Result<(Attributes, Duration), FsError> {
        let set = self.config.ownership.unpresent(set)?;
        // What was written before must not come after.
        self.sent(inode).await?;
        if set == SetAttributes::default() {
            self.attributes_from_host(inode).await?;
            return self.to_kernel(inode);
        }
        let (changed, _) = self.change([inode], &[], |[node]| Change::SetAttributes { node, set }).await?;
        changed.node.ok_or(FsError::Invalid)?;
        self.to_kernel(inode)
    }

    /// Whether a file has bits that a write by anybody but root takes away.
    pub(super) fn has_set_id(&self, inode: Inode) -> Result<bool, FsError> {
        let permissions = self.with_record(inode, |record| record.attributes().permissions)?;
        Ok(without_set_id(permissions) != permissions)
    }

    /// Takes away the bits that lend a program its file's user and group, as a write by anybody but root does.
    ///
    /// A host that does not act as root does it by itself when it writes, and need not allow it here.
    pub(super) async fn drop_set_id(&self, inode: Inode) -> Result<(), FsError> {
        if !self.has_set_id(inode)? {
            return Ok(());
        }
        let permissions = self.with_record(inode, |record| record.attributes().permissions)?;
        let set =
            SetAttributes { permissions: Some(without_set_id(permissions)), ..SetAttributes::default() };
        match self.change([inode], &[], |[node]| Change::SetAttributes { node, set }).await {
            Err(error) if error.errno() != Errno::EPERM => return Err(error),
            _ => {}
        }
        // The kernel expects it of the file system, and does not look.
        self.events.send(FsEvent::InvalidateAttributes { inode });
        Ok(())
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        inode: Inode,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
    ) -> Result<(), FsError> {
        self.may_change_xattr(name)?;
        let set =
            |[node]: [NodeId; 1]| Change::SetXattr { node, name: name.to_vec(), value: value.to_vec(), how };
        let done = self.change([inode], &[], set).await;
        self.forget_xattr_names(inode);
        done.map(drop)
    }

    /// Takes an extended attribute away.
    pub async fn removexattr(&self, inode: Inode, name: &[u8]) -> Result<(), FsError> {
        self.may_change_xattr(name)?;
        let remove = |[node]: [NodeId; 1]| Change::RemoveXattr { node, name: name.to_vec() };
        let done = self.change([inode], &[], remove).await;
        self.forget_xattr_names(inode);
        done.map(drop)
    }

    fn may_change_xattr(&self, name: &[u8]) -> Result<(), FsError> {
        if self.config.xattrs && name != SUM_XATTR {
            Ok(())
        } else {
            Err(super::xattr::refused(Errno::EOPNOTSUPP))
        }
    }

    fn forget_xattr_names(&self, inode: Inode) {
        let node = lock(&self.inodes).get(inode).map(|record| record.node());
        if let Some(node) = node {
            self.xattr_names.forget(node);
        }
    }
}
