//! Watches directories that clients hold leases on, and gathers what has changed for each client.
//!
//! One inotify instance serves the daemon. The kernel checks that the client may read a directory when its watch is added, with the
//! rights of the user as whom the client acts. A thread reads the kernel's events and files them with the subscribers
//! ([`Pending`]); each subscriber's stream (`events`) looks attributes up and tells them.
//!
//! inotify reports a change of a file in the directory through which it was made. It does not report stores to a shared
//! mapping until the file is closed, nor changes through a hard link in another directory. `SEMANTICS.md` says what
//! follows for clients.

mod pending;
mod table;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::Notify;

use pending::Pending;
pub(in crate::host) use pending::Told;
use table::{SubscriberId, WatchTable};

use super::confine::proc_path;
use crate::proto::{LeaseEpoch, NodeId};
use crate::transport::PublicKey;
use crate::transport::identity::random_bytes;

/// Most directories that one key has leases on, over all its mounts. A watch takes about 1 KiB of kernel memory.
const DIRECTORIES_MAX: usize = 32_768;

/// How often the thread that reads events looks if the daemon is still there, in milliseconds.
const LOOK_INTERVAL_MS: u16 = 1_000;

/// Everything that changes what a lease covers: names, attributes, content.
const WATCHED: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ONLYDIR);

/// The watches of a daemon.
#[derive(Debug)]
pub(in crate::host) struct Watches {
    /// `None` if the kernel gives none; then nobody gets a lease.
    inotify: Option<Inotify>,
    state: Mutex<State>,
    epochs: AtomicU64,
}

#[derive(Debug)]
struct State {
    table: WatchTable<WatchDescriptor, PublicKey>,
    subscribers: HashMap<SubscriberId, Weak<Inbox>>,
}

#[derive(Debug, Default)]
struct Inbox {
    pending: Mutex<Pending>,
    wake: Notify,
}

/// One event stream of one client. Its leases end when this is dropped.
#[derive(Debug)]
pub(in crate::host) struct Subscriber {
    watches: Arc<Watches>,
    id: SubscriberId,
    inbox: Arc<Inbox>,
}

impl Watches {
    /// Starts to watch nothing yet. Without inotify nobody gets a lease, and clients go by their time-outs.
    pub(in crate::host) fn start() -> Arc<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify
            .inspect_err(|error| tracing::warn!("no leases: the kernel gives no inotify instance: {error}"))
            .ok();
        // Epochs of a daemon that restarted must not be taken for those of its predecessor.
        let first = random_bytes::<8>().map_or(1, u64::from_le_bytes);
        let watches = Arc::new(Self {
            inotify,
            state: Mutex::new(State { table: WatchTable::new(DIRECTORIES_MAX), subscribers: HashMap::new() }),
            epochs: AtomicU64::new(first),
        });
        if watches.inotify.is_some() {
            let reader = Arc::downgrade(&watches);
            let thread = std::thread::Builder::new().name("wormhole-watch".into());
            if let Err(error) = thread.spawn(move || read_events(&reader)) {
                tracing::warn!("no leases: no thread can be started: {error}");
            }
        }
        watches
    }

    /// Begins an event stream of a key; `None` if the kernel watches nothing.
    pub(in crate::host) fn subscribe(self: &Arc<Self>, key: PublicKey) -> Option<Subscriber> {
        self.inotify.as_ref()?;
        let id = SubscriberId(self.epochs.fetch_add(1, Ordering::Relaxed));
        let inbox = Arc::new(Inbox::default());
        let mut state = lock(&self.state);
        state.table.subscribe(id, key);
        state.subscribers.insert(id, Arc::downgrade(&inbox));
        drop(state);
        Some(Subscriber { watches: Arc::clone(self), id, inbox })
    }

    /// Number of directories that are watched.
    pub(in crate::host) fn len(&self) -> usize {
        lock(&self.state).table.len()
    }

    fn remove(inotify: &Inotify, watch: WatchDescriptor, state: &MutexGuard<'_, State>) {
        // Held, so that nobody adds the same directory between the table's decision and this call.
        let _ = state;
        if let Err(error) = inotify.rm_watch(watch) {
            tracing::trace!(%error, "a watch was gone already");
        }
    }

    fn handle(&self, event: &InotifyEvent) {
        let mut state = lock(&self.state);
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            tracing::info!("more changes than the kernel could queue: all leases end");
            state
                .subscribers
                .values()
                .filter_map(Weak::upgrade)
                .for_each(|inbox| inbox.note(Pending::overflow));
            return;
        }
        let watch = event.wd;
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            if let Some((directory, subscribers)) = state.table.ended(watch) {
                state.tell(&subscribers, |pending| pending.revoke(directory));
            }
            return;
        }
        let Some((directory, subscribers)) = state.table.get(watch) else { return };
        let name = event.name.as_deref().map(std::os::unix::ffi::OsStrExt::as_bytes);
        state.tell(subscribers, |pending| pending.change(directory, name));
    }
}

impl State {
    fn tell(&self, subscribers: &[SubscriberId], note: impl Fn(&mut Pending)) {
        for subscriber in subscribers {
            if let Some(inbox) = self.subscribers.get(subscriber).and_then(Weak::upgrade) {
                inbox.note(&note);
            }
        }
    }
}

impl Inbox {
    fn note(&self, note: impl FnOnce(&mut Pending)) {
        note(&mut lock(&self.pending));
        self.wake.notify_one();
    }
}

