//! Attributes as the kernel is told them.
//!
//! The kernel keeps what it is told for as long as the answer says. So a value that is only a guess is told for no time, and
//! when a file that it may have an older state of is opened, it is told to drop that state before the open is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::ask::WALK_MAX;
use super::events::{EventLane, FsEvent, Told};
use super::inodes::{Inode, InodeTable};
use super::{FileSystem, FsError, lock};
use crate::proto::Attributes;

/// Longest wait until the kernel has dropped its copies of a file; it waits for reads under way.
const KERNEL_PATIENCE: Duration = Duration::from_secs(5);

impl FileSystem {
    /// Attributes of an inode as users see them now, to be told to the kernel, and for how long it may keep them.
    pub(super) fn to_kernel(&self, inode: Inode) -> Result<(Attributes, Duration), FsError> {
        let mut inodes = lock(&self.inodes);
        let (attributes, ttl) = self.told(&mut inodes, inode)?;
        Ok((self.config.ownership.present(attributes)?, ttl))
    }

    /// The host's attributes, with what is on its way to it. As the table stays locked from here to the record of what was
    /// told, what was written is either on its way or in the attributes.
    pub(super) fn told(
        &self,
        inodes: &mut InodeTable,
        inode: Inode,
    ) -> Result<(Attributes, Duration), FsError> {
        inodes.get_mut(inode).ok_or(FsError::UnknownInode(inode.0))?.kernel_is_current = true;
        let record = inodes.get(inode).ok_or(FsError::UnknownInode(inode.0))?;
        let (attributes, learned) = (record.attributes(), record.learned());
        if let Some(guess) = self.with_unsent(inode, attributes, learned.seen) {
            return Ok((guess, Duration::ZERO));
        }
        let now = Instant::now();
        // The kernel refuses to link a file without names. While it believes a name of this one, the file has one for it; a
        // program that then links the file gets the file that bears the name now.
        if attributes.links == 0
            && record.more().opens == 0
            && !inodes.was_just_looked_up(inode, now, WALK_MAX)
        {
            return Ok((Attributes { links: 1, ..attributes }, Duration::ZERO));
        }
        Ok((attributes, self.attributes_left(&attributes, learned, now)))
    }

    /// Returns when the kernel has no older attributes of an inode than those that are known here. Attributes alone: their
    /// removal waits for no page, and so for no read under way.
    pub(super) async fn kernel_drops_older_attributes(&self, inode: Inode) {
        let is_current = match lock(&self.inodes).get_mut(inode) {
            Some(record) => std::mem::replace(&mut record.kernel_is_current, true),
            None => true,
        };
        if !is_current {
            self.events.send_in(EventLane::Attributes, FsEvent::InvalidateAttributes { inode });
            self.kernel_knows(EventLane::Attributes).await;
        }
    }

    /// Returns when the kernel was told all events of a lane up to now.
    pub(super) async fn kernel_knows(&self, lane: EventLane) {
        if !self.events.is_served(lane) {
            return;
        }
        let told = Arc::new(Notify::new());
        self.events.send_in(lane, FsEvent::Told(Told(Arc::clone(&told))));
        if timeout(KERNEL_PATIENCE, told.notified()).await.is_err() {
            tracing::warn!("the kernel takes long to drop its copies of a file");
        }
    }
}
