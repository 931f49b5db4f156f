//! File-system semantics without kernel types.
