//! What a daemon tells of itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::core::Core;
use super::file_systems::{self, FileSystem};
use super::limits::KeyLimits;
use crate::proto::words;
use crate::transport::SocketBuffers;

/// The daemon at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostStatus {
    /// Address and port it listens on.
    pub listening: String,
    /// What is served.
    pub exports: Vec<ExportStatus>,
    /// What lies on which file system: each export's own, and those that were seen below it.
    pub file_systems: Vec<FileSystemStatus>,
    /// Who is connected: one entry a connection.
    pub clients: Vec<ClientStatus>,
    /// What those keys use that have a session.
    pub keys: Vec<KeyStatus>,
    /// Sessions that live, with or without a connection.
    pub sessions: u64,
    /// Files held open for clients.
    pub open_files: u64,
    /// Locks of files that clients hold.
    pub locks_held: u64,
    /// Directories that clients hold leases on.
    pub leases: u64,
    /// Nodes that are known by where they were seen.
    pub known_nodes: u64,
    /// What reads the disk: `io_uring` or `blocking`.
    pub engine: String,
    /// Why that is slower than it could be.
    pub engine_fallback: Option<String>,
    /// Reads at the engine now.
    pub disk_inflight: u64,
    /// The most reads at the engine at once since the start.
    pub disk_inflight_max: u64,
    /// Answers whose content is on its way to clients now.
    pub send_inflight: u64,
    /// The most such answers at once since the start.
    pub send_inflight_max: u64,
    /// Bytes of content sent since the start.
    pub content_bytes_sent: u64,
    /// Bytes of content that compression kept off the wire since the start.
    pub content_bytes_saved: u64,
    /// Chunks not sent since the start, because the client held them.
    pub chunks_same: u64,
    /// Hashes told to clients since the start without reading a file.
    pub index_hits: u64,
    /// Hashes for which a file was read.
    pub index_misses: u64,
    /// What the index of hashes takes on disk, in bytes.
    pub index_used_bytes: u64,
    /// The most that it may take; 0 where there is none.
    pub index_limit_bytes: u64,
    /// Bytes in files that are to be hashed ahead, as far as they are counted.
    pub index_ahead_total_bytes: u64,
    /// Bytes of them that are.
    pub index_ahead_bytes: u64,
    /// Whether that is under way.
    pub index_ahead_runs: bool,
    /// Requests under way now.
    pub requests_inflight: u64,
    /// Requests since the start.
    pub requests: u64,
    /// Clients refused since the start.
    pub refused: u64,
    /// Clients that connected and were not admitted yet.
    pub strangers: u64,
    /// The smaller of its UDP socket's buffers, in bytes, if it listens on UDP.
    pub udp_buffer_bytes: Option<usize>,
}

/// What a key uses now, and what it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The key.
    pub key: String,
    /// Its connections.
    pub connections: u64,
    /// Its sessions, with or without a connection.
    pub sessions: u64,
    /// Files held open for it.
    pub open_files: u64,
    /// Requests under way that have a place.
    pub requests: u64,
    /// Threads that may wait for a disk.
    pub threads: u64,
    /// The most it may have of each.
    pub limits: KeyLimits,
}

/// One export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// The folder on the host.
    pub path: String,
    /// Whether nobody may change anything in it.
    pub read_only: bool,
}

/// One file system, from a folder on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystemStatus {
    /// The folder on the host.
    pub path: String,
    /// Name of its type.
    pub name: &'static str,
    /// Trust class: `full` or `weak`.
    pub trust: &'static str,
    /// Why.
    pub reason: &'static str,
}

impl FileSystemStatus {
    /// Looks at the file system of a folder. Blocks on it.
    pub fn look(folder: &Path) -> io::Result<Self> {
        let opened = std::fs::File::open(folder)?;
        Ok(Self::of(folder, file_systems::of_folder(opened.as_fd())?))
    }

