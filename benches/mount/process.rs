//! Processes under measurement: what they use, and that they end.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use super::Failure;

/// A daemon that is stopped when dropped.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `command`, its standard output to be read by the caller if `piped`.
    pub(crate) fn start(mut command: Command, piped: bool) -> Result<Self, Failure> {
        let stdout = if piped { Stdio::piped() } else { Stdio::null() };
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        Ok(Self { child })
    }

    /// The process itself.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        stat_fields(self.child.id()).map_or(0.0, |fields| fields.cpu_seconds)
    }

    /// The same with all living descendants and the ended ones that were waited for.
    pub(crate) fn tree_cpu_seconds(&self) -> f64 {
        let all: Vec<_> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                Some((pid, stat_fields(pid)?))
            })
            .collect();
        let mut family = vec![self.child.id()];
        let mut seconds = 0.0;
        while let Some(pid) = family.pop() {
            seconds += all
                .iter()
                .find(|(other, _)| *other == pid)
                .map_or(0.0, |(_, fields)| fields.cpu_seconds + fields.waited_cpu_seconds);
            family.extend(all.iter().filter(|(_, fields)| fields.parent == pid).map(|(pid, _)| *pid));
        }
        seconds
    }

    /// Largest resident set so far, in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    }

    /// Asks it to end, waits, and makes sure.
    pub(crate) fn stop(&mut self) {
        // It may be gone already.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let patience = Instant::now() + Duration::from_secs(10);
        while Instant::now() < patience {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

struct StatFields {
    parent: u32,
    cpu_seconds: f64,
    waited_cpu_seconds: f64,
}

/// proc(5): the name in parentheses may hold anything; the fields behind it are counted from 3. Times are ticks of 10 ms.
fn stat_fields(pid: u32) -> Option<StatFields> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let seconds = |numbers: std::ops::RangeInclusive<usize>| -> f64 {
        numbers.filter_map(|number| fields.get(number - 3)?.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    Some(StatFields {
        parent: fields.get(1)?.parse().ok()?,
        cpu_seconds: seconds(14..=15),
        waited_cpu_seconds: seconds(16..=17),
    })
}

/// What a command took.
pub(crate) struct Run {
    /// From start to end, in seconds.
    pub seconds: f64,
    /// User and system time of it and its children, in seconds.
    pub cpu_seconds: f64,
}

/// Runs a command to its end, its output thrown away.
pub(crate) fn run(command: &mut Command) -> Result<Run, Failure> {
    let cpu_before = children_cpu_seconds();
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(Run { seconds, cpu_seconds: children_cpu_seconds() - cpu_before })
}

fn children_cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage takes RUSAGE_CHILDREN");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// Waits until `is_so`, at most 60 s.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Failure> {
    let patience = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        if Instant::now() > patience {
            return Err(format!("waited 60 s in vain until {what}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
