//! Tests over a host in memory.
