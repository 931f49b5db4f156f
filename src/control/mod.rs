//! Status and orders over a unix socket.
//!
//! Every daemon, mount or host, has a socket in the control directory of its user (0700): `mount-KEY-PID.sock`, where KEY stands for
//! the mountpoint, or `host-PID.sock`. A line of JSON is an order, a line of JSON the answer; several may follow on one connection.
//!
//! ```text
//! "status"                     -> {"status":{"kind":"mount","pid":42,…}}
//! "stop"                       -> "done"        and then the daemon unmounts, flushes and ends
//! "abort"                      -> "done"        and then it ends without waiting for anything
//! {"warm":{"path_hex":"…","pin":false}} -> {"warming":{"id":1,…}}   brings that path into the cache
//! {"warm_progress":1}          -> {"warming":{"id":1,…}}   and gives it up when nobody has asked for 5 s
//! "sync"                       -> {"syncing":{"id":1,…}}   brings what was written to the host's disk
//! {"sync_progress":1}          -> {"syncing":{"id":1,…}}
//! anything else                -> {"refused":"…"}
//! ```
//!
//! Lines and waits are bounded on both sides: a daemon that hangs does not make `wormhole status` hang.

mod ask;
mod report;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use ask::{Daemon, ask, daemon_of_mount, daemons, daemons_of_mount, statuses};
pub use report::{
    CLIENTS_MAX, ClientReport, DaemonKind, FileSystemReport, KeyUse, LinkWord, StatusReport, SyncReport,
    UNSENT_FILES_MAX, Unsent, UnsentFile, WarmOrder, WarmReport,
};
pub use serve::ControlSocket;

/// Longest order, in bytes: the longest there is carries a path.
const ORDER_BYTES_MAX: usize = 16 * 1024;

/// Longest answer, in bytes: a report is some 2 KiB, ten problems with long names are some 60.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// How long either side waits for the other's next line.
const WAIT: Duration = Duration::from_secs(2);

/// What a daemon is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Say how it is.
    Status,
    /// End: unmount, flush, be gone.
    Stop,
    /// End now, whoever waits.
    Abort,
    /// Bring content into the disk cache.
    Warm(WarmOrder),
    /// Say how far a warm-up is.
    WarmProgress(u64),
    /// Bring everything that was written to the host's disk.
    Sync,
    /// Say how far a sync is.
    SyncProgress(u64),
}

/// What a daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Order::Status`].
    Status(Box<StatusReport>),
    /// To [`Order::Warm`] and [`Order::WarmProgress`].
    Warming(Box<WarmReport>),
    /// To [`Order::Sync`] and [`Order::SyncProgress`].
    Syncing(Box<SyncReport>),
    /// To [`Order::Abort`]: what is given up.
    Aborted(Unsent),
    /// The order was taken.
    Done,
    /// It was not, and why.
    Refused(String),
}

/// What answers behind the socket.
pub trait Controlled: Send + Sync + 'static {
    /// How it is now. Never waits for the network.
    fn status(&self) -> StatusReport;
    /// Begins to end; does not wait for it.
    fn stop(&self);
    /// Begins to end without waiting for anything. What is lost by that, as far as is known.
    fn abort(&self) -> Unsent;
    /// Begins to bring content into the disk cache.
    fn warm(&self, _order: &WarmOrder) -> Result<WarmReport, String> {
        Err("this daemon has no cache of content".to_owned())
    }
    /// Begins to bring everything that was written to the host's disk.
    fn sync(&self) -> Result<SyncReport, String> {
        Err("this daemon has no mount".to_owned())
    }
    /// Progress of a sync.
    fn sync_progress(&self, id: u64) -> Result<SyncReport, String> {
        Err(format!("there is no sync {id}"))
    }
    /// How far a warm-up is.
    fn warm_progress(&self, id: u64) -> Result<WarmReport, String> {
        Err(format!("there is no warm-up {id}; one that nobody asks about for 5 s is given up"))
    }
}

/// Why a daemon cannot be reached, or cannot be reached by others.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory of the sockets cannot be used.
    #[error("control directory {}: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A socket cannot be made or used.
    #[error("control socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon answers nothing that makes sense.
    #[error("the daemon behind {} answers nothing that this version understands", path.display())]
    BadAnswer {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon does not want to.
    #[error("the daemon behind {} refuses: {why}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        why: String,
    },
}

impl ControlError {
    /// Whether nobody listens behind the socket any more.
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Socket { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound))
    }
}

#[cfg(test)]
mod tests;
