//! Every test that needs more than one module, in one binary.

mod cli;
mod e2e;
mod fs;
mod mount;
mod sim;
mod tidy;
