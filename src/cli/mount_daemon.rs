//! The daemon behind `wormhole mount`: this program started again, with its orders on standard input.
//!
//! It answers one line on standard output, mounted or why not, lets go of the terminal, and serves until it is unmounted.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, logging, threads};
use crate::config::{Environment, LocalAccounts, MountOptions, MountTarget, Parsed, mount_config};
use crate::control::Controlled;
use crate::mount::{Attempt, Mount, MountError};

/// The hidden command's name.
pub(super) const NAME: &str = "mount-daemon";

/// Set in the environment of a daemon that stays in front.
pub(super) const IN_FRONT: &str = "WORMHOLE_IN_FRONT";

/// Longest job, in bytes: command lines are shorter.
const JOB_BYTES_MAX: u64 = 1024 * 1024;

/// Between two attempts to mount.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// How long blocking calls may take to return at the end.
const THREADS_WAIT: Duration = Duration::from_secs(1);

/// What was handed over beside the job.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is mounted, for people
    label: String,

    /// Where, absolute
    mountpoint: PathBuf,

    /// Where the log goes
    #[arg(long)]
    pub(super) log_file: Option<PathBuf>,
}

/// What the daemon is to do. Holds secrets.
#[derive(Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) source: String,
    pub(super) options: Vec<String>,
    pub(super) sloppy: bool,
    pub(super) state_dir: Option<PathBuf>,
}

impl Job {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text, lists of text and a checked path are always JSON")
    }

    fn read(from: impl Read) -> Result<Self, CliError> {
        serde_json::from_reader(from.take(JOB_BYTES_MAX)).map_err(|_| {
            CliError::usage(format!("`{NAME}` is started by `wormhole mount`: use that instead"))
        })
    }
}

/// What the daemon tells who started it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// It answers.
    Mounted,
    /// Not yet, for this reason; it goes on trying.
    Background(String),
    /// It could not be done.
    Failed { exit_code: u8, message: String },
}

impl Report {
    pub(super) fn from_bytes(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let reporter = Reporter { in_front: std::env::var_os(IN_FRONT).is_some() };
    // Who gives no job does not wait for a report.
    let job = Job::read(io::stdin().lock())?;
    match serve(arguments, job, &reporter) {
        // Who started it waits no longer; its log is left to be told.
        Err(error) if logging::is_detached() => {
            tracing::error!("{error}");
            Err(error)
        }
        Err(error) if !reporter.in_front => {
            leave(&Report::Failed { exit_code: error.exit_code, message: error.message.clone() })
                .and(Err(error))
        }
        other => other,
    }
}

fn serve(arguments: &Arguments, job: Job, reporter: &Reporter) -> Result<(), CliError> {
    let environment = Environment::of_process();
    let Parsed { options, remarks } =
        MountOptions::parse(job.options.iter().map(String::as_str), job.sloppy, &environment, &LocalAccounts)
            .map_err(CliError::usage)?;
    for remark in remarks {
        tracing::info!("{remark}");
    }
    let places = MountTarget {
        source: job.source.parse().map_err(CliError::usage)?,
        label: arguments.label.clone(),
        mountpoint: arguments.mountpoint.clone(),
        state_dir: job.state_dir,
    };
    let config = mount_config(places, &options, &environment).map_err(CliError::mount)?;
    let runtime = threads::runtime()?;
    let outcome = runtime.block_on(async {
        // One for the whole life: a signal between two listeners would be lost.
        let mut ended = std::pin::pin!(told_to_end()?);
        let mut attempt = Attempt::begin(config).map_err(CliError::mount)?;
        let cancelled = attempt.cancelled();
        let mount = tokio::select! {
            mount = start(&mut attempt, options.start.background, options.start.retry_for(), reporter) => mount?,
            () = &mut ended => return Ok(()),
            () = cancelled => return Err(CliError::mount("mounting was cancelled")),
        };
        // The folder is taken now, and needs no claim.
        drop(attempt);
        if reporter.mounted(&arguments.mountpoint).is_err() {
            tracing::warn!("who asked for this mount is gone: taking it down again");
            mount.handle().stop();
        }
        live(mount, ended).await;
        Ok(())
    });
    // What still runs on a thread that may block, blocks.
    runtime.shutdown_timeout(THREADS_WAIT);
    outcome
}

/// Mounts, again and again for `retry_for`.
async fn start(
    attempt: &mut Attempt,
    background: bool,
    retry_for: Duration,
    reporter: &Reporter,
) -> Result<Mount, CliError> {
    let give_up_at = Instant::now() + retry_for;
    let mut told = !background;
    loop {
        let error = match attempt.mount().await {
            Ok(mount) => return Ok(mount),
            Err(error) if error.may_pass() && Instant::now() < give_up_at => error,
            Err(error) => return Err(CliError::mount(error)),
        };
        if !told {
            told = true;
            reporter.background(&error)?;
        }
        tracing::info!("{error}; trying again");
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Waits until the mount has ended, and makes it end when told to.
async fn live(mount: Mount, told_to_end: impl Future<Output = ()>) {
    let handle = Arc::clone(mount.handle());
    let stopper = async {
        told_to_end.await;
        handle.stop();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = mount.ended() => {}
        () = stopper => {}
    }
    mount.shut_down().await;
}

/// Completes when a signal asks this process to end.
pub(super) fn told_to_end() -> Result<impl Future<Output = ()>, CliError> {
    let failed = |error: io::Error| CliError::system(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

/// Tells who started the daemon.
struct Reporter {
    in_front: bool,
}

impl Reporter {
    fn mounted(&self, mountpoint: &Path) -> Result<(), CliError> {
        if self.in_front {
            tracing::info!("mounted on {}", mountpoint.display());
            return Ok(());
        }
        leave(&Report::Mounted)
    }

    /// May come before [`Self::mounted`], which has nobody to tell then.
    fn background(&self, error: &MountError) -> Result<(), CliError> {
        if self.in_front {
            tracing::warn!("{error}; trying on");
            return Ok(());
        }
        leave(&Report::Background(super::one_line(&error.to_string())))
    }
}

/// Reports, and lets go of the terminal and of the directory in which it was started.
fn leave(report: &Report) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::system(format!("cannot become a daemon: {error}"));
    // Fails only for the leader of a group, which has been here before.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").map_err(|error| failed(&error))?;
    let mut line = serde_json::to_vec(report).map_err(|error| failed(&error))?;
    line.push(b'\n');
    let told = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    logging::detach();
    logging::close_standard_streams().map_err(|error| failed(&error))?;
    told.map_err(|error| failed(&error))
}
