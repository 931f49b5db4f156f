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

/// Streams that have a place of their own in the order of a lane; after so many the order begins anew.
const TURNS: u32 = 1 << 28;

impl Lane {
    /// The number quinn knows a stream of this lane by, which is the `turn`th; larger goes first. No two are the same, so that quinn ends one
    /// stream before it begins the next of the lane, and leaves both for one of a higher lane at once. Where it is told to be unfair
    /// instead (`send_fairness(false)`), it first ends the stream that it is in, however urgent the next one is.
    pub fn priority(self, turn: u32) -> i32 {
        let lane = match self {
            Self::Background => -2,
            Self::Ahead => -1,
            Self::Demand => 0,
            Self::Metadata => 1,
        };
        lane * TURNS as i32 - (turn % TURNS) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_go_before_turns() {
        let lanes = [Lane::Metadata, Lane::Demand, Lane::Ahead, Lane::Background];
        let turns = [0, 1, TURNS - 1];
        let priorities: Vec<i32> =
            lanes.iter().flat_map(|lane| turns.map(|turn| lane.priority(turn))).collect();
        assert!(priorities.windows(2).all(|pair| pair[0] > pair[1]), "{priorities:?}");
    }
}
