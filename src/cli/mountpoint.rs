//! The folder that is to be mounted on: whether it is free, and what a daemon that died has left there.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::CliError;
use super::daemons::daemon_behind;
use crate::fuse::table::{self, MountEntry};
use crate::fuse::{self, UnmountError, UnmountHow};

/// Name of the hidden command that looks at a mount.
pub(super) const PROBE: &str = "mount-probe";

/// Exit code of that command where nobody serves the mount.
const DEAD: u8 = 3;

/// How long it may take. Who waits longer waits for a daemon that is there.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// Most dead mounts, one over the other, that are taken away.
const DEAD_MAX: usize = 16;

/// Where to look.
#[derive(Debug, clap::Args)]
pub(super) struct ProbeArguments {
    mountpoint: PathBuf,
}

/// Looks at a mount, and may hang for it: that is why it is a process of its own.
pub(super) fn run_probe(arguments: &ProbeArguments) -> Result<(), CliError> {
    match fs::symlink_metadata(&arguments.mountpoint) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            Err(CliError { exit_code: DEAD, message: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Whether the kernel says that nobody serves this mount any more. No daemon is asked that is known to run: it may hang.
pub(super) fn is_dead(entry: &MountEntry) -> bool {
    daemon_behind(entry).is_none()
        && probe(&entry.mountpoint).is_some_and(|status| status.code() == Some(DEAD.into()))
}

/// How the look ended; `None` if it hangs, and then it is left behind.
fn probe(mountpoint: &Path) -> Option<ExitStatus> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wormhole").arg(PROBE).arg("--").arg(mountpoint);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + PROBE_WAIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                return None;
            }
        }
    }
}

/// Returns the true path of a folder that can be mounted on. Takes away mounts of ours whose daemon died.
pub(super) fn check(typed: &Path) -> Result<PathBuf, CliError> {
    let wrong = |why: &dyn std::fmt::Display| CliError::mount(format!("{}: {why}", typed.display()));
    let path = table::resolve(typed).map_err(|error| wrong(&error))?;
    for _ in 0..DEAD_MAX {
        let entry = table::mount_at(&path).map_err(|error| wrong(&error))?;
        let Some(entry) = entry.filter(MountEntry::is_wormhole) else { break };
        if !is_dead(&entry) {
            return Err(wrong(&format!(
                "{} is mounted there already; `wormhole umount` takes it down",
                entry.source
            )));
        }
        clear(&entry)?;
    }
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => fs::canonicalize(&path).map_err(|error| wrong(&error)),
        Ok(_) => Err(wrong(&"not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(wrong(&"there is no such directory; create it first"))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Err(wrong(
            &"a mount of another program, which died, is in the way; `umount -l` as root takes it away",
        )),
        Err(error) => Err(wrong(&error)),
    }
}

/// Takes away a mount whose daemon died, if this user may.
fn clear(entry: &MountEntry) -> Result<(), CliError> {
    match fuse::unmount(entry, UnmountHow::Detach) {
        Ok(()) => {
            eprintln!(
                "wormhole: {}: the daemon of {} died; its mount was taken away",
                entry.mountpoint.display(),
                entry.source
            );
            Ok(())
        }
        // Somebody else was faster.
        Err(UnmountError::NotMounted(_)) => Ok(()),
        Err(error) => Err(CliError::mount(format!(
            "{error}; it is a mount of {} whose daemon died: root takes it away with `umount -l {}`",
            entry.source,
            entry.mountpoint.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_are_directories() {
        let directory = tempfile::tempdir().unwrap();
        let true_path = directory.path().canonicalize().unwrap();
        assert_eq!(check(directory.path()).unwrap(), true_path);
        fs::write(directory.path().join("file"), "").unwrap();
        for (name, why) in [("file", "not a directory"), ("missing", "create it first")] {
            let error = check(&directory.path().join(name)).unwrap_err();
            assert!(error.exit_code == 32 && error.message.contains(why), "{error}");
        }
    }
}