impl Subscriber {
    /// The name of the stream.
    pub(in crate::host) const fn epoch(&self) -> LeaseEpoch {
        LeaseEpoch(self.id.0)
    }

    /// Watches a directory, of which `folder` is any descriptor, from now on. Returns whether later changes will be told.
    /// Must be called with the client's rights.
    pub(in crate::host) fn watch(&self, directory: NodeId, folder: BorrowedFd<'_>) -> bool {
        let Some(inotify) = &self.watches.inotify else { return false };
        let path = proc_path(folder);
        let mut state = lock(&self.watches.state);
        if state.table.has(self.id, directory) {
            return true;
        }
        let watch = match inotify.add_watch(path.as_str(), WATCHED) {
            Ok(watch) => watch,
            Err(error) => {
                // ENOSPC: `max_user_watches`; EACCES: the client may not list this directory.
                tracing::debug!(%error, ?directory, "a directory is not watched");
                return false;
            }
        };
        let consequences = state.table.add(self.id, watch, directory);
        if let Some((loser, revoked)) = consequences.revoked {
            state.tell(&[loser], |pending| pending.revoke(revoked));
        }
        for unwanted in consequences.unwanted {
            Watches::remove(inotify, unwanted, &state);
        }
        true
    }

    /// Takes the next thing to tell; `Err` if changes were missed.
    pub(in crate::host) fn take(&self) -> Result<Option<Told>, Overflow> {
        let mut pending = lock(&self.inbox.pending);
        if pending.has_overflowed() { Err(Overflow) } else { Ok(pending.take()) }
    }

    /// Makes the next [`Self::changed`] return at once.
    pub(in crate::host) fn look_again(&self) {
        self.inbox.wake.notify_one();
    }

    /// Returns once there may be something to tell.
    pub(in crate::host) async fn changed(&self) {
        self.inbox.wake.notified().await;
    }
}

/// Changes were missed, so every lease of the stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Overflow;

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut state = lock(&self.watches.state);
        state.subscribers.remove(&self.id);
        let unwanted = state.table.unsubscribe(self.id);
        let Some(inotify) = &self.watches.inotify else { return };
        for watch in unwanted {
            Watches::remove(inotify, watch, &state);
        }
    }
}

/// Reads the kernel's events until the daemon is gone.
fn read_events(watches: &Weak<Watches>) {
    while let Some(watches) = watches.upgrade() {
        let Some(inotify) = &watches.inotify else { return };
        if let Err(error) = wait(inotify) {
            tracing::warn!("leases end: waiting for events failed: {error}");
            return;
        }
        match inotify.read_events() {
            Ok(events) => events.iter().for_each(|event| watches.handle(event)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!("leases end: events cannot be read: {error}");
                return;
            }
        }
    }
}

fn wait(inotify: &Inotify) -> io::Result<()> {
    let mut polled = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::from(LOOK_INTERVAL_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, Instant};

    use super::*;

    const KEY: PublicKey = PublicKey([1; 32]);

    const DIRECTORY: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    /// The first answer that is not "nothing yet".
    fn wait_for(subscriber: &Subscriber) -> Result<Told, Overflow> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match subscriber.take() {
                Ok(None) => assert!(Instant::now() < until, "nothing was told"),
                Ok(Some(told)) => return Ok(told),
                Err(overflow) => return Err(overflow),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn each_subscriber_is_told_and_watches_end_with_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let watches = Watches::start();
        let (one, other) = (watches.subscribe(KEY).unwrap(), watches.subscribe(KEY).unwrap());
        let opened = File::open(folder.path()).unwrap();
        assert!(one.watch(DIRECTORY, opened.as_fd()));
        assert!(other.watch(DIRECTORY, opened.as_fd()));
        assert_eq!(watches.len(), 1);
        fs::create_dir(folder.path().join("name")).unwrap();
        for subscriber in [&one, &other] {
            assert_eq!(wait_for(subscriber), Ok(Told::Changed(DIRECTORY, vec![b"name".to_vec()])));
        }
        drop(one);
        assert_eq!(watches.len(), 1);
        fs::remove_dir(folder.path().join("name")).unwrap();
        assert_eq!(wait_for(&other), Ok(Told::Changed(DIRECTORY, vec![b"name".to_vec()])));
        drop(other);
        assert_eq!(watches.len(), 0);
    }

    #[test]
    fn a_directory_that_goes_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        fs::create_dir(&path).unwrap();
        let watches = Watches::start();
        let subscriber = watches.subscribe(KEY).unwrap();
        assert!(subscriber.watch(DIRECTORY, File::open(&path).unwrap().as_fd()));
        fs::remove_dir(&path).unwrap();
        while wait_for(&subscriber).unwrap() != Told::Revoked(DIRECTORY) {}
        assert_eq!(watches.len(), 0);
    }

    #[test]
    fn a_subscriber_that_takes_nothing_overflows() {
        let folder = tempfile::tempdir().unwrap();
        let watches = Watches::start();
        let subscriber = watches.subscribe(KEY).unwrap();
        assert!(subscriber.watch(DIRECTORY, File::open(folder.path()).unwrap().as_fd()));
        let until = Instant::now() + Duration::from_secs(60);
        let mut made = 0;
        while !lock(&subscriber.inbox.pending).has_overflowed() {
            assert!(Instant::now() < until, "{made} names were not too many");
            fs::create_dir(folder.path().join(made.to_string())).unwrap();
            made += 1;
        }
        assert_eq!(subscriber.take(), Err(Overflow));
    }
}
