//! Every message of the wire.
