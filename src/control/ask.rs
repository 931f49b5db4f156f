//! The other side of the socket: finding daemons and asking them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::{
    ANSWER_BYTES_MAX, Answer, ControlError, Order, StatusReport, SyncReport, Unsent, WAIT, WarmReport,
};
use crate::io::private::{self, NotPrivate};

/// Most sockets looked at in one directory.
const DAEMONS_MAX: usize = 1024;

/// Most daemons that are asked at a time, each from a thread of its own.
const ASKED_AT_ONCE_MAX: usize = 64;

/// A daemon that has, or had, a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its socket.
    pub socket: PathBuf,
    /// Its process.
    pub pid: u32,
}

impl Daemon {
    /// Whether its process still is. One that ended and that nobody has waited for counts as gone.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read(format!("/proc/{}/stat", self.pid)) else { return false };
        // The name stands in brackets and may hold anything; the state is the first word behind it.
        let state = stat.iter().rposition(|byte| *byte == b')').and_then(|end| stat.get(end + 2));
        !matches!(state, Some(b'Z' | b'X'))
    }

    /// Asks it how it is.
    pub fn status(&self) -> Result<StatusReport, ControlError> {
        match ask(&self.socket, &Order::Status)? {
            Answer::Status(report) => Ok(*report),
            _ => Err(ControlError::BadAnswer { path: self.socket.clone() }),
        }
    }

    /// Whether it is behind the mount with this device. One whose mount was detached says that it has another, one that has not
    /// mounted yet that it has none; one that hangs says nothing, and is taken for the one.
    pub fn may_serve(&self, device: &str) -> bool {
        self.status().map_or(true, |report| report.device.is_some_and(|its| its == device))
    }

    /// Has it warm something up, or asks how far that is.
    pub fn warm(&self, order: &Order) -> Result<WarmReport, ControlError> {
        match ask(&self.socket, order)? {
            Answer::Warming(report) => Ok(*report),
            _ => Err(ControlError::BadAnswer { path: self.socket.clone() }),
        }
    }

    /// Has it bring what was written to the host's disk, or asks how far that is.
    pub fn sync(&self, order: &Order) -> Result<SyncReport, ControlError> {
        match ask(&self.socket, order)? {
            Answer::Syncing(report) => Ok(*report),
            _ => Err(ControlError::BadAnswer { path: self.socket.clone() }),
        }
    }

    /// Makes it end without waiting for anything. What is lost by that.
    pub fn abort(&self) -> Result<Unsent, ControlError> {
        match ask(&self.socket, &Order::Abort)? {
            Answer::Aborted(unsent) => Ok(unsent),
            _ => Err(ControlError::BadAnswer { path: self.socket.clone() }),
        }
    }

    /// Gives it an order that it only has to take.
    pub fn order(&self, order: &Order) -> Result<(), ControlError> {
        match ask(&self.socket, order)? {
            Answer::Done => Ok(()),
            _ => Err(ControlError::BadAnswer { path: self.socket.clone() }),
        }
    }
}

/// Asks daemons how they are, all at the same time, as each of them may hang. Returns the answers in the order of
/// the daemons.
pub fn statuses(daemons: &[Daemon]) -> Vec<StatusReport> {
    let mut reports = Vec::new();
    for some in daemons.chunks(ASKED_AT_ONCE_MAX) {
        std::thread::scope(|scope| {
            let ask = |daemon: &'_ Daemon| daemon.status().ok();
            let asked: Vec<_> = some
                .iter()
                .map(|daemon| {
                    let thread = std::thread::Builder::new().spawn_scoped(scope, move || ask(daemon));
                    // Where there is no thread to be had it is asked in its turn.
                    thread.map_err(|_| daemon)
                })
                .collect();
            let answers = asked.into_iter().map(|asked| match asked {
                Ok(thread) => thread.join().ok().flatten(),
                Err(daemon) => ask(daemon),
            });
            reports.extend(answers.flatten());
        });
    }
    reports
}

