//! The daemon's side of the socket.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ask::socket_name;
use super::{Answer, ControlError, Controlled, Order, SyncReport, WAIT, WarmReport};
use crate::io::private::{self, NotPrivate};

/// Connections that wait in the kernel's queue.
const QUEUE_MAX: i32 = 64;

/// Connections answered at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;

/// A daemon's socket. Dropping it takes the socket away.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl ControlSocket {
    /// Opens the socket of this process in `directory` (made 0700 if need be) and answers on it; `mountpoint` is a mount's.
    ///
    /// Needs a tokio runtime.
    pub fn open(
        directory: &Path,
        mountpoint: Option<&Path>,
        daemon: Arc<dyn Controlled>,
    ) -> Result<Self, ControlError> {
        let refused = |error: NotPrivate| ControlError::Directory {
            path: directory.to_owned(),
            why: error.to_string(),
        };
        private::prepare(directory).map_err(refused)?;
        // Not by a link that another user has put there.
        private::check(directory).map_err(refused)?;
        let path = directory.join(socket_name(mountpoint, std::process::id()));
        let failed = |source| ControlError::Socket { path: path.clone(), source };
        // One of a process that had this number before and died.
        remove(&path).map_err(failed)?;
        let listener = bind(&path).map_err(failed)?;
        Ok(Self { task: tokio::spawn(accept(listener, daemon)), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        // A socket that is left is cleaned by the next `wormhole status`.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A socket to which nobody else may write, from its first moment on and whatever the umask is: that of a host is empty. The name gets
/// the permissions that the socket had before it had a name.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::new(QUEUE_MAX)?)?;
    UnixListener::from_std(socket.into())
}

/// Whether who asks is the user of this daemon, or root.
fn is_own(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn accept(listener: UnixListener, daemon: Arc<dyn Controlled>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    if is_own(&stream) {
                        converse(stream, &*daemon).await;
                    }
                    drop(place);
                });
            }
            // Out of file descriptors, most likely: they may come back.
            Err(_) => tokio::time::sleep(WAIT).await,
        }
    }
}

/// Answers line by line until the other side leaves, falls silent or talks nonsense.
async fn converse(stream: UnixStream, daemon: &dyn Controlled) {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reading).take(super::ORDER_BYTES_MAX as u64);
        match timeout(WAIT, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return,
        }
        let (answer, good) = obey(&line, daemon);
        if !matches!(timeout(WAIT, write(&mut writing, &answer)).await, Ok(Ok(()))) || !good {
            return;
        }
    }
}

/// Does what the line says. The flag is false if it makes no sense.
fn obey(line: &[u8], daemon: &dyn Controlled) -> (Answer, bool) {
    if line.last() != Some(&b'\n') {
        return (Answer::Refused("an order is one short line".to_owned()), false);
    }
    match serde_json::from_slice::<Order>(line) {
        Ok(Order::Status) => (Answer::Status(Box::new(daemon.status())), true),
        Ok(Order::Stop) => {
            daemon.stop();
            (Answer::Done, true)
        }
        Ok(Order::Abort) => (Answer::Aborted(daemon.abort()), true),
        Ok(Order::Warm(order)) => (warming(daemon.warm(&order)), true),
        Ok(Order::WarmProgress(id)) => (warming(daemon.warm_progress(id)), true),
        Ok(Order::Sync) => (syncing(daemon.sync()), true),
        Ok(Order::SyncProgress(id)) => (syncing(daemon.sync_progress(id)), true),
        Err(error) => (Answer::Refused(format!("not an order that this version knows: {error}")), false),
    }
}

fn warming(report: Result<WarmReport, String>) -> Answer {
    report.map_or_else(Answer::Refused, |report| Answer::Warming(Box::new(report)))
}

fn syncing(report: Result<SyncReport, String>) -> Answer {
    report.map_or_else(Answer::Refused, |report| Answer::Syncing(Box::new(report)))
}

async fn write(writing: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writing.write_all(&line).await
}
