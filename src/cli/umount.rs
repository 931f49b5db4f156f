//! `wormhole umount`: takes a mount down, and waits until the host has what was written and the daemon is gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CliError;
use super::daemons::{daemon_behind, daemons_of};
use super::progress::Progress;
use super::rest::Rest;
use super::words::{amount, count};
use crate::control::{Daemon, LinkWord, Order, Unsent};
use crate::fuse::table::{self, MountEntry};
use crate::fuse::{self, UnmountError, UnmountHow};
use crate::metrics::Metric;

/// How long a daemon may take that was told to drop everything, before it is killed: `-f` promises 2 s in all.
const ABORT_WAIT: Duration = Duration::from_millis(1200);

/// Between two looks at the daemon's process.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Between two questions what is left to be sent.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", required = true)]
    mountpoints: Vec<PathBuf>,

    /// Give up on a dead host: whoever waits for it gets an error, and what it does not have is lost and listed; done within 2 s
    #[arg(short, long)]
    force: bool,

    /// Take it out of the tree now, and end it when nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    for mountpoint in &arguments.mountpoints {
        let found = find(mountpoint)?;
        if arguments.force {
            force(&found)?;
        } else if arguments.lazy {
            found.unmount(UnmountHow::Detach)?;
        } else {
            found.unmount(UnmountHow::Clean)?;
            wait_for_end(found.daemon.as_ref())?;
        }
    }
    Ok(())
}

/// A mount, what is left of one, or one that is still being tried.
struct Found {
    /// `None`: it is gone from its place and its daemon still sends, or it never came.
    entry: Option<MountEntry>,
    /// If it can be found.
    daemon: Option<Daemon>,
}

impl Found {
    fn unmount(&self, how: UnmountHow) -> Result<(), CliError> {
        if self.entry.is_none() && self.daemon.as_ref().is_some_and(is_trying) {
            return self
                .daemon
                .iter()
                .try_for_each(|daemon| daemon.order(&Order::Stop))
                .map_err(CliError::mount);
        }
        self.entry.iter().try_for_each(|entry| fuse::unmount(entry, how)).map_err(CliError::mount)
    }
}

/// Whether the daemon has not mounted yet.
fn is_trying(daemon: &Daemon) -> bool {
    daemon.status().is_ok_and(|report| report.state == LinkWord::Mounting)
}

/// The mount at a place, and its daemon. Touches neither: both may hang.
fn find(typed: &Path) -> Result<Found, CliError> {
    let wrong = |why: &dyn std::fmt::Display| CliError::mount(format!("{}: {why}", typed.display()));
    let path = table::resolve(typed).map_err(|error| wrong(&error))?;
    let mut entry = table::mount_at(&path).map_err(|error| wrong(&error))?;
    if entry.is_none() {
        if let Some(daemon) = daemons_of(&path).next() {
            return Ok(Found { entry: None, daemon: Some(daemon) });
        }
        // A symbolic link that leads to it.
        let target = path.canonicalize().map_err(|error| wrong(&error))?;
        entry = table::mount_at(&target).map_err(|error| wrong(&error))?;
    }
    let entry = entry.ok_or_else(|| wrong(&"not mounted"))?;
    if !entry.is_wormhole() {
        return Err(wrong(&format!("a mount of type {}, not of wormhole: use umount(8)", entry.fs_type)));
    }
    Ok(Found { daemon: daemon_behind(&entry), entry: Some(entry) })
}

/// Ends a mount whoever waits for it: the daemon's own way, else the kernel's, else by killing the daemon.
fn force(found: &Found) -> Result<(), CliError> {
    let started = Instant::now();
    // First out of the tree, so that nobody else falls in.
    let unmounted = match &found.entry {
        Some(entry) => fuse::unmount(entry, UnmountHow::Abort),
        None => Ok(()),
    };
    if let Some(daemon) = &found.daemon {
        let told = daemon.abort();
        let left = if told.is_ok() { ABORT_WAIT.saturating_sub(started.elapsed()) } else { Duration::ZERO };
        match told {
            Ok(lost) => tell_lost(&lost),
            // A daemon that hangs is what this is for; one that has just ended had nothing more to do.
            Err(error) if !error.is_nobody() => {
                eprintln!("wormhole: {error}; what was written and not sent, if anything, is lost");
            }
            Err(_) => {}
        }
        if !is_gone_within(daemon, left) {
            let _ = kill(Pid::from_raw(daemon.pid as i32), Signal::SIGKILL);
            is_gone_within(daemon, LOOK_EVERY * 20);
        }
    } else if let Some(entry) = found.entry.as_ref().filter(|_| nix::unistd::geteuid().is_root()) {
        // Who waits in the kernel gets ECONNABORTED, and the daemon the end of its session.
        let _ = fuse::abort_connection(entry.device.1);
    }
    match unmounted {
        // The daemon was faster.
        Ok(()) | Err(UnmountError::NotMounted(_)) => Ok(()),
        Err(error) => Err(CliError::mount(error)),
    }
}

fn tell_lost(lost: &Unsent) {
    if lost.bytes == 0 {
        return;
    }
    let (bytes, files) = (amount(lost.bytes), count(lost.files));
    eprintln!("wormhole: lost: {bytes} of {files} files, written here and not confirmed by the host");
    for file in &lost.largest {
        eprintln!("wormhole: lost: {} of {}", amount(file.bytes), file.path);
    }
    let unnamed = lost.files.saturating_sub(lost.largest.len() as u64);
    if unnamed > 0 {
        eprintln!("wormhole: lost: less than that of {} more files each", count(unnamed));
    }
}

/// Waits as long as something is sent; shows how far that is.
fn wait_for_end(daemon: Option<&Daemon>) -> Result<(), CliError> {
    let Some(daemon) = daemon else { return Ok(()) };
    let (mut rest, mut progress) = (Rest::new(Instant::now()), Progress::new());
    while !is_gone_within(daemon, ASK_EVERY) {
        // One that has just ended does not answer; nor does one that hangs, which is not waited for without end.
        let left = daemon.status().map_or(0, |status| status.readings.count(Metric::UnsentBytes));
        let now = Instant::now();
        rest.look(left, now);
        if rest.is_stuck(now) {
            drop(progress);
            return Err(CliError::mount(stuck(daemon.pid, rest.bytes())));
        }
        if progress.is_seen() {
            progress.show(|| rest.text(now).unwrap_or_default());
        } else if let Some(line) = rest.line(now) {
            eprintln!("wormhole: {line}");
        }
    }
    Ok(())
}

fn stuck(pid: u32, bytes: u64) -> String {
    if bytes == 0 {
        return format!(
            "unmounted, but the daemon (process {pid}) still runs; `wormhole status` shows what it does"
        );
    }
    format!(
        "unmounted, but {} are not at the host, which does not answer; the daemon (process {pid}) sends them as soon as it does. \
         `wormhole umount` again waits on, `wormhole umount -f` gives them up",
        amount(bytes)
    )
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
