//! File-system semantics: what a system call on the mount means, in terms of calls to the host.
//!
//! Nothing here knows FUSE; [`FileSystem`]'s methods carry the kernel's verbs, take inodes and handles, and answer values
//! or an [`FsError`]. In reading order:
//!
//! - `inodes` (pure): what the kernel knows, by number, node and name; `attributes` (pure): how long that holds
//! - `leases`, `absences` (pure), `leased`: what the host tells unasked, and how long things hold while it does
//! - `recovering` (pure), `ask`: how a question reaches the host, also after it restarted, also while it is out of reach
//! - `lookups` (pure), `nodes`: names and attributes; `by_handle`: files without a name; `kernel`: which attributes the kernel is told
//! - `snapshot` (pure), `directory`, `recent`: listings; `walks`, `strides` (pure): who should have asked for one, or for more
//! - `open_mode`, `copiers` (pure), `files`, `read`: content
//! - `change`, `modify`: changes of names and attributes; `behind`, `offers`, `own_content`, `unsynced`, `room` (pure), `sending`, `extent`, `write`: changes of content
//! - `own_locks` (pure), `locks`: file locks
//! - `statistics`, `xattr`: the rest; `warm`, `sync`: what users ask for past the kernel
//!
//! # Freshness
//!
//! Attributes and names hold for a second ([`Freshness`]), in the kernel and here together; here for longer under a lease. Opening a file always asks
//! the host, for the file and for its name at once, so that what was closed elsewhere before is seen. While the host is
//! out of reach everything that is known is served however old it is; the rest waits for the client's deadline.
//!
//! # Own changes
//!
//! A change of this mount's own is seen by it at once: its answer carries what it has made of files and directories, which goes into
//! the table of inodes; listings of the directories are dropped, and answers to questions from before are not believed any more.

mod absences;
mod ask;
mod attributes;
mod behind;
mod by_handle;
mod change;
mod config;
mod copiers;
mod directory;
mod error;
mod events;
mod extent;
mod files;
mod handles;
mod ids;
mod inodes;
mod kernel;
mod leased;
mod leases;
mod locks;
mod lookups;
mod modify;
mod nodes;
mod offers;
mod open_mode;
mod own_content;
mod own_locks;
mod read;
mod recent;
mod recovering;
mod room;
mod sending;
mod snapshot;
mod statistics;
mod strides;
mod sync;
#[cfg(test)]
mod tests;
mod unsynced;
mod walks;
mod warm;
mod write;
mod xattr;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use attributes::{Freshness, Ownership};
pub use change::{CreateRequest, Made};
pub use config::{DedupWish, FsConfig};
pub use directory::{DirectoryItem, DirectoryItems};
pub use error::FsError;
pub use events::{EventLane, FsEvent, Told};
pub use files::{OpenRequest, Opened};
pub use ids::{IdMap, NumberMap, Taken, Unmapped};
pub use inodes::{Inode, Name};
pub use locks::{LockWish, RemoteLocks};
pub use nodes::{Entry, Lookup};
pub use open_mode::{DIRECT_BYTES_MIN, OpenMode};
pub use sync::{SyncJob, SyncProgress};
pub use warm::{WarmJob, WarmProgress};
pub use write::WriteHow;
pub use xattr::SUM_XATTR;

use crate::client::Client;
use crate::fetch::Fetcher;
use absences::Absences;
use ask::Recoveries;
use copiers::Copiers;
use directory::OpenDirectory;
use events::Events;
use files::OpenFile;
use handles::Handles;
use inodes::{INODE_BYTES, InodeTable};
use leases::LeaseTable;
use locks::Locks;
use lookups::Lookups;
use recent::Recent;
use room::Rooms;
use sending::Sending;
use statistics::Statistics;
use strides::Strides;
use walks::Walks;
use xattr::XattrNames;

