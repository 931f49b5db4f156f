//! Directories: `opendir`, `readdir`, `releasedir`.
//!
//! A handle reads from one [`Listing`], which fills as the host's stream arrives and whose positions stay, so that
//! `seekdir` and `telldir` work in directories of any size while others change them. Going back to the beginning takes a
//! new one, or a kept one that is still fresh.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::watch;

use super::attributes::Learned;
use super::error::Remedy;
use super::inodes::{Inode, Name};
use super::leases::LeaseId;
use super::nodes::Entry;
use super::recovering::Recovering;
use super::snapshot::{DOTS, ENTRIES_MAX, Snapshot};
use super::walks::WALK_ENTRIES_MAX;
use super::{FileSystem, FsError, lock};
use crate::client::ListPart;
use crate::proto::{Attributes, FileKind, LeaseEpoch, NodeId, OpenAccess};

/// One item of a directory, as it goes to the kernel.
#[derive(Debug)]
pub struct DirectoryItem<'a> {
    /// Its name; `.` and `..` among them.
    pub name: &'a [u8],
    /// Its number as users see it.
    pub number: u64,
    /// What it is.
    pub kind: FileKind,
    /// Where to go on behind it.
    pub next_offset: u64,
    /// For `readdirplus`: the entry to which the kernel now refers once more. `None` for `.` and `..`.
    pub entry: Option<Entry>,
}

/// Items of a directory from one offset on, some of which are there.
#[derive(Debug)]
pub struct DirectoryItems {
    directory: Inode,
    listing: Arc<Listing>,
    offset: u64,
}

