//! A host and a mount of the real binary, on the network of the run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Failure;
use super::net::Net;
use super::process::{Daemon, run, wait_until};

/// The binary under measurement, built with the profile of the bench.
const WORMHOLE: &str = env!("CARGO_BIN_EXE_wormhole");

/// A running host.
pub(crate) struct Host {
    pub daemon: Daemon,
    ticket: String,
}

impl Host {
    /// Hosts `source`.
    pub(crate) fn start(net: &Net, source: &Path, state: &Path) -> Result<Self, Failure> {
        let mut command = net.host_command(WORMHOLE);
        command.args(["host", "--listen", &format!("{}:0", net.address), "--state-dir"]);
        command.arg(state.join("host")).arg(format!("bench={}", source.display()));
        let mut daemon = Daemon::start(command, true)?;
        let stdout = daemon.child().stdout.take().ok_or("no standard output")?;
        for line in BufReader::new(stdout).lines() {
            if let Some(ticket) = line?.strip_prefix("ticket: ") {
                return Ok(Self { daemon, ticket: ticket.to_owned() });
            }
        }
        Err("the host ended before it was ready".into())
    }
}

/// A mount in the foreground.
pub(crate) struct Mount {
    pub daemon: Daemon,
    pub point: PathBuf,
}

impl Mount {
    /// Mounts what `host` serves; the cache in `state` is kept from one mount to the next.
    pub(crate) fn start(net: &Net, host: &Host, state: &Path, options: &str) -> Result<Self, Failure> {
        let point = state.join("mnt");
        fs::create_dir_all(&point)?;
        let mut command = net.client_command(WORMHOLE);
        command.env("WORMHOLE_TICKET", &host.ticket).arg("mount").arg(&point).arg("-f");
        command.arg("--state-dir").arg(state.join("client")).arg("--cache-dir").arg(state.join("cache"));
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let mount = Self { daemon: Daemon::start(command, false)?, point };
        wait_until("the mount is there", || is_mounted(&mount.point))?;
        Ok(mount)
    }

    /// What `wormhole status` says of it.
    pub(crate) fn status(&self) -> Result<Value, Failure> {
        let output =
            std::process::Command::new(WORMHOLE).args(["status", "--json"]).arg(&self.point).output()?;
        Ok(serde_json::from_slice::<Value>(&output.stdout)?.get(0).cloned().unwrap_or_default())
    }

    /// Takes it down and waits for the daemon.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        run(std::process::Command::new("umount").arg(&self.point))?;
        self.daemon.stop();
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.daemon.stop();
        if is_mounted(&self.point) {
            let _ = run(std::process::Command::new("umount").arg("-l").arg(&self.point));
        }
    }
}

pub(crate) fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}
