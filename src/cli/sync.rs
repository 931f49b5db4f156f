//! `wormhole sync`: returns when the host's disk has everything that was written on a mount.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::CliError;
use super::cache::place_of;
use super::on_state::print_json;
use super::progress::Progress;
use super::words::{amount, count};
use crate::control::{Order, SyncReport};

/// Between two questions how far it is.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A mountpoint, or anything on a mount: all of the mount is synced
    #[arg(value_name = "DIR")]
    path: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome<'a> {
    source: &'a str,
    files: u64,
    synced: u64,
    failed: u64,
    unsent_bytes: u64,
    problems: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let place = place_of(&arguments.path)?;
    let ask = |order: &Order| place.daemon().sync(order).map_err(CliError::system);
    let mut progress = Progress::new();
    let mut report = ask(&Order::Sync)?;
    while !report.done {
        std::thread::sleep(ASK_EVERY);
        report = ask(&Order::SyncProgress(report.id))?;
        progress.show(|| line(&report));
    }
    drop(progress);
    if arguments.json {
        print_json(&Outcome {
            source: &report.source,
            files: report.files,
            synced: report.synced,
            failed: report.failed,
            unsent_bytes: report.unsent_bytes,
            problems: &report.problems,
            error: report.error.as_deref(),
        })?;
    }
    judge(&report)?;
    if !arguments.json {
        println!("{}: everything is on the host's disk", report.source);
    }
    Ok(())
}

fn line(report: &SyncReport) -> String {
    format!(
        "{} of {} files on the host's disk, {} still to be sent",
        count(report.synced),
        count(report.files),
        amount(report.unsent_bytes)
    )
}

/// Tells what went wrong.
fn judge(report: &SyncReport) -> Result<(), CliError> {
    for problem in &report.problems {
        eprintln!("wormhole: {problem}");
    }
    match &report.error {
        Some(error) => Err(CliError::system(format!(
            "{}: {error}; what was written stays on its way: run it again when the host is there (`wormhole status` shows that)",
            report.source
        ))),
        None if report.failed > 0 => Err(CliError::system(format!(
            "{}: {} of {} files are not, or not whole, on the host's disk: write them again",
            report.source,
            count(report.failed),
            count(report.files)
        ))),
        None => Ok(()),
    }
}
