//! What is done to a cache directory, whether or not something is mounted with it.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Instant, SystemTime};

use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::cache::{self, ChunkCache, Damaged, DiskCache, PinSummary};
use crate::cli::CliError;
use crate::cli::on_state::print_json;
use crate::cli::progress::Progress;
use crate::cli::words::{amount, count, duration, rate};
use crate::config::Size;

/// Most damaged records that are told one by one.
const DAMAGED_MAX: usize = 1000;

#[derive(Serialize)]
struct Stat<'a> {
    directory: String,
    bytes: u64,
    segments: u64,
    entries: u64,
    pinned_bytes: u64,
    disk_bytes: u64,
    disk_free_bytes: u64,
    pins: Vec<PinLine<'a>>,
}

#[derive(Serialize)]
struct PinLine<'a> {
    name: &'a str,
    files: u64,
    bytes: u64,
    /// Seconds since 1970.
    made_at: u64,
}

impl<'a> From<&'a PinSummary> for PinLine<'a> {
    fn from(pin: &'a PinSummary) -> Self {
        Self { name: &pin.name, files: pin.files, bytes: pin.bytes, made_at: pin.made_at }
    }
}

#[derive(Serialize)]
struct Verified {
    records: u64,
    bytes: u64,
    damaged: u64,
    places: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    file: String,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Freed {
    freed_bytes: u64,
}

#[derive(Serialize)]
struct Collected {
    freed_bytes: u64,
    bytes: u64,
    useless_segments: u64,
    unpinned_segments: u64,
    leftover_files: u64,
}

pub(super) fn stat(root: &Path, json: bool) -> Result<(), CliError> {
    let stats = DiskCache::open_read_only(root).map_err(CliError::system)?.stats();
    let (pins, pinned_bytes) = cache::pins(root).map_err(CliError::system)?;
    let disk = statvfs(root).map_err(|error| CliError::system(format!("{}: {error}", root.display())))?;
    let stat = Stat {
        directory: root.to_string_lossy().into_owned(),
        bytes: stats.bytes,
        segments: stats.segments,
        entries: stats.entries,
        pinned_bytes,
        disk_bytes: disk.blocks() * disk.fragment_size(),
        disk_free_bytes: disk.blocks_available() * disk.fragment_size(),
        pins: pins.iter().map(PinLine::from).collect(),
    };
    if json {
        return print_json(&stat);
    }
    say(&format!(
        "{}\n  {} in {} segments, {} entries; {} pinned\n  disk     {} of {} free",
        stat.directory,
        amount(stat.bytes),
        count(stat.segments),
        count(stat.entries),
        amount(stat.pinned_bytes),
        amount(stat.disk_free_bytes),
        amount(stat.disk_bytes),
    ))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for pin in &stat.pins {
        let age = duration(now.saturating_sub(pin.made_at) * 1000);
        let (files, bytes) = (count(pin.files), amount(pin.bytes));
        say(&format!("  pinned   {}  {files} files, {bytes}, {age} ago", pin.name))?;
    }
    Ok(())
}

pub(super) fn verify(root: &Path, json: bool) -> Result<(), CliError> {
    let cache = DiskCache::open_read_only(root).map_err(CliError::system)?;
    let (mut progress, began) = (Progress::new(), Instant::now());
    let mut places: Vec<Place> = Vec::new();
    let verified = cache.verify(|so_far, damaged| {
        let left = DAMAGED_MAX - places.len();
        places.extend(damaged.iter().take(left).map(place));
        progress.show(|| {
            let pace = rate(so_far.bytes, began.elapsed().as_secs_f64());
            let (records, total) = (count(so_far.records), count(so_far.records_total));
            format!("{records} of {total} records, {}, {pace}", amount(so_far.bytes))
        });
        true
    });
    drop(progress);
    let (bad, records) = (verified.bad, verified.records);
    if json {
        print_json(&Verified { records, bytes: verified.bytes, damaged: bad, places })?;
    } else {
        for place in &places {
            say(&format!("damaged: {} at {}, {}", place.file, place.offset, amount(place.bytes)))?;
        }
        let pace = rate(verified.bytes, began.elapsed().as_secs_f64());
        say(&format!(
            "{} records, {}, {pace}; {} damaged",
            count(records),
            amount(verified.bytes),
            count(bad)
        ))?;
    }
    if bad == 0 {
        return Ok(());
    }
    Err(CliError::system(format!(
        "{} of {} records in {} are damaged: they are fetched again when they are read; pin again what is pinned",
        count(bad),
        count(records),
        root.display()
    )))
}

fn place(damaged: &Damaged) -> Place {
    Place { file: damaged.file.clone(), offset: damaged.offset, bytes: damaged.bytes }
}

pub(super) fn clear(root: &Path, with_pins: bool, json: bool) -> Result<(), CliError> {
    let freed_bytes = cache::clear(root, with_pins).map_err(CliError::system)?;
    if json {
        return print_json(&Freed { freed_bytes });
    }
    let (_, pinned_bytes) = cache::pins(root).map_err(CliError::system)?;
    say(&format!("{} freed", amount(freed_bytes)))?;
    if pinned_bytes > 0 {
        say(&format!("{} are pinned and stay; --pins removes them, too", amount(pinned_bytes)))?;
    }
    Ok(())
}

pub(super) fn gc(root: &Path, size: Option<Size>, json: bool) -> Result<(), CliError> {
    let size_bytes = match size {
        Some(size) => {
            let disk =
                statvfs(root).map_err(|error| CliError::system(format!("{}: {error}", root.display())))?;
            Some(size.bytes_of(disk.blocks() * disk.fragment_size()))
        }
        None => None,
    };
    let done = cache::gc(root, size_bytes).map_err(CliError::system)?;
    let collected = Collected {
        freed_bytes: done.before_bytes.saturating_sub(done.after_bytes),
        bytes: done.after_bytes,
        useless_segments: done.shadowed,
        unpinned_segments: done.unpinned,
        leftover_files: done.leftovers,
    };
    if json {
        return print_json(&collected);
    }
    say(&format!(
        "{} freed, {} kept; {} segments were of no use, {} are no longer pinned, {} files were left by a crash",
        amount(collected.freed_bytes),
        amount(collected.bytes),
        count(collected.useless_segments),
        count(collected.unpinned_segments),
        count(collected.leftover_files),
    ))
}

/// Whether there is a pin of that name.
pub(super) fn is_pinned(root: &Path, name: &str) -> bool {
    cache::pins(root).is_ok_and(|(pins, _)| pins.iter().any(|pin| pin.name == name))
}

pub(super) fn unpin(root: &Path, name: &str, json: bool) -> Result<(), CliError> {
    let pin = cache::unpin(root, name).map_err(CliError::system)?;
    if json {
        return print_json(&PinLine::from(&pin));
    }
    say(&format!("unpinned {}: {} files, {}", pin.name, count(pin.files), amount(pin.bytes)))
}

fn say(line: &str) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(|error| CliError::system(format!("standard output: {error}")))
}
