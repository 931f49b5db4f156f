//! How often one operation has the host look up what it does not know any more.
//!
//! Pure: no I/O, no clock.
//!
//! A host that restarts forgets all nodes, and it may do so again while they are looked up. So an operation goes on as long as
//! each refusal comes from another life of the session, and its deadline, if it has one, is not over. A host that refuses
//! again and again in one life has another reason: that ends after a few attempts.

use std::time::{Duration, Instant};

use crate::proto::SessionRun;

/// Attempts in one life of the session.
const ATTEMPTS_MAX: u32 = 4;

/// The recoveries of one operation.
#[derive(Debug)]
pub(super) struct Recovering {
    deadline: Option<Instant>,
    run: Option<SessionRun>,
    attempts: u32,
}

impl Recovering {
    /// For an operation that begins at `now` and may take so long.
    pub(super) fn within(patience: Duration, now: Instant) -> Self {
        Self { deadline: now.checked_add(patience), run: None, attempts: 0 }
    }

    /// For an operation that is never given up because the host is away.
    pub(super) const fn without_deadline() -> Self {
        Self { deadline: None, run: None, attempts: 0 }
    }

    /// The host, in its life `run`, does not know a node: whether to make it known again.
    pub(super) fn may_go_on(&mut self, run: Option<SessionRun>, now: Instant) -> bool {
        self.attempts = if self.run == run { self.attempts + 1 } else { 1 };
        self.run = run;
        self.attempts <= ATTEMPTS_MAX && self.deadline.is_none_or(|deadline| now < deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::InstanceId;

    const fn run(number: u64) -> SessionRun {
        SessionRun { instance: InstanceId([0; 16]), number }
    }

    #[test]
    fn any_number_of_restarts_is_borne() {
        let now = Instant::now();
        let mut recovering = Recovering::without_deadline();
        assert!((0..10_000).all(|number| recovering.may_go_on(Some(run(number)), now)));
    }

    #[test]
    fn a_host_that_refuses_without_having_restarted_is_believed() {
        let now = Instant::now();
        for run in [None, Some(run(1))] {
            let mut recovering = Recovering::without_deadline();
            let attempts = (0..100).take_while(|_| recovering.may_go_on(run, now)).count();
            assert_eq!(attempts, ATTEMPTS_MAX as usize);
        }
    }

    #[test]
    fn a_deadline_ends_it() {
        let now = Instant::now();
        let mut recovering = Recovering::within(Duration::from_secs(60), now);
        assert!(recovering.may_go_on(Some(run(1)), now + Duration::from_secs(59)));
        assert!(!recovering.may_go_on(Some(run(2)), now + Duration::from_secs(60)));
    }
}
