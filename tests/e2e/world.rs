//! A host, a mount and the folders they need; everything is taken down when dropped, also after a failed assertion.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wormhole::transport::{HostAddress, Ticket};

/// The binary under test.
pub(crate) const WORMHOLE: &str = env!("CARGO_BIN_EXE_wormhole");

/// How long anything may take that should be done at once; generous, because machines under test are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Folders of one test.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        assert!(
            Path::new("/dev/fuse").exists(),
            "there is no /dev/fuse here, so real mounts cannot be tested: load the fuse module or give the container the device"
        );
        let folder = tempfile::Builder::new().prefix("wormhole-e2e-").tempdir().unwrap();
        let world = Self { folder };
        fs::create_dir(world.source()).unwrap();
        world
    }

    /// What is exported.
    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// Any other path of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Hosts the source folder as `export`, on a free port.
    pub(crate) fn host(&self) -> Host {
        self.host_on("127.0.0.1:0", &[])
    }

    /// Hosts the source folder at an address, with more arguments.
    pub(crate) fn host_on(&self, listen: &str, arguments: &[&str]) -> Host {
        let mut child = Command::new(WORMHOLE)
            .args(["host", "--listen", listen, "--state-dir"])
            .arg(self.path("host-state"))
            .args(arguments)
            .arg(format!("export={}", self.source().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = |prefix: &str| {
            let line = lines.next().expect("the host ended before it was ready").unwrap();
            line.strip_prefix(prefix)
                .unwrap_or_else(|| panic!("{line:?} does not begin with {prefix:?}"))
                .to_owned()
        };
        let listening = line("listening: ").parse().unwrap();
        let identity = line("identity: ");
        let ticket = line("ticket: ");
        Host { child, listening, identity, ticket }
    }

    /// Mounts `source` (a ticket or an address), with options, on `mnt`.
    pub(crate) fn mount(&self, source: &str, options: &str) -> Mount {
        self.mount_as("mnt", source, options)
    }

    /// Mounts on another folder, with a client state and cache of the same world.
    pub(crate) fn mount_as(&self, name: &str, source: &str, options: &str) -> Mount {
        let (mount, output) = self.try_mount_as(name, source, options);
        assert!(output.status.success(), "mount failed: {}", words(&output));
        mount
    }

    /// Tries to mount; what came of it is for the caller to see.
    pub(crate) fn try_mount_as(&self, name: &str, source: &str, options: &str) -> (Mount, Output) {
        let point = self.path(name);
        fs::create_dir_all(&point).unwrap();
        let mut command = Command::new(WORMHOLE);
        command.args(["mount", source]).arg(&point);
        command.arg("--state-dir").arg(self.path("client-state")).arg("--cache-dir").arg(self.path("cache"));
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        (Mount { point }, output)
    }
}

/// A host process.
pub(crate) struct Host {
    pub(crate) child: Child,
    pub(crate) listening: SocketAddr,
    pub(crate) identity: String,
    pub(crate) ticket: String,
}

impl Host {
    /// The host's ticket with another address in it, such as a relay's.
    pub(crate) fn ticket_for(&self, address: SocketAddr) -> String {
        let ticket: Ticket = self.ticket.parse().unwrap();
        let address = HostAddress::new(&address.ip().to_string(), address.port()).unwrap();
        Ticket::new(vec![address], ticket.host_key(), ticket.export().to_owned(), ticket.secret())
            .unwrap()
            .to_string()
    }

    /// As a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mount; taken down by force when dropped.
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
}

impl Mount {
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    /// Takes the mount down as a person would, and checks that nothing of it is left.
    pub(crate) fn umount(&self) {
        let output = run("umount", &[self.point.to_str().unwrap()]);
        assert!(output.status.success(), "umount: {}", words(&output));
        assert!(!self.is_mounted());
        wait_until("the daemon has ended", || self.daemon().is_none());
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(1) == self.point.to_str())
    }

    /// The process id of the daemon behind this mount.
    pub(crate) fn daemon(&self) -> Option<i32> {
        let point = self.point.to_str().unwrap();
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            (arguments.contains("wormhole") && arguments.split('\0').any(|argument| argument == point))
                .then_some(pid)
        })
    }

    /// What `wormhole status --json` says of this mount.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = run(WORMHOLE, &["status", self.point.to_str().unwrap(), "--json"]);
        assert!(output.status.success(), "status: {}", words(&output));
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = all.as_array().expect("status prints a list").clone();
        let ours = all.into_iter().find(|one| one["mountpoint"].as_str() == self.point.to_str());
        ours.expect("the mount is in the list")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted() {
            run(WORMHOLE, &["umount", "-f", self.point.to_str().unwrap()]);
            if self.is_mounted() {
                run("umount", &["-l", self.point.to_str().unwrap()]);
            }
        }
    }
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}); is its package installed? .ci/run lists them")
    })
}

/// Runs a program which must succeed, and gives what it printed.
pub(crate) fn printed_by(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", words(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program said to people.
pub(crate) fn words(output: &Output) -> String {
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

/// Waits for something that must come.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < patience, "waited {} s in vain until {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that no codec and no luck makes equal: different for each seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
