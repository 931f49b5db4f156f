//! The whole road with the real binary: a host process, a mount process, the kernel between, and programs that read.
//!
//! These need `/dev/fuse`, and `fusermount3` where they do not run as root; without them they fail and say so.

mod append_only;
mod calls;
mod copies;
mod copying;
mod crashing;
mod databases;
mod deduplicating;
mod differential;
mod ending;
mod failing;
mod file_systems;
mod hanging;
mod idmapped;
mod lasting;
mod leases;
mod liar;
mod lifecycle;
mod limits;
mod lock_files;
mod locking;
mod lying;
mod memory;
mod names;
mod numbers;
mod offline;
mod owners;
mod programs;
mod reading;
mod relay;
mod renaming;
mod rights;
mod standby;
mod store;
mod suites;
mod syncing;
mod trust;
mod waiting;
mod working;
mod writing;
