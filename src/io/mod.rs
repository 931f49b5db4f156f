//! Disk I/O for host and cache behind one small trait.

pub mod sys;
