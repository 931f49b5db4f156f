//! File systems below an export that hang, and mounts of wormhole there.
//!
//! A file system hangs because its process, `bindfs` or a mount of wormhole, is stopped. All looks at a mount are made by other
//! processes, which can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{Mount, WORMHOLE, World, mount_at, printed_by, run, wait_until, words, wormhole};

/// How long the host may take for a new mount to be known, and a little.
const MOUNT_IS_KNOWN: Duration = Duration::from_millis(1100);

/// A folder seen through a process. Dropped, the process is killed, which ends every call, and it is unmounted.
struct Through {
    process: Child,
    point: PathBuf,
}

impl Through {
    fn new(source: &Path, point: PathBuf) -> Self {
        let process = Command::new("bindfs").arg("-f").arg(source).arg(&point).stdin(Stdio::null()).spawn();
        let through = Self { process: process.expect("bindfs is needed"), point };
        wait_until("bindfs has mounted", || mount_at(&through.point).is_some());
        through
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let point = self.point.to_str().unwrap();
        if !run("fusermount3", &["-uz", point]).status.success() {
            run("umount", &["-l", point]);
        }
    }
}

/// A process that answers nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Self {
        let process = Pid::from_raw(process.cast_signed());
        kill(process, Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A program that waits for a file system; killed when dropped.
struct Waiting(Child);

impl Waiting {
    fn new(program: &str, path: &Path) -> Self {
        let silent = Stdio::null;
        let child = Command::new(program).arg(path).stdin(silent()).stdout(silent()).stderr(silent()).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // Not waited for: it ends with what it waits for.
    }
}

/// Mounts the export by a key of its own.
fn mount_by_key(world: &World, name: &str) -> Mount {
    let state = world.path("host-state");
    let new = ["pair", "new", "export", "--state-dir", state.to_str().unwrap(), "--json"];
    let made: serde_json::Value = serde_json::from_str(&printed_by(WORMHOLE, &new)).unwrap();
    let point = world.path(name);
    fs::create_dir_all(&point).unwrap();
    let mut command = wormhole();
    command.arg("mount").arg("--state-dir").arg(world.path(&format!("{}-state", name.replace('/', "-"))));
    command.args(["-o", "cache=none", made["ticket"].as_str().unwrap()]).arg(&point);
    let mount = Mount { point };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    mount
}

/// Runs a program that must come to its end in time.
#[track_caller]
fn ends(program: &str, arguments: &[&str]) -> String {
    printed_by("timeout", &[&["-k", "1", "60", program], arguments].concat())
}

#[test]
fn a_file_system_that_hangs_below_an_export_costs_nobody_else_and_the_daemon_ends() {
    let world = World::new();
    let (source, dead) = (world.path("source"), world.source().join("dead"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&dead).unwrap();
    fs::write(source.join("file"), vec![7; 1 << 20]).unwrap();
    fs::write(world.source().join("alive"), "x").unwrap();
    let mut host = world.host();
    let through = Through::new(&source, dead);
    let (asking, other) = (mount_by_key(&world, "asking"), mount_by_key(&world, "other"));
    ends("ls", &["-l", asking.path("dead").to_str().unwrap()]);
    let stopped = Stopped::new(through.process.id());
    let waiting: Vec<Waiting> =
        (0..100).map(|at| Waiting::new(["cat", "stat"][at % 2], &asking.path("dead/file"))).collect();
    wait_until("the key that asked waits on threads of its own", || {
        let status = host.status();
        status["keys"].as_array().unwrap().iter().any(|key| key["threads"][0].as_u64() > Some(0))
    });
    for number in 0..3 {
        // A change, so that the host is asked.
        ends("mkdir", &[other.path(format!("made-{number}")).to_str().unwrap()]);
        assert_eq!(ends("cat", &[other.path("alive").to_str().unwrap()]), "x");
        let newcomer = mount_by_key(&world, &format!("newcomer-{number}"));
        ends("stat", &[newcomer.path("alive").to_str().unwrap()]);
    }
    kill(Pid::from_raw(host.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    wait_until("the daemon has ended", || host.child.try_wait().unwrap().is_some());
    drop((waiting, stopped, through));
}

#[test]
fn an_export_that_holds_a_mount_of_wormhole_is_not_walked_in_circles() {
    let world = World::new();
    fs::write(world.source().join("beside"), "x").unwrap();
    let _host = world.host();
    let own = mount_by_key(&world, "export/own");
    std::thread::sleep(MOUNT_IS_KNOWN);
    let outer = mount_by_key(&world, "outer");
    let process = u32::try_from(own.status()["pid"].as_u64().unwrap()).unwrap();
    let path = |name: &str| outer.path(name).to_str().unwrap().to_owned();
    let look = || run("timeout", &["-k", "1", "60", "ls", &path("own")]);
    let looked = words(&look());
    assert!(looked.contains("is remote"), "EREMOTE: {looked}");
    ends("find", &[own.point.to_str().unwrap()]);
    // First the mount answers, then it does not.
    for is_stopped in [false, true] {
        let stopped = is_stopped.then(|| Stopped::new(process));
        let found = ends("find", &[outer.point.to_str().unwrap()]);
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        assert_eq!(found, [path("").trim_end_matches('/'), &path("beside")]);
        assert_eq!(look().status.code(), Some(2), "ls cannot access it");
        assert_eq!(ends("cat", &[&path("beside")]), "x");
        drop(stopped);
    }
}
