//! (P) Effects of a change by this client on the recorded names.
//!
//! An old record must never hide a change by this client. So the answer to a change is recorded. An answer
//! to a request that overlapped with a change is not recorded, because it may show the state before.

use super::store::MetadataRecord;
use crate::proto::{Attributes, Change, Changed, NodeId, RenameHow};

/// Counts of changes, to detect requests that overlap with one.
#[derive(Debug, Default)]
pub(super) struct OwnChanges {
    in_progress: u64,
    ended: u64,
}

/// Time of a request, counted in changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestTime {
    ended: u64,
}

impl OwnChanges {
    pub(super) const fn begin(&mut self) {
        self.in_progress += 1;
    }

    pub(super) const fn end(&mut self) {
        self.in_progress -= 1;
        self.ended += 1;
    }

    pub(super) const fn ask(&self) -> RequestTime {
        RequestTime { ended: self.ended }
    }

    /// Returns `true` if no change overlapped with a request whose answer has arrived now.
    pub(super) const fn is_sound(&self, request_time: RequestTime) -> bool {
        self.in_progress == 0 && self.ended == request_time.ended
    }
}

/// Returns the records of names after `change` was answered. The attributes in `changed` are recorded
/// separately.
pub(super) fn records(change: Change, changed: &Changed) -> Vec<MetadataRecord> {
    let node = changed.node;
    match change {
        Change::MakeDirectory { parent, name, .. } => {
            let empty = node.map(|made| MetadataRecord::Listing(made.node, Vec::new()));
            empty.into_iter().chain(named(parent, name, node)).collect()
        }
        Change::MakeSymlink { parent, name, target, .. } => {
            let link = node.map(|made| MetadataRecord::Link(made.node, target));
            link.into_iter().chain(named(parent, name, node)).collect()
        }
        Change::Create { parent, name, .. }
        | Change::MakeNode { parent, name, .. }
        | Change::Link { parent, name, .. } => named(parent, name, node).collect(),
        Change::Remove { parent, name, .. } => vec![MetadataRecord::Name(parent, name, None)],
        Change::Rename { from_parent, from_name, to_parent, to_name, how, .. } => {
            let is_folder = |other: &&Attributes| other.node == from_parent || other.node == to_parent;
            let replaced = changed.others.iter().find(|other| !is_folder(other)).copied();
            if replaced.is_some() && replaced.map(|other| other.node) == node.map(|moved| moved.node) {
                // Two names of one file: the rename did nothing.
                return Vec::new();
            }
            let left = replaced.filter(|_| how == RenameHow::Exchange);
            let from = MetadataRecord::Name(from_parent, from_name, left);
            named(to_parent, to_name, node).chain([from]).collect()
        }
        Change::SetAttributes { .. }
        | Change::SetXattr { .. }
        | Change::RemoveXattr { .. }
        | Change::Allocate { .. }
        | Change::CopyRange { .. }
        | Change::WriteKnown { .. } => Vec::new(),
    }
}

fn named(parent: NodeId, name: Vec<u8>, node: Option<Attributes>) -> impl Iterator<Item = MetadataRecord> {
    node.map(|found| MetadataRecord::Name(parent, name, Some(found))).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_sound_only_without_overlapping_changes() {
        let mut own = OwnChanges::default();
        let request_time = own.ask();
        assert!(own.is_sound(request_time));
        own.begin();
        let meanwhile = own.ask();
        assert!(!own.is_sound(request_time));
        own.begin();
        own.end();
        assert!(!own.is_sound(meanwhile));
        own.end();
        assert!(!own.is_sound(request_time) && !own.is_sound(meanwhile));
        assert!(own.is_sound(own.ask()));
    }
}