/// A directory's entries, as far as they have arrived.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) snapshot: Mutex<Snapshot>,
    pub(super) asked: Instant,
    /// The lease that covers it as a whole, once it is complete.
    lease: Mutex<Option<LeaseId>>,
    entries_max: usize,
    /// What the listings of the mount take together, in bytes, this one included.
    all_bytes: Arc<AtomicUsize>,
    progress: watch::Sender<Progress>,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(lock(&self.snapshot).bytes(), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
enum Progress {
    Growing,
    Complete,
    Failed(FsError),
}

impl Listing {
    fn begin(entries_max: usize, all_bytes: &Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            snapshot: Mutex::default(),
            asked: Instant::now(),
            lease: Mutex::default(),
            entries_max,
            all_bytes: Arc::clone(all_bytes),
            progress: watch::Sender::new(Progress::Growing),
        })
    }

    /// When and how its names were learned.
    pub(super) fn learned(&self) -> Learned {
        Learned { lease: *lock(&self.lease), ..Learned::by_asking(self.asked) }
    }

    pub(super) fn bytes(&self) -> usize {
        lock(&self.snapshot).bytes()
    }

    /// Returns once there is an entry at `position`, or none will come.
    async fn reach(&self, position: usize) -> Result<(), FsError> {
        let mut progress = self.progress.subscribe();
        loop {
            let now = progress.borrow_and_update().clone();
            if lock(&self.snapshot).len() > position {
                return Ok(());
            }
            match now {
                Progress::Complete => return Ok(()),
                Progress::Failed(error) => return Err(error),
                Progress::Growing => {}
            }
            // The sender lives as long as the listing, which the caller holds.
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    inode: Inode,
    listing: Mutex<Option<Arc<Listing>>>,
}

impl FileSystem {
    /// Opens a directory. The host is asked when it is read.
    pub fn opendir(&self, inode: Inode) -> Result<u64, FsError> {
        self.node_of(inode)?;
        lock(&self.inodes).opened(inode, OpenAccess::READ, None);
        Ok(lock(&self.directories).insert(OpenDirectory { inode, listing: Mutex::new(None) }))
    }

    /// Which directory a handle is open on.
    pub(super) fn directory_of(&self, handle: u64) -> Result<Inode, FsError> {
        let directory = lock(&self.directories).get(handle).ok_or(FsError::BadHandle(handle))?;
        Ok(directory.inode)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) -> Result<(), FsError> {
        let directory = lock(&self.directories).remove(handle).ok_or(FsError::BadHandle(handle))?;
        lock(&self.inodes).closed(directory.inode);
        Ok(())
    }

    /// Gives the items from `offset` on to `sink` until it refuses one by returning `false`. Waits until there is at
    /// least one or the end is reached. If `with_entries`, every item that is taken is one lookup that the kernel will
    /// give back.
    pub async fn readdir(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        with_entries: bool,
        sink: impl FnMut(&DirectoryItem<'_>) -> bool + Send,
    ) -> Result<(), FsError> {
        let items = self.entries_from(handle, offset).await?;
        self.give_entries(&items, with_entries, sink);
        Ok(())
    }

    /// Waits until there is an item at `offset`, or the end is reached.
    pub async fn entries_from(self: &Arc<Self>, handle: u64, offset: u64) -> Result<DirectoryItems, FsError> {
        let directory = lock(&self.directories).get(handle).ok_or(FsError::BadHandle(handle))?;
        let listing = self.listing_at(&directory, offset).await?;
        if offset >= DOTS {
            listing.reach((offset - DOTS) as usize).await?;
        }
        Ok(DirectoryItems { directory: directory.inode, listing, offset })
    }

    /// Gives what [`Self::entries_from`] has waited for to `sink`, as [`Self::readdir`] does.
    pub fn give_entries(
        &self,
        items: &DirectoryItems,
        with_entries: bool,
        mut sink: impl FnMut(&DirectoryItem<'_>) -> bool,
    ) {
        let DirectoryItems { directory, listing, offset } = items;
        for (position, name) in [(0, b".".as_slice()), (1, b"..")] {
            if *offset <= position && !sink(&self.dot_item(*directory, name, position + 1)) {
                return;
            }
        }
        let mut position = offset.saturating_sub(DOTS) as usize;
        let _steady = self.steady();
        while let Some(next) = listing.entry(position) {
            let next_offset = position as u64 + DOTS + 1;
            if !self.give(*directory, &next, next_offset, with_entries, &mut sink) {
                break;
            }
            position += 1;
        }
    }

    fn give(
        &self,
        directory: Inode,
        listed: &super::snapshot::Listed,
        next_offset: u64,
        with_entries: bool,
        sink: &mut impl FnMut(&DirectoryItem<'_>) -> bool,
    ) -> bool {
        let entry =
            with_entries.then(|| self.enter(directory, &listed.name, listed.attributes, listed.learned));
        let number = match entry {
            Some(entry) => entry.number,
            None => self.shown_number(listed.attributes.node),
        };
        let name: &Name = &listed.name;
        let taken = sink(&DirectoryItem { name, number, kind: listed.attributes.kind, next_offset, entry });
        if !taken && let Some(entry) = entry {
            // The kernel was not told of it.
            let mut inodes = lock(&self.inodes);
            if let Some(record) = inodes.get_mut(entry.inode) {
                record.kernel_is_current = false;
            }
            inodes.forget(entry.inode, 1);
        }
        taken
    }

    fn dot_item<'a>(&self, inode: Inode, name: &'a [u8], next_offset: u64) -> DirectoryItem<'a> {
        let inodes = lock(&self.inodes);
        let own = || inodes.get(inode).map(|record| record.node());
        let node = if name == b".." { inodes.parent_of(inode).or_else(own) } else { own() };
        let number = node.map_or(inode.0, |node| inodes.shown_number(node));
        DirectoryItem { name, number, kind: FileKind::Directory, next_offset, entry: None }
    }

    /// The listing that a handle reads from at `offset`.
    async fn listing_at(
        self: &Arc<Self>,
        directory: &OpenDirectory,
        offset: u64,
    ) -> Result<Arc<Listing>, FsError> {
        let current = lock(&directory.listing).clone();
        match current {
            Some(listing) if offset > 0 => Ok(listing),
            _ => {
                let listing = self.newest_listing(directory.inode).await?;
                *lock(&directory.listing) = Some(Arc::clone(&listing));
                Ok(listing)
            }
        }
    }

    /// A kept listing if it is fresh, or any while the host is out of reach; else one that has just begun.
    async fn newest_listing(self: &Arc<Self>, inode: Inode) -> Result<Arc<Listing>, FsError> {
        let (node, _) = self.node_of(inode)?;
        let kept = lock(&self.recent).get(node);
        if let Some(kept) = &kept
            && !self.entry_left(kept.learned(), Instant::now()).is_zero()
        {
            return Ok(Arc::clone(kept));
        }
        if !self.is_connected()
            && self.config.serves_stale
            && let Some(kept) = kept
        {
            self.count_stale();
            return Ok(kept);
        }
        let listing = Listing::begin(ENTRIES_MAX, &self.listings_bytes);
        let fill = fill_task(Arc::clone(self), inode, node, Arc::downgrade(&listing));
        self.runtime.spawn(fill);
        let first = async {
            listing.reach(0).await?;
            Ok(Arc::clone(&listing))
        };
        self.or_copy(first, || kept.clone()).await
    }

    /// Lists a directory behind the back of a program that asks for its names one by one.
    pub(super) fn list_ahead(self: &Arc<Self>, inode: Inode, node: NodeId) {
        let listing = Listing::begin(WALK_ENTRIES_MAX, &self.listings_bytes);
        let fill = fill_task(Arc::clone(self), inode, node, Arc::downgrade(&listing));
        let fs = Arc::clone(self);
        self.runtime.spawn(async move {
            // Holding the listing is what keeps it being filled.
            fill.await;
            lock(&fs.walks).on_listed(node, lock(&listing.snapshot).len());
        });
    }

    /// Takes a batch of entries into a listing. Whether to go on.
    fn take_batch(
        &self,
        (node, lease): (NodeId, Option<LeaseEpoch>),
        listing: &Listing,
        batch: Vec<crate::proto::DirectoryEntry>,
    ) -> Result<(), FsError> {
        let _steady = self.steady();
        let learned = Learned::by_stream(listing.asked, Instant::now(), self.client.link().rtt);
        let learned = self.with_lease(learned, node, lease);
        let known: Vec<Attributes> = {
            let inodes = lock(&self.inodes);
            let is_known = |attributes: &Attributes| inodes.knows(attributes.node);
            batch.iter().map(|entry| entry.attributes).filter(is_known).collect()
        };
        for attributes in known {
            self.learn(attributes, learned);
        }
        let (entries, all_bytes) = {
            let mut snapshot = lock(&listing.snapshot);
            let before = snapshot.bytes();
            snapshot.push(batch, learned);
            let grown = snapshot.bytes() - before;
            (snapshot.len(), listing.all_bytes.fetch_add(grown, Ordering::Relaxed) + grown)
        };
        listing.progress.send_replace(Progress::Growing);
        let entries_max = listing.entries_max;
        if entries > entries_max {
            return Err(FsError::TooManyEntries(entries_max));
        }
        let bytes_max = self.config.listings_bytes_max;
        if all_bytes > bytes_max { Err(FsError::ListingsTooLarge(bytes_max)) } else { Ok(()) }
    }

    /// A listing is complete. Returns whether it may be kept.
    fn finish(&self, inode: Inode, (node, lease): (NodeId, Option<LeaseEpoch>), listing: &Arc<Listing>) {
        let _steady = self.steady();
        let learned = self.with_lease(Learned::by_asking(listing.asked), node, lease);
        {
            let mut snapshot = lock(&listing.snapshot);
            snapshot.finish();
            if learned.lease.is_none() {
                // A change was told while it came; which entries show it is not known.
                snapshot.uncover();
            }
        }
        *lock(&listing.lease) = learned.lease;
        // What was changed here since it was begun may be missing in it.
        if !lock(&self.inodes).is_before_own_change(inode, listing.asked) {
            lock(&self.recent).insert(node, Arc::clone(listing));
        }
    }

    /// The directory's own attributes come before its entries.
    fn begin_listing(
        &self,
        (node, lease): (NodeId, Option<LeaseEpoch>),
        asked: Instant,
        attributes: Option<Attributes>,
    ) {
        let _steady = self.steady();
        if let Some(attributes) = attributes.filter(|attributes| attributes.node == node) {
            self.learn(attributes, self.with_lease(Learned::by_asking(asked), node, lease));
        }
    }

    /// Carries the host's entries into the listing until all are there or nobody holds it any more.
    async fn fill(&self, inode: Inode, node: NodeId, listing: &Weak<Listing>) -> Result<(), FsError> {
        let mut recoveries = self.node_of(inode)?.1;
        let mut recovering = Recovering::within(self.config.patience, Instant::now());
        let mut parts = self.client.list(node);
        let mut lease = None;
        let mut begun = 0;
        loop {
            let part = parts.recv().await.unwrap_or(Err(crate::client::CallError::Closed));
            let Some(listing) = listing.upgrade() else { return Ok(()) };
            match part {
                Ok(ListPart::Begin { attributes, lease: given }) => {
                    begun += 1;
                    // One that was cut off and begun again has entries of two times.
                    lease = given.filter(|_| begun == 1);
                    self.begin_listing((node, lease), listing.asked, attributes);
                }
                Ok(ListPart::Entries(batch)) => self.take_batch((node, lease), &listing, batch)?,
                Ok(ListPart::End) => {
                    self.finish(inode, (node, lease), &listing);
                    return Ok(());
                }
                Err(error) if Remedy::of(&error) == Remedy::Resolve && lock(&listing.snapshot).len() == 0 => {
                    self.may_recover(&mut recovering, error)?;
                    self.recover(inode, recoveries, &mut recovering).await?;
                    recoveries = self.node_of(inode)?.1;
                    parts = self.client.list(node);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Listing {
    fn entry(&self, position: usize) -> Option<super::snapshot::Listed> {
        lock(&self.snapshot).get(position).cloned()
    }
}

async fn fill_task(fs: Arc<FileSystem>, inode: Inode, node: NodeId, listing: Weak<Listing>) {
    let end = match fs.fill(inode, node, &listing).await {
        Ok(()) => Progress::Complete,
        Err(error) => {
            tracing::debug!(inode = inode.0, %error, "a listing ends early");
            Progress::Failed(error)
        }
    };
    if let Some(listing) = listing.upgrade() {
        listing.progress.send_replace(end);
    }
}
