//! The whole road with the real binary: a host process, a mount process, the kernel between, and programs that read.
//!
//! These need `/dev/fuse`, and `fusermount3` where they do not run as root; without them they fail and say so.

mod copies;
mod copying;
mod crashing;
mod deduplicating;
mod differential;
mod failing;
mod lasting;
mod offline;
mod programs;
mod reading;
mod relay;
mod store;
mod trust;
mod writing;
