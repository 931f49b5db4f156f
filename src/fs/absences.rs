//! Names that are not there, in directories under a lease.
//!
//! Programs ask again and again for names that do not exist (`.gitignore`, headers in each directory of a search path). A kept
//! listing answers that; this table answers it for directories that nobody has listed. Pure: no I/O, no clock.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;

use super::attributes::Learned;
use super::inodes::Name;
use super::leases::LeaseId;
use crate::proto::NodeId;

/// Most names; about 2 MiB with names of 30 bytes.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// The table.
#[derive(Debug)]
pub(super) struct Absences(LruCache<(NodeId, Name), (Instant, LeaseId)>);

impl Default for Absences {
    fn default() -> Self {
        Self(LruCache::new(NAMES_MAX))
    }
}

impl Absences {
    /// Takes note that a directory has no such name, if a lease covers that.
    pub(super) fn insert(&mut self, directory: NodeId, name: &Name, learned: Learned) {
        if let Some(lease) = learned.lease {
            self.0.put((directory, Arc::clone(name)), (learned.asked, lease));
        }
    }

    /// How it was learned that a directory has no such name.
    pub(super) fn get(&mut self, directory: NodeId, name: &Name) -> Option<Learned> {
        let (asked, lease) = *self.0.get(&(directory, Arc::clone(name)))?;
        Some(Learned { lease: Some(lease), ..Learned::by_asking(asked) })
    }

    /// A change of this name was told.
    pub(super) fn remove(&mut self, directory: NodeId, name: &Name) {
        self.0.pop(&(directory, Arc::clone(name)));
    }
}
