//! Listings that are kept for a while after they were read.
//!
//! Within the time that attributes hold they answer the lookups that follow a listing (`ls -l`, `find`) without a round
//! trip each; while the host is out of reach they keep `ls` going.

use std::sync::Arc;

use lru::LruCache;

use super::attributes::Learned;
use super::directory::Listing;
use super::inodes::Name;
use super::lock;
use super::snapshot::{Listed, Search};
use crate::proto::NodeId;

/// What all kept listings together may take, in bytes; some 300,000 entries.
const RECENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a kept listing says about a name.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Entry(Listed),
    Absent(Learned),
}

/// Complete listings by directory, the least recently used given up first.
#[derive(Debug)]
pub(super) struct Recent {
    listings: LruCache<NodeId, Arc<Listing>>,
    bytes: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self { listings: LruCache::unbounded(), bytes: 0 }
    }
}

impl Recent {
    /// Keeps a complete listing, in place of an older one of the directory.
    pub(super) fn insert(&mut self, directory: NodeId, listing: Arc<Listing>) {
        self.remove(directory);
        self.bytes += listing.bytes();
        self.listings.put(directory, listing);
        while self.bytes > RECENT_BYTES_MAX
            && let Some((_, oldest)) = self.listings.pop_lru()
        {
            self.bytes -= oldest.bytes();
        }
    }

    pub(super) fn remove(&mut self, directory: NodeId) {
        if let Some(listing) = self.listings.pop(&directory) {
            self.bytes -= listing.bytes();
        }
    }

    pub(super) fn get(&mut self, directory: NodeId) -> Option<Arc<Listing>> {
        self.listings.get(&directory).cloned()
    }

    /// What is known of `name` in `directory`.
    pub(super) fn find(&mut self, directory: NodeId, name: &Name) -> Option<Known> {
        let listing = self.listings.get(&directory)?;
        let snapshot = lock(&listing.snapshot);
        match snapshot.find(name) {
            Search::At(position) => snapshot.get(position).cloned().map(Known::Entry),
            Search::Absent => Some(Known::Absent(listing.learned())),
            Search::NotYet => None,
        }
    }

    /// How many listings are kept, and what they take in bytes.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.listings.len(), self.bytes)
    }
}
