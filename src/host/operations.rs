//! Which changes of a session are under way or done, so that none is done twice.
//!
//! Pure: what is kept of a change is up to the caller.

use std::collections::BTreeMap;

use crate::proto::OperationId;

/// Most answers kept of one session: far more than a client has under way at once. They go when the client says that it
/// has them.
const OPERATIONS_MAX: usize = 8192;

/// What to do about a change that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begun<T> {
    /// It is new: do it.
    New,
    /// It was asked for before: this was kept of it.
    Known(T),
    /// It is over, and the client has the answer: this request was long on its way.
    Over,
    /// Too many are kept.
    Full,
}

/// The changes of one session.
#[derive(Debug)]
pub(super) struct Operations<T> {
    kept: BTreeMap<OperationId, T>,
    answered_below: OperationId,
}

impl<T: Clone> Operations<T> {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self { kept: BTreeMap::new(), answered_below: OperationId(0) }
    }

    /// A client asks for change `id` and has the answers of all below `answered_below`; `fresh` is kept of it if it is new.
    pub(super) fn begin(
        &mut self,
        id: OperationId,
        answered_below: OperationId,
        fresh: impl FnOnce() -> T,
    ) -> Begun<T> {
        if answered_below > self.answered_below {
            self.answered_below = answered_below;
            self.kept = self.kept.split_off(&answered_below);
        }
        if id < self.answered_below {
            return Begun::Over;
        }
        if let Some(known) = self.kept.get(&id) {
            return Begun::Known(known.clone());
        }
        if self.kept.len() >= OPERATIONS_MAX {
            return Begun::Full;
        }
        self.kept.insert(id, fresh());
        Begun::New
    }

    /// What [`Self::begin`] would say of a change, which stays as it is.
    pub(super) fn look(&self, id: OperationId) -> Begun<T> {
        match self.kept.get(&id) {
            _ if id < self.answered_below => Begun::Over,
            Some(known) => Begun::Known(known.clone()),
            None => Begun::New,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn too_many_are_refused_until_answers_have_arrived() {
        let mut operations = Operations::new();
        let below = |id| OperationId(id);
        for id in 0..OPERATIONS_MAX as u64 {
            assert_eq!(operations.begin(OperationId(id), below(0), || ()), Begun::New);
        }
        let next = OperationId(OPERATIONS_MAX as u64);
        assert_eq!(operations.begin(next, below(0), || ()), Begun::Full);
        assert_eq!(operations.begin(OperationId(7), below(0), || ()), Begun::Known(()));
        assert_eq!(operations.begin(next, below(1), || ()), Begun::New);
        assert_eq!(operations.begin(OperationId(0), below(0), || ()), Begun::Over);
    }

    proptest! {
        /// Whatever is repeated, delayed and acknowledged in whichever order: each is begun at most once.
        #[test]
        fn nothing_is_begun_twice(steps in proptest::collection::vec((0u64..12, 0u64..12), 0..80)) {
            let mut operations = Operations::new();
            let (mut begun, mut floor) = (BTreeSet::new(), 0);
            for (id, below) in steps {
                floor = floor.max(below);
                let answer = operations.begin(OperationId(id), OperationId(below), || id);
                let expected = if id < floor {
                    Begun::Over
                } else if begun.insert(id) {
                    Begun::New
                } else {
                    Begun::Known(id)
                };
                prop_assert_eq!(answer, expected);
                let known = if id < floor { Begun::Over } else { Begun::Known(id) };
                prop_assert_eq!(operations.look(OperationId(id)), known);
                prop_assert_eq!(operations.look(OperationId(12)), Begun::New);
                prop_assert!(operations.kept.keys().all(|kept| kept.0 >= floor));
            }
        }
    }
}
