//! Codes with which either side closes a connection: QUIC's application error codes, or those of a close over TCP.
//!
//! 0 is what a connection closes with whose process ended without a word, so it means nothing here.

/// The host let the client not in; its words say why.
pub const REFUSED: u32 = 1;

/// The host ends.
pub const SHUTDOWN: u32 = 2;

/// The client's key may come in no longer.
pub const REVOKED: u32 = 3;

/// The client has unmounted: the host may forget the session and what it has open at once.
pub const GOODBYE: u32 = 4;

/// What the client may do has changed: it is to come in again.
pub const RIGHTS_CHANGED: u32 = 6;

/// The client does not need this connection; its session goes on.
pub const REPLACED: u32 = 5;
