//! The daemon that serves folders.

mod attributes;
mod confine;
mod counters;
mod directory;
mod exports;
mod handles;
mod metadata;
mod nodes;
mod opens;
mod session;
mod sessions;
mod tree;

pub use exports::{Export, ExportError};
