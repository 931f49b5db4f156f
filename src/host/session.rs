//! A client's session: the folder it mounted and the files it has open, which outlive its connections.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::actor::Actor;
use super::attributes::{self, system_error};
use super::budget::{FileBudget, Place};
use super::confine::open_for;
use super::growth::Growths;
use super::leases::{Subscriber, Watches};
use super::locks::{Locks, SessionLocks};
use super::once::Outcomes;
use super::opens::{OPENS_MAX, OpenFiles};
use super::operations::Operations;
use super::tree::{Handle, Reached, Tree};
use crate::proto::{
    Attributes, Errno, ErrorCode, LeaseEpoch, NodeId, OpenAccess, OpenId, SessionRun, WireError,
};

/// A file held open, and its place in the budget of the key.
#[derive(Debug)]
struct Held {
    handle: Arc<Handle>,
    _place: Place,
}

/// One mount of one client.
#[derive(Debug)]
pub(super) struct Session {
    /// What is mounted.
    pub(super) tree: Arc<Tree>,
    /// As whom; with the groups he had when the session began.
    pub(super) actor: Actor,
    /// Under which export's name.
    pub(super) export: String,
    /// Which folder below it, as the client wrote it.
    pub(super) sub_path: Vec<u8>,
    /// Which life of the session this is.
    pub(super) run: SessionRun,
    /// What it has locked.
    pub(super) locks: Arc<SessionLocks>,
    operations: Mutex<Outcomes>,
    /// Changes whenever a change begins.
    begun: watch::Sender<()>,
    lock_operations: Mutex<Outcomes>,
    /// Which of its writes may make a file longer.
    growths: Mutex<Growths>,
    /// Changes whenever a write is over.
    landed: watch::Sender<()>,
    opens: Mutex<OpenFiles<Held>>,
    /// What its key may hold open, over all its sessions.
    files: FileBudget,
    watches: Arc<Watches>,
    /// The event stream that is open; `None` before the first and after the daemon began to end.
    events: watch::Sender<Option<Arc<Subscriber>>>,
}

impl Session {
    /// A session with nothing open.
    pub(super) fn new(
        (tree, actor): (Arc<Tree>, Actor),
        export: String,
        sub_path: Vec<u8>,
        run: SessionRun,
        locks: Arc<Locks>,
        files: FileBudget,
        watches: Arc<Watches>,
    ) -> Self {
        let locks = SessionLocks::new(run.number, locks, files.clone());
        let (operations, lock_operations) = (Mutex::new(Operations::new()), Mutex::new(Operations::new()));
        let opens = Mutex::new(OpenFiles::new(OPENS_MAX));
        let (begun, _) = watch::channel(());
        Self {
            tree,
            actor,
            export,
            sub_path,
            run,
            locks,
            operations,
            begun,
            lock_operations,
            growths: Mutex::default(),
            landed: watch::channel(()).0,
            opens,
            files,
            watches,
            events: watch::channel(None).0,
        }
    }

    /// Opens the event stream in place of an earlier one. `None` if the kernel watches nothing for this daemon.
    pub(super) fn subscribe(&self) -> Option<Arc<Subscriber>> {
        let subscriber = Arc::new(self.watches.subscribe(self.files.key())?);
        self.events.send_replace(Some(Arc::clone(&subscriber)));
        Some(subscriber)
    }

    /// Returns once this is no longer the session's event stream.
    pub(super) fn events_over(&self, subscriber: &Subscriber) -> impl Future<Output = ()> + Send + use<> {
        let (mut events, epoch) = (self.events.subscribe(), subscriber.epoch());
        async move {
            let is_other =
                |now: &Option<Arc<Subscriber>>| now.as_ref().is_none_or(|now| now.epoch() != epoch);
            // Fails when the session is gone, and the stream with it.
            let _ = events.wait_for(is_other).await;
        }
    }

    /// Ends the event stream, so that its connection can end.
    pub(super) fn end_events(&self) {
        self.events.send_replace(None);
    }

