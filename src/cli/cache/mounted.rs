//! What the daemon of a mount does to its cache: bringing content in, and pinning it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use serde::Serialize;

use crate::cli::CliError;
use crate::cli::daemons::daemon_behind;
use crate::cli::on_state::print_json;
use crate::cli::progress::Progress;
use crate::cli::words::{amount, count, rate};
use crate::control::{Daemon, Order, WarmOrder, WarmReport};
use crate::fuse::table;

/// Between two questions how far it is.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A path on a mount.
pub(in crate::cli) struct Place {
    daemon: Daemon,
    source: String,
    below: Vec<u8>,
}

impl Place {
    /// The daemon of the mount.
    pub(in crate::cli) const fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Where the cache of the mount is.
    pub(super) fn cache_dir(&self) -> Option<PathBuf> {
        self.daemon.status().ok()?.cache_dir
    }

    /// What the place is called: `HOST:/EXPORT/PATH`.
    pub(super) fn name(&self) -> String {
        let told = self.daemon.status().ok().and_then(|status| status.source.into_iter().next());
        let (source, path) =
            (told.unwrap_or_else(|| self.source.clone()), String::from_utf8_lossy(&self.below));
        if path.is_empty() { source } else { format!("{}/{path}", source.trim_end_matches('/')) }
    }
}

/// Which mount a path is on, and where on it. A path that is not there (any more) is taken as it is written.
pub(in crate::cli) fn place_of(typed: &Path) -> Result<Place, CliError> {
    let wrong = |why: &dyn std::fmt::Display| CliError::system(format!("{}: {why}", typed.display()));
    let path = typed.canonicalize().or_else(|_| table::resolve(typed)).map_err(|error| wrong(&error))?;
    let mounts = table::mounts().map_err(|error| wrong(&error))?;
    // The topmost of those that lie deepest.
    let above = mounts.into_iter().filter(|entry| path.starts_with(&entry.mountpoint));
    let entry = above.max_by_key(|entry| entry.mountpoint.components().count());
    let entry =
        entry.filter(table::MountEntry::is_wormhole).ok_or_else(|| wrong(&"not on a wormhole mount"))?;
    let below = path.strip_prefix(&entry.mountpoint).map_err(|error| wrong(&error))?;
    let daemon = daemon_behind(&entry)
        .ok_or_else(|| wrong(&"the daemon of this mount cannot be asked: it is another user's, or died"))?;
    Ok(Place { daemon, source: entry.source, below: below.as_os_str().as_bytes().to_vec() })
}

/// What came of it.
#[derive(Serialize)]
struct Outcome<'a> {
    source: &'a str,
    pinned: bool,
    files: u64,
    bytes: u64,
    host_bytes: u64,
    skipped: u64,
    unproven: u64,
    failed: u64,
    problems: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

pub(super) fn warm(typed: &Path, pin: bool, json: bool) -> Result<(), CliError> {
    // Only what is there can be warmed.
    typed.symlink_metadata().map_err(|error| CliError::system(format!("{}: {error}", typed.display())))?;
    let place = place_of(typed)?;
    let order = Order::Warm(WarmOrder { path_hex: HEXLOWER.encode(&place.below), pin });
    let (mut progress, began) = (Progress::new(), Instant::now());
    let ask = |order: &Order| place.daemon.warm(order).map_err(CliError::system);
    let mut report = ask(&order)?;
    while !report.done {
        std::thread::sleep(ASK_EVERY);
        report = ask(&Order::WarmProgress(report.id))?;
        progress.show(|| line(&report, began));
    }
    drop(progress);
    if json {
        print_json(&Outcome {
            source: &report.source,
            pinned: pin && report.error.is_none(),
            files: report.files,
            bytes: report.bytes,
            host_bytes: report.host_bytes,
            skipped: report.skipped,
            unproven: report.unproven,
            failed: report.failed,
            problems: &report.problems,
            error: report.error.as_deref(),
        })?;
    } else {
        let what = if pin && report.error.is_none() { "pinned" } else { "in the cache" };
        println!("{}: {} {what}", report.source, line(&report, began));
    }
    judge(&report)
}

fn line(report: &WarmReport, began: Instant) -> String {
    let pace = rate(report.host_bytes, began.elapsed().as_secs_f64());
    format!(
        "{} files, {} ({} from the host, {pace})",
        count(report.files),
        amount(report.bytes),
        amount(report.host_bytes)
    )
}

/// Tells what went wrong.
fn judge(report: &WarmReport) -> Result<(), CliError> {
    for problem in &report.problems {
        eprintln!("wormhole: {problem}");
    }
    if report.unproven > 0 {
        eprintln!(
            "wormhole: {} files lie on a file system whose times prove nothing (`wormhole status` says why): the host confirms \
             them whenever they are opened, and they are not shown while it is away",
            report.unproven
        );
    }
    if let Some(error) = &report.error {
        return Err(CliError::system(error));
    }
    match (report.failed, report.skipped) {
        (0, 0) => Ok(()),
        (0, skipped) => Err(CliError::system(format!(
            "{skipped} files changed less than two seconds ago and cannot be kept yet: run it again"
        ))),
        (failed, skipped) => {
            Err(CliError::system(format!("{failed} files or folders could not be read, {skipped} skipped")))
        }
    }
}
