//! What the demonstration puts up and takes down: a folder of its own, a host, a mount.

use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::CliError;
use crate::config::Environment;
use crate::control;
use crate::fuse::table;
use crate::metrics::Metric;

/// How long the host may take to end before it is killed.
const HOST_END_WAIT: Duration = Duration::from_secs(5);

/// Room for everything that is copied.
const CACHE_SIZE: &str = "2G";

/// Longest text that a host prints when it is ready.
const GREETING_BYTES_MAX: u64 = 64 * 1024;

/// Everything that has to go again.
pub(super) struct Stage {
    directory: PathBuf,
    mountpoint: PathBuf,
    ticket: String,
    host: Option<Child>,
}

/// What `wormhole host --json` prints when it is ready.
#[derive(serde::Deserialize)]
struct Greeting {
    listening: String,
    ticket: String,
}

impl Stage {
    /// An own folder among the temporary files.
    pub(super) fn build() -> Result<Self, CliError> {
        let name = format!("wormhole-demo-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let mountpoint = directory.join("mnt");
        let stage = Self { directory, mountpoint, ticket: String::new(), host: None };
        for below in [&stage.directory, &stage.mountpoint] {
            DirBuilder::new()
                .mode(0o700)
                .create(below)
                .map_err(|error| CliError::system(format!("{}: {error}", below.display())))?;
        }
        Ok(stage)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Where a copy goes.
    pub(super) fn copy(&self, name: &str) -> PathBuf {
        self.directory.join("copy").join(name)
    }

    /// Starts the host. Returns where it listens.
    pub(super) fn host(&mut self, folder: &Path) -> Result<String, CliError> {
        let mut command = own("host");
        command.arg(folder).args(["--listen", "127.0.0.1:0", "--read-only", "--json", "--state-dir"]);
        command.arg(self.directory.join("host")).stdout(Stdio::piped());
        // Ctrl-C is for the demonstration, which ends the host when the mount is gone.
        let mut child = command
            .process_group(0)
            .spawn()
            .map_err(|error| CliError::system(format!("cannot start the host: {error}")))?;
        let stdout = child.stdout.take();
        self.host = Some(child);
        let greeting = stdout.map(read_greeting).transpose()?.flatten();
        let greeting = greeting.ok_or_else(|| CliError::system("the host did not start"))?;
        self.ticket = greeting.ticket;
        Ok(greeting.listening)
    }

    /// Mounts what the host serves, by its ticket, with the cache that is there.
    pub(super) fn mount(&self) -> Result<(), CliError> {
        let mut command = own("mount");
        command.arg(self.mountpoint()).args(["--cache-size", CACHE_SIZE, "--cache-dir"]);
        command.arg(self.directory.join("cache")).arg("--state-dir").arg(self.directory.join("client"));
        finish(command.env("WORMHOLE_TICKET", &self.ticket), "mount")
    }

    /// Takes the mount down and waits for its daemon.
    pub(super) fn unmount(&self) -> Result<(), CliError> {
        finish(own("umount").arg(self.mountpoint()), "umount")
    }

    /// Content that came from the host over the mount that is there now, in bytes.
    pub(super) fn host_bytes(&self) -> Result<u64, CliError> {
        let directory = Environment::of_process().control_dir();
        let mountpoint = self.mountpoint().canonicalize().map_err(CliError::system)?;
        let daemon = control::daemon_of_mount(&directory, &mountpoint)
            .map_err(CliError::system)?
            .ok_or_else(|| CliError::system("the mount has no control socket"))?;
        let report = daemon.status().map_err(CliError::system)?;
        Ok(report.readings.count(Metric::HostBytes))
    }

    /// Takes everything down; an error says what is left.
    pub(super) fn take_down(&mut self) -> Result<(), CliError> {
        let mounted = |stage: &Self| {
            table::resolve(stage.mountpoint())
                .and_then(|path| table::mount_at(&path))
                .is_ok_and(|entry| entry.is_some())
        };
        if mounted(self) && self.unmount().is_err() {
            // What is left is told below.
            let _ = finish(own("umount").arg("-f").arg(self.mountpoint()), "umount -f");
        }
        if let Some(host) = self.host.take() {
            end(host);
        }
        if mounted(self) {
            // Removing files would reach through it.
            return Err(CliError::system(format!("{} is still mounted", self.mountpoint().display())));
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CliError::system(format!("{} is left behind: {error}", self.directory.display())))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("wormhole: {error}");
        }
    }
}

/// A command of this program.
fn own(command: &str) -> Command {
    let mut own = Command::new("/proc/self/exe");
    own.arg0("wormhole").arg(command).stdin(Stdio::null());
    own
}

/// Runs a command to its end; its own words become the error.
fn finish(command: &mut Command, name: &str) -> Result<(), CliError> {
    let output = command
        .output()
        .map_err(|error| CliError::system(format!("cannot start `wormhole {name}`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().last().unwrap_or("it gave no reason").trim_start_matches("wormhole: ");
    Err(CliError { exit_code: 32, message: format!("`wormhole {name}` failed: {last}") })
}

/// The object that the host prints, over one line or several.
fn read_greeting(from: impl Read) -> Result<Option<Greeting>, CliError> {
    let mut text = String::new();
    let mut lines = BufReader::new(from.take(GREETING_BYTES_MAX));
    while lines.read_line(&mut text).map_err(CliError::system)? > 0 {
        if let Ok(greeting) = serde_json::from_str(&text) {
            return Ok(Some(greeting));
        }
    }
    Ok(None)
}

/// Asks a process to end, and kills it if it does not.
fn end(mut host: Child) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(host.id() as i32), Signal::SIGTERM);
    let deadline = Instant::now() + HOST_END_WAIT;
    while matches!(host.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = host.kill();
            let _ = host.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_however_it_is_broken_into_lines() {
        for text in [
            "{\"listening\":\"a:1\",\"identity\":\"i\",\"ticket\":\"t\"}\n",
            "{\n\"listening\": \"a:1\",\n\"ticket\": \"t\"\n}\nmore\n",
        ] {
            let greeting = read_greeting(text.as_bytes()).unwrap().unwrap();
            assert_eq!((greeting.listening.as_str(), greeting.ticket.as_str()), ("a:1", "t"));
        }
        assert!(read_greeting(&b"no\n"[..]).unwrap().is_none());
    }

    #[test]
    fn a_stage_leaves_nothing() {
        let stage = Stage::build().unwrap();
        let directory = stage.directory().to_owned();
        assert!(stage.mountpoint().is_dir());
        drop(stage);
        assert!(!directory.exists());
    }
}
