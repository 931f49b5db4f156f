//! Every test that needs more than one module, in one binary.

mod cli;
mod fs;
mod mount;
mod sim;
mod tidy;
