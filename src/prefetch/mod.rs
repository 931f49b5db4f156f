//! What to read ahead: a pure policy that turns reads into plans.