/// Gives one order to the daemon behind `socket` and waits for its answer, 2 s at most for each step.
pub fn ask(socket: &Path, order: &Order) -> Result<Answer, ControlError> {
    let line =
        exchange(socket, order).map_err(|source| ControlError::Socket { path: socket.to_owned(), source })?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Refused(why)) => Err(ControlError::Refused { path: socket.to_owned(), why }),
        Ok(answer) => Ok(answer),
        Err(_) => Err(ControlError::BadAnswer { path: socket.to_owned() }),
    }
}

fn exchange(socket: &Path, order: &Order) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(WAIT))?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let deadline = Instant::now() + WAIT;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while answer.last() != Some(&b'\n') && answer.len() <= ANSWER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// All daemons with a socket in `directory`, the oldest first. Sockets that a dead daemon left are removed.
pub fn daemons(directory: &Path) -> Result<Vec<Daemon>, ControlError> {
    let failed =
        |source: io::Error| ControlError::Directory { path: directory.to_owned(), why: source.to_string() };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    // What answers there may be anybody's daemon otherwise.
    private::check(directory).map_err(|error: NotPrivate| ControlError::Directory {
        path: directory.to_owned(),
        why: error.to_string(),
    })?;
    let mut found = Vec::new();
    for entry in entries.take(DAEMONS_MAX) {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(pid_of) else { continue };
        let daemon = Daemon { socket: directory.join(&name), pid };
        if daemon.is_alive() {
            // A socket is as old as its daemon; one that has just gone does not matter.
            let made = daemon.socket.symlink_metadata().and_then(|found| found.modified());
            found.push((made.unwrap_or(SystemTime::UNIX_EPOCH), daemon));
        } else {
            // Somebody else may have been faster.
            let _ = fs::remove_file(&daemon.socket);
        }
    }
    found.sort_by_key(|(made, daemon)| (*made, daemon.pid));
    Ok(found.into_iter().map(|(_, daemon)| daemon).collect())
}

/// The daemon that mounted `mountpoint` last, without asking any: it may hang.
pub fn daemon_of_mount(directory: &Path, mountpoint: &Path) -> Result<Option<Daemon>, ControlError> {
    Ok(daemons_of_mount(directory, mountpoint)?.into_iter().next())
}

/// The daemons that were to mount on `mountpoint`, the last one first, without asking any. An earlier one may still serve a
/// mount that was detached.
pub fn daemons_of_mount(directory: &Path, mountpoint: &Path) -> Result<Vec<Daemon>, ControlError> {
    let key = format!("mount-{}-", key_of(mountpoint));
    let named = |daemon: &Daemon| {
        daemon.socket.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&key))
    };
    Ok(daemons(directory)?.into_iter().rev().filter(named).collect())
}

/// The name of the socket of process `pid`.
pub(super) fn socket_name(mountpoint: Option<&Path>, pid: u32) -> String {
    match mountpoint {
        Some(mountpoint) => format!("mount-{}-{pid}.sock", key_of(mountpoint)),
        None => format!("host-{pid}.sock"),
    }
}

/// Stands for a mountpoint in a file name: the first 8 bytes of its hash.
fn key_of(mountpoint: &Path) -> String {
    blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex()[..16].to_owned()
}

fn pid_of(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".sock")?;
    let known = stem.starts_with("mount-") || stem.starts_with("host-");
    stem.rsplit('-').next().filter(|_| known)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_from_other_files() {
        for mountpoint in [None, Some(Path::new("/mnt"))] {
            assert_eq!(pid_of(&socket_name(mountpoint, 42)), Some(42));
        }
        for name in ["mount-x.sock", "mount-1", "other-1.sock", ".sock", "mount-0011223344556677-42.lock"] {
            assert_eq!(pid_of(name), None, "{name}");
        }
    }

    #[test]
    fn this_process_lives_and_a_waited_for_child_does_not() {
        let daemon = |pid| Daemon { socket: PathBuf::new(), pid };
        assert!(daemon(std::process::id()).is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!daemon(child.id()).is_alive());
    }

    #[test]
    fn a_child_that_nobody_waited_for_is_gone() {
        let mut child =
            std::process::Command::new("true").stdout(std::process::Stdio::piped()).spawn().unwrap();
        let daemon = Daemon { socket: PathBuf::new(), pid: child.id() };
        // Its standard output ends when it does; it stays a zombie until it is waited for.
        child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        while daemon.is_alive() {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
    }
}