/// One mounted tree.
///
/// The locks are held for moments and never over an await. Where two are held, the order is that of the fields.
pub struct FileSystem {
    client: Arc<dyn Client>,
    fetcher: Arc<Fetcher>,
    config: FsConfig,
    runtime: Handle,
    recent: Mutex<Recent>,
    /// What all listings take in memory, in bytes.
    listings_bytes: Arc<AtomicUsize>,
    inodes: Mutex<InodeTable>,
    lookups: Mutex<Lookups>,
    files: Mutex<Handles<OpenFile>>,
    directories: Mutex<Handles<OpenDirectory>>,
    leases: Mutex<LeaseTable>,
    absences: Mutex<Absences>,
    telling: RwLock<()>,
    recoveries: Mutex<Recoveries>,
    statistics: Statistics,
    rooms: Mutex<Rooms>,
    stale_answers: AtomicU64,
    walks: Mutex<Walks>,
    strides: Mutex<Strides>,
    copiers: Mutex<Copiers>,
    xattr_names: XattrNames,
    sending: Sending,
    locks: Locks,
    events: Events,
}

/// What is held at a moment; all zero but the kept listings when nothing is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Inodes that the kernel refers to or that are open, besides the root.
    pub inodes: usize,
    /// Open files.
    pub files: usize,
    /// Open directories.
    pub directories: usize,
    /// Listings that are kept.
    pub listings: usize,
    /// What they take, in bytes.
    pub listing_bytes: usize,
    /// Directories whose changes the host tells.
    pub leases: usize,
}

impl FileSystem {
    /// The tree that `client` reaches, with content from `fetcher`.
    ///
    /// # Panics
    /// Outside of a tokio runtime; what goes on behind a call runs there.
    pub fn new(client: Arc<dyn Client>, fetcher: Arc<Fetcher>, config: FsConfig) -> Arc<Self> {
        let (root, runs) = (client.root(), client.runs());
        let fs = Arc::new(Self {
            client,
            fetcher,
            sending: Sending::new(config.dedup),
            config,
            runtime: Handle::current(),
            recent: Mutex::default(),
            listings_bytes: Arc::default(),
            inodes: Mutex::new(InodeTable::new(root, Instant::now())),
            lookups: Mutex::default(),
            files: Mutex::default(),
            directories: Mutex::default(),
            leases: Mutex::default(),
            absences: Mutex::default(),
            telling: RwLock::default(),
            recoveries: Mutex::default(),
            statistics: Statistics::default(),
            rooms: Mutex::default(),
            stale_answers: AtomicU64::new(0),
            walks: Mutex::default(),
            strides: Mutex::default(),
            copiers: Mutex::default(),
            xattr_names: XattrNames::default(),
            locks: Locks::new(runs),
            events: Events::new(),
        });
        fs.prime_statistics();
        fs.watch_lives();
        fs.follow_events();
        fs
    }

    /// Events of one lane that the kernel is to be told, for the one who tells it. `None` but for the first who asks.
    pub fn take_events(&self, lane: EventLane) -> Option<mpsc::Receiver<FsEvent>> {
        self.events.take(lane)
    }

    /// How it is configured.
    pub const fn config(&self) -> &FsConfig {
        &self.config
    }

    /// Where its tasks run.
    pub const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How often a copy was given because the host was out of reach.
    pub fn stale_answers(&self) -> u64 {
        self.stale_answers.load(Ordering::Relaxed)
    }

    /// Memory that tables and listings take, in bytes, about: what falls when programs and the kernel let go.
    pub fn table_bytes(&self) -> usize {
        lock(&self.inodes).len() * INODE_BYTES + self.listings_bytes.load(Ordering::Relaxed)
    }

    /// What is held now.
    pub fn gauges(&self) -> Gauges {
        let (listings, listing_bytes) = lock(&self.recent).held();
        Gauges {
            inodes: lock(&self.inodes).len(),
            files: lock(&self.files).len(),
            directories: lock(&self.directories).len(),
            listings,
            listing_bytes,
            leases: self.leases_held(),
        }
    }
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Locks what no panic can leave half done: every change under these locks is one call of a pure structure.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
