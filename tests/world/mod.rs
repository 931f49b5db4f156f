//! A host, a mount and the folders they need; everything is taken down when dropped, also after a failed assertion.

mod lan;
mod process;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::mount::MsFlags;
use serde_json::Value;
use tempfile::TempDir;
use wormhole::transport::{HostAddress, Ticket};

pub(crate) use lan::Lan;
pub(crate) use process::{
    WORMHOLE, can_mount, code, errors, is_alive, mount_at, mount_table, plain_users_can_mount, printed_by,
    run, succeeds, wait_until, words, wormhole,
};

/// Folders of one test.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        assert!(can_mount(), "this test is nothing without a mount");
        let folder = tempfile::Builder::new().prefix("wormhole-e2e-").tempdir().unwrap();
        let world = Self { folder };
        fs::create_dir(world.source()).unwrap();
        world
    }

    /// What is exported.
    pub(crate) fn source(&self) -> PathBuf {
        self.path("export")
    }

    /// Any other path of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// Hosts the source folder as `export`, on a free port.
    pub(crate) fn host(&self) -> Host {
        self.host_on("127.0.0.1:0", &[])
    }

    /// Hosts the source folder at an address, with more arguments.
    pub(crate) fn host_on(&self, listen: &str, arguments: &[&str]) -> Host {
        self.host_by(wormhole(), listen, arguments)
    }

    /// The same, where `command` becomes the program.
    pub(crate) fn host_by(&self, mut command: Command, listen: &str, arguments: &[&str]) -> Host {
        let mut child = command
            .args(["host", "--listen", listen, "--state-dir"])
            .arg(self.path("host-state"))
            .args(arguments)
            .arg(format!("export={}", self.source().display()))
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

    /// Mounts what a host exports for all users. Where the tests run as root, the client may choose owners on the host.
    pub(crate) fn mount_for_all(&self, host: &Host) -> Mount {
        if !nix::unistd::geteuid().is_root() {
            return self.mount(&host.ticket, "default_permissions");
        }
        for folder in [self.path(""), self.source()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.mount(&host.ticket, "").umount();
        let keys = self.path("host-state/authorized_keys");
        let text = fs::read_to_string(&keys).unwrap().replace(" exports=", " owners exports=");
        fs::write(&keys, text).unwrap();
        let mount = self.mount(&host.ticket, "allow_other");
        // A connection keeps what its key was allowed when it was made.
        let file = mount.path("somebody's");
        fs::write(&file, "").unwrap();
        chown(&file, Some(1), Some(1)).expect("the key may choose owners now");
        fs::remove_file(&file).unwrap();
        mount
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
        let mut command = self.mount_command(source, &point);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let output = command.output().unwrap();
        (Mount { point }, output)
    }
}

impl World {
    /// `wormhole mount` of a source, with state and cache of this world.
    pub(crate) fn mount_command(&self, source: &str, mountpoint: &Path) -> Command {
        let mut command = wormhole();
        command.arg("mount").arg("--state-dir").arg(self.path("client-state"));
        command.arg("-o").arg(format!("cache_dir={}", self.path("cache").display()));
        command.arg(source).arg(mountpoint);
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let below = self.path("");
        for line in mount_table().lines() {
            let mountpoint = line.split(' ').nth(4).unwrap_or_default();
            if Path::new(mountpoint).starts_with(&below) {
                take_down(mountpoint);
            }
        }
    }
}

/// By all means.
fn take_down(mountpoint: &str) {
    run(WORMHOLE, &["umount", "-f", mountpoint]);
    if mount_at(Path::new(mountpoint)).is_some() {
        run("umount", &["-l", mountpoint]);
    }
}

/// What `wormhole status --json` says of the mount there.
#[track_caller]
pub(crate) fn status_of(mountpoint: &Path) -> Value {
    let text = succeeds(wormhole().args(["status", "--json"]).arg(mountpoint));
    let reports: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reports.as_array().unwrap().len(), 1, "{text}");
    reports[0].clone()
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

    /// What `wormhole status --json` says of this host.
    pub(crate) fn status(&self) -> Value {
        let reports: Value = serde_json::from_str(&printed_by(WORMHOLE, &["status", "--json"])).unwrap();
        let ours = |report: &&Value| report["pid"].as_u64() == Some(u64::from(self.child.id()));
        reports.as_array().unwrap().iter().find(ours).expect("the host is in the list").clone()
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u64 {
        u64::from(self.child.id())
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
    /// Has the kernel forget what it knows of this mount and nobody uses, and waits until the daemon has heard it: a change of the
    /// mount's flags does so for this mount alone. Returns `false`, and says so, where only root may.
    pub(crate) fn is_forgotten_by_the_kernel(&self) -> bool {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("LEFT OUT: only root can have the kernel forget inodes");
            return false;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        nix::mount::mount(None::<&str>, &self.point, None::<&str>, flags, None::<&str>).unwrap();
        wait_until("the kernel has forgotten all inodes", || self.status()["inodes"] == 0);
        true
    }

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
        mount_at(&self.point).is_some()
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
    pub(crate) fn status(&self) -> Value {
        status_of(&self.point)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted() {
            take_down(self.point.to_str().unwrap());
        }
    }
}

/// Bytes that no codec and no luck makes equal: different for each seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
