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
    /// A mount that asks no host: what is known is shown.
    Offline,
    /// A host that takes connections.
    Serving,
    /// A mount that is gone from its place; its daemon finishes and is gone soon.
    Ending,
    /// A mount that is being tried, again and again while its host does not answer.
    Mounting,
    /// A mount whose daemon died.
    Dead,
    /// A daemon that does not answer this user: another user's, or one that hangs or died.
    Unreachable,
}

/// What programs have written and the host has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unsent {
    /// Of all files, in bytes.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
    /// Those of which most is missing, at most [`UNSENT_FILES_MAX`].
    pub largest: Vec<UnsentFile>,
}

/// One file of [`Unsent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsentFile {
    /// Its path below the mountpoint; what is not UTF-8 is replaced.
    pub path: String,
    /// How much of it, in bytes.
    pub bytes: u64,
}

/// Most files that [`Unsent`] names.
pub const UNSENT_FILES_MAX: usize = 20;

impl Unsent {
    /// Of these files, by path, with how many bytes of each.
    pub fn new(mut files: Vec<(Vec<u8>, u64)>) -> Self {
        let (bytes, count) = (files.iter().map(|(_, bytes)| bytes).sum(), files.len() as u64);
        files.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        let named = files.into_iter().take(UNSENT_FILES_MAX);
        let named = named.map(|(path, bytes)| UnsentFile {
            path: String::from_utf8_lossy(&path).replace(char::is_control, "_"),
            bytes,
        });
        Self { bytes, files: count, largest: named.collect() }
    }
}

/// What one key uses of a host, and what it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// The key.
    pub key: String,
    /// Connections that it has, and may have.
    pub connections: (u64, u32),
    /// The same of mounts.
    pub sessions: (u64, u32),
    /// The same of open files.
    pub open: (u64, u32),
    /// The same of requests under way.
    pub requests: (u64, u32),
    /// The same of threads that wait for a disk.
    pub threads: (u64, u32),
}

/// One file system of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemReport {
    /// Folder of the host from which on it is meant; absent where a mount speaks of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its type, where the host speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// Trust class: `full`, or `weak`, where the host confirms what clients have cached.
    pub trust: String,
    /// Why.
    pub reason: String,
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
    /// The mount's device, as `MAJOR:MINOR`: what is mounted there later has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How it stands with the other side.
    pub state: LinkWord,
    /// Why a mount that is being tried is not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Address and port of the host, or the one listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What carries the bytes: `quic` or `tcp`, `none` while a mount has no connection; `quic, tcp` of a host, which takes
    /// both.
    pub transport: String,
    /// What reads the disk: `uring` or `blocking`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Where its disk cache is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Who is connected to a host, one a connection; the first [`CLIENTS_MAX`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients_connected: Vec<ClientReport>,
    /// Of a host: what the keys use that are connected, and what they may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyUse>,
    /// Why the disk cache keeps nothing at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_problem: Option<String>,
    /// File systems that it serves, or on which lies what it mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_systems: Vec<FileSystemReport>,
    /// What it measures; the keys are those of [`crate::metrics`].
    #[serde(flatten)]
    pub readings: Readings,
}

/// Most clients that a report names: an answer is one bounded line.
pub const CLIENTS_MAX: usize = 256;

/// A client of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its key.
    pub key: String,
    /// What people call it; empty where it has no name.
    pub name: String,
    /// From where.
    pub address: String,
    /// What it has mounted: the export and the folder below it.
    pub export: String,
    /// What it may do, as words of `authorized_keys`; `rw` where it may write.
    pub rights: String,
    /// For how long, in seconds.
    pub connected_seconds: u64,
}

/// What is to be brought into the disk cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmOrder {
    /// The path below the mountpoint, without a leading `/`, as hexadecimal digits: names are bytes and JSON is text.
    pub path_hex: String,
    /// Whether it is to be pinned, too.
    pub pin: bool,
}

/// How far a warm-up is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// Its number.
    pub id: u64,
    /// What is warmed, as `HOST:/EXPORT/PATH`; also the name of the pin.
    pub source: String,
    /// Whether it is pinned, too.
    pub pin: bool,
    /// Regular files that are in the cache now.
    pub files: u64,
    /// What of them is in the cache now, in bytes.
    pub bytes: u64,
    /// What of that the host had to send, in bytes.
    pub host_bytes: u64,
    /// Files that cannot be kept: they changed within two seconds before.
    pub skipped: u64,
    /// Files whose times prove nothing: the host confirms them before they are shown.
    #[serde(default)]
    pub unproven: u64,
    /// Files and directories that could not be read.
    pub failed: u64,
    /// Why, for the first of them.
    pub problems: Vec<String>,
    /// `true` once it has ended.
    pub done: bool,
    /// Why it ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Progress of a sync of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// Its number.
    pub id: u64,
    /// What is mounted, as `HOST:/EXPORT/PATH`.
    pub source: String,
    /// Files that had to be synced.
    pub files: u64,
    /// Number of them that are on the disk of the host.
    pub synced: u64,
    /// Number of files that could not be brought there.
    pub failed: u64,
    /// Why, for the first of them.
    pub problems: Vec<String>,
    /// What was written on the mount and has not reached the host, in bytes, also since the sync began.
    pub unsent_bytes: u64,
    /// `true` once it has ended.
    pub done: bool,
    /// Why it ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
