//! Every test that needs more than one module, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
mod e2e;
mod fs;
mod mount;
mod sim;
mod tidy;
mod world;
