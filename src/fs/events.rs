//! What the kernel must be told: copies of its own that hold no longer.
//!
//! Whoever finds out only puts an event into a bounded channel; `fuse::notify` carries it out on a thread of its own.
//! An event that finds the channel full is dropped: all copies of the kernel also end by themselves, when their time
//! is over and its next look finds another time of change.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::inodes::{Inode, Name};

/// Most events that wait; a thousand files that changed under open handles at once.
const EVENTS_QUEUED_MAX: usize = 1024;

/// A copy of the kernel's that holds no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsEvent {
    /// The pages and attributes of a file.
    InvalidateContent {
        /// Whose.
        inode: Inode,
    },
    /// The attributes of a file alone.
    InvalidateAttributes {
        /// Whose.
        inode: Inode,
    },
    /// Somebody wants to know when everything before this was told.
    Told(Told),
    /// What a name names.
    InvalidateEntry {
        /// In which directory.
        parent: Inode,
        /// Which name.
        name: Name,
    },
}

/// Who wants to know; asked by [`Self::tell`].
#[derive(Debug, Clone)]
pub struct Told(pub(super) Arc<Notify>);

impl Told {
    /// It is done.
    pub fn tell(&self) {
        self.0.notify_one();
    }
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Told {}

/// The sending end.
#[derive(Debug)]
pub(super) struct Events(mpsc::Sender<FsEvent>);

impl Events {
    pub(super) fn channel() -> (Self, mpsc::Receiver<FsEvent>) {
        let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
        (Self(sender), receiver)
    }

    pub(super) fn send(&self, event: FsEvent) {
        if let Err(error) = self.0.try_send(event) {
            tracing::debug!(%error, "the kernel is not told of a change and will find out when its copy has aged");
        }
    }
}
