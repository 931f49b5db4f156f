//! The `wormhole` command.

fn main() {}
