//! Programs that wait for a host which does not answer: a signal ends each of them, and what they had written
//! is not lost.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::relay::Relay;
use crate::world::{Mount, World, noise, wait_until};

/// Every kind of call that may wait for the host.
const OPERATIONS: &[&str] = &[
    "stat",
    "open",
    "create",
    "read_direct",
    "read_pages",
    "fault",
    "readdir",
    "fsync",
    "close",
    "write_sync",
    "write_full",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "mkfifo",
    "symlink",
    "hardlink",
    "readlink",
    "truncate",
    "chmod",
    "utime",
    "setxattr",
    "getxattr",
    "fallocate",
    "seek_data",
    "copy",
    "lock",
    "try_lock",
    "unlock",
    "fsyncdir",
];

/// Operations that write a little, which reaches the host although its program has ended.
const WRITERS: [&str; 3] = ["fsync", "close", "write_sync"];

/// Time that a program needs to end at most: far more than it should be, far less than it would wait.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// Time after which a call that has not returned waits.
const WAITS: Duration = Duration::from_millis(1500);

/// Names in the folder of an operation.
const FURNITURE: [&str; 7] = ["big", "empty", "file", "gone", "link", "small", "sub"];

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What each operation works on, in a folder of its own: the kernel lets one change of a folder wait for
/// another.
fn furnish(source: &Path, operations: &[&str]) {
    for operation in operations {
        let folder = source.join(operation);
        fs::create_dir_all(folder.join("sub/deep")).unwrap();
        fs::create_dir(folder.join("empty")).unwrap();
        fs::write(folder.join("big"), noise(3_000_000, 1)).unwrap();
        fs::write(folder.join("small"), noise(900_000, 2)).unwrap();
        for name in ["file", "gone"] {
            fs::write(folder.join(name), b"content!").unwrap();
        }
        symlink("file", folder.join("link")).unwrap();
    }
    // They lie still for so long that a version names one content.
    std::thread::sleep(Duration::from_millis(2100));
}

