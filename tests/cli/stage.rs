//! A host and mounts of it, as processes, in a folder of their own; gone at the end of the test, however it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long something that must happen may take before the test fails. Generous: it is no measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub(super) fn wormhole() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wormhole"));
    command.env_remove("WORMHOLE_TICKET").stdin(Stdio::null());
    command
}

/// Exit code of a process that was not killed.
pub(super) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {}", output.status))
}

/// Standard error as text.
pub(super) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails the test unless the process ended well.
#[track_caller]
pub(super) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(code(&output), 0, "{command:?}: {}", errors(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until something is so.
#[track_caller]
pub(super) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether this machine can mount at all; tests that need to return at once where it cannot.
pub(super) fn can_mount() -> bool {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let excused = std::env::var_os("WORMHOLE_TEST_NO_FUSE").is_some();
    assert!(
        device.is_ok() || excused,
        "/dev/fuse cannot be used here; WORMHOLE_TEST_NO_FUSE=1 leaves these tests out"
    );
    device.is_ok()
}

/// One folder, one host, any number of mounts.
pub(super) struct Stage {
    folder: tempfile::TempDir,
    host: Option<Child>,
    pub(super) listening: String,
    pub(super) ticket: String,
}

impl Stage {
    /// A host that serves `export` with two files and a folder.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let export = folder.path().join("export");
        fs::create_dir_all(export.join("below")).unwrap();
        fs::write(export.join("hello"), "hello, world\n").unwrap();
        let large: Vec<u8> =
            (0..5_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(export.join("below/large"), large).unwrap();
        let mut stage = Self { folder, host: None, listening: String::new(), ticket: String::new() };
        stage.start_host("127.0.0.1:0");
        fs::write(stage.path("ticket"), format!("{}\n", stage.ticket)).unwrap();
        stage
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub(super) fn start_host(&mut self, listen: &str) {
        let mut child = wormhole()
            .args(["host", "--json", "--listen", listen, "--state-dir"])
            .arg(self.path("host-state"))
            .arg(format!("export={}", self.path("export").display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        let greeting: Value = loop {
            assert!(lines.read_line(&mut text).unwrap() > 0, "the host said only {text:?}");
            if let Ok(greeting) = serde_json::from_str(&text) {
                break greeting;
            }
        };
        self.host = Some(child);
        greeting["listening"].as_str().unwrap().clone_into(&mut self.listening);
        greeting["ticket"].as_str().unwrap().clone_into(&mut self.ticket);
    }

    pub(super) fn host_pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.host.as_ref().unwrap().id().cast_signed())
    }

    pub(super) fn stop_host(&mut self) {
        if let Some(mut host) = self.host.take() {
            // One that a test has stopped would not hear anything else.
            let _ = host.kill();
            let _ = host.wait();
        }
    }

    /// Waits until the files have lain still for so long that a version names one content, as the cache demands.
    pub(super) fn settle(&self) {
        let changed = fs::metadata(self.path("export/below/large")).unwrap().modified().unwrap();
        let settled = Duration::from_nanos(wormhole::proto::Version::SETTLE_NS.unsigned_abs() + 100_000_000);
        std::thread::sleep(settled.saturating_sub(changed.elapsed().unwrap()));
    }

    /// A directory to mount on; made if need be.
    pub(super) fn mountpoint(&self, name: &str) -> PathBuf {
        let mountpoint = self.path(name);
        if mount_at(&mountpoint).is_none() {
            fs::create_dir_all(&mountpoint).unwrap();
        }
        mountpoint
    }

    /// `wormhole mount` of a source, with state and cache of this stage.
    pub(super) fn mount_command(&self, source: &str, mountpoint: &Path) -> Command {
        let mut command = wormhole();
        command.arg("mount").arg("--state-dir").arg(self.path("state"));
        command.arg("-o").arg(format!("ro,cache_dir={},cache_size=256M", self.path("cache").display()));
        command.arg(source).arg(mountpoint);
        command
    }

    /// Mounts by the ticket in its file.
    #[track_caller]
    pub(super) fn mount(&self, name: &str, options: &str) -> PathBuf {
        let mountpoint = self.mountpoint(name);
        let source = format!("@{}", self.path("ticket").display());
        succeeds(self.mount_command(&source, &mountpoint).args(["-o", options]));
        mountpoint
    }

    /// The report of the mount there.
    #[track_caller]
    pub(super) fn status(mountpoint: &Path) -> Value {
        let text = succeeds(wormhole().args(["status", "--json"]).arg(mountpoint));
        let reports: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(reports.as_array().unwrap().len(), 1, "{text}");
        reports[0].clone()
    }

    /// Fails unless mount, process and control socket are gone.
    #[track_caller]
    pub(super) fn nothing_is_left(mountpoint: &Path, status: &Value) {
        eventually("the mount is gone", || mount_at(mountpoint).is_none());
        let pid = status["pid"].as_u64().unwrap();
        eventually("the daemon is gone", || !is_alive(pid));
        let left: Vec<_> = fs::read_dir(control_dir())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.ends_with(&format!("-{pid}.sock")))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let below = self.folder.path().canonicalize().unwrap();
        for line in mount_table().lines() {
            let mountpoint = line.split(' ').nth(4).unwrap_or_default();
            if Path::new(mountpoint).starts_with(&below) {
                let _ = wormhole().args(["umount", "-f", mountpoint]).output();
            }
        }
        self.stop_host();
    }
}

/// Where the sockets of this user's daemons are.
pub(super) fn control_dir() -> PathBuf {
    wormhole::config::Environment::of_process().control_dir()
}

pub(super) fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// The line of the mount table about a mountpoint.
pub(super) fn mount_at(mountpoint: &Path) -> Option<String> {
    let name = mountpoint.to_str().unwrap();
    mount_table().lines().rev().find(|line| line.split(' ').nth(4) == Some(name)).map(str::to_owned)
}

/// Whether a process is there and not only waits to be waited for.
pub(super) fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
}
