//! `wormhole mount`: checks what was typed, then hands over to the daemon (`mount_daemon`).
//!
//! The daemon is this program again, started afresh: a process that has threads cannot fork. What it has to know comes to it
//! through a pipe, so that a ticket never stands among its arguments or in its environment.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CliError;
use super::mount_daemon::{self, Job, Report};
use super::mountpoint;
use crate::config::{Environment, LocalAccounts, MountOptions, OPTION_FAMILIES};
use crate::fuse;
use crate::mount;
use crate::transport::MountSource;

/// How long the daemon may take beyond the time for which it is to try again, before it is given up.
const DAEMON_WAIT: Duration = Duration::from_secs(60);

/// Longest ticket file, in bytes. A ticket has some 200.
const TICKET_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Where a ticket may stand that is not to be typed.
const TICKET_VARIABLE: &str = "WORMHOLE_TICKET";

/// What helps where only root can mount.
pub(super) const FUSERMOUNT_MISSING: &str = "install it with `apt install fuse3` (or `dnf install fuse3`)";

/// What was typed.
#[derive(Debug, clap::Args)]
#[command(after_help = options_help())]
pub(super) struct Arguments {
    /// What to mount: `HOST:/EXPORT/PATH`, `wormhole://HOST[:PORT]/EXPORT/PATH`, a ticket, @FILE with a ticket, or - for a ticket on
    /// standard input; may be left out if `WORMHOLE_TICKET` holds a ticket. Then: the directory to mount it on
    #[arg(value_names = ["SOURCE", "MOUNTPOINT"], num_args = 1..=2, required = true)]
    places: Vec<String>,

    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,

    /// Stay in front, and unmount on Ctrl-C
    #[arg(short, long)]
    foreground: bool,

    /// Where to keep what was read [default: /var/cache/wormhole, or ~/.cache/wormhole]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// How much to keep there, such as 50G or 10% [default: 10% of the disk, at most 20G]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,

    /// Ask no host: show what the cache knows of it, and let the rest fail at once
    #[arg(long)]
    offline: bool,

    /// Where this machine's key and the known hosts are [default: /var/lib/wormhole/client, or ~/.local/state/wormhole/client]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Where the daemon's log goes [default: the system's log]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,

    /// Ignore unknown mount options instead of refusing them
    #[arg(long)]
    sloppy: bool,
}

/// What there is to say behind `-o`, from the one table.
fn options_help() -> String {
    let entries = || OPTION_FAMILIES.iter().flat_map(|family| family.entries);
    let width = entries().map(|entry| entry.typed().len()).max().unwrap_or_default();
    let mut help = String::from("Mount options (`_` and `-` are the same in names):\n");
    for family in OPTION_FAMILIES {
        let _ = writeln!(help, " {}:", family.title);
        for entry in family.entries {
            let _ = writeln!(help, "  {:width$}  {}", entry.typed(), entry.meaning);
        }
    }
    help.push_str(
        " For fstab: _netdev nofail noauto user x-*; rsize= and others have no effect, mount.wormhole(8) says why",
    );
    help
}

pub(super) fn run(arguments: &Arguments, verbose: u8) -> Result<(), CliError> {
    let (source, mountpoint) = places(&arguments.places, std::env::var(TICKET_VARIABLE).ok())?;
    let secret_text = read_source(source)?;
    let source: MountSource = secret_text.parse().map_err(CliError::usage)?;
    let job = job(arguments, secret_text)?;
    let options = MountOptions::parse(
        job.options.iter().map(String::as_str),
        job.sloppy,
        &Environment::of_process(),
        &LocalAccounts,
    )
    .map_err(CliError::usage)?;
    let mountpoint = mountpoint::check(&mountpoint)?;
    check_fuse()?;
    let label = mount::label(&source, options.options.host.port);
    let daemon = daemon(&label, &mountpoint, verbose, arguments.log_file.as_deref())?;
    if arguments.foreground {
        return become_daemon(daemon, &job);
    }
    let start = &options.options.start;
    // One that goes on in the background says so after its first attempt.
    let retry_for = if start.background { Duration::ZERO } else { start.retry_for() };
    start_daemon(daemon, &job, DAEMON_WAIT + retry_for)
}

/// Source and mountpoint; the source may be in the environment.
fn places(typed: &[String], ticket: Option<String>) -> Result<(String, PathBuf), CliError> {
    match (typed, ticket.filter(|ticket| !ticket.is_empty())) {
        ([source, mountpoint], _) => Ok((source.clone(), mountpoint.into())),
        ([mountpoint], Some(ticket)) => Ok((ticket, mountpoint.into())),
        _ => Err(CliError::usage(
            "what to mount is missing: `wormhole mount SOURCE MOUNTPOINT`, or put a ticket into WORMHOLE_TICKET",
        )),
    }
}

/// What a source is that stands in a file or comes on standard input.
pub(super) fn read_source(source: String) -> Result<String, CliError> {
    let read = |mut from: &mut dyn Read, name: &str| {
        let mut text = String::new();
        Read::take(&mut from, TICKET_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| CliError::usage(format!("cannot read the ticket from {name}: {error}")))?;
        Ok(text.trim().to_owned())
    };
    if source == "-" {
        return read(&mut io::stdin(), "standard input");
    }
    let Some(path) = source.strip_prefix('@') else { return Ok(source) };
    let mut file = fs::File::open(path)
        .map_err(|error| CliError::usage(format!("cannot read the ticket from {path}: {error}")))?;
    read(&mut file, path)
}

