//! What the kernel must be told: copies of its own that hold no longer.
//!
//! Whoever finds out only puts an event into a bounded channel; `fuse::notify` carries it out on a thread of its own.
//! An event that finds the channel full is dropped: all copies of the kernel also end by themselves, when their time
//! is over and its next look finds another time of change.
//!
//! There are two channels with a thread each: to drop pages the kernel waits for reads under way, and what concerns
//! attributes alone must not wait behind that.

use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc};

use super::inodes::{Inode, Name};
use super::lock;

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

/// One of the two channels of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLane {
    /// Pages, names, and what must keep its order with them: each may wait for reads under way.
    Copies,
    /// Attributes alone, which wait for nothing.
    Attributes,
}

/// A channel of events, and its receiving end until somebody takes it.
#[derive(Debug)]
struct Channel {
    sender: mpsc::Sender<FsEvent>,
    receiver: Mutex<Option<mpsc::Receiver<FsEvent>>>,
}

impl Channel {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

/// Events on their way to whoever tells the kernel.
#[derive(Debug)]
pub(super) struct Events {
    copies: Channel,
    attributes: Channel,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { copies: Channel::new(), attributes: Channel::new() }
    }

    /// The receiving end of a lane; `None` but for the first who asks.
    pub(super) fn take(&self, lane: EventLane) -> Option<mpsc::Receiver<FsEvent>> {
        lock(&self.channel(lane).receiver).take()
    }

    /// Whether somebody carries out the events of a lane.
    pub(super) fn is_served(&self, lane: EventLane) -> bool {
        lock(&self.channel(lane).receiver).is_none()
    }

    const fn channel(&self, lane: EventLane) -> &Channel {
        match lane {
            EventLane::Copies => &self.copies,
            EventLane::Attributes => &self.attributes,
        }
    }

    pub(super) fn send(&self, event: FsEvent) {
        self.send_in(EventLane::Copies, event);
    }

    pub(super) fn send_in(&self, lane: EventLane, event: FsEvent) {
        if let Err(error) = self.channel(lane).sender.try_send(event) {
            tracing::debug!(%error, "the kernel is not told of a change and will find out when its copy has aged");
        }
    }
}
