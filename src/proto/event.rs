//! Events: changes that a host tells a client unasked, for directories on which the client holds a lease.

use serde::{Deserialize, Serialize};

use super::node::{Attributes, NodeId};

/// Most entries in one [`DirectoryChange`]: 110 kB on the wire with the longest names.
pub const EVENT_ENTRIES_MAX: usize = 256;

/// Names one event stream of a session. Leases belong to it and end with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseEpoch(pub u64);

/// One message on an event stream ([`super::Request::Events`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostEvent {
    /// Nothing has changed. Sent at intervals, so that silence means a dead link.
    Alive,
    /// Something in a leased directory has changed.
    Changed(DirectoryChange),
    /// The host no longer watches this directory: its lease is over.
    Revoked {
        /// Which directory.
        directory: NodeId,
    },
}

/// The present state of a directory and of those of its entries that may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryChange {
    /// The directory.
    pub directory: NodeId,
    /// Its own attributes; `None` if the host cannot tell them.
    pub attributes: Option<Attributes>,
    /// Names, each with the attributes it leads to; `None` if nothing has this name. At most [`EVENT_ENTRIES_MAX`].
    pub entries: Vec<(Vec<u8>, Option<Attributes>)>,
}
