//! File-system semantics over the model host, the real fetcher and no cache: no kernel, no network.

mod changes;
mod changing;
mod deduplicating;
mod directories;
mod disconnected;
mod durability;
mod keeping;
mod locking;
mod model;
mod names;
mod numbers;
mod owners;
mod reading;
mod recalled;
mod replacing;
mod restart;
mod warming;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use wormhole::cache::NoCache;
use wormhole::chunk::ByteRange;
use wormhole::client::memory::MemoryHost;
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{
    DirectoryItem, Entry, FileSystem, Freshness, FsConfig, FsError, Inode, Lookup, OpenRequest, Opened,
};

/// Copies hold for so long that a test never sees one end.
pub(crate) const LASTING: Freshness = Freshness {
    attributes: Duration::from_secs(3600),
    entries: Duration::from_secs(3600),
    absence: Duration::from_secs(3600),
};

/// Copies hold for no time at all.
pub(crate) const FLEETING: Freshness =
    Freshness { attributes: Duration::ZERO, entries: Duration::ZERO, absence: Duration::ZERO };

/// A file system over a model host.
pub(crate) struct World {
    pub(crate) host: MemoryHost,
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) fetcher: Arc<Fetcher>,
}

impl World {
    pub(crate) fn new(host: MemoryHost, freshness: Freshness) -> Self {
        Self::with_config(host, FsConfig { freshness, ..FsConfig::default() })
    }

    pub(crate) fn with_config(host: MemoryHost, config: FsConfig) -> Self {
        let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), FetchConfig::default());
        let fs = FileSystem::new(host.client(), Arc::clone(&fetcher), config);
        Self { host, fs, fetcher }
    }

    /// Walks to `path` as the kernel does; each step is one lookup to give back.
    pub(crate) async fn walk(&self, path: &str) -> Result<Entry, FsError> {
        let mut at = None;
        for name in path.split('/') {
            let parent = at.map_or(Inode::ROOT, |entry: Entry| entry.inode);
            match self.fs.lookup(parent, name.as_bytes()).await? {
                Lookup::Found(entry) => at = Some(entry),
                Lookup::Absent { .. } => return Err(FsError::NotFound),
            }
        }
        at.ok_or(FsError::Invalid)
    }

    /// Gives back what [`Self::walk`] took.
    pub(crate) async fn forget_walk(&self, path: &str) {
        let mut at = Inode::ROOT;
        let mut met = Vec::new();
        for name in path.split('/') {
            if let Ok(Lookup::Found(entry)) = self.fs.lookup(at, name.as_bytes()).await {
                at = entry.inode;
                met.push(at);
            }
        }
        met.iter().rev().for_each(|inode| self.fs.forget(*inode, 2));
    }

    pub(crate) async fn open(&self, path: &str) -> Opened {
        let entry = self.walk(path).await.unwrap();
        self.fs.open(entry.inode, OpenRequest::default()).await.unwrap()
    }

    /// Reads as the FUSE adapter does: at once if possible.
    pub(crate) async fn read(&self, handle: u64, offset: u64, len: u64) -> Result<Vec<u8>, FsError> {
        let range = ByteRange::new(offset, len);
        match self.fs.read_now(handle, range) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => self.fs.read(handle, range).await.map(|bytes| bytes.to_vec()),
        }
    }

    /// Everything from `offset` on: names, kinds and where to go on behind each.
    pub(crate) async fn list_from(&self, handle: u64, offset: u64) -> Vec<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        let mut at = offset;
        loop {
            let before = all.len();
            let take = |item: &DirectoryItem<'_>| {
                all.push((item.name.to_vec(), item.next_offset));
                true
            };
            self.fs.readdir(handle, at, false, take).await.unwrap();
            if all.len() == before {
                return all;
            }
            at = all.last().unwrap().1;
        }
    }

    /// Nothing is held any more but kept listings.
    pub(crate) fn assert_idle(&self) {
        let gauges = self.fs.gauges();
        assert_eq!((gauges.inodes, gauges.files, gauges.directories), (0, 0, 0), "{gauges:?}");
        assert_eq!(self.fetcher.statistics().inflight_chunks, 0);
    }
}
