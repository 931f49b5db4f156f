//! Eviction of segments until the next write keeps within the limits.

use std::collections::BTreeSet;
use std::io;

use tracing::debug;

use super::directory::DirectoryLock;
use super::eviction::{Form, Limits, Listed, choose, missing_space};
use super::index::Candidate;
use super::record::SegmentId;
use super::shared::{Counters, Shared};

/// Result of an eviction.
#[derive(Debug)]
pub(super) struct Reclaimed {
    /// True if there is room now.
    pub(super) enough: bool,
    /// Segments removed from the directory. Their files are still open and their records still in the
    /// index.
    pub(super) evicted: Vec<SegmentId>,
    /// Their used records.
    pub(super) used: Vec<Candidate>,
}

impl Shared {
    /// Returns the limits for a growth of `grow_bytes`.
    pub(super) fn limits(&self, grow_bytes: u64) -> io::Result<Limits> {
        let (available, total) = self.directory.space()?;
        Ok(Limits {
            size_bytes: self.bounds.size_bytes,
            segment_bytes: u64::from(self.bounds.segment_bytes),
            grow_bytes,
            missing_bytes: missing_space(available, total, self.bounds.min_free_ratio, grow_bytes),
        })
    }

    /// Evicts segments until `grow_bytes` can be added. `listed` is the current listing, and the index is
    /// up to date with it.
    pub(super) fn reclaim(
        &self,
        lock: &DirectoryLock,
        listed: &[Listed],
        grow_bytes: u64,
    ) -> io::Result<Reclaimed> {
        let limits = self.limits(grow_bytes)?;
        // The names are read under the lock, so a pin of another process holds here, too.
        let pinned = listed.iter().filter(|segment| segment.is_pinned());
        let mut protected: BTreeSet<SegmentId> = pinned.map(|segment| segment.id).collect();
        loop {
            let plan = choose(&mut self.index(), listed, &protected, &limits);
            let victims = listed.iter().filter(|segment| plan.victims.contains(&segment.id));
            let busy: Vec<SegmentId> =
                victims.filter(|one| one.is_open() && self.is_busy(one.id)).map(|one| one.id).collect();
            if busy.is_empty() {
                return self.evict(lock, listed, &plan.victims, plan.enough);
            }
            // Each round protects at least one more segment, so the loop ends.
            protected.extend(busy);
        }
    }

    /// Returns `true` if a process appends to `segment`.
    fn is_busy(&self, segment: SegmentId) -> bool {
        !matches!(self.directory.claim_segment(segment, Form::Open), Ok(Some(_)))
    }

    fn evict(
        &self,
        lock: &DirectoryLock,
        listed: &[Listed],
        victims: &[SegmentId],
        enough: bool,
    ) -> io::Result<Reclaimed> {
        let mut reclaimed = Reclaimed { enough, evicted: Vec::new(), used: Vec::new() };
        for segment in listed.iter().filter(|segment| victims.contains(&segment.id)) {
            let used = self.index().candidates(segment.id);
            if !used.is_empty() {
                // The file stays open, so that the survivors can be read after the name is gone.
                let _ = self.file(segment.id);
            }
            self.directory.remove_segment(lock, segment.id)?;
            debug!("evicted segment {:016x}, {} bytes", segment.id, segment.bytes);
            Counters::add(&self.counters.evicted_bytes, segment.bytes);
            reclaimed.evicted.push(segment.id);
            reclaimed.used.extend(used);
        }
        Ok(reclaimed)
    }
}
