//! What a daemon tells about itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::metrics::Readings;

/// Which daemon speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonKind {
    /// One that mounts.
    Mount,
    /// One that serves.
    Host,
}

/// How it stands with the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkWord {
    /// A mount whose host answers.
    Connected,
    /// A mount whose host does not answer: what is cached still does.
    Disconnected,
    /// A host that takes connections.
    Serving,
    /// A mount that is gone from its place; its daemon finishes and is gone soon.
    Ending,
    /// A daemon that does not answer this user: another user's, or one that hangs or died.
    Unreachable,
}

/// The status of one daemon: an element of `wormhole status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Which daemon.
    pub kind: DaemonKind,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// What is mounted, as `HOST:/EXPORT`, or what is served, as `NAME=PATH`, one after the other. Never a secret.
    pub source: Vec<String>,
    /// Where it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// How it stands with the other side.
    pub state: LinkWord,
    /// Address and port of the host, or the one listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What carries the bytes: `quic` or `tcp`, `none` while a mount has no connection; `quic, tcp` of a host, which takes
    /// both.
    pub transport: String,
    /// What reads the disk: `uring` or `blocking`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// What it measures; the keys are those of [`crate::metrics`].
    #[serde(flatten)]
    pub readings: Readings,
}
