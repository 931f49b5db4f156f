//! `mount.wormhole`: what mount(8) runs for file systems of type `wormhole`.

fn main() {}
