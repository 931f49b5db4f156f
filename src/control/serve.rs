//! The daemon's side of the socket.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ask::socket_name;
use super::{Answer, ControlError, Controlled, Order, WAIT, WarmReport};

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
        prepare(directory).map_err(|error| ControlError::Directory {
            path: directory.to_owned(),
            why: format!("{error}; it must belong to this user and to nobody else"),
        })?;
        let path = directory.join(socket_name(mountpoint, std::process::id()));
        let failed = |source| ControlError::Socket { path: path.clone(), source };
        // One of a process that had this number before and died.
        remove(&path).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
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

/// Makes the directory, and refuses one that others could put sockets in: `/tmp` is anybody's.
fn prepare(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let found = fs::symlink_metadata(directory)?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if ours { Ok(()) } else { Err(io::Error::other("it is not a directory of this user alone")) }
}

async fn accept(listener: UnixListener, daemon: Arc<dyn Controlled>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    converse(stream, &*daemon).await;
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
        Err(error) => (Answer::Refused(format!("not an order that this version knows: {error}")), false),
    }
}

fn warming(report: Result<WarmReport, String>) -> Answer {
    report.map_or_else(Answer::Refused, |report| Answer::Warming(Box::new(report)))
}

async fn write(writing: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writing.write_all(&line).await
}
