//! The numbers of changes, which of them write to which file, and up to which all answers are here.
//!
//! Pure: no I/O, no clock.

use std::collections::BTreeMap;

use crate::proto::{NodeId, OperationId};

/// The changes of one session that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    given: u64,
    /// With the file to which it writes content, if it does.
    under_way: BTreeMap<OperationId, Option<NodeId>>,
}

impl Operations {
    /// One more begins; `written` is the file whose content it writes.
    pub(super) fn begin(&mut self, written: Option<NodeId>) -> OperationId {
        self.given += 1;
        self.under_way.insert(OperationId(self.given), written);
        OperationId(self.given)
    }

    /// One is over: answered, or given up.
    pub(super) fn end(&mut self, id: OperationId) {
        self.under_way.remove(&id);
    }

    /// Those under way that write to this file.
    pub(super) fn writing(&self, node: NodeId) -> Vec<OperationId> {
        self.under_way.iter().filter(|(_, written)| **written == Some(node)).map(|(id, _)| *id).collect()
    }

    /// Which of some are still under way.
    pub(super) fn left_of(&self, ids: &[OperationId]) -> Vec<OperationId> {
        ids.iter().filter(|id| self.under_way.contains_key(id)).copied().collect()
    }

    /// All before this one are over.
    pub(super) fn answered_below(&self) -> OperationId {
        self.under_way.keys().next().copied().unwrap_or(OperationId(self.given + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_never_below() {
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
