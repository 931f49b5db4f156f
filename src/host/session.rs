//! A client's session: the folder it mounted and the files it has open, which outlive its connections.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attributes;
use super::opens::{OPENS_MAX, OpenFiles};
use super::tree::{Handle, Reached, Tree};
use crate::proto::{Attributes, Errno, ErrorCode, NodeId, OpenId, WireError};

/// A file held open, and the share of the daemon's descriptors that it takes.
#[derive(Debug)]
struct Held {
    handle: Arc<Handle>,
    _descriptor: OwnedSemaphorePermit,
}

/// One mount of one client.
#[derive(Debug)]
pub(super) struct Session {
    /// What is mounted.
    pub(super) tree: Arc<Tree>,
    /// Under which export's name.
    pub(super) export: String,
    /// Which folder below it, as the client wrote it.
    pub(super) sub_path: Vec<u8>,
    opens: Mutex<OpenFiles<Held>>,
    /// Descriptors that may still be held open, over all sessions.
    descriptors: Arc<Semaphore>,
}

impl Session {
    /// A session with nothing open.
    pub(super) fn new(
        tree: Arc<Tree>,
        export: String,
        sub_path: Vec<u8>,
        descriptors: Arc<Semaphore>,
    ) -> Self {
        let opens = Mutex::new(OpenFiles::new(OPENS_MAX));
        Self { tree, export, sub_path, opens, descriptors }
    }

    /// The attributes of a node, one without a name only where the session has it open. Blocks.
    pub(super) fn attributes(&self, node: NodeId) -> Result<Attributes, WireError> {
        match self.held(node) {
            Some(handle) => handle.attributes(),
            None => self.tree.attributes(node),
        }
    }

    /// The same, if that is known without waiting for a disk.
    pub(super) fn attributes_at_hand(&self, node: NodeId) -> Option<Attributes> {
        match self.held(node) {
            Some(handle) if handle.is_local => handle.attributes().ok(),
            Some(_) => None,
            None => self.tree.attributes_at_hand(node),
        }
    }

    /// A descriptor of any node, and what the node looked like if it had to be looked at. Blocks.
    pub(super) fn reach(&self, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        let (reached, found) = match self.held(node) {
            Some(handle) => (Reached::Handle(handle), None),
            None => self.tree.reach(node)?,
        };
        let found = match found {
            Some(found) => found,
            None => attributes::of_open(reached.as_fd())?,
        };
        Ok((reached, found))
    }

    /// A regular file, open for reading, if that takes no opening.
    pub(super) fn file_at_hand(&self, node: NodeId) -> Option<Arc<Handle>> {
        self.held(node).or_else(|| self.tree.file_at_hand(node))
    }

    /// A regular file, open for reading. Blocks.
    pub(super) fn file(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        self.held(node).map_or_else(|| self.tree.file(node), Ok)
    }

    /// Opens a node; a regular file is held until [`Self::close`]. Blocks.
    pub(super) fn open(&self, node: NodeId, open: OpenId) -> Result<Attributes, WireError> {
        let repeated = lock(&self.opens).opened(node, open).map(|held| Arc::clone(&held.handle));
        if let Some(handle) = repeated {
            // Its answer was lost; the name may have been lost since.
            return handle.attributes();
        }
        let (handle, found) = match self.tree.open_by_path(node) {
            // Only content can outlive its name; of everything else there is nothing to hold.
            Err(WireError { code: ErrorCode::System(Errno::EISDIR | Errno::EINVAL), .. }) => {
                return self.tree.attributes(node);
            }
            opened => opened?,
        };
        let hold = || {
            let descriptor = Arc::clone(&self.descriptors).try_acquire_owned().ok()?;
            Some(Held { handle, _descriptor: descriptor })
        };
        match lock(&self.opens).open(node, open, hold) {
            Ok(()) => Ok(found),
            Err(_) => Err(WireError::system(Errno::EMFILE)),
        }
    }

    /// Takes back one open. One that is not there was taken back before, by a request that was repeated.
    pub(super) fn close(&self, node: NodeId, open: OpenId) {
        let held = lock(&self.opens).close(node, open);
        drop(held);
    }

    /// How many opens there are.
    pub(super) fn opens(&self) -> u64 {
        lock(&self.opens).len()
    }

    fn held(&self, node: NodeId) -> Option<Arc<Handle>> {
        lock(&self.opens).get(node).map(|held| Arc::clone(&held.handle))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
