//! Where a chunk comes from: memory, cache, a request under way, or the host.
