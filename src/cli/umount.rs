//! `wormhole umount`: takes a mount down and waits until its daemon is gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CliError;
use crate::control::{self, Daemon, Order};
use crate::fuse::table::{self, MountEntry};
use crate::fuse::{self, UnmountError, UnmountHow};

/// How long the daemon may take to write what it holds and to end.
const END_WAIT: Duration = Duration::from_secs(30);

/// How long a daemon may take that was told to drop everything, before it is killed: `-f` promises 2 s in all.
const ABORT_WAIT: Duration = Duration::from_millis(1200);

/// Between two looks at the daemon's process.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", required = true)]
    mountpoints: Vec<PathBuf>,

    /// Give up on a dead host: whoever waits for it gets an error; done within 2 s
    #[arg(short, long)]
    force: bool,

    /// Take it out of the tree now, and end it when nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    for mountpoint in &arguments.mountpoints {
        let (entry, daemon) = find(mountpoint)?;
        if arguments.force {
            force(&entry, daemon.as_ref())?;
        } else if arguments.lazy {
            fuse::unmount(&entry.mountpoint, UnmountHow::Detach).map_err(CliError::mount)?;
        } else {
            fuse::unmount(&entry.mountpoint, UnmountHow::Clean).map_err(CliError::mount)?;
            wait_for_end(daemon.as_ref(), END_WAIT)?;
        }
    }
    Ok(())
}

/// The mount at a place, and its daemon if it can be found. Touches neither: both may hang.
fn find(typed: &Path) -> Result<(MountEntry, Option<Daemon>), CliError> {
    let wrong = |why: &dyn std::fmt::Display| CliError::mount(format!("{}: {why}", typed.display()));
    let path = table::resolve(typed).map_err(|error| wrong(&error))?;
    let mut entry = table::mount_at(&path).map_err(|error| wrong(&error))?;
    if entry.is_none() {
        // A symbolic link that leads to it.
        let target = path.canonicalize().map_err(|error| wrong(&error))?;
        entry = table::mount_at(&target).map_err(|error| wrong(&error))?;
    }
    let entry = entry.ok_or_else(|| wrong(&"not mounted"))?;
    if !entry.is_wormhole() {
        return Err(wrong(&format!("a mount of type {}, not of wormhole: use umount(8)", entry.fs_type)));
    }
    let daemon = super::control_directories()
        .iter()
        .find_map(|directory| control::daemon_of_mount(directory, &entry.mountpoint).ok().flatten());
    Ok((entry, daemon))
}

/// Ends a mount whoever waits for it: the daemon's own way, else the kernel's, else by killing the daemon.
fn force(entry: &MountEntry, daemon: Option<&Daemon>) -> Result<(), CliError> {
    let started = Instant::now();
    // First out of the tree, so that nobody else falls in.
    let unmounted = fuse::unmount(&entry.mountpoint, UnmountHow::Abort);
    if let Some(daemon) = daemon {
        // A daemon that hangs is what this is for.
        let told = daemon.order(&Order::Abort).is_ok();
        let left = if told { ABORT_WAIT.saturating_sub(started.elapsed()) } else { Duration::ZERO };
        if !is_gone_within(daemon, left) {
            let _ = kill(Pid::from_raw(daemon.pid as i32), Signal::SIGKILL);
            is_gone_within(daemon, LOOK_EVERY * 20);
        }
    } else if nix::unistd::geteuid().is_root() {
        // Who waits in the kernel gets ECONNABORTED, and the daemon the end of its session.
        let _ = fuse::abort_connection(entry.device.1);
    }
    match unmounted {
        // The daemon was faster.
        Ok(()) | Err(UnmountError::NotMounted(_)) => Ok(()),
        Err(error) => Err(CliError::mount(error)),
    }
}

fn wait_for_end(daemon: Option<&Daemon>, wait: Duration) -> Result<(), CliError> {
    match daemon {
        Some(daemon) if !is_gone_within(daemon, wait) => Err(CliError::mount(format!(
            "unmounted, but the daemon (process {}) still runs after {} s; `wormhole status` shows what it does",
            daemon.pid,
            wait.as_secs()
        ))),
        _ => Ok(()),
    }
}

fn is_gone_within(daemon: &Daemon, wait: Duration) -> bool {
    let deadline = Instant::now() + wait;
    while daemon.is_alive() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}