    fn of(path: &Path, found: FileSystem) -> Self {
        let FileSystem { verdict, .. } = found;
        let (trust, reason) = (verdict.trust().word(), verdict.reason.words());
        Self { path: path.display().to_string(), name: verdict.name, trust, reason }
    }
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClientStatus {
    /// The client's key.
    pub key: String,
    /// What people call it; empty where it has no name.
    pub name: String,
    /// What it may do, as words of `authorized_keys`; `rw` where it may write.
    pub rights: String,
    /// From where.
    pub address: String,
    /// What it has mounted: the export and the folder below it.
    pub export: String,
    /// What carries it: `quic` or `tcp`.
    pub transport: &'static str,
    /// For how long, in seconds.
    pub connected_seconds: u64,
    /// Round-trip time, in milliseconds.
    pub rtt_ms: f64,
    /// Bytes sent to it, headers and repetitions included.
    pub bytes_sent: u64,
    /// Packets, or segments of TCP, deemed lost of those sent.
    pub lost_packets: u64,
}

impl HostStatus {
    pub(super) fn of(core: &Core, listening: SocketAddr, buffers: Option<SocketBuffers>) -> Self {
        let counters = &core.counters;
        let (sessions, open_files) = {
            let sessions = core.sessions();
            (sessions.iter().count() as u64, sessions.iter().map(|session| session.opens()).sum())
        };
        Self {
            listening: listening.to_string(),
            exports: exports(core),
            file_systems: core.exports.iter().flat_map(file_systems_of).collect(),
            clients: clients(core),
            keys: keys(core),
            sessions,
            open_files,
            locks_held: core.locks.count(),
            leases: core.watches.len() as u64,
            known_nodes: core.known.nodes() as u64,
            engine: core.engine.name().to_owned(),
            engine_fallback: core.engine.fallback_reason().map(str::to_owned),
            disk_inflight: counters.disk_inflight.get(),
            disk_inflight_max: counters.disk_inflight.max(),
            send_inflight: counters.sends().get(),
            send_inflight_max: counters.sends().max(),
            content_bytes_sent: counters.content_bytes_sent.get(),
            content_bytes_saved: counters.content_bytes_saved.get(),
            chunks_same: counters.chunks_same.get(),
            index_hits: counters.index_hits.get(),
            index_misses: counters.index_misses.get(),
            index_used_bytes: core.index.bytes(),
            index_limit_bytes: core.index.bytes_max(),
            index_ahead_total_bytes: core.index_progress.total_bytes(),
            index_ahead_bytes: core.index_progress.done_bytes(),
            index_ahead_runs: core.index_progress.is_running(),
            requests_inflight: counters.requests_inflight.get(),
            requests: counters.requests.get(),
            refused: counters.refused.get(),
            strangers: core.entry.strangers() as u64,
            udp_buffer_bytes: buffers.map(|buffers| buffers.smaller_bytes()),
        }
    }
}

fn exports(core: &Core) -> Vec<ExportStatus> {
    let status = |open: &super::core::OpenExport| ExportStatus {
        name: open.export.name.clone(),
        path: open.export.path.display().to_string(),
        read_only: open.export.read_only,
    };
    core.exports.iter().map(status).collect()
}

fn keys(core: &Core) -> Vec<KeyStatus> {
    let mut keys: Vec<KeyStatus> = core
        .budgets
        .in_use()
        .iter()
        .map(|budget| KeyStatus {
            key: budget.key.to_string(),
            connections: core.entry.connections(budget.key),
            sessions: core.sessions().of(budget.key) as u64,
            open_files: budget.files.len(),
            requests: budget.requests(),
            threads: budget.threads(),
            limits: budget.limits,
        })
        .collect();
    keys.sort_by(|one, other| one.key.cmp(&other.key));
    keys
}

fn file_systems_of(open: &super::core::OpenExport) -> Vec<FileSystemStatus> {
    let path = &open.export.path;
    let own = open.file_system.map(|own| FileSystemStatus::of(path, own));
    let id = open.file_system.map_or(0, |own| own.id);
    let below = file_systems::seen_below(path, id);
    own.into_iter().chain(below.iter().map(|(path, found)| FileSystemStatus::of(path, *found))).collect()
}

fn clients(core: &Core) -> Vec<ClientStatus> {
    let now = Instant::now();
    let mut clients = core.clients();
    clients.sort_by_key(|client| client.since);
    let status = |client: super::core::LiveClient| {
        let stats = client.connection.stats();
        let folder = String::from_utf8_lossy(&client.sub_path);
        ClientStatus {
            key: client.key.to_string(),
            name: client.name,
            rights: client.rights.to_string(),
            address: client.connection.remote_address().to_string(),
            export: match folder.as_ref() {
                "" => client.export,
                folder => words::of_peer(&format!("{}/{folder}", client.export)).into_owned(),
            },
            transport: client.connection.kind().name(),
            connected_seconds: now.saturating_duration_since(client.since).as_secs(),
            rtt_ms: stats.rtt.as_secs_f64() * 1e3,
            bytes_sent: stats.bytes_sent,
            lost_packets: stats.lost_packets,
        }
    };
    clients.into_iter().map(status).collect()
}
