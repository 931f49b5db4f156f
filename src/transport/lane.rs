//! The order in which streams get the link.

/// What a stream is for. Earlier ones go first on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Names and attributes: a person waits, and it is small.
    Metadata,
    /// Content that a read call waits for.
    Demand,
    /// Content that will probably be read next.
    Ahead,
    /// Warm-up and bulk work that yields to people.
    Background,
}

impl Lane {
    /// QUIC stream priority: higher is sent first.
    pub const fn stream_priority(self) -> i32 {
        match self {
            Self::Metadata => 3,
            Self::Demand => 2,
            Self::Ahead => 1,
            Self::Background => 0,
        }
    }
}