    /// Gives a lease on a directory that is about to be read: from now on its changes are told. `None` if there is no
    /// event stream, or the directory cannot be watched. Must be called with the client's rights.
    pub(super) fn lease(&self, folder: &Handle) -> Option<LeaseEpoch> {
        // A file system that changes behind the kernel's back has no events to tell.
        let subscriber = self.events.borrow().clone().filter(|_| folder.is_local)?;
        subscriber.watch(folder.node, folder.file.as_fd()).then(|| subscriber.epoch())
    }

    /// The same, if the directory can be reached without waiting for a disk.
    pub(super) fn lease_at_hand(&self, directory: NodeId) -> Option<LeaseEpoch> {
        if self.events.borrow().is_none() {
            return None;
        }
        self.lease(&*self.tree.folder_at_hand(directory)?)
    }

    /// Makes system calls with the rights of the one as whom the client acts. All that need rights are made in here.
    pub(super) fn with_rights<T>(
        &self,
        calls: impl FnOnce(&Self) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let _assumed = self.actor.assume()?;
        calls(self)
    }

    /// The changes under way and done, for a moment.
    pub(super) fn operations(&self) -> MutexGuard<'_, Outcomes> {
        lock(&self.operations)
    }

    /// A change has begun: who waits for it looks.
    pub(super) fn has_begun(&self) {
        self.begun.send_replace(());
    }

    /// Tells when changes begin.
    pub(super) fn begun(&self) -> watch::Receiver<()> {
        self.begun.subscribe()
    }

    /// Which writes may make a file longer, for a moment.
    pub(super) fn growths(&self) -> MutexGuard<'_, Growths> {
        lock(&self.growths)
    }

    /// A write is over: who waits for it looks.
    pub(super) fn has_landed(&self) {
        self.landed.send_replace(());
    }

    /// Tells when writes are over.
    pub(super) fn landed(&self) -> watch::Receiver<()> {
        self.landed.subscribe()
    }

    /// The same for what is done about locks, which has numbers of its own.
    pub(super) fn lock_operations(&self) -> MutexGuard<'_, Outcomes> {
        lock(&self.lock_operations)
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

    /// The same, also of what was looked up lately and bears its name no more: for questions, not for changes. Blocks.
    pub(super) fn reach_to_ask(&self, node: NodeId) -> Result<(Reached, Attributes), WireError> {
        let (reached, found) = match self.held(node) {
            Some(handle) => (Reached::Handle(handle), None),
            None => self.tree.reach_named_or_held(node)?,
        };
        let found = match found {
            Some(found) => found,
            None => attributes::of_open(reached.as_fd())?,
        };
        Ok((reached, found))
    }

    /// A regular file, open for reading, if that takes no opening.
    pub(super) fn file_at_hand(&self, node: NodeId) -> Option<Arc<Handle>> {
        self.held(node).filter(|held| held.access.reads).or_else(|| self.tree.file_at_hand(node))
    }

    /// A regular file, open for reading. Blocks.
    pub(super) fn file(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        match self.held(node).filter(|held| held.access.reads) {
            Some(held) => Ok(held),
            None => self.tree.named_or_held_file(node),
        }
    }

    /// A regular file, open for writing, if that takes no opening.
    pub(super) fn file_to_write_at_hand(&self, node: NodeId) -> Option<Arc<Handle>> {
        self.held(node).filter(|held| held.access.writes)
    }

    /// A regular file, open for writing. Blocks.
    pub(super) fn file_to_write(&self, node: NodeId) -> Result<Arc<Handle>, WireError> {
        const WRITE: OpenAccess = OpenAccess { reads: false, writes: true, appends: true };
        match self.held(node) {
            Some(held) if held.access.writes => Ok(held),
            Some(held) if held.is_file => {
                let (fd, access) = open_for(held.file.as_fd(), WRITE).map_err(system_error)?;
                Ok(Handle::file(fd, node, access))
            }
            _ => self.tree.open_by_path(node, WRITE).map(|(handle, _)| handle),
        }
    }

    /// An open file of its own, to lock, and for what it is open: if `writes`, for writing where the host's user may. Blocks.
    pub(super) fn file_to_lock(
        &self,
        node: NodeId,
        writes: bool,
    ) -> Result<(OwnedFd, OpenAccess), WireError> {
        const WRITE: OpenAccess = OpenAccess { reads: false, writes: true, appends: true };
        let reached = match self.held(node) {
            Some(handle) if handle.is_file => Reached::Handle(handle),
            _ => self.tree.reach_file_by_path(node)?.0,
        };
        if writes && let Ok(opened) = open_for(reached.as_fd(), WRITE) {
            return Ok(opened);
        }
        open_for(reached.as_fd(), OpenAccess::READ).map_err(system_error)
    }

    /// Opens a node; a regular file is held until [`Self::close`]. Blocks.
    pub(super) fn open(
        &self,
        node: NodeId,
        open: OpenId,
        access: OpenAccess,
    ) -> Result<Attributes, WireError> {
        let repeated = lock(&self.opens).opened(node, open).map(|held| Arc::clone(&held.handle));
        if let Some(handle) = repeated.filter(|handle| self.tree.has(handle)) {
            // Its answer was lost; the name may have been lost since.
            return handle.attributes();
        }
        if access == OpenAccess::NONE {
            return self.hold_as_it_is(node, open);
        }
        // Kept here until it is held once more: the last of the others may be closed meanwhile.
        let opened = match self.held(node) {
            // No path leads to it any more, so none can lead elsewhere.
            Some(held) if held.is_file && held.attributes()?.links == 0 => open_again(held, access),
            Some(held) if !held.access.covers(access) => {
                self.tree.open_named_or_held(node, held.access.and(access))
            }
            // Opened anew also where it is held already: rights may have changed since.
            _ => self.tree.open_named_or_held(node, access),
        };
        let (handle, found) = match opened {
            // Only content can outlive its name; of everything else there is nothing to hold.
            Err(WireError { code: ErrorCode::System(Errno::EISDIR | Errno::EINVAL), .. }) => {
                return self.tree.attributes(node);
            }
            opened => opened?,
        };
        self.hold(node, open, handle)?;
        Ok(found)
    }

    /// Holds any node without opening it, also one that was looked up lately and bears its name no more.
    fn hold_as_it_is(&self, node: NodeId, open: OpenId) -> Result<Attributes, WireError> {
        let held = self.held(node).map(|held| held.attributes().map(|found| (held, found)));
        let (handle, found) = match held.or_else(|| self.tree.held_handle(node)) {
            Some(held) => held?,
            None => return self.tree.attributes(node),
        };
        self.hold(node, open, handle)?;
        Ok(found)
    }

    /// Holds a file for `open`, if need be by this handle.
    pub(super) fn hold(&self, node: NodeId, open: OpenId, handle: Arc<Handle>) -> Result<(), WireError> {
        let mut opens = lock(&self.opens);
        let make = || {
            let place = self.files.take()?;
            Some(Held { handle: Arc::clone(&handle), _place: place })
        };
        opens.open(node, open, make).map_err(|_| WireError::system(Errno::EMFILE))?;
        if let Some(held) = opens.get_mut(node)
            && !held.handle.access.covers(handle.access)
        {
            held.handle = handle;
        }
        Ok(())
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
        let held = lock(&self.opens).get(node).map(|held| Arc::clone(&held.handle));
        held.filter(|handle| self.tree.has(handle))
    }
}

/// Opens a file that is held already by its descriptor: itself where that will do, else for all that it is held for and `access`.
fn open_again(held: Arc<Handle>, access: OpenAccess) -> Result<(Arc<Handle>, Attributes), WireError> {
    let found = held.attributes()?;
    if held.access.covers(access) {
        return Ok((held, found));
    }
    let (fd, access) = open_for(held.file.as_fd(), held.access.and(access)).map_err(system_error)?;
    Ok((Handle::file(fd, held.node, access), found))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.locks.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
