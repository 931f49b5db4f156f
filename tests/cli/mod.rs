//! The real binary: how it is called, how it ends, what it leaves.

mod ending;
mod errors;
mod options;
mod session;
mod stage;
