//! The numbers of changes, and up to which all answers are here.
//!
//! Pure: no I/O, no clock.

use std::collections::BTreeSet;

use crate::proto::OperationId;

/// The changes of one session that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    given: u64,
    under_way: BTreeSet<OperationId>,
}

impl Operations {
    /// One more begins.
    pub(super) fn begin(&mut self) -> OperationId {
        self.given += 1;
        self.under_way.insert(OperationId(self.given));
        OperationId(self.given)
    }

    /// One is over: answered, or given up.
    pub(super) fn end(&mut self, id: OperationId) {
        self.under_way.remove(&id);
    }

    /// All before this one are over.
    pub(super) fn answered_below(&self) -> OperationId {
        self.under_way.first().copied().unwrap_or(OperationId(self.given + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_never_below() {
        let mut operations = Operations::default();
        assert_eq!(operations.answered_below(), OperationId(1));
        let (first, second) = (operations.begin(), operations.begin());
        assert_eq!(operations.answered_below(), first);
        operations.end(second);
        assert_eq!(operations.answered_below(), first);
        operations.end(first);
        assert_eq!(operations.answered_below(), OperationId(3));
        assert_eq!(operations.begin(), OperationId(3));
        assert_eq!(operations.answered_below(), OperationId(3));
    }
}
