//! Numbers of changes, the file that each one writes to, and the number below which all replies have arrived.
//!
//! Pure: no I/O, no clock.

use std::collections::BTreeMap;

use crate::proto::{NodeId, OperationId};

/// Changes of one session that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    given: u64,
    /// Changes under way, with the file that each writes to, if any.
    under_way: BTreeMap<OperationId, Option<NodeId>>,
}

impl Operations {
    /// Starts a change. `written` is the file whose content it writes.
    pub(super) fn begin(&mut self, written: Option<NodeId>) -> OperationId {
        self.given += 1;
        self.under_way.insert(OperationId(self.given), written);
        OperationId(self.given)
    }

    /// Ends a change: it was answered or given up.
    pub(super) fn end(&mut self, id: OperationId) {
        self.under_way.remove(&id);
    }

    /// Returns the changes under way that write to this file.
    pub(super) fn writing(&self, node: NodeId) -> Vec<OperationId> {
        self.under_way.iter().filter(|(_, written)| **written == Some(node)).map(|(id, _)| *id).collect()
    }

    /// Returns the changes of `ids` that are still under way.
    pub(super) fn left_of(&self, ids: &[OperationId]) -> Vec<OperationId> {
        ids.iter().filter(|id| self.under_way.contains_key(id)).copied().collect()
    }

    /// Returns the number below which all changes are over.
    pub(super) fn answered_below(&self) -> OperationId {
        self.under_way.keys().next().copied().unwrap_or(OperationId(self.given + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_under_way_are_never_below() {
        let mut operations = Operations::default();
        assert_eq!(operations.answered_below(), OperationId(1));
        let (first, second) = (operations.begin(None), operations.begin(None));
        assert_eq!(operations.answered_below(), first);
        operations.end(second);
        assert_eq!(operations.answered_below(), first);
        operations.end(first);
        assert_eq!(operations.answered_below(), OperationId(3));
        assert_eq!(operations.begin(None), OperationId(3));
        assert_eq!(operations.answered_below(), OperationId(3));
    }

    #[test]
    fn writes_are_known_by_their_file_until_they_are_over() {
        let node = |inode| NodeId { device: 1, inode, birth_ns: 0 };
        let mut operations = Operations::default();
        let one = operations.begin(Some(node(1)));
        operations.begin(None);
        operations.begin(Some(node(2)));
        let other = operations.begin(Some(node(1)));
        assert_eq!(operations.writing(node(1)), [one, other]);
        operations.end(one);
        assert_eq!(operations.writing(node(1)), [other]);
        assert_eq!(operations.left_of(&[one, other]), [other]);
    }
}
