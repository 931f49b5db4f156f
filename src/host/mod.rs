//! The daemon that serves folders.