/// All that the daemon has to know, with paths that do not depend on where it works.
fn job(arguments: &Arguments, source: String) -> Result<Job, CliError> {
    let absolute = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| {
                std::path::absolute(path)
                    .map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
            })
            .transpose()
    };
    let mut options = arguments.options.clone();
    // What is said on its own counts more than what stands in a list.
    if let Some(directory) = absolute(&arguments.cache_dir)? {
        options.push(format!("cache_dir=\"{}\"", text_of(&directory)?));
    }
    if let Some(size) = &arguments.cache_size {
        options.push(format!("cache_size=\"{size}\""));
    }
    if arguments.offline {
        options.push("offline".to_owned());
    }
    Ok(Job { source, options, sloppy: arguments.sloppy, state_dir: absolute(&arguments.state_dir)? })
}

fn text_of(path: &Path) -> Result<&str, CliError> {
    path.to_str()
        .filter(|text| !text.contains('"'))
        .ok_or_else(|| CliError::usage(format!("{}: not a name that an option can hold", path.display())))
}

/// Refuses where this user cannot mount by FUSE at all.
pub(super) fn check_fuse() -> Result<(), CliError> {
    fuse::check_device().map_err(|error| CliError::system(format!("{error}: {}", error.remedy())))?;
    if !nix::unistd::geteuid().is_root() && !super::is_in_path("fusermount3") {
        return Err(CliError::system(format!(
            "fusermount3 is missing, and only root can mount without it: {FUSERMOUNT_MISSING}"
        )));
    }
    Ok(())
}

/// This program again, as the daemon. What stands among its arguments is for people who look at the process list.
fn daemon(label: &str, mountpoint: &Path, verbose: u8, log_file: Option<&Path>) -> Result<Command, CliError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("wormhole").arg(mount_daemon::NAME);
    for _ in 0..verbose {
        command.arg("-v");
    }
    if let Some(path) = log_file {
        let path = std::path::absolute(path)
            .and_then(|path| {
                // The daemon could not tell any more.
                fs::File::options().create(true).append(true).open(&path)?;
                Ok(path)
            })
            .map_err(|error| CliError::system(format!("log file {}: {error}", path.display())))?;
        command.arg("--log-file").arg(path);
    }
    command.arg("--").arg(label).arg(mountpoint).env_remove(TICKET_VARIABLE);
    Ok(command)
}

/// The daemon in place of this process.
fn become_daemon(mut daemon: Command, job: &Job) -> Result<(), CliError> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::system(format!("cannot start the daemon: {error}"));
    let (reading, mut writing) = io::pipe().map_err(|error| failed(&error))?;
    // It fits: a job is smaller than a pipe's 64 KiB, or the command line would not have held it.
    writing.write_all(&job.to_bytes()).map_err(|error| failed(&error))?;
    drop(writing);
    daemon.stdin(reading).env(mount_daemon::IN_FRONT, "1");
    Err(failed(&daemon.exec()))
}

/// Starts the daemon, waits until it has mounted, and leaves it behind.
fn start_daemon(mut daemon: Command, job: &Job, wait: Duration) -> Result<(), CliError> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::system(format!("cannot start the daemon: {error}"));
    let mut child =
        daemon.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| failed(&error))?;
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed(&"no pipe to it"));
    };
    stdin.write_all(&job.to_bytes()).map_err(|error| failed(&error))?;
    drop(stdin);
    match read_report(&mut stdout, wait) {
        Ok(Some(Report::Mounted)) => Ok(()),
        Ok(Some(Report::Background(why))) => {
            eprintln!("wormhole: {why}; trying on in the background");
            Ok(())
        }
        Ok(Some(Report::Failed { exit_code, message })) => Err(CliError { exit_code, message }),
        Ok(None) => {
            let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(CliError::mount(format!("the daemon ended before it had mounted ({ended})")))
        }
        Err(error) => {
            // It cleans up after itself; who does not end now would not have mounted either.
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            Err(CliError::mount(format!("the daemon did not mount within {} s: {error}", wait.as_secs())))
        }
    }
}

/// The daemon's one line; `None` if it ended without.
fn read_report(from: &mut ChildStdout, wait: Duration) -> io::Result<Option<Report>> {
    let deadline = Instant::now() + wait;
    let mut line = Vec::new();
    let mut part = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(from), PollFlags::POLLIN)], timeout)
        {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match from.read(&mut part)? {
            0 => return Ok(Report::from_bytes(&line)),
            count => line.extend_from_slice(&part[..count]),
        }
        if line.ends_with(b"\n") {
            return Ok(Report::from_bytes(&line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_source_may_come_from_the_environment() {
        let ticket = || Some("whm1x".to_owned());
        let (source, mountpoint) = places(&words(&["nas:/m", "/mnt"]), ticket()).unwrap();
        assert_eq!((source.as_str(), mountpoint.as_path()), ("nas:/m", Path::new("/mnt")));
        let (source, mountpoint) = places(&words(&["/mnt"]), ticket()).unwrap();
        assert_eq!((source.as_str(), mountpoint.as_path()), ("whm1x", Path::new("/mnt")));
        for nothing in [None, Some(String::new())] {
            assert_eq!(places(&words(&["/mnt"]), nothing).unwrap_err().exit_code, 1);
        }
    }

    #[test]
    fn the_source_may_stand_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket");
        fs::write(&path, " whm1abc\n").unwrap();
        assert_eq!(read_source(format!("@{}", path.display())).unwrap(), "whm1abc");
        assert_eq!(read_source("nas:/m".to_owned()).unwrap(), "nas:/m");
        let error = read_source(format!("@{}x", path.display())).unwrap_err();
        assert!(error.exit_code == 1 && error.message.contains("ticketx"), "{error}");
    }
}
