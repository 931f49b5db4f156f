//! Which stream goes first when the link is full. Both sides send by it: the client its requests, the host its answers.

use serde::{Deserialize, Serialize};

/// Urgency of a stream. All that may be sent of a higher one goes before a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Warm-up and write-back: nobody waits for it.
    Background,
    /// Read-ahead: somebody will probably wait for it.
    Ahead,
    /// Content that a reader waits for now.
    Demand,
    /// Small answers that a system call waits for: names, attributes, errors.
    Metadata,
}

impl Lane {
    /// The number quinn knows this lane by; larger goes first.
    pub fn priority(self) -> i32 {
        match self {
            Self::Background => -20,
            Self::Ahead => -10,
            Self::Demand => 0,
            Self::Metadata => 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Lane;

    #[test]
    fn order_of_lanes_is_order_of_priorities() {
        let lanes = [Lane::Background, Lane::Ahead, Lane::Demand, Lane::Metadata];
        assert!(lanes.windows(2).all(|pair| pair[0] < pair[1] && pair[0].priority() < pair[1].priority()));
    }
}
