//! `wormhole demo`: host, mount, copy, compare and read again, on this machine, as a newcomer would by hand.
//!
//! It runs this program's own commands as processes of their own, so that what is shown is what will happen. Whatever goes wrong,
//! nothing is left behind: [`stage::Stage`] takes down what it put up.

mod samples;
mod stage;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::CliError;
use super::words::{amount, count, duration, rate};
use crate::proto::Version;
use stage::Stage;
use walk::Walked;

/// Most that is copied of a folder that was given: the demonstration should not take longer than a coffee.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// Age at which a file's version names one content, and some time for clocks that tick rarely.
const SETTLED_AFTER: Duration = Duration::from_nanos(Version::SETTLE_NS as u64 + 100_000_000);

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder to host [default: sample files, made for this and removed again]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Print what was measured as one JSON object
    #[arg(long)]
    json: bool,
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Findings {
    /// Where the host listened.
    listening: String,
    /// From the command to a mount that answers, in milliseconds.
    mount_ms: u64,
    /// Files and folders that were listed, and how long that took.
    files: usize,
    folders: usize,
    list_ms: u64,
    /// What was copied from the mount, and how long that took.
    copied_files: usize,
    copied_bytes: u64,
    copy_seconds: f64,
    /// Files whose BLAKE3 sum was the same at the source.
    equal_files: usize,
    /// The same copy after a new mount, and what of it came from the host.
    again_seconds: f64,
    again_host_bytes: u64,
}

/// Set by Ctrl-C and its like; looked at between two pieces of work.
#[derive(Clone, Default)]
pub(super) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// An error once somebody wants this to end.
    pub(super) fn check(&self) -> Result<(), CliError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(CliError::system("interrupted; everything was taken down again"));
        }
        Ok(())
    }

    /// Listens on a thread of its own, as long as the process lives.
    fn listen() -> Result<Self, CliError> {
        let interrupted = Self::default();
        let flag = interrupted.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::system(format!("cannot listen for signals: {error}")))?;
        let ended = {
            let _guard = runtime.enter();
            super::mount_daemon::told_to_end()?
        };
        std::thread::spawn(move || {
            runtime.block_on(ended);
            flag.0.store(true, Ordering::Relaxed);
        });
        Ok(interrupted)
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    super::mount::check_fuse()?;
    let interrupted = Interrupted::listen()?;
    let mut stage = Stage::build()?;
    let say = |name: &str, text: String| {
        if !arguments.json {
            println!("  {name:<8}  {text}");
        }
    };
    if !arguments.json {
        println!("wormhole demo: both ends on this machine, in {}\n", stage.directory().display());
    }
    let findings = show(arguments.folder.as_deref(), &mut stage, &interrupted, &say)?;
    stage.take_down()?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&findings).map_err(CliError::system)?;
        println!("{text}");
        return Ok(());
    }
    say("clean", "mount, host and files of this demonstration are gone again".to_owned());
    println!(
        "\nNow for real: `wormhole host FOLDER` where the files are, and here `wormhole mount TICKET DIRECTORY`."
    );
    Ok(())
}

fn show(
    folder: Option<&Path>,
    stage: &mut Stage,
    interrupted: &Interrupted,
    say: &dyn Fn(&str, String),
) -> Result<Findings, CliError> {
    let folder = match folder {
        Some(folder) => folder
            .canonicalize()
            .map_err(|error| CliError::usage(format!("{}: {error}", folder.display())))?,
        None => samples::make(&stage.directory().join("samples"), interrupted)?,
    };
    let listening = stage.host(&folder)?;
    say("host", format!("serves {} on {listening}", folder.display()));
    interrupted.check()?;
    let started = Instant::now();
    stage.mount()?;
    let mount_ms = millis(started);
    say("mount", format!("{} answers after {}", stage.mountpoint().display(), duration(mount_ms)));

    settle(&folder, interrupted)?;
    let started = Instant::now();
    let walked = walk::walk(stage.mountpoint(), interrupted)?;
    let list_ms = millis(started);
    say(
        "list",
        format!(
            "{} files in {} folders, with attributes: {}",
            count(walked.files.len() as u64),
            count(walked.folders.len() as u64),
            duration(list_ms)
        ),
    );
    let (copied, copied_bytes, copy_seconds) = copy(&walked, stage, "first", interrupted)?;
    say("copy", copy_words(copied_bytes, copy_seconds, walked.files.len() - copied));
    let equal_files = walk::compare(&walked.files[..copied], &folder, &stage.copy("first"), interrupted)?;
    say("compare", format!("all {} files equal the originals (BLAKE3)", count(equal_files as u64)));

    stage.unmount()?;
    stage.mount()?;
    let walked_again = walk::walk(stage.mountpoint(), interrupted)?;
    let (copied_again, bytes_again, again_seconds) = copy(&walked_again, stage, "again", interrupted)?;
    walk::compare(&walked_again.files[..copied_again], &folder, &stage.copy("again"), interrupted)?;
    let again_host_bytes = stage.host_bytes()?;
    say(
        "again",
        format!(
            "after a new mount {}: {}, {} of it from the host, the rest from the cache",
            amount(bytes_again),
            rate(bytes_again, again_seconds),
            amount(again_host_bytes)
        ),
    );
    Ok(Findings {
        listening,
        mount_ms,
        files: walked.files.len(),
        folders: walked.folders.len(),
        list_ms,
        copied_files: copied,
        copied_bytes,
        copy_seconds,
        equal_files,
        again_seconds,
        again_host_bytes,
    })
}

/// Waits until the samples have lain still: files that changed a moment ago are not kept in the cache, because they might
/// change again without a trace.
fn settle(folder: &Path, interrupted: &Interrupted) -> Result<(), CliError> {
    let young = || {
        let changed = folder.join(samples::LAST).metadata().ok()?.modified().ok()?;
        SETTLED_AFTER.checked_sub(changed.elapsed().ok()?)
    };
    while let Some(left) = young() {
        interrupted.check()?;
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    Ok(())
}

/// Copies from the mount as far as the limit goes. Returns how many files, how many bytes, in how many seconds.
fn copy(
    walked: &Walked,
    stage: &Stage,
    name: &str,
    interrupted: &Interrupted,
) -> Result<(usize, u64, f64), CliError> {
    let started = Instant::now();
    let (files, bytes) =
        walk::copy(walked, stage.mountpoint(), &stage.copy(name), COPY_BYTES_MAX, interrupted)?;
    Ok((files, bytes, started.elapsed().as_secs_f64()))
}

fn copy_words(bytes: u64, seconds: f64, left_out: usize) -> String {
    let beyond = if left_out == 0 {
        String::new()
    } else {
        format!(" ({} files beyond {} left out)", count(left_out as u64), amount(COPY_BYTES_MAX))
    };
    format!("{} in {seconds:.2} s: {}{beyond}", amount(bytes), rate(bytes, seconds))
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
