//! The real binary: how it is called, how it ends, what it leaves.
#![allow(clippy::unwrap_used, reason = "what cannot go on is a failed test")]

mod cache;
mod doctor;
mod ending;
mod errors;
mod hashing;
mod manual;
mod options;
mod readme;
mod session;
mod stage;
mod user;