struct Program {
    operation: &'static str,
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Program {
    fn start(mount: &Mount, operation: &'static str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/waits.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(operation)
            .arg(mount.path(operation))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { operation, child, said }
    }

    fn is_ready(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", self.operation);
    }

    fn go(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    /// How it ended after a signal, and how long that took.
    fn ended(&mut self, since: Instant) -> Option<(i32, Duration)> {
        while since.elapsed() < ENDS_WITHIN {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some((status.signal().unwrap_or(0), since.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

/// Has a program wait in each operation, sends it the signal, and asserts that it ends.
fn signals_end(signal: Signal, operations: &'static [&'static str]) {
    let world = World::new();
    furnish(&world.source(), operations);
    let host = world.host();
    let relay = Relay::start(host.listening);
    // Nothing but a signal ends a wait, and all that was looked up stays known to the kernel.
    let mount = world.mount(&host.ticket_for(relay.address()), "hard,nosoftreval,actimeo=600");
    let mut programs: Vec<_> = operations.iter().map(|operation| Program::start(&mount, operation)).collect();
    programs.iter_mut().for_each(Program::is_ready);
    relay.cut();
    let (full, others): (Vec<_>, Vec<_>) =
        programs.iter_mut().partition(|program| program.operation == "write_full");
    others.into_iter().for_each(Program::go);
    // What cannot be sent has a bound: a write behind it would wait, and end unwritten.
    let writers = WRITERS.iter().filter(|name| operations.contains(name)).count();
    wait_until("all have written", || mount.status()["unsent_bytes"] == writers * "written".len());
    full.into_iter().for_each(Program::go);
    std::thread::sleep(WAITS);
    let mut wrong = Vec::new();
    for Program { operation, child, .. } in &mut programs {
        if let Some(status) = child.try_wait().unwrap() {
            wrong.push(format!("{operation} does not wait: {status}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut longest = (Duration::ZERO, "");
    for program in &mut programs {
        let since = Instant::now();
        kill(Pid::from_raw(program.child.id() as i32), signal).unwrap();
        match program.ended(since) {
            Some((by, after)) if by == signal as i32 => {
                longest = longest.max((after, program.operation));
            }
            other => wrong.push(format!("{}: {other:?}", program.operation)),
        }
    }
    println!("{signal}: the longest wait was {longest:?}");
    relay.mend();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for operation in WRITERS.iter().filter(|name| operations.contains(name)) {
        let there = world.source().join(operation).join("file");
        wait_until("what a program had written is at the host", || fs::read(&there).unwrap() == b"written!");
    }
    for operation in operations {
        let (here, there) = (names(&mount.path(operation)), names(&world.source().join(operation)));
        assert_eq!(here, there, "{operation}");
        assert_eq!(there, FURNITURE, "{operation}: what was given up is not done later");
    }
    mount.umount();
}

#[test]
fn programs_that_are_killed_end_whatever_they_wait_for() {
    signals_end(Signal::SIGKILL, OPERATIONS);
}

#[test]
fn programs_that_are_told_to_end_do_so_whatever_they_wait_for() {
    signals_end(Signal::SIGTERM, OPERATIONS);
}

/// Python handles `SIGINT`, so that its call has to return.
#[test]
fn programs_that_handle_an_interrupt_get_their_call_back() {
    const HANDLED: &[&str] = &[
        "stat",
        "open",
        "create",
        "read_direct",
        "read_pages",
        "readdir",
        "fsync",
        "close",
        "write_full",
        "rename",
        "unlink",
        "mkdir",
        "truncate",
        "setxattr",
        "getxattr",
        "lock",
    ];
    signals_end(Signal::SIGINT, HANDLED);
}

/// The kernel lets one change of a folder wait for another, so their waits add up.
#[test]
fn programs_that_make_files_in_one_folder_wait_for_one_deadline_together() {
    const DEADLINE: Duration = Duration::from_secs(8);
    let world = World::new();
    fs::create_dir(world.source().join("folder")).unwrap();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let options = format!("timeo={},retrans=1", DEADLINE.as_millis() / 100);
    let mount = world.mount(&host.ticket_for(relay.address()), &options);
    fs::metadata(mount.path("folder")).unwrap();
    relay.cut();
    let since = Instant::now();
    let touch = |number: u32| {
        let path = mount.path("folder").join(number.to_string());
        Command::new("touch").arg(path).stderr(Stdio::null()).spawn().unwrap()
    };
    let programs: Vec<_> = (0..5).map(touch).collect();
    for mut program in programs {
        assert!(!program.wait().unwrap().success());
    }
    assert!(since.elapsed() >= DEADLINE / 2, "the host might have come back: {:?}", since.elapsed());
    assert!(since.elapsed() < DEADLINE * 4, "five waits took {:?}", since.elapsed());
    println!("five programs waited for {:?}", since.elapsed());
    relay.mend();
    wait_until("the host is heard again", || mount.status()["state"] == "connected");
    assert!(touch(9).wait().unwrap().success());
    assert_eq!(names(&world.source().join("folder")), ["9"]);
    mount.umount();
}

/// A program that starts another closes its copies of what it has open while the kernel holds a lock of it that readers of
/// its `/proc` files wait for. The daemon looks there for signals, and must not wait for a program that waits for it.
#[test]
fn a_program_that_starts_another_while_its_writes_are_on_their_way_stops_nobody() {
    const SCRIPT: &str = "import subprocess, sys\n\
        file = open(sys.argv[1], 'wb', buffering=0)\n\
        file.write(b'x' * 3_000_000)\n\
        print('written', flush=True)\n\
        sys.stdin.readline()\n\
        subprocess.run(['true'], close_fds=False, check=True)\n";
    let world = World::new();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    // More than the daemon has threads for its own work.
    let mut programs: Vec<Child> = (0..4)
        .map(|number| {
            let mut python = Command::new("python3");
            python.args(["-c", SCRIPT]).arg(mount.path(format!("file {number}")));
            python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    relay.narrow(100_000);
    for program in &mut programs {
        let mut line = String::new();
        BufReader::new(program.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "written\n");
        program.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
    // The daemon has looked at each by then.
    std::thread::sleep(WAITS);
    let states: Vec<_> = (0..3).map(|_| mount.status()["state"].clone()).collect();
    relay.narrow(u64::MAX);
    assert!(states.iter().all(|state| state != "unreachable"), "{states:?}");
    for program in &mut programs {
        assert!(program.wait().unwrap().success());
    }
    mount.umount();
}
